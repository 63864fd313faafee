"""Messages between the daemon's processes: JSON objects and file descriptors over a SOCK_SEQPACKET
pair.

One packet is one message, so descriptors cannot slip to a neighbour. The other end may be a worker
that a pod took over: a reader never waits on a descriptor that it got, and what is no message, or a
queue that the other end lets grow, ends the channel.
"""

from __future__ import annotations

import asyncio
import collections
import fcntl
import logging
import os
import socket
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from nodeagent.errors import ControlError

MESSAGE_BYTES = 160_000
"""Below net.core.wmem_default on every kernel seen; a larger message goes as a memory file, whose
descriptor is sent.
"""
LARGEST_BYTES = 64 << 20
"""Of a message; a document's bound (1.5 MiB) keeps every entry of the snapshot far below."""
QUEUE_BYTES: Final = 512 << 20
QUEUE_DESCRIPTORS: Final = 16_384
"""What may wait for the other end, here and in the kernel; a new worker is sent the whole snapshot
and four listeners a pod.
"""
MESSAGES_AT_ONCE = 4
"""Read in one turn of the event loop: a large one takes a millisecond."""
DESCRIPTORS = 200
"""SCM_MAX_FD is 253."""

_IN_FILE = b"memory file"
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
Message = dict[str, Any]
Handler = Callable[[Message, list[int]], None]
log = logging.getLogger("nodeagent.channel")


@dataclass(frozen=True, slots=True)
class _Queued:
    payload: bytes
    descriptors: list[int]
    size: int
    """Of the message, wherever it stands."""


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

    ``handler(message, descriptors)`` owns the descriptors; ``closed()`` is called once when the
    other end is gone, or has sent what is no message, or does not take what it is sent.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, end: socket.socket, handler: Handler, closed: Callable[[], None]
    ) -> None:
        self._loop, self._end, self._handler, self._closed = loop, end, handler, closed
        self._queue: collections.deque[_Queued] = collections.deque()
        self._bytes = self._descriptors = 0
        """In the queue."""
        self._in_flight = 0
        """Descriptors that were sent since the other end had read everything."""
        self._open = True
        loop.add_reader(end.fileno(), self._readable)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue *message*; the descriptors are duplicated, so the caller may close its own at once.

        Raises ControlError for a message that no reader takes: over LARGEST_BYTES.
        """
        if not self._open:
            return
        payload, copies = orjson.dumps(message), [os.dup(descriptor) for descriptor in descriptors]
        size = len(payload)
        if size > LARGEST_BYTES:
            _close_all(copies)
            raise ControlError(f"a message of {size} bytes, at most {LARGEST_BYTES} are carried")
        if size > MESSAGE_BYTES:
            copies.insert(0, memory_file(payload))
            payload = _IN_FILE
        if copies and not self._unread():
            self._in_flight = 0
        self._queue.append(_Queued(payload, copies, size))
        self._bytes += size
        self._descriptors += len(copies)
        if len(self._queue) == 1:
            self._flush()
        if self._bytes > QUEUE_BYTES or self._descriptors + self._in_flight > QUEUE_DESCRIPTORS:
            log.error(
                "the other process does not read: %d bytes and %d descriptors wait",
                self._bytes,
                self._descriptors + self._in_flight,
            )
            self._lost()

    def _unread(self) -> bool:
        """Say whether the other end has something to read (SIOCOUTQ, unix(7))."""
        return any(fcntl.ioctl(self._end.fileno(), termios.TIOCOUTQ, bytes(4)))

    def close(self) -> None:
        """Close this end; queued messages are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        for queued in self._queue:
            _close_all(queued.descriptors)
        self._queue.clear()
        self._end.close()

    def _flush(self) -> None:
        while self._queue:
            queued = self._queue[0]
            try:
                socket.send_fds(self._end, [queued.payload], queued.descriptors)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._end.fileno(), self._flush)
                return
            except OSError:
                self._lost()
                return
            self._queue.popleft()
            self._bytes -= queued.size
            self._descriptors -= len(queued.descriptors)
            self._in_flight += len(queued.descriptors)
            _close_all(queued.descriptors)
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                payload, descriptors, _, _ = socket.recv_fds(
                    self._end, 2 * MESSAGE_BYTES, DESCRIPTORS + 1, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            if not payload:
                self._lost()
                return
            try:
                message = _message(payload, descriptors)
            except (ValueError, OSError) as error:
                _close_all(descriptors)
                log.error("the other process sent what is no message: %s", error)
                self._lost()
                return
            self._handler(message, descriptors)
            if not self._open:
                return

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._closed()


class Outbox:
    """The sending side of one end without an event loop, for a process that may never wait: whoever
    polls calls :meth:`flush`.

    It is true while something is queued. What cannot be sent because the other side is gone is
    dropped.
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


def memory_file(payload: bytes) -> int:
    """Return a descriptor of a file in memory that holds *payload*."""
    descriptor = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(payload)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _message(payload: bytes, descriptors: list[int]) -> Message:
    """Return what *payload*, or the memory file that is the first of *descriptors* in its stead,
    says. Raises ValueError, OSError.
    """
    if payload == _IN_FILE and descriptors:
        payload = read_memory_file(descriptors.pop(0))
    message = orjson.loads(payload)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def read_memory_file(descriptor: int) -> bytes:
    """Return the file's content and close it. Raises ValueError, OSError: only a sealed memory file
    neither blocks nor changes meanwhile.
    """
    try:
        # Anything else than a memory file has no seals (fcntl(2): EINVAL).
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("its memory file is not sealed")
        size = os.fstat(descriptor).st_size
        if size > LARGEST_BYTES:
            raise ValueError(f"its memory file has {size} bytes, at most {LARGEST_BYTES} are allowed")
        content = os.pread(descriptor, size, 0)
        if len(content) != size:
            raise ValueError("its memory file is shorter than it says")
        return content
    finally:
        os.close(descriptor)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
