"""Lines joined to whole ones: pieces that the runtime cut (its partial lines), and lines of one stack trace.
Per stream, bounded, and so that the file can be read again from where it is said to be covered; pure.

Theory of operation. What is held back begins at some offset; the file is covered up to the lowest of
them. That is not enough with two streams: while stdout holds a line at 100, a trace of stderr may
have gone out that began at 50 and ended at 150. Read again from 100, its second half would be a
record of its own. So it counts as covered only what no record reaches over.
Records of two streams may reach over each other for ever, as a ladder does; an application may mean to. So
it ends at REACH before what is held: read again from there, the rest of one of them is a record once more.

What a record is named by says from which line to which it goes (:func:`joined_offset`): where a trace
was cut off because the rest came too late, and is read again in one piece, the longer record has
another name than the shorter one, which a sink may have already and would keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from nodeagent.logs.process.framing import Lines, valid_utf8
from nodeagent.logs.process.multiline import Multiline

_BITS: Final = 40
REACH: Final = (1 << 22) - 1
"""From a record's first line to its last: bytes at most."""
_SECOND: Final = itemgetter(1)
_INDENTS: Final = frozenset((b" ", b"\t", b""))
PIECES_WAIT: Final = 30.0
"""Seconds that the rest of a cut line is waited for."""


def joined_offset(first: int, last: int) -> int:
    """Return what names a record whose lines begin at *first* to *last*: below 2⁶³, and *first* for one line.

    Files of a TiB and more have names twice.
    """
    return first | (last - first) << _BITS


def first_line(offset: int) -> int:
    """Return where the first line of the record begins that *offset* names, below a TiB."""
    return offset & ((1 << _BITS) - 1)


class _Held:
    """A record that is not whole yet."""

    __slots__ = ("first", "last", "lines", "open", "partial", "pieces", "raw", "since", "size", "time")

    def __init__(self, offset: int, time: bytes, since: float) -> None:
        self.first = offset
        self.last = offset
        self.time = time
        self.since = since
        self.pieces: list[bytes] = []
        self.size = 0
        self.lines = 0
        self.partial = False
        self.raw = False
        self.open = False
        """Whether one line more goes on with it, whatever it is, once it is not indented."""

    def size_with(self, text: bytes) -> int:
        """Return how long it is with *text* behind it."""
        return self.size + len(text) + (1 if self.lines and not self.partial else 0)

    def add(self, offset: int, text: bytes, partial: bool) -> None:
        self.size = self.size_with(text)
        if self.lines and not self.partial:
            self.pieces.append(b"\n")
        elif self.partial and not text and not partial:
            self.pieces[-1] = self.pieces[-1].removesuffix(b"\r")  # it was cut within its end
        self.pieces.append(text)
        self.last = offset
        self.lines += 1
        self.partial = partial

    def text(self) -> bytes:
        """Return all of it as valid UTF-8."""
        text = b"".join(self.pieces)
        return valid_utf8(text) if self.raw else text


@dataclass(slots=True)
class Joiner:
    """Joins the lines of one file."""

    multiline: Multiline | None = None
    record_bytes: int = 1 << 20
    """A longer record is cut."""
    joined: int = 0
    """Lines that became part of the record of an earlier one."""
    cut: int = 0
    """Records that were, for their length, lines or reach."""
    _held: dict[bytes, _Held] = field(default_factory=dict)
    """By stream."""
    _reaching: list[tuple[int, int]] = field(default_factory=list)
    """First and last line of records that are out and may reach over what is held."""

    @property
    def held_since(self) -> float | None:
        """When the first line came that is held; None: nothing is."""
        return min((held.since for held in self._held.values()), default=None)

    @property
    def held_times(self) -> tuple[bytes, ...]:
        """The times of what is held."""
        return tuple(held.time for held in self._held.values())

    @property
    def held_lines(self) -> int:
        """How many lines are held, pieces too."""
        return sum(held.lines for held in self._held.values())

    def feed(self, lines: Lines, now: float) -> Lines:
        """Return what of *lines* and of what was held is whole at Unix time *now* (seconds)."""
        if not lines.partial and not self._held and self.multiline is None:
            return lines.valid() if lines.raw else lines
        partial = set(lines.partial)
        continuing, opening = self._read(lines)
        made = Lines([], [], [], [])
        for at, offset in enumerate(lines.offsets):
            if self._held:
                self._emit_far(made, offset)
            stream = lines.streams[at]
            held = self._held_for(made, stream, lines.texts[at], at in continuing)
            if held is None:
                held = self._held[stream] = _Held(offset, lines.times[at], now)
            if not held.partial:
                held.open = at in opening or (held.open and lines.texts[at][:1] in _INDENTS)
            held.add(offset, lines.texts[at], at in partial)
            held.raw = held.raw or lines.raw
            if self.multiline is None and not held.partial:
                self._emit(made, stream)
        return made

    def _read(self, lines: Lines) -> tuple[set[int], set[int]]:
        """Return the indices of those of *lines* that go on with a record, and of those behind which one more does."""
        if self.multiline is None:
            return set(), set()
        texts = lines.valid().texts if lines.raw else lines.texts
        return self.multiline.continuing(texts), self.multiline.opening(texts)

    def flush(self, now: float, final: bool) -> Lines:
        """Return what has been held for too long at Unix time *now*, or everything (*final*)."""
        made = Lines([], [], [], [])
        for stream, held in list(self._held.items()):
            wait = PIECES_WAIT if held.partial or self.multiline is None else self.multiline.flush_after
            # Without the lower bound a clock that was set back would hold it for longer.
            if final or not 0 <= now - held.since < wait:
                self._emit(made, stream)
        return made

    def covered(self, end: int) -> int:
        """Return up to where the file is covered, having been read up to *end*."""
        if not self._held:
            self._reaching.clear()
            return end
        at = min(held.first for held in self._held.values())
        near = [each for each in self._reaching if each[0] >= at - REACH]
        # From the one that reaches furthest on: once one does not reach over, none of the others does.
        near.sort(key=_SECOND, reverse=True)
        for number, (first, last) in enumerate(near):
            if last < at:
                del near[number:]
                break
            at = min(at, first)
        self._reaching = near
        return at

    def _held_for(self, made: Lines, stream: bytes, text: bytes, continuing: bool) -> _Held | None:
        """Return the held record that *text* goes on with; emits one that it does not."""
        held = self._held.get(stream)
        if held is None:
            return None
        goes_on = held.partial or held.open or continuing
        most = self.multiline.max_lines if self.multiline is not None else None
        fits = held.size_with(text) <= self.record_bytes and (held.partial or most is None or held.lines < most)
        if goes_on and fits:
            return held
        if goes_on:
            self.cut += 1
        self._emit(made, stream)
        return None

    def _emit_far(self, made: Lines, offset: int) -> None:
        """Emit what is too far before *offset*: it holds up how far the file is covered."""
        for stream, held in list(self._held.items()):
            if offset - held.first > REACH:
                self.cut += 1
                self._emit(made, stream)

    def _emit(self, made: Lines, stream: bytes) -> None:
        held = self._held.pop(stream)
        self.joined += held.lines - 1
        if held.last > held.first:
            self._reaching.append((held.first, held.last))
        made.offsets.append(joined_offset(held.first, held.last))
        made.times.append(held.time)
        made.streams.append(stream)
        made.texts.append(held.text())
