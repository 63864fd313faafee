"""Regular expressions over many lines at once, in time linear in their length: RE2's syntax, for patterns and
texts are other people's. Pure.

A call into RE2 a line costs as much as everything else that is done to it. So all lines are searched
joined, with ``^`` and ``$`` at lines' ends: what matches within a line matches there too, and what
matches over a line's end, as ``\\s`` may, is found out and looked at line by line.

RE2 goes by bytes here. What it finds begins and ends with a character, but for nothing, which it finds between a
character's bytes too, and for ``\\C``, a byte of one: nothing is not replaced, and ``\\C`` is no pattern.

Of what may find nothing, as ``x*``, each search finds that at once: a call a byte. In ``(?:(x*)|.)*`` it finds what
it can, since a round of nothing goes no further; of the whole line, in one call, whether that is anything.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, Protocol, cast

from nodeagent.errors import ConfigError


class _Match(Protocol):
    def start(self, group: int = 0) -> int: ...
    def end(self, group: int = 0) -> int: ...
    def groupdict(self) -> Mapping[bytes, bytes | None]: ...


class _Compiled(Protocol):
    groupindex: Mapping[bytes, int]

    def search(self, text: bytes, pos: int | None = None) -> _Match | None: ...
    def fullmatch(self, text: bytes) -> _Match | None: ...
    def finditer(self, text: bytes) -> Iterator[_Match]: ...


_ESCAPED: Final = re.compile(r"\\Q.*?(?:\\E|\Z)|\\(.)", re.DOTALL)
"""What follows a backslash, but for what stands between ``\\Q`` and ``\\E``."""


class LinePattern:
    """A pattern that is searched for in lines."""

    __slots__ = ("_by_line", "_one", "text")

    def __init__(self, text: str, named: bool = False) -> None:
        """*text*: RE2's syntax (https://github.com/google/re2/wiki/Syntax); *named*: it needs a named group.

        Raises:
            ConfigError: it is no such pattern, or its program takes more than 8 MiB, or no group has a name.
        """
        if any(each[1] == "C" for each in _ESCAPED.finditer(text)):
            raise ConfigError(
                f"{text!r:.80}: \\C is a byte, which may be a part of a character; write (?s:.) for any one"
            )
        self.text = text
        self._one = _compile(text)
        if named and not self._one.groupindex:
            raise ConfigError(f"{text!r:.80} has no named group, such as (?P<level>[A-Z]+): groups become members")
        # \A and \z mean a text's ends even there: such patterns are searched for line by line.
        anchored = "\\A" in text or "\\z" in text or "(?-m" in text
        self._by_line = None if anchored else _compile(f"(?m){text}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinePattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"LinePattern({self.text!r})"

    def found_in(self, text: bytes) -> bool:
        """Return whether it is in *text*, UTF-8."""
        return self._one.search(text) is not None

    def members_of(self, text: bytes) -> dict[str, str] | None:
        """Return what its named groups have in *text*, UTF-8, but for those without a part; None: it is not there."""
        found = self._one.search(text)
        if found is None:
            return None
        there = ((name, value) for name, value in found.groupdict().items() if value is not None)
        return {name.decode(): value.decode("utf-8", "replace") for name, value in there}

    def replaced_in(self, text: bytes, replacement: bytes) -> bytes:
        """Return *text* with each match, but for those of nothing, replaced by *replacement*, as it stands."""
        made = _replaced(self._one, text, replacement)
        if made is not None:
            return made
        return b"".join(_some_replaced(self._one, text, replacement)) if self._finds_any(text) else text

    def _finds_any(self, text: bytes) -> bool:
        """Return whether it may find anything but nothing in *text*."""
        found_or_any = _found_or_any(self.text)
        match = found_or_any.fullmatch(text) if found_or_any is not None else None
        return match is None or match.start(1) < match.end(1)

    def lines_with(self, texts: Sequence[bytes]) -> list[int]:
        """Return the indices of those of *texts*, UTF-8 each, that it is in."""
        if self._by_line is None:
            return self._each_with(texts)
        joined = b"\n".join(texts)
        match = self._by_line.search(joined)
        if match is None:
            return []
        if joined.count(b"\n") != len(texts) - 1:
            return self._each_with(texts)
        starts = list(accumulate((len(text) + 1 for text in texts), initial=0))
        found: list[int] = []
        while match is not None:
            at = bisect_right(starts, match.start()) - 1
            if match.end() >= starts[at + 1]:
                # Over a line's end, or from the last line's end on: it may hide one within a line.
                return found + [at + line for line in self._each_with(texts[at:])]
            found.append(at)
            if at + 1 == len(texts):
                break
            match = self._by_line.search(joined, starts[at + 1])
        return found

    def replace(self, texts: Sequence[bytes], replacement: bytes) -> list[bytes] | None:
        """Return *texts*, UTF-8 each, with each match, but for those of nothing, replaced by *replacement*, as it
        stands; None: it is in none of them.
        """
        if self._by_line is None:
            return [self.replaced_in(text, replacement) for text in texts]
        joined = b"\n".join(texts)
        if self._by_line.search(joined) is None:
            return None
        if b"\n" not in replacement and joined.count(b"\n") == len(texts) - 1:
            made = _replaced(self._by_line, joined, replacement)
            if made is not None and made.count(b"\n") == len(texts) - 1:
                return made.split(b"\n")
        return [self.replaced_in(text, replacement) for text in texts]

    def _each_with(self, texts: Sequence[bytes]) -> list[int]:
        return [at for at, text in enumerate(texts) if self._one.search(text) is not None]


@lru_cache(256)
def _found_or_any(pattern: str) -> _Compiled | None:
    """Return what matches all of a text, the last thing that *pattern* finds there as group 1, if not nothing; None:
    no such pattern can be made of it.
    """
    try:
        return _compile(f"(?:({pattern})|(?s:.))*")
    except ConfigError:  # it ends in a quotation, or is as large as may be
        return None


def _replaced(pattern: _Compiled, text: bytes, replacement: bytes) -> bytes | None:
    """Return *text* with *replacement* for each match; None: it may find nothing."""
    pieces: list[bytes] = []
    at = 0
    for match in pattern.finditer(text):
        if match.start() == match.end():
            return None
        pieces += (text[at : match.start()], replacement)
        at = match.end()
    pieces.append(text[at:])
    return b"".join(pieces)


def _some_replaced(pattern: _Compiled, text: bytes, replacement: bytes) -> Iterator[bytes]:
    """Yield *text* in pieces, with *replacement* for each match that is not empty."""
    at = 0
    for match in pattern.finditer(text):
        if match.start() < match.end():
            yield text[at : match.start()]
            yield replacement
            at = match.end()
    yield text[at:]


def _compile(text: str) -> _Compiled:
    import re2  # a megabyte that only a collector with patterns needs

    options = re2.Options()
    options.log_errors = False
    try:
        return cast("_Compiled", re2.compile(text.encode(), options))
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise ConfigError(
            f"{text!r} is not a pattern of RE2: {why}; RE2 has no look-around and no back-references "
            "(https://github.com/google/re2/wiki/Syntax)"
        ) from None
