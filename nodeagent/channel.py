"""Messages between the daemon's processes: JSON objects and file descriptors over a SOCK_SEQPACKET pair.

One packet is one message, so descriptors cannot slip to a neighbour. A reader never trusts a descriptor count: what
it did not expect, it closes.
"""

from __future__ import annotations

import asyncio
import collections
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import orjson

MESSAGE_BYTES = 160_000
"""Below net.core.wmem_default on every kernel seen; a larger message goes as a memory file, whose descriptor is sent."""
LARGEST_BYTES = 64 << 20
MESSAGES_AT_ONCE = 4
"""Read in one turn of the event loop: a large one takes a millisecond."""
DESCRIPTORS = 200
"""SCM_MAX_FD is 253."""

_IN_FILE = b"memory file"
Message = dict[str, Any]
Handler = Callable[[Message, list[int]], None]


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected, non-blocking ends; neither survives an exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 4 * MESSAGE_BYTES)
    return ends


class Channel:
    """One end of a channel on an event loop.

    ``handler(message, descriptors)`` owns the descriptors; ``closed()`` is called once when the other end is gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, end: socket.socket, handler: Handler, closed: Callable[[], None]) -> None:
        self._loop, self._end, self._handler, self._closed = loop, end, handler, closed
        self._queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._open = True
        loop.add_reader(end.fileno(), self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue *message*; the descriptors are duplicated, so the caller may close its own at once."""
        if not self._open:
            return
        payload, copies = orjson.dumps(message), [os.dup(descriptor) for descriptor in descriptors]
        if len(payload) > MESSAGE_BYTES:
            copies.insert(0, _memory_file(payload))
            payload = _IN_FILE
        self._queue.append((payload, copies))
        if len(self._queue) == 1:
            self._flush()

    def close(self) -> None:
        """Close this end; queued messages are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        self._end.close()

    def _flush(self) -> None:
        while self._queue:
            payload, descriptors = self._queue[0]
            try:
                socket.send_fds(self._end, [payload], descriptors)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._end.fileno(), self._flush)
                return
            except OSError:
                self._lost()
                return
            self._queue.popleft()
            _close_all(descriptors)
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                payload, descriptors, _, _ = socket.recv_fds(self._end, 2 * MESSAGE_BYTES, DESCRIPTORS + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            if not payload:
                self._lost()
                return
            if payload == _IN_FILE and descriptors:
                payload = _read_memory_file(descriptors.pop(0))
            self._handler(orjson.loads(payload), descriptors)
            if not self._open:
                return

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._closed()


class Outbox:
    """The sending side of one end without an event loop, for a process that may never wait: whoever polls calls :meth:`flush`.

    It is true while something is queued. What cannot be sent because the other side is gone is dropped.
    """

    def __init__(self, end: socket.socket) -> None:
        """*end*: non-blocking."""
        self._end = end
        self._queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue *message*, which fits a packet; the descriptors are duplicated."""
        self._queue.append((orjson.dumps(message), [os.dup(descriptor) for descriptor in descriptors]))
        self.flush()

    def flush(self) -> None:
        """Send what the other side has room for."""
        while self._queue:
            payload, descriptors = self._queue[0]
            try:
                socket.send_fds(self._end, [payload], descriptors)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            self._queue.popleft()
            _close_all(descriptors)

    def close(self) -> None:
        """Drop what is queued."""
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()


def _memory_file(payload: bytes) -> int:
    """Return a descriptor of a file in memory that holds *payload*."""
    descriptor = os.memfd_create("message", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(payload)
    return descriptor


def _read_memory_file(descriptor: int) -> bytes:
    """Return at most LARGEST_BYTES of the file and close it; the sender may be a worker that was taken over."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read(LARGEST_BYTES)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
