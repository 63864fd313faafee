"""One file's chunks made into records (:class:`Processor`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from nodeagent.logs.process.framing import FRAMES, Framing, Lines
from nodeagent.logs.process.joining import Joiner
from nodeagent.logs.process.limits import ByteRate
from nodeagent.logs.process.multiline import Multiline
from nodeagent.logs.process.objects import TEXT, LogObjects, member_names
from nodeagent.logs.process.parsers import AUTO, TextParser
from nodeagent.logs.process.rules import RedactRule, Rule, drop_by_member, drop_by_text, redact_members, redact_texts
from nodeagent.logs.process.times import rfc3339
from nodeagent.logs.records import Chunk, LogOrigin, LogRecords


@dataclass(frozen=True, slots=True)
class Recipe:
    """How records are made of a file's lines."""

    framing: Framing = "cri"
    parser: TextParser = AUTO
    parser_stderr: TextParser | None = None
    """Of what was written to stderr, where it is another one."""
    multiline: Multiline | None = None
    """None: each line is a record."""
    rules: tuple[Rule, ...] = ()
    without: frozenset[bytes] = frozenset()
    """Streams that are left out."""
    record_bytes: int = 1 << 20
    """A record of several lines, or of a line in pieces, that is longer is cut."""
    text: str = TEXT
    """The member of what is no object."""


@dataclass(slots=True)
class ProcessCounts:
    """What became of lines: ``lines == records + joined + sum(dropped) + held`` at any time, *held* being the
    processors' ``held_lines``.
    """

    lines: int = 0
    """Read from files."""
    records: int = 0
    """Returned."""
    joined: int = 0
    """Lines that became part of the record of an earlier one."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Records by reason: ``empty``, ``excluded`` (their stream is left out), ``rule``, ``rate``."""
    malformed: int = 0
    """Lines that are not of the runtime's format, kept as text."""
    unparsed: int = 0
    """Records that the parser could not read, kept as text."""
    cut: int = 0
    """Records of several lines that were cut for their length."""


class Processor:
    """Makes the chunks of one file, in their order, into records."""

    def __init__(self, origin: LogOrigin, recipe: Recipe, counts: ProcessCounts, rate: ByteRate | None = None) -> None:
        """*counts* may be shared, as by all files of a container; *rate* is the pod's, None: no bound.

        Raises:
            ValueError: the origin's members are none of JSON.
        """
        self._recipe = recipe
        self._counts = counts
        self._rate = rate
        self._frame = FRAMES[recipe.framing]
        self._several_lines = _may_have_several_lines(recipe)
        self._joiner = Joiner(recipe.multiline, recipe.record_bytes)
        self._parsers = [recipe.parser, *([recipe.parser_stderr] if recipe.parser_stderr else [])]
        self._file = b""
        self._read = 0
        self._covered: int | None = None
        self.origin = origin

    @property
    def origin(self) -> LogOrigin:
        """What records carry from now on."""
        return self._origin

    @origin.setter
    def origin(self, origin: LogOrigin) -> None:
        self._objects = LogObjects(member_names(origin.members), self._several_lines, self._recipe.text)
        self._origin = origin

    @property
    def held_since(self) -> float | None:
        """When the first line came that is held back: `now` of its :meth:`feed`; None: nothing is."""
        return self._joiner.held_since

    @property
    def held_lines(self) -> int:
        """How many lines are held back."""
        return self._joiner.held_lines

    def feed(self, chunk: Chunk, now: float) -> LogRecords:
        """Return the records of *chunk*, the next of the file, read at Unix time *now* (seconds).

        There may be none in it: its end then says how far the file is covered.
        """
        self._file = chunk.file
        self._read = chunk.end
        if self._covered is None:
            self._covered = chunk.start
        read_at = rfc3339(now)
        if chunk.data[:1] == b"\0" and not chunk.data.strip(b"\0"):
            return self._of_a_hole(now, read_at)
        lines = self._frame(chunk, read_at)
        self._counts.lines += len(lines)
        self._counts.malformed += lines.malformed
        return self._records(self._joiner.feed(lines, now), now, read_at)

    def _of_a_hole(self, now: float, read_at: bytes) -> LogRecords:
        """Nobody wrote what was read: a hole of any size costs its writer nothing, and would fill every sink."""
        self._counts.lines += 1
        self._counts.dropped["empty"] += 1
        return self._records(Lines([], [], [], []), now, read_at)

    def flush(self, now: float, final: bool = False) -> LogRecords | None:
        """Return what has been held back for too long at Unix time *now* (seconds), or everything if the file
        says no more (*final*); None: nothing.
        """
        lines = self._joiner.flush(now, final)
        return self._records(lines, now, rfc3339(now)) if len(lines) else None

    def _records(self, lines: Lines, now: float, read_at: bytes) -> LogRecords:
        counts = self._counts
        counts.joined += self._joiner.joined
        counts.cut += self._joiner.cut
        self._joiner.joined = 0
        self._joiner.cut = 0
        lines = self._kept(lines, now)
        lines.texts = redact_texts(self._recipe.rules, lines.texts)
        objects = self._parsed(lines, read_at)
        if self._recipe.rules:
            lines, objects = self._by_members(lines, objects)
        end = self._joiner.covered(self._read)
        read = end - (self._covered or 0)
        self._covered = end
        counts.records += len(lines)
        return LogRecords(
            self._origin, self._file, end, lines.offsets, lines.times, lines.streams, lines.texts, objects, read=read
        )

    def _kept(self, lines: Lines, now: float) -> Lines:
        """Return *lines* without those that are dropped whatever their members are."""
        if b"" in lines.texts:
            lines = self._without(lines, {at for at, text in enumerate(lines.texts) if not text}, "empty")
        left_out = self._recipe.without
        if left_out and not left_out.isdisjoint(lines.streams):
            excluded = {at for at, stream in enumerate(lines.streams) if stream in left_out}
            lines = self._without(lines, excluded, "excluded")
        if self._recipe.rules:
            lines = self._without(lines, drop_by_text(self._recipe.rules, lines.texts), "rule")
        if self._rate is not None:
            taken = self._rate.take(list(map(len, lines.texts)), now)
            lines = self._without(lines, range(taken, len(lines)), "rate")
        return lines

    def _without(self, lines: Lines, dropped: Collection[int], reason: str) -> Lines:
        if not dropped:
            return lines
        self._counts.dropped[reason] += len(dropped)
        return lines.only([at for at in range(len(lines)) if at not in dropped])

    def _parsed(self, lines: Lines, read_at: bytes) -> list[bytes]:
        """Return the objects of *lines*, whose times become those that the texts tell."""
        if len(self._parsers) == 1 or b"stderr" not in lines.streams:
            return self._by(self._parsers[0], lines, read_at)
        objects = [b""] * len(lines)
        for stderr, each in zip((False, True), self._parsers, strict=True):
            chosen = [at for at, stream in enumerate(lines.streams) if (stream == b"stderr") is stderr]
            part = lines.only(chosen)
            for at, made, time in zip(chosen, self._by(each, part, read_at), part.times, strict=True):
                objects[at] = made
                lines.times[at] = time
        return objects

    def _by(self, parser: TextParser, lines: Lines, read_at: bytes) -> list[bytes]:
        objects, others = parser.objects(self._objects, lines.texts)
        if parser.counts_failures:
            self._counts.unparsed += len(others)
        if parser.time is not None:
            for at, time in parser.time.times(objects, int(read_at[:4])).items():
                lines.times[at] = time
        return objects

    def _by_members(self, lines: Lines, objects: list[bytes]) -> tuple[Lines, list[bytes]]:
        dropped = drop_by_member(self._recipe.rules, objects)
        if dropped:
            objects = [made for at, made in enumerate(objects) if at not in dropped]
            lines = self._without(lines, dropped, "rule")
        changed = redact_members(self._recipe.rules, objects)
        if changed:
            objects = [changed.get(at, made) for at, made in enumerate(objects)]
            lines.texts = [changed.get(at, text) for at, text in enumerate(lines.texts)]
        return lines, objects


def _may_have_several_lines(recipe: Recipe) -> bool:
    """Return whether a text may have ends of lines: Docker's are in JSON, which can say any."""
    made = any(isinstance(rule, RedactRule) and "\n" in rule.replacement for rule in recipe.rules)
    return made or recipe.multiline is not None or recipe.framing == "docker"
