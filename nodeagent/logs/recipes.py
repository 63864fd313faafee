"""From what agent.yaml says to how the lines of one source become records; compiled once, shared by all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Final

from nodeagent.logs.pods import selects
from nodeagent.logs.process.framing import Framing
from nodeagent.logs.process.journal import TIME, entries, journal
from nodeagent.logs.process.limits import ByteRate
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.multiline import PRESETS, Multiline, preset
from nodeagent.logs.process.objects import renamed
from nodeagent.logs.process.origin import NOT_THE_APPLICATIONS
from nodeagent.logs.process.parsers import AUTO, JsonParser, MembersParser, TextParser, parser
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.processor import Recipe
from nodeagent.logs.process.rules import DropRule, RedactRule, Rule
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.settings import LogRule, LogSettings, ParserSettings
from nodeagent.logs.sources import Reading, SourceFacts

_BUILT_IN: Final = ("json", "logfmt", "none")
_JOURNAL: Final = "journal"


class Recipes:
    """What *settings* say of lines. Raises ConfigError, ValueError for what they should have been refused for."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._parsers: dict[str, TextParser] = {"auto": AUTO, **{kind: parser(kind) for kind in _BUILT_IN}}
        self._parsers[_JOURNAL] = MembersParser(journal, TimeKey(RecordMember(TIME)))
        self._parsers |= {each.name: _parser(each) for each in settings.parsers}
        self._entries = JsonParser(TimeKey(RecordMember(TIME)))
        self._multiline = {
            each.name: Multiline(
                start=LinePattern(each.start), max_lines=each.max_lines, flush_after=each.flush_seconds
            )
            for each in settings.multiline
        }
        self._rules = [(each, tuple(_rules(each))) for each in settings.rules]
        self._rates: dict[str, ByteRate] = {}

    def recipe(self, source: SourceFacts, framing: Framing) -> Recipe:
        """Return how the lines of *source* become records. A name that is not known any more is as if it were not
        given: control has checked it.
        """
        reading = source.reading
        journal = source.kind == "journal" or bool(source.unit)
        return Recipe(
            framing=framing,
            parser=self._entries if journal else self._parsers.get(reading.parser, AUTO),
            parser_stderr=None if journal else self._parsers.get(reading.parser_stderr),
            multiline=None if journal else self._multiline_of(reading),
            rules=tuple(chain.from_iterable(self._rules_for(source))),
            without=frozenset(stream.encode() for stream in reading.without),
            record_bytes=self._settings.limits.line_bytes,
            text=self._settings.metadata.text,
        )

    def _rules_for(self, source: SourceFacts) -> Iterator[tuple[Rule, ...]]:
        for setting, rules in self._rules:
            if selects(setting, source.namespace, source.labels):
                yield rules

    def rate(self, uid: str) -> ByteRate | None:
        """Return what bounds the pod *uid*; None: nothing does."""
        bound = self._settings.limits.bytes_per_second_per_pod
        if not bound or not uid:
            return None
        if uid not in self._rates:
            self._rates[uid] = ByteRate(bound)
        return self._rates[uid]

    def forget(self, uid: str) -> None:
        """The pod *uid* is gone."""
        self._rates.pop(uid, None)

    def _multiline_of(self, reading: Reading) -> Multiline | None:
        if reading.parser == _JOURNAL:
            return _entries()
        name = reading.multiline
        return _preset(name) if name in PRESETS else self._multiline.get(name)


@cache
def _entries() -> Multiline:
    return entries()


@cache
def _preset(name: str) -> Multiline:
    return preset(name)


def _parser(settings: ParserSettings) -> TextParser:
    time = TimeKey(RecordMember(settings.time_key), settings.time_format) if settings.time_key else None
    return parser(settings.type, settings.pattern or "", time)


def _rules(settings: LogRule) -> Iterator[Rule]:
    """Yield what *settings* ask for; a member whose name records have for something else is looked for by the name
    that it gets, too: rules go by what an application writes.
    """
    if (drop := settings.drop) is not None:
        for member in _members(drop.field):
            yield DropRule(LinePattern(drop.matches), member)
    if (redact := settings.redact) is not None:
        for member in _members(redact.field):
            yield RedactRule(LinePattern(redact.matches), redact.replacement, member)


def _members(path: str) -> Iterator[RecordMember | None]:
    if not path:
        yield None
        return
    yield RecordMember(path)
    if path.partition(".")[0] in NOT_THE_APPLICATIONS:
        yield RecordMember(renamed(path))
