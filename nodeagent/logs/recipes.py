"""From what agent.yaml says to how the lines of one source become records; compiled once, shared by all."""

from __future__ import annotations

from functools import cache
from typing import Final

from nodeagent.logs.pods import selects
from nodeagent.logs.process.framing import Framing
from nodeagent.logs.process.limits import ByteRate
from nodeagent.logs.process.members import RecordMember
from nodeagent.logs.process.multiline import PRESETS, Multiline, preset
from nodeagent.logs.process.parsers import AUTO, TextParser, parser
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.processor import Recipe
from nodeagent.logs.process.rules import DropRule, RedactRule, Rule
from nodeagent.logs.process.times import TimeKey
from nodeagent.logs.settings import LogRule, LogSettings, ParserSettings
from nodeagent.logs.sources import SourceFacts

_BUILT_IN: Final = ("json", "logfmt", "none")


class Recipes:
    """What *settings* say of lines. Raises ConfigError, ValueError for what they should have been refused for."""

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._parsers: dict[str, TextParser] = {"auto": AUTO, **{kind: parser(kind) for kind in _BUILT_IN}}
        self._parsers |= {each.name: _parser(each) for each in settings.parsers}
        self._multiline = {
            each.name: Multiline(
                start=LinePattern(each.start), max_lines=each.max_lines, flush_after=each.flush_seconds
            )
            for each in settings.multiline
        }
        self._rules = [(each, _rule(each)) for each in settings.rules]
        self._rates: dict[str, ByteRate] = {}

    def recipe(self, source: SourceFacts, framing: Framing) -> Recipe:
        """Return how the lines of *source* become records. A name that is not known any more is as if it were not
        given: control has checked it.
        """
        reading = source.reading
        return Recipe(
            framing=framing,
            parser=self._parsers.get(reading.parser, AUTO),
            parser_stderr=self._parsers.get(reading.parser_stderr),
            multiline=self._lines(reading.multiline),
            rules=tuple(rule for setting, rule in self._rules if selects(setting, source.namespace, source.labels)),
            without=frozenset(stream.encode() for stream in reading.without),
            record_bytes=self._settings.limits.line_bytes,
            text=self._settings.metadata.text,
        )

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

    def _lines(self, name: str) -> Multiline | None:
        return _preset(name) if name in PRESETS else self._multiline.get(name)


@cache
def _preset(name: str) -> Multiline:
    return preset(name)


def _parser(settings: ParserSettings) -> TextParser:
    time = TimeKey(RecordMember(settings.time_key), settings.time_format) if settings.time_key else None
    return parser(settings.type, settings.pattern or "", time)


def _rule(settings: LogRule) -> Rule:
    if settings.drop is not None:
        drop = settings.drop
        return DropRule(LinePattern(drop.matches), RecordMember(drop.field) if drop.field else None)
    assert settings.redact is not None  # checked as the configuration was read
    redact = settings.redact
    member = RecordMember(redact.field) if redact.field else None
    return RedactRule(LinePattern(redact.matches), redact.replacement, member)
