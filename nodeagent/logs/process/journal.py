"""Entries of systemd's journal in its export format (systemd.io/JOURNAL_EXPORT_FORMATS), as ``journalctl -o export``
writes them; pure.

An entry is a field a line, ``NAME=VALUE``, and ends with an empty line. A value with an end of line in it stands
behind its name's line, after its length in eight bytes. What is no UTF-8 was replaced before it comes here, a
length of more than 127 too: then such a value goes up to where the next field begins.
"""

from __future__ import annotations

import re
from typing import Final

from nodeagent.logs.process.multiline import Multiline
from nodeagent.logs.process.patterns import LinePattern

TIME: Final = "__REALTIME_TIMESTAMP"
"""The field that says when, in microseconds since 1970."""
_LENGTH_BYTES: Final = 8
_REPLACED: Final = "\ufffd".encode()
_FIELD: Final = re.compile(rb"([A-Z_][A-Z0-9_]{0,63})(?:=([^\n]*)|\n(.{1,12}?\0{4,7}))", re.DOTALL)
_NEXT: Final = re.compile(rb"\n(?=[A-Z_][A-Z0-9_]{0,63}[=\n])")


def entries() -> Multiline:
    """Return which lines are one entry."""
    return Multiline(start=LinePattern("^__CURSOR="))


def journal(text: bytes) -> dict[str, str] | None:
    """Return the fields of the entry *text*; None: it has none. Of a field that is there twice the last counts."""
    made: dict[str, str] = {}
    last = len(text.rstrip(b"\n"))
    at = 0
    while at < len(text):
        field = _FIELD.match(text, at)
        if field is None:
            at = _end_of_line(text, at) + 1
            continue
        name, value, length = field.groups()
        at = field.end()
        if value is None:
            at = _end(text, at, length, last)
            value = text[field.end() : at]
        made[name.decode()] = value.decode("utf-8", "replace")
        at += 1
    return made or None


def _end_of_line(text: bytes, at: int) -> int:
    end = text.find(b"\n", at)
    return end if end >= 0 else len(text)


def _end(text: bytes, begin: int, length: bytes, last: int) -> int:
    """Return where the value ends that stands behind its *length*; *last*: from where on only ends of lines follow."""
    if len(length) == _LENGTH_BYTES and _REPLACED not in length:
        end = begin + int.from_bytes(length, "little")
        if end <= len(text) and (end >= last or _NEXT.match(text, end)):
            return end
    found = _NEXT.search(text, begin)
    return found.start() if found else max(begin, last)
