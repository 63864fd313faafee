"""The client of the end-to-end tests, run in a pod: does one thing and prints what came of it as
JSON lines.

client.py dial HOST PORT [--send TEXT] [--half-close | --reset | --linger] [--source ADDRESS] [--ring]
client.py forge HOST PORT --source ADDRESS      a SYN by a raw socket, as from another's address
client.py duplex HOST PORT --seed S --send N --receive N [--connections C] [--stall]
client.py hold HOST PORT [--connections C]      echo; stays open until a line comes on standard input, then echoes again
client.py http HOST PORT --raw                  standard input is sent as it is; prints what comes back
client.py load HOST PORT [--connections C] [--fresh] [--kind pause]   HTTP POST, every answer checked, till stdin ends
client.py knock HOST PORT [--connections C]     a new connection for each echo, until standard input ends
client.py udp HOST PORT
client.py put HOST PORT --seed S --send-bytes N   PUT /file and GET it again, with blocking sockets
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import hashlib
import http.client
import json
import os
import socket
import struct
import sys
import traceback
from collections.abc import Awaitable, Callable

import uring
from forged import syn
from streams import blocks, digest, drink, pour

PATIENCE = 60.0
"""Seconds after which an exchange that hangs is given up; no client lives longer than five times that."""


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def name_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__


async def line_from_stdin() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


def connected(options: argparse.Namespace) -> socket.socket:
    """Connect, from a source address or by io_uring if so asked."""
    sock = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET, socket.SOCK_STREAM)
    if options.source:
        sock.bind((options.source, 0))
    if options.ring:
        uring.connect(sock, options.host, options.port, polled=True)
    else:
        sock.connect((options.host, options.port))
    return sock


async def forge(options: argparse.Namespace) -> None:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw_socket:
        raw_socket.sendto(syn(options.source, 40000, options.host, options.port), (options.host, 0))
    say(sent=True)


async def dial(options: argparse.Namespace) -> None:
    """Connect, send, read to the end."""
    result: dict[str, object] = {"received": ""}
    try:
        reader, writer = await asyncio.open_connection(sock=connected(options))
    except OSError as error:
        say(**result, error=name_of(error))
        return
    result["peer"] = list((writer.get_extra_info("peername") or ())[:2])  # none where it was reset at once
    result["local"] = writer.get_extra_info("sockname")[0]
    received = b""
    try:
        writer.write(options.send.encode())
        if options.half_close:
            writer.write_eof()
        if options.linger:
            received = await reader.read(4096)
            say(received=received.decode())
            await line_from_stdin()
        if options.reset:
            received = await reader.read(4096)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            result["ended"] = "by us"
        else:
            while data := await reader.read(65536):
                received += data
                if options.until and options.until.encode() in received:
                    break
            result["ended"] = "end"
    except OSError as error:
        result["ended"] = name_of(error)
    say(**{**result, "received": received.decode("latin-1")})
    writer.transport.abort()


async def duplex(options: argparse.Namespace) -> None:
    """Transfer in both directions at once on every connection; say which arrived whole."""
    outcomes = await asyncio.gather(
        *(one_duplex(options, options.seed + 10 * number) for number in range(options.connections))
    )
    say(ok=outcomes.count("ok"), bad=[outcome for outcome in outcomes if outcome != "ok"][:5])


async def one_duplex(options: argparse.Namespace, seed: int) -> str:
    try:
        reader, writer = await asyncio.open_connection(options.host, options.port)
        writer.write(f"{seed} {options.send_bytes} {options.receive_bytes}\n".encode())
        sending = asyncio.create_task(pour(writer, seed, options.send_bytes))
        if options.stall:
            say(stalled=True)
            await line_from_stdin()
        got = await drink(reader, options.receive_bytes)
        await sending
        server_got = (await reader.read()).decode()
        writer.close()
    except OSError as error:
        return name_of(error)
    if got != digest(seed + 1, options.receive_bytes):
        return "what came is not what was sent"
    return "ok" if server_got == digest(seed, options.send_bytes) else "the server got something else"


async def hold(options: argparse.Namespace) -> None:
    """Open connections, echo on each, wait for a line, echo on each again, and so on; say how many still live."""
    connections = []
    for start in range(0, options.connections, 100):
        batch = range(start, min(start + 100, options.connections))
        connections += await asyncio.gather(*(asyncio.open_connection(options.host, options.port) for _ in batch))
    while True:
        outcomes = await asyncio.gather(*(echo(*connection, number) for number, connection in enumerate(connections)))
        say(ok=outcomes.count("ok"), bad=sorted({outcome for outcome in outcomes if outcome != "ok"}))
        if not await line_from_stdin():
            return


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> str:
    try:
        text = f"connection {number}\n".encode()
        writer.write(text)
        return "ok" if await reader.readexactly(len(text)) == text else "another's bytes"
    except (OSError, asyncio.IncompleteReadError) as error:
        return name_of(error)


async def raw(options: argparse.Namespace) -> None:
    """Send standard input, print what comes until the other side is silent for its end."""
    reader, writer = await asyncio.open_connection(options.host, options.port)
    writer.write(sys.stdin.buffer.read())
    while data := await reader.read(65536):
        sys.stdout.buffer.write(data)
    writer.transport.abort()


async def load(options: argparse.Namespace) -> None:
    """Send requests on every connection until standard input ends; every answer must be the echo of its request.

    Between two of them each client pauses: without that it would take the processors from what is
    started, reloaded or killed meanwhile, which is what the test is about.
    """
    await several(one_load, options)


async def knock(options: argparse.Namespace) -> None:
    """Echo over one connection after the other until standard input ends."""
    await several(one_knock, options)


async def several(client: Callable[..., Awaitable[None]], options: argparse.Namespace) -> None:
    """Run as many clients until standard input ends, and say what came of it when asked, and in the end."""
    stop = asyncio.Event()
    counts: dict[str, int] = {"ok": 0}
    clients = [asyncio.ensure_future(client(options, number, stop, counts)) for number in range(options.connections)]
    while not any(counts.values()):
        await asyncio.sleep(0.01)
    say(started=True)
    while await line_from_stdin():
        say(**counts)
    stop.set()
    await asyncio.gather(*clients)
    say(**counts)


async def one_load(options: argparse.Namespace, number: int, stop: asyncio.Event, counts: dict[str, int]) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    sequence = 0
    while not stop.is_set():
        sequence += 1
        body = f"request {sequence} of client {number}".encode()
        close = b"connection: close\r\n" if options.fresh else b""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = connection = connection or await asyncio.open_connection(options.host, options.port)
                writer.write(
                    b"POST /%b HTTP/1.1\r\nhost: load\r\ncontent-length: %d\r\n%b\r\n%b"
                    % (options.kind.encode(), len(body), close, body)
                )
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                answer = await reader.readexactly(length)
            status = head.partition(b"\r\n")[0].decode()
            outcome = "ok" if " 200 " in status and answer == body else f"{status}: {answer[:40]!r}"
            if options.fresh or b"connection: close" in head:
                writer.close()
                connection = None
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcome = name_of(error)
            if isinstance(error, asyncio.IncompleteReadError):
                outcome += f" after {error.partial[:200]!r}"
            if connection:
                connection[1].transport.abort()
            connection = None
        counts[outcome] = counts.get(outcome, 0) + 1
        await asyncio.sleep(options.pause)


async def one_knock(options: argparse.Namespace, number: int, stop: asyncio.Event, counts: dict[str, int]) -> None:
    while not stop.is_set():
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(options.host, options.port)
                outcome = await echo(reader, writer, number)
            writer.close()
        except (OSError, TimeoutError) as error:
            outcome = name_of(error)
        counts[outcome] = counts.get(outcome, 0) + 1
        await asyncio.sleep(options.pause)


async def udp(options: argparse.Namespace) -> None:
    family, kind, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.settimeout(60)
        sock.sendto(b"datagram", address)
        data, sender = sock.recvfrom(100)
    say(received=data.decode(), sender=sender[0])


async def put(options: argparse.Namespace) -> None:
    connection = http.client.HTTPConnection(options.host, options.port, timeout=PATIENCE / 2)
    connection.request("PUT", "/file", b"".join(blocks(options.seed, options.send_bytes)))
    response = connection.getresponse()
    response.read()
    connection.request("GET", "/file")
    back = hashlib.sha256(connection.getresponse().read()).hexdigest()
    say(status=response.status, same=back == digest(options.seed, options.send_bytes))


COMMANDS = {
    "dial": dial,
    "forge": forge,
    "duplex": duplex,
    "hold": hold,
    "http": raw,
    "load": load,
    "knock": knock,
    "udp": udp,
    "put": put,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--send", default="")
    parser.add_argument("--source", default="")
    parser.add_argument("--until", default="")
    parser.add_argument("--kind", default="echo", choices=("echo", "pause"))
    for flag in ("half-close", "reset", "linger", "stall", "fresh", "ring"):
        parser.add_argument(f"--{flag}", action="store_true")
    for number in ("seed", "send-bytes", "receive-bytes"):
        parser.add_argument(f"--{number}", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.005)
    options = parser.parse_args()
    try:
        asyncio.run(asyncio.wait_for(COMMANDS[options.command](options), 5 * PATIENCE))
    except BaseException:  # noqa: BLE001 - told here, because the process ends the hard way
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # a thread may still wait for standard input


if __name__ == "__main__":
    main()
