"""The HTTP server of server.py: HTTP/1.1 by hand, so that a test can have every form of answer."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct

from streams import digest, pieces, pour

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Headers = dict[str, str]


async def http(reader: Reader, writer: Writer) -> None:
    """Serve requests until the client or the answer ends the connection."""
    while head := await _head(reader):
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = await _body(reader, headers)
        kind, *arguments = target.partition("?")[0].strip("/").split("/")
        if kind == "upgrade":
            await _upgrade(reader, writer)
            return
        seen = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
        request = {
            "method": method,
            "target": target,
            "headers": headers,
            "trailers": trailers,
            "length": len(body),
            "pod": socket.gethostname(),
            "seen": seen,
        }
        if not await _answer(writer, method, kind, arguments, body, request):
            return
        if headers.get("connection", "").lower() == "close":
            return


async def _head(reader: Reader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
    except asyncio.IncompleteReadError:
        return ""


async def _body(reader: Reader, headers: Headers) -> tuple[bytes, Headers]:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0))), {}
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    trailers = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        trailers[name.lower()] = value.strip()
    return body, trailers


async def _answer(
    writer: Writer, method: str, kind: str, arguments: list[str], body: bytes, request: dict[str, object]
) -> bool:
    """Write one answer; False: the connection ends with it."""
    numbers = [int(argument) for argument in arguments if argument.isdigit()]
    if kind == "length":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % numbers[0])
        await pour(writer, numbers[1], numbers[0])
    elif kind == "chunked":
        await _chunked(writer, *numbers)
    elif kind == "until-close":
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        await pour(writer, numbers[1], numbers[0])
        return False
    elif kind == "status":
        writer.write(b"HTTP/1.1 %d Some Phrase\r\ncontent-length: 0\r\n\r\n" % numbers[0])
    elif kind == "hints":
        writer.write(
            b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 "
            b"OK\r\ncontent-length: 2\r\n\r\nok"
        )
    elif kind == "half":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000)
        await asyncio.Event().wait()
    elif kind == "never":
        await asyncio.Event().wait()
    elif kind == "drip":
        await _drip(writer, numbers[0])
    elif kind == "slam":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False
    elif kind == "garbage":
        writer.write(b"this is not HTTP\r\n\r\n")
        return False
    else:
        data = json.dumps(request).encode() if kind == "about" else body
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-pod: %b\r\n\r\n" % (len(data), socket.gethostname().encode())
        )
        if kind == "pause":  # there is a time at which the answer has begun and not ended
            await asyncio.sleep(0.02)
        writer.write(b"" if method == "HEAD" else data)
    await writer.drain()
    return True


async def _chunked(writer: Writer, size: int, seed: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-digest\r\n\r\n")
    for piece in pieces(seed, size):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\nx-digest: %b\r\n\r\n" % digest(seed, size).encode())


async def _drip(writer: Writer, count: int) -> None:
    """A chunk now and then: the client must see each when it is sent, not when all are there."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for number in range(count):
        data = b"%d\n" % number
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(0.01 + random.random() / 50)
    writer.write(b"0\r\n\r\n")


async def _upgrade(reader: Reader, writer: Writer) -> None:
    """Leave HTTP, as a WebSocket does, and echo."""
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: test\r\n\r\nwelcome")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
