r"""A member in a text that is no JSON object, found by its quoted name; pure.

What is to be redacted must not leave the node because a record cannot be read: a lone surrogate, ``NaN``, a
thousand levels, or words around the object make a text of it. Which object a name stands in is not known there, so
the last names of a path are enough; and what cannot be read of a value is taken for all that follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

_ENCODER: Final = msgspec.json.Encoder()
_SPACE: Final = r"[ \t\r\n]*"
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb'[^\s,\]}"]*')
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_DEEPER: Final = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_QUOTE: Final = 0x22
_OPENING: Final = b"[{"


class QuotedMember:
    """A member by the parts of its path."""

    def __init__(self, parts: Sequence[str]) -> None:
        names = "|".join(_spelled(".".join(parts[at:])) for at in range(len(parts)))
        self._name = re.compile(f'"(?:{names})"{_SPACE}:{_SPACE}'.encode())
        self._first = re.compile(f'"{_spelled(parts[0])}[".]'.encode())

    def redacted(self, text: bytes, replace: Callable[[str], str], instead: str) -> bytes:
        """Return *text*, UTF-8, with what *replace* makes of the member's values, and *instead* of those that cannot
        be read.
        """
        if not self._first.search(text):
            return text
        return b"".join(self._pieces(text, replace, instead))

    def _pieces(self, text: bytes, replace: Callable[[str], str], instead: str) -> Iterator[bytes]:
        at = 0
        while (name := self._name.search(text, at)) is not None:
            begin = name.end()
            end = _end(text, begin)
            value = _read(text[begin:end]) if end is not None else None
            made = replace(value) if value is not None else instead
            yield text[at:begin]
            yield _ENCODER.encode(made) if made != value else text[begin:end]
            at = len(text) if end is None else end
        yield text[at:]


def _spelled(name: str) -> str:
    """Return what finds *name* in UTF-8, however JSON spells it."""
    return "".join(map(_spelled_character, name))


def _spelled_character(character: str) -> str:
    units = character.encode("utf-16-be")
    escaped = "".join(rf"\\u(?i:{units[at : at + 2].hex()})" for at in range(0, len(units), 2))
    return rf"(?:{re.escape(character)}|{escaped}{'|' + re.escape(chr(92) + '/') if character == '/' else ''})"


def _end(text: bytes, begin: int) -> int | None:
    """Return where the value ends that begins at *begin*; None: nowhere."""
    if begin == len(text):
        return begin
    if text[begin] == _QUOTE:
        found = _STRING.match(text, begin)
        return found.end() if found else None
    if text[begin] not in _OPENING:
        scalar = _SCALAR.match(text, begin)
        return scalar.end() if scalar else begin
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text, begin):
        depth += _DEEPER.get(token[0], 0)
        if not depth:
            return token.end()
    return None


def _read(raw: bytes) -> str | None:
    """Return what the value *raw* says: a string itself, all else its text; None: it cannot be read."""
    if raw[:1] != b'"':
        return raw.decode()
    try:
        found: object = json.loads(raw, strict=False)
    except ValueError:
        return None
    # A lone surrogate is no character: what is searched is UTF-8.
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(found, str) else None
