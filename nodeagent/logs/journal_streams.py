"""The entries of a journal file, which are of many units, brought to whose they are: a service's to what is told of
its pod, all others to the node's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from nodeagent.logs.process.processor import ProcessCounts
from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.interfaces import Taker
from nodeagent.logs.tail.journal_file import INCOMPLETE

_MANAGER: Final = "init.scope"
"""systemd itself, which says of a unit what becomes of it."""
_OF_UNIT: Final = re.compile(rb'[{,]"_SYSTEMD_UNIT":("(?:[^"\\]|\\.)*")')
_ABOUT_UNIT: Final = re.compile(rb'[{,]"UNIT":("(?:[^"\\]|\\.)*")')
"""Within a string of JSON a quotation mark stands behind a backslash: neither is found in what an entry says."""
_INCOMPLETE: Final = f'"{INCOMPLETE}":"'.encode()


def unit_of(entry: bytes) -> str:
    """Return which unit wrote *entry*, a line of a journal's text, or, of what systemd says, which it is about; empty:
    none.
    """
    unit = _found(_OF_UNIT, entry)
    return _found(_ABOUT_UNIT, entry) or unit if unit == _MANAGER else unit


def own_unit() -> str:
    """Return which unit this process is of, by its cgroup; empty: none."""
    with open("/proc/self/cgroup") as file:
        last = file.read().strip().rpartition("/")[2]
    return last if last.endswith(".service") else ""


def _found(pattern: re.Pattern[bytes], entry: bytes) -> str:
    match = pattern.search(entry)
    return msgspec.json.decode(match[1], type=str) if match else ""


class EntrySource(Protocol):
    """Whose entries may be: ``FollowedSource``."""

    gone: bool
    counts: ProcessCounts

    def room(self) -> bool:
        """Return whether every sink of it takes more."""


Source = TypeVar("Source", bound=EntrySource)


class JournalStream(Generic[Source]):
    """Takes the chunks of one journal file: the tail's Taker. Nothing of an entry is held back, so that what is
    covered follows the file whoever has which entry.
    """

    __slots__ = ("_journal", "_open", "_streams", "_units", "_wanted", "_writer")

    def __init__(
        self,
        journal: Source,
        units: Mapping[str, Source],
        wanted: Callable[[str], bool],
        opened: Callable[[Source, bool], Taker],
    ) -> None:
        """*units*: those of services, as they are told at each time; *wanted*: whether entries of another unit are
        read; *opened* makes who takes the entries of a source, or drops them.
        """
        self._journal = journal
        self._units = units
        self._wanted = wanted
        self._open = opened
        self._streams: dict[tuple[Source, bool], Taker] = {}
        self._writer = (journal, True)
        """Of the last line: a longer one than ``logs.limits`` allow comes in pieces."""

    def room(self) -> bool:
        """Return whether every sink that an entry may go to takes more."""
        return all(each.room() for each in (self._journal, *self._units.values()))

    def take(self, chunk: Chunk) -> None:
        """Give each its entries, in their order."""
        for writer, part in self._parts(chunk):
            self._stream(writer).take(part)
            writer[0].counts.unparsed += part.data.count(_INCOMPLETE)

    def ended(self) -> None:
        """Nothing follows."""
        for each in self._streams.values():
            each.ended()
        self._streams.clear()

    def _parts(self, chunk: Chunk) -> Iterator[tuple[tuple[Source, bool], Chunk]]:
        """Yield *chunk* in stretches of one writer each."""
        begin = 0
        at = 0
        first = chunk.first_of_line
        for line in chunk.data.splitlines(keepends=True):
            writer = self._writer_of(line) if at or chunk.first_of_line else self._writer
            if writer != self._writer and at > begin:
                yield self._writer, Chunk(chunk.file, chunk.start + begin, chunk.data[begin:at], first)
                begin = at
                first = True
            self._writer = writer
            at += len(line)
        yield self._writer, Chunk(chunk.file, chunk.start + begin, chunk.data[begin:], first)

    def _writer_of(self, line: bytes) -> tuple[Source, bool]:
        unit = unit_of(line)
        service = self._units.get(unit)
        if service is not None:
            return service, True
        return self._journal, self._wanted(unit)

    def _stream(self, writer: tuple[Source, bool]) -> Taker:
        if writer not in self._streams:
            for each in [each for each in self._streams if each[0].gone]:
                self._streams.pop(each).ended()
            self._streams[writer] = self._open(*writer)
        return self._streams[writer]
