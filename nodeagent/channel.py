"""Carries messages (``messages.py``) between the daemon's processes: JSON objects and file descriptors
over a SOCK_SEQPACKET pair.

One packet is one message, so descriptors cannot slip to a neighbour. The other end may be a worker
that a pod took over: a reader never waits on a descriptor that it got, nothing is heard after what
is no message, and a queue that the other end lets grow ends the channel.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import fcntl
import logging
import os
import socket
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from nodeagent.errors import ControlError
from nodeagent.wire import LARGEST_BYTES, FileDescriptor, MessageDecoder, MessageError, encode

MESSAGE_BYTES = 160_000
"""Below net.core.wmem_default on every kernel seen; a larger message goes as a memory file, whose
descriptor is sent.
"""
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
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})
"""By which the kernel says that nobody is at the other end (unix(7))."""
Heard = TypeVar("Heard")
Told = TypeVar("Told")
log = logging.getLogger("nodeagent.channel")


@dataclass(frozen=True, slots=True)
class _Queued:
    payload: bytes
    descriptors: list[FileDescriptor]
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


class Channel(Generic[Heard, Told]):
    """One end of a channel on an event loop, which reads messages of one direction and sends those
    of the other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: socket.socket,
        decoder: MessageDecoder[Heard],
        *,
        heard: Callable[[Heard], None],
        misunderstood: Callable[[MessageError], None],
        closed: Callable[[], None],
    ) -> None:
        """*end* belongs to the channel from now on; what it reads are messages of *decoder*.

        *heard* gets each message, and owns its descriptors. *misunderstood* is called once, for a
        packet that is no message, or whose descriptors this process had no room for: nothing that
        follows is heard, since what was lost may be half of it, and one of the two processes has to
        be replaced; which is decided there. *closed* is called once, when the other end is gone or
        does not take what it is sent.
        """
        self._loop = loop
        self._end = end
        self._decoder = decoder
        self._heard = heard
        self._misunderstood = misunderstood
        self._closed = closed
        self._queue: collections.deque[_Queued] = collections.deque()
        self._bytes = 0
        """In the queue."""
        self._descriptors = 0
        """In the queue."""
        self._in_flight = 0
        """Descriptors that were sent since the other end had read everything."""
        self._open = True
        self._deaf = False
        """After what was no message."""
        loop.add_reader(end.fileno(), self._readable)

    def send(self, message: Told) -> None:
        """Queue *message*; its descriptors are duplicated, so the caller may close its own at once.

        Raises ControlError for a message that no reader takes: over LARGEST_BYTES. Raises OSError
        where this process may have no more descriptors.
        """
        if not self._open:
            return
        payload, descriptors = encode(message)
        size = len(payload)
        if size > LARGEST_BYTES:
            raise ControlError(f"a message of {size} bytes, at most {LARGEST_BYTES} are carried")
        copies = duplicated(descriptors)
        if size > MESSAGE_BYTES:
            try:
                copies.insert(0, memory_file(payload))
            except OSError:
                close_all(copies)
                raise
            payload = _IN_FILE
        if copies and not self._unread():
            self._in_flight = 0
        self._queue.append(_Queued(payload, copies, size))
        self._bytes += size
        self._descriptors += len(copies)
        if len(self._queue) == 1:
            self._flush()
        waiting = self._descriptors + self._in_flight
        if self._bytes > QUEUE_BYTES or waiting > QUEUE_DESCRIPTORS:
            log.error("the other process does not read: %d bytes and %d descriptors wait", self._bytes, waiting)
            self._lost()

    def _unread(self) -> bool:
        """Say whether the other end has something to read (SIOCOUTQ, unix(7))."""
        return any(fcntl.ioctl(self._end.fileno(), termios.TIOCOUTQ, bytes(4)))

    def hear_out(self) -> None:
        """The other end is dead, which is known: hear what it had said, and close."""
        self._closed = _known
        while self._open and not self._deaf and self._read():
            """Its last words count."""
        self.close()

    def close(self) -> None:
        """Close this end; queued messages are dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._drop()
        self._end.close()

    def _drop(self) -> None:
        for queued in self._queue:
            close_all(queued.descriptors)
        self._queue.clear()
        self._bytes = self._descriptors = 0

    def _flush(self) -> None:
        while self._queue:
            queued = self._queue[0]
            try:
                socket.send_fds(self._end, [queued.payload], queued.descriptors)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._end.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno not in _GONE:
                    self._lost()
                    return
                self._drop()  # its end is heard where it is read, after what it had said
                break
            self._queue.popleft()
            self._bytes -= queued.size
            self._descriptors -= len(queued.descriptors)
            self._in_flight += len(queued.descriptors)
            close_all(queued.descriptors)
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            if not self._read():
                return

    def _read(self) -> bool:
        """Hear one message; say whether there may be more."""
        try:
            try:
                packet = receive(self._end)
            except ConnectionResetError:
                packet = receive(self._end)  # told once of an end that had not read everything; what it sent follows
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._lost()
            return False
        if not packet.payload:
            self._lost()
            return False
        try:
            message = decode(packet, self._decoder)
        except MessageError as error:
            self._deaf = True
            self._loop.remove_reader(self._end.fileno())
            self._misunderstood(error)
            return False
        self._heard(message)
        return self._open

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._closed()


def _known() -> None:
    """Nobody needs to be told that the other end is gone."""


class Outbox(Generic[Told]):
    """The sending side of one end without an event loop, for a process that may never wait: whoever
    polls calls :meth:`flush`.

    It is true while something is queued. What cannot be sent because the other side is gone is
    dropped.
    """

    def __init__(self, end: socket.socket) -> None:
        """*end*: non-blocking."""
        self.lost = False
        """What was queued was dropped though the other side is there: the kernel had no room for it."""
        self._end = end
        self._queue: collections.deque[tuple[bytes, list[FileDescriptor]]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def send(self, message: Told) -> None:
        """Queue *message*, which fits a packet; its descriptors are duplicated.

        Raises OSError where this process may have no more descriptors.
        """
        payload, descriptors = encode(message)
        self._queue.append((payload, duplicated(descriptors)))
        self.flush()

    def flush(self) -> None:
        """Send what the other side has room for."""
        while self._queue:
            payload, descriptors = self._queue[0]
            try:
                socket.send_fds(self._end, [payload], descriptors)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.lost = error.errno not in _GONE
                self.close()
                return
            self._queue.popleft()
            close_all(descriptors)

    def close(self) -> None:
        """Drop what is queued."""
        for _, descriptors in self._queue:
            close_all(descriptors)
        self._queue.clear()


@dataclass(frozen=True, slots=True)
class Packet:
    """What stood in a channel: its bytes, none at its end, and the descriptors, which are ours now."""

    payload: bytes
    descriptors: list[FileDescriptor]
    truncated: bool
    """There were more descriptors than this process may have."""


def receive(end: socket.socket) -> Packet:
    """Return the next packet. Raises OSError; BlockingIOError where there is none."""
    payload, descriptors, flags, _ = socket.recv_fds(end, 2 * MESSAGE_BYTES, DESCRIPTORS + 1, socket.MSG_CMSG_CLOEXEC)
    owned = [FileDescriptor(descriptor) for descriptor in descriptors]
    return Packet(payload, owned, bool(flags & socket.MSG_CTRUNC))


def decode(packet: Packet, decoder: MessageDecoder[Heard]) -> Heard:
    """Return the message of *packet*, or of the memory file that it brings in its stead.

    Raises MessageError; the packet's descriptors are closed then.
    """
    payload = packet.payload
    descriptors = packet.descriptors
    try:
        if packet.truncated:
            raise MessageError("its descriptors were more than this process may have, or than a message has")
        if payload == _IN_FILE and descriptors:
            payload = read_memory_file(descriptors.pop(0), decoder.largest)
        return decoder.decode(payload, descriptors)
    except MessageError:
        close_all(descriptors)
        raise
    except (ValueError, OSError) as error:
        close_all(descriptors)
        raise MessageError(f"it cannot be read: {error}") from None


def memory_file(payload: bytes) -> FileDescriptor:
    """Return a descriptor of a file in memory that holds *payload*. Raises OSError."""
    descriptor = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(payload)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return FileDescriptor(descriptor)


def read_memory_file(descriptor: int, largest: int = LARGEST_BYTES) -> bytes:
    """Return the file's content, of at most *largest* bytes, and close it. Raises ValueError,
    OSError: only a sealed memory file neither blocks nor changes meanwhile.
    """
    try:
        # Anything else than a memory file has no seals (fcntl(2): EINVAL).
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("its memory file is not sealed")
        size = os.fstat(descriptor).st_size
        if size > largest:
            raise ValueError(f"its memory file has {size} bytes, at most {largest} are allowed")
        content = os.pread(descriptor, size, 0)
        if len(content) != size:
            raise ValueError("its memory file is shorter than it says")
        return content
    finally:
        os.close(descriptor)


def duplicated(descriptors: Sequence[FileDescriptor]) -> list[FileDescriptor]:
    """Return copies of *descriptors*: all of them. Raises OSError; no copy is left then."""
    copies: list[FileDescriptor] = []
    try:
        for descriptor in descriptors:
            copies.append(FileDescriptor(os.dup(descriptor)))  # noqa: PERF401 - what was made before one fails is closed
    except OSError:
        close_all(copies)
        raise
    return copies


def close_all(descriptors: Sequence[int]) -> None:
    """Close each of *descriptors*."""
    for descriptor in descriptors:
        os.close(descriptor)
