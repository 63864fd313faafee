"""YAML as an agent may read it from a folder that others write: one document at a time, strict, and bounded in depth and size.

Built from libyaml's events, without recursion: what composes nodes in C overflows the stack on deep nesting, and aliases and
merge keys make a small text a huge value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from nodeagent.errors import ResourceError

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 200_000
"""Keys and values of one document, with those behind aliases; etcd's largest object has fewer."""
_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_PARSER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE: Final = "tag:yaml.org,2002:merge"


class _Scalars(yaml.SafeLoader):
    """What a scalar stands for, as Kubernetes reads it: a date is text."""


_Scalars.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SCALARS: Final[Any] = _Scalars("")


def split(text: str) -> list[tuple[int, str]]:
    """Return the documents of *text*, each with the number of lines before it.

    ``---`` at the begin of a line is a document's marker wherever it stands, also within a block scalar (YAML 1.2, c-forbidden).
    """
    cuts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start()), len(text)]
    found, line = [], 0
    for begin, end in itertools.pairwise(cuts):
        part = text[begin:end]
        found.append((line, part))
        line += part.count("\n")
    return found


def load(text: str, lines_before: int = 0, most: int = MAX_VALUES) -> list[Any]:
    """Return the values of the documents in *text*, without empty ones. Raises ResourceError, which names the line.

    *most*: how many keys and values a document may hold.
    """
    try:
        return [value for value in _documents(yaml.parse(text, Loader=_PARSER), lines_before, most) if value is not None]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1 + lines_before}: " if error.problem_mark else ""
        raise ResourceError(f"not YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ResourceError(f"not YAML: {' '.join(str(error).split())}") from None


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen."""

    value: Any
    anchor: str | None
    begin: int
    """How many values there were before it."""
    key: Any = None
    keyed: bool = False


@dataclass(slots=True)
class _Document:
    most: int
    """Values it may hold."""
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    values: int = 0
    root: Any = None


def _documents(events: Iterator[Any], lines_before: int, most: int) -> Iterator[Any]:
    document = _Document(most)
    for event in events:
        kind = type(event).__name__
        line = event.start_mark.line + 1 + lines_before if event.start_mark else 0
        if kind == "DocumentStartEvent":
            document = _Document(most)
        elif kind == "DocumentEndEvent":
            yield document.root
        elif kind == "ScalarEvent":
            _put(document, _scalar(event, line), line, 1)
            if event.anchor:
                document.anchors[event.anchor] = (_scalar(event, line), 1)
        elif kind == "AliasEvent":
            if event.anchor not in document.anchors:
                raise ResourceError(f"not YAML: line {line}: alias {event.anchor!r:.80} without an anchor before it")
            _put(document, document.anchors[event.anchor][0], line, document.anchors[event.anchor][1])
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            if len(document.stack) >= MAX_DEPTH:
                raise ResourceError(f"not YAML: line {line}: nested deeper than {MAX_DEPTH}")
            begin = document.values
            value: Any = {} if kind == "MappingStartEvent" else []
            _put(document, value, line, 1)
            document.stack.append(_Open(value, event.anchor, begin))
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            ended = document.stack.pop()
            if ended.anchor:
                document.anchors[ended.anchor] = (ended.value, document.values - ended.begin)


def _scalar(event: Any, line: int) -> Any:
    tag = event.tag if event.tag not in (None, "!") else _SCALARS.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag == _MERGE:
        raise ResourceError(f"not YAML: line {line}: merge keys (<<) are not allowed")
    try:
        return _SCALARS.construct_object(yaml.ScalarNode(tag, event.value))
    except yaml.YAMLError as error:
        raise ResourceError(f"not YAML: line {line}: {' '.join(str(error).split()):.120}") from None


def _put(document: _Document, value: Any, line: int, size: int) -> None:
    document.values += size
    if document.values > document.most:
        raise ResourceError(f"not YAML: line {line}: the document holds more than {document.most} values")
    if not document.stack:
        document.root = value
        return
    parent = document.stack[-1]
    if isinstance(parent.value, list):
        parent.value.append(value)
    elif parent.keyed:
        parent.value[parent.key], parent.keyed = value, False
    else:
        if not isinstance(value, str):
            # JSON has no other keys; a port number as a key (portLevelMtls) is written both ways in real manifests.
            if not isinstance(value, int) or isinstance(value, bool):
                raise ResourceError(f"not YAML: line {line}: the key {value!r:.80} is not text")
            value = str(value)
        if value in parent.value:
            raise ResourceError(f"not YAML: line {line}: the key {value!r:.80} stands twice")
        parent.key, parent.keyed = value, True
