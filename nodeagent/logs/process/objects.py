r"""What an application wrote, as JSON objects that a strict server takes; pure.

Theory of operation. Most lines are JSON objects already, and stay as they are: a sink splices its
members in behind the opening brace. That is right only if every line is exactly one valid object that
repeats no member which is spliced in. One decoding of all lines at once proves it, without a Python
object for what they hold:

- every line begins with ``{"`` and ends with ``}``: no value reaches over a line's end, for ``}`` is
  never followed by ``{`` within a value, and an end of line in a string is invalid;
- so each line holds one value or more, and as many values as lines means one each. Counting alone
  proves nothing: ``{"a":[1`` and ``2]}`` are balanced by a line with two;
- none has a reserved name where no string anywhere begins with one, nor has an escape that may hide it. Else the
  decoder is told of a struct whose fields of those names take no value that there is, escapes seen through;
- strings that are skipped are not checked for UTF-8 by it: texts are valid before they come here.

An index engine takes a dot in a name for one object within another: ``kubernetes.pod_name`` would stand beside
what is spliced in. The struct does not see such names, so a chunk that has such text anywhere, or an escape that
may hide it, is taken for unproven.

Where the proof fails, lines are looked at one by one: an object stays, one with a reserved name has it
renamed, and all else is text within an object of its own. NaN, duplicates of an application's own,
lone surrogates and nesting beyond Python's depth are therefore text, or for the sink to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final, Literal

import msgspec

from nodeagent.logs.process.search import has

TEXT: Final = "log"
"""The member that holds a line which is no object, unless another one is asked for: what Fluentd and Fluent Bit
name it. An index takes it for a text, and so refuses what has an object there: ECS, which writes ``log.level``, has
texts in ``message``.
"""
OWN_MEMBERS: Final = ("@timestamp", "stream")
"""Names that sinks splice in beside those of the origin."""
_ENCODER: Final = msgspec.json.Encoder()
_ANY: Final = msgspec.json.Decoder(msgspec.Raw)
"""Checks that a value is one, and makes nothing of what it holds."""
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ESCAPE: Final = b"\\u00"
_ESCAPED: Final = re.compile(rb"\\u00(?:2[eE]|40|5[fF]|[67])")
"""A dot, @, _ or small letter: what reserved names are made of; none of those that encoders escape by themselves."""
_SHORTEST: Final = len(b'{"":0}')


class LogObjects:
    """Makes texts into objects that repeat none of the reserved names."""

    def __init__(self, reserved: Iterable[str], several_lines: bool = True, text: str = TEXT) -> None:
        """*reserved*: names of members that are spliced in, beside :data:`OWN_MEMBERS`; *several_lines*: whether
        texts may have several; *text*: the member of what is no object.
        """
        self._opening = b"{%b:" % _ENCODER.encode(text)
        self._several_lines = several_lines
        self.reserved = tuple(dict.fromkeys((*OWN_MEMBERS, *reserved)))
        self._whole = _without(self.reserved)
        self._begun = [f'"{name}'.encode() for name in self.reserved]
        self._dotted = [f'"{name}.'.encode() for name in self.reserved]

    def of_json(self, texts: list[bytes]) -> tuple[list[bytes], list[int]]:
        """Return *texts*, valid UTF-8 each, as objects, and the indices of those that are none themselves:
        they stand within one as ``log``.
        """
        if self._are_objects(texts):
            return texts, []
        if b"{" not in b"".join(texts):
            return self.of_text(texts), list(range(len(texts)))
        objects = [self._of_one(text) for text in texts]
        others = [at for at, found in enumerate(objects) if not found]
        for at, found in zip(others, self.of_text([texts[at] for at in others]), strict=True):
            objects[at] = found
        return objects, others

    def of_text(self, texts: Sequence[bytes]) -> list[bytes]:
        """Return each of *texts*, valid UTF-8, as an object with it alone: ``{"log":"…"}``."""
        encode = _ENCODER.encode
        opening = self._opening
        return [opening + encode(text.decode()) + b"}" for text in texts]

    def of_members(self, members: dict[str, str]) -> bytes:
        """Return *members*, read from a text, as an object without reserved names; text where there are none."""
        renamed = self._renamed(members)
        return _ENCODER.encode(renamed)

    def _are_objects(self, texts: list[bytes]) -> bool:
        if not texts:
            return True
        if not _are_in_braces(texts):
            return False
        count = len(texts)
        joined = b"\n".join(texts)
        if self._several_lines and joined.count(b"\n") != count - 1:
            return False
        if b"\\" in joined and has(joined, _ESCAPE) and _ESCAPED.search(joined):
            return False
        decoder: msgspec.json.Decoder[msgspec.Raw] | msgspec.json.Decoder[msgspec.Struct] = _ANY
        if any(has(joined, each) for each in self._begun):
            if any(has(joined, each) for each in self._dotted):
                return False
            decoder = self._whole
        try:
            return len(decoder.decode_lines(joined)) == count
        except (msgspec.DecodeError, RecursionError):
            return False

    def _of_one(self, text: bytes) -> bytes:
        """Return *text* as an object of its own members; nothing if it is none, or has none."""
        text = text.strip(b" \t\r\n")
        if len(text) < _SHORTEST or text[0] != 123 or text[-1] != 125:
            return b""
        if text[1] != 34:
            text = b"{" + text[1:].lstrip(b" \t\r\n")
        try:
            self._whole.decode(text)
        except msgspec.ValidationError:
            return self._without_reserved(text)
        except (msgspec.DecodeError, RecursionError):
            return b""
        if text[1] == 125:
            return b""
        if self._may_be_dotted(text):
            return self._without_reserved(text)
        # An end of line is only ever between tokens here.
        return text.replace(b"\n", b" ") if b"\n" in text else text

    def _without_reserved(self, text: bytes) -> bytes:
        try:
            members = _MEMBERS.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return b""
        if not any(map(self._is_reserved, members)):
            return text.replace(b"\n", b" ")
        return _ENCODER.encode(self._renamed(members)).replace(b"\n", b" ")

    def _renamed(self, members: dict[str, object] | dict[str, str] | dict[str, msgspec.Raw]) -> dict[str, object]:
        made: dict[str, object] = {}
        for name, value in members.items():
            made[_other_name(name, members) if self._is_reserved(name) else name] = value
        return made

    def _may_be_dotted(self, text: bytes) -> bool:
        if _ESCAPE in text and _ESCAPED.search(text):
            return True
        return any(each in text for each in self._dotted)

    def _is_reserved(self, name: str) -> bool:
        return name.partition(".")[0] in self.reserved


def _are_in_braces(texts: Sequence[bytes]) -> bool:
    """Return whether each of *texts* begins with ``{"`` and ends with ``}``. Three looks at one byte of each take less
    than one at all their bytes.
    """
    try:
        return [set(map(itemgetter(at), texts)) for at in (0, 1, -1)] == [{0x7B}, {0x22}, {0x7D}]
    except IndexError:
        return False


@lru_cache(64)
def _without(reserved: tuple[str, ...]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Return what takes objects that have none of *reserved*; making it takes milliseconds."""
    no_value = Literal["\0 no log has this value"] | msgspec.UnsetType
    fields = [
        (f"field{at}", no_value, msgspec.field(name=name, default=msgspec.UNSET)) for at, name in enumerate(reserved)
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Whole", fields, gc=False))


def renamed(name: str) -> str:
    """Return what a member becomes whose name is reserved, unless there is one of that name already."""
    return "app_" + name.lstrip("@")


def _other_name(name: str, taken: Iterable[str]) -> str:
    found = renamed(name)
    while found in taken:
        found = "app_" + found
    return found


def member_names(members: bytes) -> tuple[str, ...]:
    """Return the names in *members*, whole members of a JSON object without its braces.

    Raises:
        ValueError: they are none.
    """
    try:
        return tuple(_MEMBERS.decode(b"{" + members + b"}"))
    except msgspec.DecodeError as error:
        raise ValueError(f"not the members of a JSON object: {members[:80]!r}: {error}") from None
