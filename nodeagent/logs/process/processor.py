"""One file's chunks made into records (:class:`Processor`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nodeagent.logs.process.framing import FRAMES, Framing, Lines
from nodeagent.logs.process.objects import LogObjects, member_names
from nodeagent.logs.process.times import rfc3339
from nodeagent.logs.records import Chunk, LogOrigin, LogRecords


@dataclass(frozen=True, slots=True)
class Recipe:
    """How records are made of a file's lines."""

    framing: Framing = "cri"


@dataclass(slots=True)
class ProcessCounts:
    """What became of lines: ``lines == records + joined + dropped + held`` at any time."""

    lines: int = 0
    """Read from files."""
    records: int = 0
    """Returned."""
    joined: int = 0
    """Lines that became part of the record of an earlier one."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records dropped, by reason."""
    malformed: int = 0
    """Lines that are not of the runtime's format, kept as text."""
    unparsed: int = 0
    """Records that the parser could not read, kept as text."""


class Processor:
    """Makes the chunks of one file, in their order, into records."""

    def __init__(self, origin: LogOrigin, recipe: Recipe, counts: ProcessCounts) -> None:
        """*counts* may be shared, such as by all files of a container.

        Raises:
            ValueError: the origin's members are none of JSON.
        """
        self._recipe = recipe
        self._counts = counts
        self._frame = FRAMES[recipe.framing]
        self._end: int | None = None
        self.origin = origin

    @property
    def origin(self) -> LogOrigin:
        """What records carry from now on."""
        return self._origin

    @origin.setter
    def origin(self, origin: LogOrigin) -> None:
        self._objects = LogObjects(member_names(origin.members))
        self._origin = origin

    @property
    def held_since(self) -> float | None:
        """When the first line came that is held back: `now` of its :meth:`feed`; None: nothing is."""
        return None

    def feed(self, chunk: Chunk, now: float) -> LogRecords:
        """Return the records of *chunk*, the next of the file, read at Unix time *now* (seconds).

        There may be none in it: its end then says how far the file is covered.
        """
        lines = self._frame(chunk, rfc3339(now))
        self._counts.lines += len(lines)
        self._counts.malformed += lines.malformed
        if self._end is None:
            self._end = chunk.start
        return self._records(lines, chunk.file, chunk.end)

    def flush(self, now: float, final: bool = False) -> LogRecords | None:
        """Return what has been held back for too long at *now*, or everything if the file says no more
        (*final*); None: nothing.
        """
        del now, final
        return None

    def _records(self, lines: Lines, file: bytes, end: int) -> LogRecords:
        if b"" in lines.texts:
            lines = _without_empty(lines, self._counts)
        objects, _ = self._objects.of_json(lines.texts)
        read = end - (self._end or 0)
        self._end = end
        self._counts.records += len(lines)
        return LogRecords(
            self._origin, file, end, lines.offsets, lines.times, lines.streams, lines.texts, objects, read=read
        )


def _without_empty(lines: Lines, counts: ProcessCounts) -> Lines:
    kept = [at for at, text in enumerate(lines.texts) if text]
    counts.dropped["empty"] += len(lines) - len(kept)
    return lines.only(kept)
