"""Single members of many JSON objects, found and replaced without reading the rest of them; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

import msgspec

_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder()
_ESCAPED: Final = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')
MAX_DEPTH: Final = 8
"""Parts of a member's path."""


class RecordMember:
    """A member by its path, with dots for one within another; a name that has the dots itself goes first."""

    def __init__(self, path: str) -> None:
        """Raises ValueError for an empty part, for more than :data:`MAX_DEPTH` of them, and for what stands escaped in
        JSON, where it is not looked for.
        """
        self.path = path
        self._parts = path.split(".")
        if not all(self._parts) or len(self._parts) > MAX_DEPTH:
            raise ValueError(f"a member's path of 1 to {MAX_DEPTH} parts is expected, not {path!r:.80}")
        if _ESCAPED.search(path):
            raise ValueError(f"a member's path without quotes, \\ and control characters is expected, not {path!r:.80}")
        names = dict.fromkeys((path, self._parts[0]))
        fields = [
            (f"field{at}", msgspec.Raw | msgspec.UnsetType, msgspec.field(name=name, default=msgspec.UNSET))
            for at, name in enumerate(names)
        ]
        self._first = msgspec.json.Decoder(msgspec.defstruct("First", fields, gc=False))

    def values(self, objects: Sequence[bytes]) -> dict[int, str]:
        """Return the member's value by the indices of those of *objects*, valid JSON of one line each, that have
        it: a string as it is, all else as its JSON text.
        """
        found: dict[int, str] = {}
        for at, first in enumerate(self._first.decode_lines(b"\n".join(objects))):
            raws = msgspec.structs.astuple(first)
            if all(raw is msgspec.UNSET for raw in raws):
                continue
            value = _as_text(raws[0]) if raws[0] is not msgspec.UNSET else _within(raws[-1], self._parts[1:])
            if value is not None:
                found[at] = value
        return found

    def replaced(self, text: bytes, value: str) -> bytes:
        """Return the object *text*, which has the member, with the string *value* there."""
        members = _MEMBERS.decode(text)
        if self.path in members:
            return _with(members, [self.path], value)
        return _with(members, self._parts, value)


def _with(members: dict[str, msgspec.Raw], path: Sequence[str], value: str) -> bytes:
    made = cast("dict[str, object]", members)
    if len(path) == 1:
        made[path[0]] = value
    else:
        inner = _MEMBERS.decode(members[path[0]])
        made[path[0]] = msgspec.Raw(_with(inner, path[1:], value))
    return _ENCODER.encode(made)


def _within(raw: msgspec.Raw, path: Sequence[str]) -> str | None:
    for name in path:
        try:
            members = _MEMBERS.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            return None
        if name not in members:
            return None
        raw = members[name]
    return _as_text(raw)


def _as_text(raw: msgspec.Raw) -> str:
    text = bytes(memoryview(raw))
    if text[:1] == b'"':
        return msgspec.json.decode(text, type=str)
    return text.decode()
