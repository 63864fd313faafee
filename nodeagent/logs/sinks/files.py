"""Sinks that write lines: a file of the node, and the agent's own standard output. For where nothing
else listens, and for looking at what others would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodeagent.logs.disk import on_disk
from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.documents import documents
from nodeagent.logs.sinks.rotating import RotatingFile, write_all
from nodeagent.logs.sinks.settings import FileSinkSettings
from nodeagent.logs.sinks.sink import Outcome, Payload, Taken, Untaken


class FileSink:
    """One JSON object a line, whole lines only, on disk before a record counts as taken."""

    ordered: Final = True

    def __init__(self, name: str, settings: FileSinkSettings) -> None:
        self.name: Final = name
        self._file = RotatingFile(settings.path, settings.bytes, settings.keep)

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as lines."""
        return Payload(batch, lines(batch))

    async def send(self, payload: Payload) -> Outcome:
        """Append *payload*."""
        assert isinstance(payload.body, bytes)
        try:
            await on_disk(self._file.append, payload.body)
        except OSError as error:
            return Untaken(
                f"{error.filename or self._file.path}: {error.strerror}; the collector's user must be able to write "
                "there, and there must be room"
            )
        return Taken()

    async def close(self) -> None:
        """Close the file."""
        self._file.close()


class StdoutSink:
    """One JSON object a line among the agent's own log."""

    ordered: Final = True

    def __init__(self, name: str, descriptor: int = 1) -> None:
        self.name: Final = name
        self._descriptor = descriptor

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        """Return *batch* as lines."""
        return Payload(batch, lines(batch))

    async def send(self, payload: Payload) -> Outcome:
        """Write *payload*; whoever reads it slowly is waited for."""
        assert isinstance(payload.body, bytes)
        try:
            await on_disk(write_all, self._descriptor, payload.body)
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
