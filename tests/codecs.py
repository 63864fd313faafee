"""What the two HTTP/1 codecs cost a request, without a network: ``python -m tests.codecs``.

A client and an endpoint are connected once through the stage of the unit tests; then both codecs
get transports that only count what is written, and requests and answers are fed to them by hand.
Told are microseconds a request on this machine, the least of many rounds: what else runs only
ever adds. Compiled (``make setup``) or not, as the tree is; compare two trees in one sitting, in
turns.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Any, Final

import uvloop

from tests.unit.proxy.stage import Stage

REQUESTS: Final = 50
"""In a round, which is shorter than a turn of the scheduler on a busy machine."""
ROUNDS: Final = 1000

_HEAD: Final = (
    b" HTTP/1.1\r\nHost: web.default.svc.cluster.local\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nx-request-id: 8f2f3c54-7a35-4a8e-a1c5-0d6f0e1f2a3b\r\n"
)
_BODY: Final = b"x" * 1024
_ANSWER_FIELDS: Final = (
    b"content-type: application/json\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: app\r\n"
    b"cache-control: no-cache\r\n"
)
_GET: Final = b"GET /items/17?full=1" + _HEAD + b"\r\n"
_POST: Final = b"POST /items" + _HEAD + b"content-length: 1024\r\n\r\n" + _BODY
_CHUNKED: Final = b"POST /items" + _HEAD + b"transfer-encoding: chunked\r\n\r\n400\r\n" + _BODY + b"\r\n0\r\n\r\n"
_WHOLE: Final = b"HTTP/1.1 200 OK\r\n" + _ANSWER_FIELDS + b"content-length: 1024\r\n\r\n" + _BODY
_IN_CHUNKS: Final = (
    b"HTTP/1.1 200 OK\r\n" + _ANSWER_FIELDS + b"transfer-encoding: chunked\r\n\r\n400\r\n" + _BODY + b"\r\n0\r\n\r\n"
)
SHAPES: Final[dict[str, tuple[bytes, tuple[bytes, ...]]]] = {
    "GET, whole answer": (_GET, (_WHOLE,)),
    "GET, answer in two reads": (_GET, (_WHOLE[:600], _WHOLE[600:])),
    "GET, chunked answer": (_GET, (_IN_CHUNKS,)),
    "POST of 1 KiB, whole answer": (_POST, (_WHOLE,)),
    "POST in chunks, chunked answer": (_CHUNKED, (_IN_CHUNKS,)),
}
"""What is asked, and the reads by which the answer comes."""


class _Transport:
    """Counts the bytes that are written to it."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        raise AssertionError("nothing here waits for anybody")

    resume_reading = close = abort = pause_reading


async def _application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(_WHOLE)
    await reader.read()


async def _measured() -> dict[str, float]:
    stage = Stage(_application, "http", {})
    await stage.start()
    reader, writer = await stage.connect()
    writer.write(_GET)
    await reader.readexactly(len(_WHOLE))
    (connection,) = stage.context.connections.values()
    (route,) = connection.routes
    downstream, (upstream,) = connection.carriage, route.pool.idle()
    kept = downstream.transport, upstream.transport
    client, endpoint = _Transport(), _Transport()
    downstream.transport, downstream.write = client, client.write
    upstream.attach(endpoint)
    stage.context.access_log = None
    told = {name: min(_round(downstream, upstream, *shape) for _ in range(ROUNDS)) for name, shape in SHAPES.items()}
    assert client.written > 1024 * REQUESTS * ROUNDS * len(SHAPES) < 5 * endpoint.written
    downstream.transport, upstream.transport = kept
    upstream.transport.abort()
    await stage.stop()
    return told


def _round(downstream: Any, upstream: Any, request: bytes, answer: tuple[bytes, ...]) -> float:
    """Return what one of REQUESTS costs, in microseconds."""
    started = perf_counter()
    for _ in range(REQUESTS):
        downstream.data_received(request)
        for read in answer:
            upstream.data_received(read)
    return 1e6 * (perf_counter() - started) / REQUESTS


def main() -> None:
    """Print a line a shape."""
    for name, microseconds in uvloop.run(_measured()).items():
        sys.stdout.write(f"{name:<32} {microseconds:6.2f} µs\n")


if __name__ == "__main__":
    main()
