"""Fluentd's configuration format, version 1, as text becomes sections (docs.fluentd.org, "Config File Syntax";
``lib/fluent/config/v1_parser.rb`` is what it was compared with).

::

    <source>                  a section: its name, an argument after it
      @type tail              a parameter: what follows the name, to the end of the line or a " #"
      path "/var/log/#{X}"    in double quotes with escapes and embedded Ruby, which is left to values.py
      <parse>                 sections within it
      </parse>
    </source>
    @include conf.d/*.conf    in its place
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.errors import ConfigError, shown

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
_OPEN: Final = re.compile(r"<([a-zA-Z0-9_]+)\s*([^>]*?)\s*>\s*(?:#.*)?")
_CLOSE: Final = re.compile(r"</([a-zA-Z0-9_]+)\s*>\s*(?:#.*)?")
_PARAMETER: Final = re.compile(r"(@?[a-zA-Z0-9_.$@-]+)(?:\s+(.*))?", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "b": "\b", "0": "\0"}
_QUOTES: Final = ('"', "'")

Include = Callable[[str], Mapping[str, str]]
"""What ``@include`` names -> the files' names and texts, in order. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class ConfigLine:
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ImportNote:
    """What was not taken, or is different here, and why."""

    place: ConfigLine
    text: str
    lost: bool = False
    """It is a source or an output of Fluentd's: records are read, or delivered somewhere, no more without it."""

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Value:
    """A parameter's value."""

    text: str
    place: ConfigLine
    ruby: bool = False
    """Whether ``#{…}`` in it is Ruby: it stood in double quotes."""


Resolve = Callable[[Value], str]
"""What a value with Ruby in it is. Raises ConfigError."""


def _as_written(value: Value) -> str:
    return value.text


@dataclass(slots=True)
class FluentSection:
    """``<name argument>`` with what is in it; the whole file is a section without a name."""

    name: str
    argument: str
    place: ConfigLine
    values: dict[str, Value] = field(default_factory=dict)
    sections: list[FluentSection] = field(default_factory=list)

    def within(self, name: str) -> Iterator[FluentSection]:
        """Yield the sections of that name in it."""
        return (each for each in self.sections if each.name == name)


class _Lines:
    """The lines of one file, numbered; values may go on over several."""

    def __init__(self, text: str, file: str) -> None:
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{file}: {len(text)} characters: allowed: up to {MAX_BYTES}")
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._file = file
        self._at = 0

    def next(self) -> str | None:
        if self._at == len(self._lines):
            return None
        self._at += 1
        return self._lines[self._at - 1]

    def back_to(self, line: int) -> None:
        """Read on after the line of that number."""
        self._at = line

    @property
    def place(self) -> ConfigLine:
        return ConfigLine(self._file, self._at)


def parse(text: str, file: str, include: Include, resolve: Resolve = _as_written) -> FluentSection:
    """Return the sections of *text*, the content of *file*; *resolve* says what Ruby in an ``@include`` is.

    Raises ConfigError, naming file and line, for what Fluentd would refuse to read.
    """
    root = FluentSection("", "", ConfigLine(file, 1))
    _fill(root, _Lines(text, file), lambda value: include(_resolved(value, resolve)), 0, "")
    return root


def _resolved(value: Value, resolve: Resolve) -> str:
    try:
        return resolve(value)
    except ConfigError as error:
        raise ConfigError(f"{value.place}: @include: {error}") from None


def _fill(
    section: FluentSection, lines: _Lines, include: Callable[[Value], Mapping[str, str]], depth: int, until: str
) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{lines.place}: sections and files within one another: allowed: {MAX_DEPTH} levels")
    while (line := lines.next()) is not None:
        stripped = line.strip()
        place = lines.place
        if not stripped or stripped.startswith("#"):
            continue
        if match := _CLOSE.fullmatch(stripped):
            if match[1] != until:
                raise ConfigError(f"{place}: </{match[1]}> closes nothing: <{until or 'no section'}> is open")
            return
        if match := _OPEN.fullmatch(stripped):
            inner = FluentSection(match[1], match[2], place)
            section.sections.append(inner)
            _fill(inner, lines, include, depth + 1, match[1])
        elif match := re.fullmatch(r"@?include\s+(\S.*)", stripped):
            for name, text in include(_scalar(match[1], place)).items():
                _fill(section, _Lines(text, name), include, depth + 1, "")
        elif match := _PARAMETER.fullmatch(stripped):
            section.values[match[1]] = _value(match[2] or "", lines)
        else:
            raise ConfigError(f"{place}: {shown(stripped)}: expected: NAME VALUE, <SECTION> or a comment")
    if until:
        raise ConfigError(f"{section.place}: <{until}> is not closed: </{until}> is missing")


def _value(text: str, lines: _Lines) -> Value:
    place = lines.place
    if text[:1] in ("[", "{"):
        return _structure(text, lines, place)
    while text[:1] == '"' and not _closed(text):
        more = lines.next()
        if more is None:
            raise ConfigError(f"{place}: a string in double quotes is not closed")
        text += "\n" + more
    return _scalar(text, place)


def _structure(text: str, lines: _Lines, place: ConfigLine) -> Value:
    """Read JSON that goes on to the line where it is whole; what never is, such as ``[a-z]+``, is plain text."""
    found = _without_comment(text)
    while not _is_json(found):
        more = lines.next()
        if more is None:
            lines.back_to(place.line)
            return Value(_without_comment(text), place)
        found = f"{found}\n{_without_comment(more.strip())}"
    return Value(found, place, ruby="#{" in found)


def _without_comment(line: str) -> str:
    return re.sub(r"(?:^|\s+)#(?!\{)[^\"]*$", "", line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _closed(text: str) -> bool:
    return re.match(r'"(?:\\.|[^"\\])*"', text, re.DOTALL) is not None


def _scalar(text: str, place: ConfigLine) -> Value:
    if text[:1] == '"':
        match = re.match(r'"((?:\\.|[^"\\])*)"\s*(?:#.*)?$', text, re.DOTALL)
        if match is None:
            raise ConfigError(f"{place}: {shown(text)}: nothing but a comment may follow a string in quotes")
        found = re.sub(r"\\(.)", lambda each: _ESCAPES.get(each[1], each[1]), match[1], flags=re.DOTALL)
        return Value(found, place, ruby="#{" in found)
    if text[:1] == "'":
        match = re.match(r"'((?:\\.|[^'\\])*)'\s*(?:#.*)?$", text)
        if match is None:
            raise ConfigError(f"{place}: {shown(text)}: a string in single quotes is not closed")
        return Value(re.sub(r"\\(['\\])", r"\1", match[1]), place)
    return Value(re.sub(r"\s+#.*$", "", text), place)
