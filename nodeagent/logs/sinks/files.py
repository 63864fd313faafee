"""Sinks that write lines: a file of the node, and the agent's own standard output. For where nothing
else listens, and for looking at what others would get.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.documents import documents
from nodeagent.logs.sinks.rotating import RotatingFile, write_all
from nodeagent.logs.sinks.settings import FileSinkSettings
from nodeagent.logs.sinks.sink import Outcome, Payload, Taken, Untaken
from nodeagent.logs.threads import OwnThread


class PatientWriter:
    """Writes in a thread of its own. What takes too long goes on, and is not written a second time; a file system
    that is gone, or a pipe that nobody reads, keeps a thread and nothing else.
    """

    def __init__(self, name: str, write: Callable[[bytes], None], timeout: float) -> None:
        """*write* writes a piece; *timeout*: seconds that it is waited for."""
        self._thread = OwnThread(f"sink {name}")
        self._write = write
        self._timeout = timeout
        self._under_way: tuple[bytes, asyncio.Future[None]] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._under_way is not None and not self._under_way[1].done()

    async def write(self, piece: bytes) -> None:
        """Return when *piece* is written. Raises OSError; TimeoutError: it goes on, and the same piece waits for it."""
        async with asyncio.timeout(self._timeout):
            if self._under_way is not None and self._under_way[0] != piece:
                await asyncio.wait([self._under_way[1]])  # if that failed it comes again
                self._under_way = None
            if self._under_way is None:
                self._under_way = piece, self._thread.do(self._write, piece)
            await asyncio.wait([self._under_way[1]])
        (_, written), self._under_way = self._under_way, None
        written.result()


class FileSink:
    """One JSON object a line, whole lines only, on disk before a record counts as taken."""

    ordered: Final = True

    def __init__(self, name: str, settings: FileSinkSettings, timeout: float) -> None:
        self.name: Final = name
        self._file = RotatingFile(settings.path, settings.bytes, settings.keep)
        self._writer = PatientWriter(name, self._file.append, timeout)

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as lines."""
        return Payload(batch, lines(batch))

    async def send(self, payload: Payload) -> Outcome:
        """Append *payload*."""
        assert isinstance(payload.body, bytes)
        try:
            await self._writer.write(payload.body)
        except TimeoutError:
            why = f"{self._file.path}: it is written to for too long, and goes on; is its file system there?"
            return Untaken(why, under_way=True)
        except OSError as error:
            return Untaken(
                f"{error.filename or self._file.path}: {error.strerror}; the collector's user must be able to write "
                "there, and there must be room"
            )
        return Taken()

    async def close(self) -> None:
        """Close the file, unless it is written to."""
        if not self._writer.busy:
            self._file.close()


class StdoutSink:
    """One JSON object a line among the agent's own log."""

    ordered: Final = True

    def __init__(self, name: str, timeout: float, descriptor: int = 1) -> None:
        self.name: Final = name
        self._writer = PatientWriter(name, partial(write_all, descriptor), timeout)

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as lines."""
        return Payload(batch, lines(batch))

    async def send(self, payload: Payload) -> Outcome:
        """Write *payload*; whoever reads it slowly is waited for."""
        assert isinstance(payload.body, bytes)
        try:
            await self._writer.write(payload.body)
        except TimeoutError:
            return Untaken(
                "standard output: whoever reads it has stopped reading; it goes on when that one does", under_way=True
            )
        except OSError as error:
            return Untaken(f"standard output: {error.strerror}; whoever reads it is gone")
        return Taken()

    async def close(self) -> None:
        """Nothing is held."""


def lines(batch: Sequence[LogRecords]) -> bytes:
    """Return every record of *batch* as a line of JSON."""
    result: list[bytes] = []
    for records in batch:
        result += documents(records)
    result.append(b"")
    return b"\n".join(result)
