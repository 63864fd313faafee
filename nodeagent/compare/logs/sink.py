"""A server that takes ``_bulk`` and OTLP over HTTP and counts lines by their marker; a process of its own,
``python -m nodeagent.compare.logs.sink PORT [leftover]``, which prints its port; 0: a free one. With ``leftover`` it
runs behind all others of its core.

It answers as Elasticsearch does where all is well: with ``filter_path`` each item's status, without the
shortest answer. ``GET /counted`` tells what came, ``PUT /counted`` begins anew; after ``PUT /busy`` it answers 429
until then.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from nodeagent.compare.logs.lines import MARKER
from nodeagent.lab.linux import step_behind

_ROOM: Final = 16 << 20
"""Of a request, with its head."""
_PIECE: Final = 64 << 10
"""Bytes that are received at once: where the kernel does not preempt itself others of the core wait for more."""
_ITEM: Final = b'{"create":{"status":201}}'


@dataclass(slots=True)
class LinesCounted:
    """What came since it began; times are of the monotonic clock, in seconds."""

    lines: int = 0
    bytes: int = 0
    """Of bodies, as they were sent."""
    requests: int = 0
    first: float = 0.0
    last: float = 0.0
    """When the first and the last request with lines were whole."""


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    data: bytearray = field(default_factory=lambda: bytearray(_ROOM))
    filled: int = 0


class CountingSink:
    """Serves one socket, single-threaded."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._counted = LinesCounted()
        self._busy = False

    def serve(self) -> None:
        """Answer until the process is ended."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(accepted, selectors.EVENT_READ, _Client(accepted))

    def _read(self, client: _Client) -> None:
        with memoryview(client.data) as room:
            try:
                count = client.socket.recv_into(room[client.filled :], _PIECE)
            except ConnectionError:
                count = 0
        client.filled += count
        while count and (used := self._answered(client)):
            client.data[: client.filled - used] = client.data[used : client.filled]
            client.filled -= used
        if not count:
            self._selector.unregister(client.socket)
            client.socket.close()

    def _answered(self, client: _Client) -> int:
        """Answer the request at the beginning, if it is whole; return its bytes, 0: it is not."""
        head_end = client.data.find(b"\r\n\r\n", 0, min(client.filled, 1 << 14)) + 4
        if head_end < 4:
            return 0
        head = bytes(client.data[:head_end])
        fields = dict(_fields(head))
        if b"100-continue" in fields.get(b"expect", b"") and client.filled == head_end:
            client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        end = head_end + int(fields.get(b"content-length", b"0"))
        if fields.get(b"transfer-encoding") == b"chunked":
            end = client.data.find(b"\r\n0\r\n\r\n", head_end - 2, client.filled) + 7
            if end < 7:
                return 0
        if client.filled < end:
            return 0
        self._answer(client, head, head_end, end)
        return end

    def _answer(self, client: _Client, head: bytes, start: int, end: int) -> None:
        method, target, _ = head.split(b" ", 2)
        if target == b"/counted":
            if method == b"PUT":
                self._counted = LinesCounted()
                self._busy = False
            told = {name: getattr(self._counted, name) for name in LinesCounted.__slots__}
            _send(client, json.dumps(told).encode())
        elif target == b"/busy":
            self._busy = True
            _send(client, b"{}")
        elif self._busy:
            _send(client, b"", b"429 Too Many Requests")
        elif method in (b"POST", b"PUT"):
            lines = client.data.count(MARKER, start, end)
            self._count(lines, end - start)
            is_otlp = b"protobuf" in head
            kind = b"application/x-protobuf" if is_otlp else b"application/json"
            _send(client, b"" if is_otlp else _taken(target, lines), kind=kind)
        else:
            _send(client, b'{"name":"sink","version":{"number":"8.14.0","build_flavor":"default"}}')

    def _count(self, lines: int, size: int) -> None:
        counted = self._counted
        now = time.monotonic()
        if lines:
            counted.first = counted.first or now
            counted.last = now
        counted.lines += lines
        counted.bytes += size
        counted.requests += 1


def _taken(target: bytes, lines: int) -> bytes:
    if b"filter_path" not in target:
        return b'{"took":1,"errors":false,"items":[]}'
    return b'{"errors":false,"items":[' + b",".join([_ITEM] * lines) + b"]}"


def _send(client: _Client, body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> None:
    head = b"HTTP/1.1 %b\r\nX-Elastic-Product: Elasticsearch\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    try:
        client.socket.sendall(head % (status, kind, len(body)) + body)
    except ConnectionError:
        return


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    parts = [each.partition(b":") for each in head.split(b"\r\n")[1:]]
    return [(name.lower(), value.strip().lower()) for name, _, value in parts]


if __name__ == "__main__":
    if "leftover" in sys.argv[2:]:
        step_behind()
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as served:
        print(served.getsockname()[1], flush=True)
        CountingSink(served).serve()
