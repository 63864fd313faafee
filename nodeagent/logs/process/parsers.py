"""How a text becomes an object: JSON, logfmt, a regular expression, or not at all; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from nodeagent.logs.process.objects import LogObjects
from nodeagent.logs.process.patterns import LinePattern
from nodeagent.logs.process.times import TimeKey


class TextParser(Protocol):
    """Makes objects of texts."""

    @property
    def time(self) -> TimeKey | None:
        """The member that says when; None: the runtime's time stays."""

    @property
    def counts_failures(self) -> bool:
        """Whether a text that it cannot read is told as a failure."""

    def objects(self, make: LogObjects, texts: list[bytes]) -> tuple[list[bytes], Sequence[int]]:
        """Return *texts*, valid UTF-8 each, as objects, and the indices of those that were not read, which are text
        within one.
        """


@dataclass(frozen=True, slots=True)
class JsonParser:
    """JSON objects are taken as they are."""

    time: TimeKey | None = None
    counts_failures: bool = True
    """False: text beside JSON is as good (``auto``)."""

    def objects(self, make: LogObjects, texts: list[bytes]) -> tuple[list[bytes], Sequence[int]]:
        """As :meth:`TextParser.objects`."""
        return make.of_json(texts)


AUTO: Final = JsonParser(counts_failures=False)
"""What is a JSON object is one, all else is text."""


@dataclass(frozen=True, slots=True)
class NoParser:
    """All is text."""

    time: TimeKey | None = None
    counts_failures: bool = False

    def objects(self, make: LogObjects, texts: list[bytes]) -> tuple[list[bytes], Sequence[int]]:
        """As :meth:`TextParser.objects`."""
        return make.of_text(texts), range(len(texts))


@dataclass(frozen=True, slots=True)
class MembersParser:
    """Members are read from each text: logfmt, or a regular expression's named groups."""

    read: Callable[[bytes], dict[str, str] | None]
    time: TimeKey | None = None
    counts_failures: bool = True

    def objects(self, make: LogObjects, texts: list[bytes]) -> tuple[list[bytes], Sequence[int]]:
        """As :meth:`TextParser.objects`."""
        found = [self.read(text) for text in texts]
        others = [at for at, members in enumerate(found) if not members]
        plain = dict(zip(others, make.of_text([texts[at] for at in others]), strict=True))
        objects = [make.of_members(members) if members else plain[at] for at, members in enumerate(found)]
        return objects, others


BuiltIn: TypeAlias = Literal["auto", "json", "logfmt", "none"]
_PAIR: Final = re.compile(rb'([^\s="]+)(?:=(?:"((?:[^"\\]|\\.)*+)(?:"|\\?\Z)|(\S*)))?|"', re.DOTALL)
"""One branch fits at each byte, and a quoted value without its end goes to the text's: linear time."""
_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def logfmt(text: bytes) -> dict[str, str] | None:
    """Return the members of ``name=value name="a value" flag`` (go-kit/log, brandur.org/logfmt); None: there is
    no ``=`` in it. A name without a value has ``true``; of a name that is there twice the last counts.
    """
    if b"=" not in text:
        return None
    made: dict[str, str] = {}
    valued = False
    for match in _PAIR.finditer(text):
        name, quoted, bare = match.groups()
        if name is None:
            continue
        value = bare
        if quoted is not None:
            value = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), quoted)
        valued = valued or value is not None
        made[name.decode("utf-8", "replace")] = "true" if value is None else value.decode("utf-8", "replace")
    return made if valued else None


def parser(kind: BuiltIn | Literal["regex"], pattern: str = "", time: TimeKey | None = None) -> TextParser:
    """Return the parser of *kind*; *pattern* is a regex's.

    Raises:
        ConfigError: RE2 does not take the pattern, or it has no named group.
    """
    match kind:
        case "none":
            return NoParser(time)
        case "logfmt":
            return MembersParser(logfmt, time)
        case "regex":
            return MembersParser(LinePattern(pattern, named=True).members_of, time)
        case "json" | "auto":
            return JsonParser(time, counts_failures=kind == "json")
