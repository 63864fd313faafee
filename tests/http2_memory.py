"""What HTTP/2 makes a proxy hold: ``python -m tests.http2_memory``.

The proxy is a process of its own on loopback; clients and the endpoint, whose frames are made by
hand, are this one. Told is how much its resident memory grows, without the kernel's buffers: by one
client that stops to read an answer of 1 GiB, by connections that idle behind a request, and by
requests that nobody answers. Compiled (``make setup``) or not, as the tree is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from nodeagent.mesh.entries import Endpoint
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.session import STREAM_WINDOW
from nodeagent.vocabulary import Address, PodUid
from tests.unit.proxy.http2_wire import GET, SETTLED, read_frame
from tests.unit.proxy.stage import Stage
from tests.waiting import steady, until

CONNECTIONS: Final = 1000
STREAMS: Final = 10_000
ON_ONE: Final = 1000
"""Streams of each connection that has some."""
LARGE: Final = 1 << 30
TAKEN: Final = 64 << 20
"""Bytes of the large answer that are read, fast, before nothing more is."""
WHOLE: Final = wire.END_HEADERS | wire.END_STREAM
OK: Final = b"\x88"
PIECE: Final = bytes(wire.DEFAULT_FRAME)


class App:
    """The endpoint."""

    def __init__(self) -> None:
        self.answer = "at once"
        self.asked = 0
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = number = 0
        connection = wire.DEFAULT_WINDOW
        await reader.readexactly(len(wire.PREFACE))
        writer.write(wire.settings(((wire.MAX_CONCURRENT_STREAMS, STREAMS),)))
        while True:
            each = await read_frame(reader)
            if each.kind == wire.HEADERS:
                self.asked += 1
                if self.answer != "never":
                    flags = WHOLE if self.answer == "at once" else wire.END_HEADERS
                    writer.write(wire.frame(wire.HEADERS, flags, each.number, OK))
                stream = STREAM_WINDOW if self.answer == "large" else 0
                number = each.number
            elif each.kind == wire.WINDOW_UPDATE:
                more = int.from_bytes(each.payload, "big")
                stream += more if each.number else 0
                connection += 0 if each.number else more
            while self.sent < LARGE and min(stream, connection) >= len(PIECE):
                writer.write(wire.frame(wire.DATA, 0, number, PIECE))
                self.sent += len(PIECE)
                stream -= len(PIECE)
                connection -= len(PIECE)


class Proxy:
    """The process that is measured."""

    def __init__(self, endpoint: int) -> None:
        argv = [sys.executable, "-m", "tests.http2_memory", str(endpoint)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def client(self, streams: int = 1) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection on which that many requests were made, with windows that never end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        encoder = Encoder()
        widest = wire.settings(((wire.INITIAL_WINDOW_SIZE, wire.LARGEST_WINDOW),))
        more = wire.window_update(0, wire.LARGEST_WINDOW - wire.DEFAULT_WINDOW)
        writer.write(wire.PREFACE + SETTLED + widest + more)
        for number in range(1, 2 * streams, 2):
            writer.write(wire.frame(wire.HEADERS, WHOLE, number, encoder.encode(GET)))
        return reader, writer

    def end(self) -> None:
        self._process.communicate()


async def answered(reader: asyncio.StreamReader) -> None:
    """Wait for the end of an answer."""
    while True:
        each = await read_frame(reader)
        if each.kind in (wire.HEADERS, wire.DATA) and each.flags & wire.END_STREAM:
            return


def tell(what: str, grown: int, each: int = 0) -> None:
    by_one = f", {grown / each / 1000:.1f} kB each" if each else ""
    print(f"{what}: {grown / 1e6:.1f} MB{by_one}", flush=True)


async def measure() -> None:
    app = App()
    server = await asyncio.start_server(app.serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    try:
        reader, writer = await proxy.client()
        await answered(reader)
        before = proxy.resident()
        kept = [writer]
        app.answer = "large"
        reader, writer = await proxy.client()
        kept.append(writer)
        taken = 0
        while taken < TAKEN:
            taken += len(await reader.readexactly(1 << 20))
        await steady(lambda: app.sent)
        tell("a reader of 1 GiB that stops", proxy.resident() - before)
        print(
            f"(the endpoint has sent {(app.sent - taken) / 1e6:.1f} MB more than was read, sockets' buffers included)"
        )

        app.answer = "at once"
        before = proxy.resident()
        for _ in range(CONNECTIONS):
            reader, writer = await proxy.client()
            await answered(reader)
            kept.append(writer)
        tell(f"{CONNECTIONS:,} idle connections", proxy.resident() - before, CONNECTIONS)

        app.answer = "never"
        app.asked = 0
        before = proxy.resident()
        kept += [(await proxy.client(ON_ONE))[1] for _ in range(STREAMS // ON_ONE)]
        await until(lambda: app.asked == STREAMS)
        tell(f"{STREAMS:,} open streams of {STREAMS // ON_ONE} connections", proxy.resident() - before, STREAMS)
    finally:
        proxy.end()
        server.close()


async def be_proxy(endpoint: int) -> None:
    """Be the proxy in front of *endpoint* until standard input ends."""

    async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    stage = Stage(nobody, "http2", {})
    await stage.start()
    stage.log.log = lambda record: None  # type: ignore[method-assign]
    stage.publish((Endpoint(Address("127.0.0.1"), endpoint, PodUid("server")),))
    print(stage.front.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    uvloop.run(be_proxy(int(sys.argv[1])) if len(sys.argv) > 1 else measure())
