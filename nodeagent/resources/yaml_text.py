"""YAML as Kubernetes reads it (sigs.k8s.io/yaml), from folders that others write: JSON's types and
nothing else, one document at a time, bounded.

What a plain scalar stands for is what Go's yaml.v2 says: YAML 1.1's booleans, whole numbers as Go
writes them, no base 60, a date is text. Tags that make other types are refused, and so is what JSON
cannot say (.inf, .nan). An alias counts as what it stands for.

Built from libyaml's events, without recursion: what composes nodes in C overflows the stack on deep
nesting. Whatever is wrong, and whatever the parser raises, leaves as one ResourceError.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import yaml

from nodeagent.errors import ResourceError, shown, translated
from nodeagent.resources.seen import SeenList, SeenMapping

MAX_DEPTH: Final = 64
_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_PARSER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"
_SAID: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NO_NUMBER: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WHOLE: Final = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LONGEST: Final = 400
"""Characters of a number that is read as one; the largest float has 309 digits."""
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "null": (type(None),),
}
"""What a scalar with such a tag must stand for; one with ``!!str`` is text whatever it is."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one document, with what its aliases stand for."""

    values: int
    """Keys and values."""
    bytes: int
    """Of its text, and of its value as JSON."""


OBJECT: Final = Bounds(200_000, 3 << 19)
"""An object of the API: etcd takes no larger request (--max-request-bytes, 1.5 MiB), and its
largest object has fewer values.
"""


def split(text: str) -> list[tuple[int, str]]:
    """Return the documents of *text*, each with the number of lines before it.

    ``---`` at the begin of a line is a document's marker wherever it stands, also within a block
    scalar (YAML 1.2, c-forbidden).
    """
    cuts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start()), len(text)]
    found = []
    line = 0
    for begin, end in itertools.pairwise(cuts):
        part = text[begin:end]
        found.append((line, part))
        line += part.count("\n")
    return found


def load(text: str, lines_before: int = 0, bounds: Bounds = OBJECT) -> list[object]:
    """Return the values of the documents in *text*, without empty ones. Raises ResourceError, which names the line."""
    with translated(ResourceError, "not YAML"):
        if _bytes(text) > bounds.bytes:
            raise ResourceError(
                f"not YAML: line {lines_before + 1}: the document has more than {bounds.bytes} bytes: split it, a "
                "List into its items"
            )
        try:
            return [
                value
                for value in _documents(yaml.parse(text, Loader=_PARSER), lines_before, _Document(bounds))
                if value is not None
            ]
        except yaml.MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1 + lines_before}: " if error.problem_mark else ""
            raise ResourceError(f"not YAML: {line}{error.problem}") from None
        except yaml.YAMLError as error:
            raise ResourceError(f"not YAML: {' '.join(str(error).split())}") from None


def glimpse(text: str) -> object:
    """Return what can be seen of one document that :func:`load` refuses, to tell whose it is and what
    it selects; None where nothing can.

    What stands after a break is not seen. Mappings and lists are :class:`SeenMapping` and
    :class:`SeenList`. Those that the break cuts off are not whole, nor are those that end right
    before it: a line that is indented wrongly ends one too early. A value right before it has none:
    a quote may have begun too early, or a colon cut it. Not whole is also a mapping with a merge
    key, with a key that stands twice, nobody knows for which value, or with a value that JSON has
    not.
    """
    document = _Document(OBJECT, lenient=True)
    try:
        with translated(ResourceError, "not YAML"):
            for _ in _documents(yaml.parse(text, Loader=_PARSER), 0, document):
                pass  # libyaml takes one document, unless the next begins with ---
    except ResourceError:
        for each in (*(opened.value for opened in document.stack), *document.ended):
            _not_whole(each)
        if document.last is not None:
            holder, key = document.last
            holder[key] = None
            _not_whole(holder)
    return document.root


def one(text: str) -> object:
    """Return the value of the only document in *text*, None where there is none. Raises ResourceError."""
    values = load(text)
    if len(values) > 1:
        raise ResourceError("not YAML: one document is expected")
    return values[0] if values else None


def items(value: object) -> list[object]:
    """Return the objects that a document's *value* holds: those of a ``kind: List``, or itself."""
    listed = value.get("items") if isinstance(value, dict) and value.get("kind") == "List" else None
    return listed if isinstance(listed, list) else [value]


def plain(text: str) -> str | bool | int | float | None:
    """Return what the plain scalar *text* stands for. Raises ValueError for a number that JSON has not."""
    if text in _SAID:
        return _SAID[text]
    if text[0] not in "+-.0123456789":
        return text
    if _NO_NUMBER.fullmatch(text):
        raise ValueError("JSON has no such number")
    number = text if text[0] == "." else text.replace("_", "")
    if len(number) > _LONGEST:
        return text
    if whole := _WHOLE.fullmatch(number):
        sign, *digits = whole.groups()
        value = next(int(found, base) for found, base in zip(digits, (16, 2, 8, 10), strict=True) if found)
        value = -value if sign == "-" else value
        if -(1 << 63) <= value < (1 << 64 if not sign else 1 << 63):
            return value
    if _FLOAT.fullmatch(number) and math.isfinite(real := float(number)):
        return real
    return text


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen."""

    value: dict[str, object] | list[object]
    anchor: str | None
    values: int
    """How many there were before it."""
    bytes: int
    key: str | None = None
    """Of a mapping: whose value comes next; None: a key comes next."""


@dataclass(slots=True)
class _Document:
    bounds: Bounds
    lenient: bool = False
    """Go on where what is wrong can be passed over."""
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[object, int, int]] = field(default_factory=dict)
    """A value, how many values it holds, and how many bytes."""
    values: int = 0
    bytes: int = 0
    """As JSON, at least."""
    root: object = None
    ended: list[object] = field(default_factory=list)
    """Where lenient: the mappings and lists that ended last, with nothing after them yet."""
    last: tuple[dict[str, object], str] | None = None
    """Where lenient: the mapping and the key whose value came last, with nothing after it yet."""

    def note(self) -> None:
        """Note that a value comes, or a key: what is to be known of what stands before a break."""
        self.ended.clear()
        self.last = None
        parent = self.stack[-1] if self.stack else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is not None:
            self.last = (parent.value, parent.key)

    def begin(self) -> None:
        """Forget the document before this one."""
        self.stack.clear()
        self.anchors.clear()
        self.values = 0
        self.bytes = 0
        self.root = None


def _documents(events: Iterator[yaml.Event], lines_before: int, document: _Document) -> Iterator[object]:
    """Yield the values of the documents that *events* tell, each built in *document*."""
    for event in events:
        line = event.start_mark.line + 1 + lines_before if event.start_mark else 0
        if isinstance(event, yaml.ScalarEvent):
            size = _bytes(event.value) + 1
            try:
                value = _scalar(event, line)
            except ResourceError:
                if not document.lenient:
                    raise
                _put(document, _unknown(document, event), line, 1, size)
                continue
            _put(document, value, line, 1, size)
            if event.anchor:
                document.anchors[event.anchor] = (value, 1, size)
        elif isinstance(event, yaml.CollectionStartEvent):
            _begin(document, event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            _end(document)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in document.anchors:
                raise ResourceError(f"not YAML: line {line}: alias {shown(event.anchor)} without an anchor before it")
            again, values, size = document.anchors[event.anchor]
            _put(document, again, line, values, size)
        elif isinstance(event, yaml.DocumentStartEvent):
            document.begin()
        elif isinstance(event, yaml.DocumentEndEvent):
            yield document.root


def _begin(document: _Document, event: yaml.CollectionStartEvent, line: int) -> None:
    if len(document.stack) >= MAX_DEPTH:
        raise ResourceError(f"not YAML: line {line}: nested deeper than {MAX_DEPTH}")
    is_mapping = isinstance(event, yaml.MappingStartEvent)
    if event.tag not in (None, "!", f"{_TAG}{'map' if is_mapping else 'seq'}"):
        raise _unknown_tag(event.tag, line)
    value: dict[str, object] | list[object] = {} if is_mapping else []
    if document.lenient:
        value = SeenMapping() if is_mapping else SeenList()
    opened = _Open(value, event.anchor, document.values, document.bytes)
    _put(document, value, line, 1, len("[]"))
    document.stack.append(opened)


def _end(document: _Document) -> None:
    ended = document.stack.pop()
    if document.lenient:
        document.ended.append(ended.value)
    if ended.anchor:
        document.anchors[ended.anchor] = (ended.value, document.values - ended.values, document.bytes - ended.bytes)


def _unknown(document: _Document, event: yaml.ScalarEvent) -> str | None:
    """Return what stands for a wrong scalar of a lenient *document*: a merge key for itself, and
    nothing for what nobody knows.
    """
    if event.anchor:
        document.anchors.pop(event.anchor, None)
    holder = document.stack[-1] if document.stack else None
    if holder is None:
        return None
    _not_whole(holder.value)
    return _MERGE if holder.key is None and event.value == _MERGE else None


def _not_whole(value: object) -> None:
    if isinstance(value, SeenMapping | SeenList):
        value.whole = False


def _scalar(event: yaml.ScalarEvent, line: int) -> str | bool | int | float | None:
    """Return what a scalar stands for: by its tag, by itself where it stands without quotes, else text."""
    text = event.value
    tag = event.tag
    if tag is None and event.implicit[0] and text == _MERGE:
        raise ResourceError(f"not YAML: line {line}: merge keys (<<) are not allowed")
    if tag in ("!", f"{_TAG}str") or (tag is None and not event.implicit[0]):
        return text
    name = tag.removeprefix(_TAG) if tag else ""
    if tag and (name == tag or name not in _TYPES):
        raise _unknown_tag(tag, line)
    try:
        value = plain(text)
    except ValueError as error:
        raise ResourceError(f"not YAML: line {line}: {shown(text)}: {error}") from None
    # True is an int to Python, not to YAML.
    if tag and (not isinstance(value, _TYPES[name]) or isinstance(value, bool) != (name == "bool")):
        raise ResourceError(f"not YAML: line {line}: {shown(text)}: no {name}, as its tag says")
    return float(value) if name == "float" and value is not None else value


def _unknown_tag(tag: str, line: int) -> ResourceError:
    return ResourceError(
        f"not YAML: line {line}: the tag {shown(tag)} makes a type that JSON has not: only text, numbers, "
        "true, false and null are allowed"
    )


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _put(document: _Document, value: object, line: int, values: int, size: int) -> None:
    document.values += values
    document.bytes += size
    if document.lenient:
        document.note()
    if document.values > document.bounds.values:
        raise ResourceError(f"not YAML: line {line}: the document holds more than {document.bounds.values} values")
    if document.bytes > document.bounds.bytes:
        raise ResourceError(
            f"not YAML: line {line}: the document holds more than {document.bounds.bytes} bytes, with what its "
            "aliases stand for"
        )
    if not document.stack:
        document.root = value
        return
    parent = document.stack[-1]
    if isinstance(parent.value, list):
        parent.value.append(value)
    elif parent.key is not None:
        parent.value[parent.key] = value
        parent.key = None
    else:
        key = _key(value, line)
        if key in parent.value:
            if not document.lenient:
                raise ResourceError(f"not YAML: line {line}: the key {shown(key)} stands twice")
            parent.value[key] = None
            _not_whole(parent.value)
            key = f"{key}\0"  # which no key of a YAML text can be
        parent.key = key


def _key(value: object, line: int) -> str:
    """JSON's keys are text; a port number as a key (portLevelMtls) is written both ways in real manifests."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        raise ResourceError(f"not YAML: line {line}: the key {shown(value)} is not text")
    return str(value)
