"""A thread that appends lines to a file, so that no event loop waits for a disk, a pipe or a full file system."""

from __future__ import annotations

import logging
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal

from nodeagent.errors import ConfigError

RETRY_SECONDS: Final = 5.0
"""Between two complaints about the same trouble."""
_log = logging.getLogger(__name__)

_Item = tuple[bytes, int] | Literal["close"]


class LogWriter:
    """Owns the descriptor of *path* (``-``: standard output) and a thread; make it after the
    process has forked.

    At most *limit* bytes wait; what comes beyond is refused. Raises ConfigError when the file
    cannot be opened.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.dropped = 0
        """Lines that were taken but could not be written."""
        self._path = path
        self._limit = limit
        # Each of the two is written by one thread only, so their difference needs no lock.
        self._taken = self._done = 0
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._complaint = 0.0
        self._descriptor = _opened(path)
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def put(self, data: bytes, lines: int) -> bool:
        """Queue *data*, which is *lines* whole lines; return False if too much waits already."""
        if self._taken - self._done + len(data) > self._limit:
            return False
        self._taken += len(data)
        self._queue.put((data, lines))
        return True

    def close(self, timeout: float) -> None:
        """Wait at most *timeout* seconds until everything is written, and close."""
        self._queue.put("close")
        self._thread.join(timeout)

    def _run(self) -> None:
        following: _Item | None = None
        while (item := following or self._queue.get()) != "close":
            following = None
            # All that waits goes in one write: under load this thread gets the interpreter only
            # every few milliseconds.
            waiting = [item[0]]
            lines = item[1]
            while not self._queue.empty() and not isinstance(following := self._queue.get(), str):
                waiting.append(following[0])
                lines += following[1]
                following = None
            self._append(b"".join(waiting), lines)
        os.close(self._descriptor)

    def _append(self, data: bytes, lines: int) -> None:
        try:
            _write(self._descriptor, data)
        except OSError as error:
            self.dropped += lines
            self._complain(error)
        self._done += len(data)

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if not self._complaint or now - self._complaint > RETRY_SECONDS:
            self._complaint = now
            _log.warning("access log %s: %s: lines are being lost", self._path, error.strerror)


def try_to_open(path: str) -> int:
    """Raise ConfigError where a log at *path* (``-``: standard output; empty: none) cannot be opened, or is
    a pipe that nobody reads: before workers, of which none would start, take anything over.

    Return -1, or the descriptor of a pipe, which is to be kept until workers have their own: who
    reads it sees its end where nobody writes any more.
    """
    if not path:
        return -1
    descriptor = _opened(path, os.O_NONBLOCK)
    if path != "-" and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return -1


def _opened(path: str, flags: int = 0) -> int:
    """Raises ConfigError."""
    if path == "-":
        return os.dup(1)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o640)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"telemetry.accessLog.path: {path}: {why}: does its folder exist, and may the agent write there?"
        ) from None


def _write(descriptor: int, data: bytes) -> None:
    for piece in _pieces(descriptor, data):
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # standard output is shared, and someone made it non-blocking
                select.select([], [descriptor], [])


def _pieces(descriptor: int, data: bytes) -> Iterator[bytes]:
    """Yield *data* so that lines of several workers do not mix.

    An append to a regular file is atomic; a write to a pipe is only up to PIPE_BUF (pipe(7)), so
    there whole lines are put together up to that size. A longer line goes alone.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        yield data
        return
    start = 0
    while start < len(data):
        end = len(data)
        if end - start > select.PIPE_BUF:
            end = (data.rfind(b"\n", start, start + select.PIPE_BUF) + 1) or (data.find(b"\n", start) + 1) or end
        yield data[start:end]
        start = end
