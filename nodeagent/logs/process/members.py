"""Single members of many JSON objects, found and replaced without reading the rest of them; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from nodeagent.logs.process.quoted import QuotedMember

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
        self.quoted: Final = QuotedMember(self._parts)
        """The same in a text that is no object."""
        self._names = [".".join(self._parts[:count]) for count in range(len(self._parts), 0, -1)]
        self._quoted = {f'"{name}"'.encode() for name in _rows(self._parts)}
        fields = [
            (f"field{at}", msgspec.Raw | msgspec.UnsetType, msgspec.field(name=name, default=msgspec.UNSET))
            for at, name in enumerate(self._names)
        ]
        self._first = msgspec.json.Decoder(msgspec.defstruct("First", fields, gc=False))

    def values(self, objects: Sequence[bytes]) -> dict[int, str]:
        """Return the member's value by the indices of those of *objects*, valid JSON of one line each, that have
        it: a string as it is, all else as its JSON text.
        """
        found: dict[int, str] = {}
        for at, first in enumerate(self._first.decode_lines(b"\n".join(objects))):
            raws = msgspec.structs.astuple(first)
            if raws[0] is msgspec.UNSET and raws[-1] is msgspec.UNSET:
                continue
            value = _as_text(raws[0]) if raws[0] is not msgspec.UNSET else _within(raws[-1], self._parts[1:])
            if value is not None:
                found[at] = value
        return found

    def redacted(self, objects: Sequence[bytes], replace: Callable[[str], str]) -> dict[int, bytes]:
        """Return those of *objects*, by their indices, whose member *replace* makes another one of: in each spelling
        of the path that is there. Of a name that is there twice one is left, the last: others may read the first.
        """
        made: dict[int, bytes] = {}
        for at, first in enumerate(self._first.decode_lines(b"\n".join(objects))):
            raws = msgspec.structs.astuple(first)
            if all(raw is msgspec.UNSET for raw in raws):
                continue
            twice = self._may_be_twice(objects[at])
            changes: dict[str, object] = {}
            for name, raw in zip(self._names, raws, strict=True):
                rest = self._parts[name.count(".") + 1 :]
                if raw is not msgspec.UNSET and (now := _redacted(raw, rest, replace, twice)) is not None:
                    changes[name] = now
            if changes or twice:
                made[at] = _ENCODER.encode({**_MEMBERS.decode(objects[at]), **changes})
        return made

    def _may_be_twice(self, text: bytes) -> bool:
        """Say whether a name of the path may stand in *text* more than once, or escaped."""
        return b"\\u" in text or b"\\/" in text or any(text.count(name) > 1 for name in self._quoted)


def _rows(parts: Sequence[str]) -> Iterator[str]:
    """Yield every row of *parts* that follow each other, with dots between them: what a name may be."""
    for first in range(len(parts)):
        for end in range(first + 1, len(parts) + 1):
            yield ".".join(parts[first:end])


def _redacted(raw: msgspec.Raw, path: Sequence[str], replace: Callable[[str], str], twice: bool) -> object | None:
    """Return the value *raw* with what *replace* makes of the member *path* in it, of itself where that is empty; None:
    it stays. Where names may be there *twice* one of each is left.
    """
    if not path:
        value = _as_text(raw)
        made = replace(value)
        return made if made != value else None
    try:
        members = _MEMBERS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    changes: dict[str, object] = {}
    for count in range(1, len(path) + 1):
        name = ".".join(path[:count])
        if name in members and (now := _redacted(members[name], path[count:], replace, twice)) is not None:
            changes[name] = now
    return msgspec.Raw(_ENCODER.encode({**members, **changes})) if changes or twice else None


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
