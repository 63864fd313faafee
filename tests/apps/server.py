"""The application of a pod in the end-to-end tests: one small server per behaviour, each on a port
of its own.

8080  HTTP, see web.py                  9003  resets the connection at the first byte
9000  echo                              9004  silent until the client has half-closed, then says what it got
9001  both directions at once           9005  UDP echo
9002  greets before it is asked         9006  writes to its log how each connection ended
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

from streams import drink, pour
from web import http

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def reset(writer: Writer) -> None:
    """End a connection with a RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def duplex(reader: Reader, writer: Writer) -> None:
    """``SEED EXPECT SEND``: send SEND bytes while EXPECT bytes come, then the digest of what came."""
    seed, expect, send = map(int, (await reader.readline()).split())
    sending = asyncio.create_task(pour(writer, seed + 1, send))
    got = await drink(reader, expect)
    await sending
    writer.write(got.encode())
    await writer.drain()


async def greet(reader: Reader, writer: Writer) -> None:
    peer = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
    writer.write(f"220 {socket.gethostname()} greets {peer}\r\n".encode())
    await echo(reader, writer)


async def slam(reader: Reader, writer: Writer) -> None:
    await reader.read(1)
    reset(writer)


async def hush(reader: Reader, writer: Writer) -> None:
    data = await reader.read()
    writer.write(b"got %d" % len(data))
    await writer.drain()


async def watch(reader: Reader, writer: Writer) -> None:
    writer.write(b"hello")
    try:
        data = await reader.read()
        print(f"watch: end after {data.decode()}", flush=True)
    except ConnectionResetError:
        print("watch: reset", flush=True)


class UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.send = transport.sendto

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.send(data, address)


def quietly(behaviour):
    """A client that goes away is no fault of the server."""

    async def run(reader: Reader, writer: Writer) -> None:
        try:
            await behaviour(reader, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            writer.transport.abort()

    return run


async def main() -> None:
    for port, behaviour in {
        8080: http,
        9000: echo,
        9001: duplex,
        9002: greet,
        9003: slam,
        9004: hush,
        9006: watch,
    }.items():
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        await asyncio.start_server(quietly(behaviour), sock=listener, limit=1 << 20)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.bind(("::", 9005))
    await asyncio.get_running_loop().create_datagram_endpoint(UdpEcho, sock=udp)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
