"""One file's chunks made into records (:class:`Processor`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from nodeagent.logs.process.framing import FRAMES, Framing, Lines
from nodeagent.logs.process.joining import Joiner
from nodeagent.logs.process.limits import ByteRate
from nodeagent.logs.process.multiline import Multiline
from nodeagent.logs.process.objects import TEXT, LogObjects, member_names
from nodeagent.logs.process.parsers import AUTO, TextParser
from nodeagent.logs.process.rules import ParsedTexts, RedactRule, Rule, in_turns, rule_texts
from nodeagent.logs.process.times import rfc3339
from nodeagent.logs.records import Chunk, LogOrigin, LogRecords

WITHHELD: Final = b"(withheld by nodeagent: a rule that redacts failed on this line, see the collector's log)"
"""What a record says that nobody could redact."""
log = logging.getLogger("nodeagent.logs")


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
    """In their order."""
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
    """Records that the parser could not read, or on which it or a rule failed, kept as text; so are those whose text
    had something to redact that is a member of an object.
    """
    cut: int = 0
    """Records of several lines that were cut for their length."""


@dataclass(slots=True)
class _Made:
    """What became of lines, before it is counted."""

    lines: Lines
    objects: list[bytes] = field(default_factory=list)
    dropped: int = 0
    """By rules."""
    unparsed: int = 0


class Processor:
    """Makes the chunks of one file, in their order, into records."""

    __slots__ = (
        "_counts",
        "_covered",
        "_file",
        "_frame",
        "_joiner",
        "_objects",
        "_origin",
        "_parsers",
        "_rate",
        "_read",
        "_recipe",
        "_rules",
        "_said",
        "_several_lines",
        "_texts_first",
    )

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
        self._texts_first, *self._rules = in_turns(recipe.rules) or [()]
        self._said = False
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
        self._objects = _objects(member_names(origin.members), self._several_lines, self._recipe.text)
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
        read_at = (*self._joiner.held_times, rfc3339(now))
        if chunk.data[:1] == b"\0" and not chunk.data.strip(b"\0"):
            return self._of_a_hole(now, read_at)
        lines = self._frame(chunk, read_at[-1])
        self._counts.lines += len(lines)
        self._counts.malformed += lines.malformed
        return self._records(self._joiner.feed(lines, now), now, read_at)

    def _of_a_hole(self, now: float, read_at: tuple[bytes, ...]) -> LogRecords:
        """Nobody wrote what was read: a hole of any size costs its writer nothing, and would fill every sink."""
        self._counts.lines += 1
        self._counts.dropped["empty"] += 1
        return self._records(Lines([], [], [], []), now, read_at)

    def flush(self, now: float, final: bool = False) -> LogRecords | None:
        """Return what has been held back for too long at Unix time *now* (seconds), or everything if the file
        says no more (*final*); None: nothing.
        """
        read_at = (*self._joiner.held_times, rfc3339(now))
        lines = self._joiner.flush(now, final)
        return self._records(lines, now, read_at) if len(lines) else None

    def _records(self, lines: Lines, now: float, read_at: tuple[bytes, ...]) -> LogRecords:
        """Return what *lines* make, which were read at these times, the last ones now."""
        counts = self._counts
        counts.joined += self._joiner.joined
        counts.cut += self._joiner.cut
        self._joiner.joined = 0
        self._joiner.cut = 0
        lines = self._wanted(lines)
        if self._texts_first:
            lines = self._each_if_not_all(self._by_texts, lines, read_at[-1]).lines
        if self._rate is not None:
            taken = self._rate.take(list(map(len, lines.texts)), now)
            lines = self._without(lines, range(taken, len(lines)), "rate")
        made = self._each_if_not_all(self._by_parser, lines, read_at[-1])
        lines = made.lines
        end = self._joiner.covered(self._read)
        read = end - (self._covered or 0)
        self._covered = end
        counts.records += len(lines)
        return LogRecords(
            self._origin, self._file, end, lines.offsets, lines.times, lines.streams, lines.texts, made.objects, read,
            read_at,
        )  # fmt: skip

    def _wanted(self, lines: Lines) -> Lines:
        """Return *lines* without those that say nothing, or are of a stream that is left out."""
        if b"" in lines.texts:
            lines = self._without(lines, {at for at, text in enumerate(lines.texts) if not text}, "empty")
        left_out = self._recipe.without
        if left_out and not left_out.isdisjoint(lines.streams):
            excluded = {at for at, stream in enumerate(lines.streams) if stream in left_out}
            lines = self._without(lines, excluded, "excluded")
        return lines

    def _without(self, lines: Lines, dropped: Collection[int], reason: str) -> Lines:
        if not dropped:
            return lines
        self._counts.dropped[reason] += len(dropped)
        return lines.only(_others(len(lines), dropped))

    # -- what other people's patterns and formats do --

    def _each_if_not_all(self, work: Callable[[Lines, bytes], _Made], lines: Lines, read_at: bytes) -> _Made:
        """Return what *work* makes of *lines*, or of each alone where it fails on some: those are kept as text."""
        try:
            made = work(lines, read_at)
        except Exception as error:  # noqa: BLE001 - whatever one line makes of it, all others are delivered
            self._say(error)
            made = _together([self._alone(work, lines.only([at]), read_at) for at in range(len(lines))])
        self._counts.unparsed += made.unparsed
        if made.dropped:
            self._counts.dropped["rule"] += made.dropped
        return made

    def _alone(self, work: Callable[[Lines, bytes], _Made], line: Lines, read_at: bytes) -> _Made:
        try:
            return work(line, read_at)
        except Exception:  # noqa: BLE001 - it is said for the whole chunk
            if any(isinstance(rule, RedactRule) for rule in self._recipe.rules):
                line.texts = [WITHHELD]
            return _Made(line, self._objects.of_text(line.texts), unparsed=1)

    def _say(self, error: Exception) -> None:
        if not self._said:
            origin = self._origin
            log.error(
                "%s/%s: a bug: a line of %s cannot be processed, and is kept as text", origin.namespace, origin.pod,
                origin.container or origin.path, exc_info=error,
            )  # fmt: skip
        self._said = True

    def _by_texts(self, lines: Lines, read_at: bytes) -> _Made:
        """Apply the rules that go before parsing."""
        del read_at
        texts, dropped = rule_texts(self._texts_first, lines.texts)
        lines = Lines(lines.offsets, lines.times, lines.streams, texts)
        return _Made(lines.only(_others(len(lines), dropped)) if dropped else lines, dropped=len(dropped))

    def _by_parser(self, lines: Lines, read_at: bytes) -> _Made:
        """Make objects of *lines*, whose times become those that the texts tell, and apply the other rules."""
        objects, unread, failed = self._parsed(lines, read_at)
        if not self._rules:
            return _Made(lines, objects, unparsed=len(failed))
        parsed = ParsedTexts(list(lines.texts), list(objects), set(unread), self._objects.of_text, self._recipe.text)
        dropped: set[int] = set()
        for rules in self._rules:
            if rules[0].member is not None:
                dropped |= parsed.rule_members(rules)
                continue
            texts, found = rule_texts(rules, parsed.texts)
            dropped |= found
            self._read_again(lines, parsed, texts, read_at)
        lines = Lines(lines.offsets, lines.times, lines.streams, parsed.texts)
        made = _Made(lines, parsed.objects, len(dropped), len(parsed.failed.union(failed)))
        if dropped:
            left = _others(len(lines), dropped)
            made.lines = lines.only(left)
            made.objects = [parsed.objects[at] for at in left]
        return made

    def _read_again(self, lines: Lines, parsed: ParsedTexts, texts: list[bytes], read_at: bytes) -> None:
        """Have *parsed* go on with *texts*, some of which became others."""
        changed = {at for at, (new, old) in enumerate(zip(texts, parsed.texts, strict=True)) if new != old}
        parsed.texts = list(texts)
        written = sorted(changed & parsed.written)
        objects, others = self._objects.of_json([texts[at] for at in written])
        unread = {written[at] for at in others}
        parsed.objects = _with(parsed.objects, written, objects)
        rest = sorted(changed - parsed.written)
        part = Lines(lines.offsets, lines.times, lines.streams, texts).only(rest)
        objects, unparsed, _ = self._parsed(part, read_at)
        unread.update(rest[at] for at in unparsed)
        parsed.objects = _with(parsed.objects, rest, objects)
        lines.times = _with(lines.times, rest, part.times)
        parsed.written -= unread
        parsed.unread = (parsed.unread - changed) | unread

    def _parsed(self, lines: Lines, read_at: bytes) -> tuple[list[bytes], Sequence[int], Sequence[int]]:
        """Return the objects of *lines*, whose times become those that the texts tell, and the indices of those that
        are text within one, and of those that the parser could not read.
        """
        if len(self._parsers) == 1 or b"stderr" not in lines.streams:
            return self._by(self._parsers[0], lines, read_at)
        objects = [b""] * len(lines)
        unread: list[int] = []
        failed: list[int] = []
        for stderr, each in zip((False, True), self._parsers, strict=True):
            chosen = [at for at, stream in enumerate(lines.streams) if (stream == b"stderr") is stderr]
            part = lines.only(chosen)
            made, others, unparsed = self._by(each, part, read_at)
            objects = _with(objects, chosen, made)
            lines.times = _with(lines.times, chosen, part.times)
            unread += [chosen[at] for at in others]
            failed += [chosen[at] for at in unparsed]
        return objects, unread, failed

    def _by(self, parser: TextParser, lines: Lines, read_at: bytes) -> tuple[list[bytes], Sequence[int], Sequence[int]]:
        objects, others = parser.objects(self._objects, lines.texts)
        if parser.time is not None:
            for at, time in parser.time.times(objects, int(read_at[:4])).items():
                lines.times[at] = time
        return objects, others, others if parser.counts_failures else ()


@lru_cache(64)
def _objects(reserved: tuple[str, ...], several_lines: bool, text: str) -> LogObjects:
    """Return what makes objects of the texts of all files with such members."""
    return LogObjects(reserved, several_lines, text)


def _others(count: int, without: Collection[int]) -> list[int]:
    return [at for at in range(count) if at not in without]


def _with(column: list[bytes], rows: Sequence[int], values: Iterable[bytes]) -> list[bytes]:
    """Return *column* with *values* in *rows*."""
    made = list(column)
    for at, value in zip(rows, values, strict=True):
        made[at] = value
    return made


def _together(parts: Sequence[_Made]) -> _Made:
    """Return what became of all lines, of which *parts* tell in order."""
    made = _Made(Lines([], [], [], []))
    for each in parts:
        made.lines.offsets += each.lines.offsets
        made.lines.times += each.lines.times
        made.lines.streams += each.lines.streams
        made.lines.texts += each.lines.texts
        made.objects += each.objects
        made.dropped += each.dropped
        made.unparsed += each.unparsed
    return made


def _may_have_several_lines(recipe: Recipe) -> bool:
    """Return whether a text may have ends of lines: Docker's are in JSON, which can say any."""
    made = any(isinstance(rule, RedactRule) and "\n" in rule.replacement for rule in recipe.rules)
    return made or recipe.multiline is not None or recipe.framing == "docker"
