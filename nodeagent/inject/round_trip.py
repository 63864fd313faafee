"""One YAML document changed in its text: what is not changed keeps its comments, order, quotes and
numbers as they are written. Pure.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any, Final, cast

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString, PlainScalarString
from ruamel.yaml.tokens import BlockEntryToken, BlockMappingStartToken, CommentToken, KeyToken, ValueToken

from nodeagent.errors import InjectionError
from nodeagent.inject.cutting import cut, named
from nodeagent.inject.model import Document
from nodeagent.resources import yaml_text

_WIDTH: Final = 1 << 20
"""Longer than any line: nothing is folded."""
_TEXT: Final = "tag:yaml.org,2002:str"
_MEANING: Final[Any] = yaml.resolver.Resolver().resolve
"""What a plain scalar is to readers of YAML 1.1 other than Kubernetes': yes, on and 0644 are no texts."""


def edit(text: str, old: Document, new: Document) -> str:
    """Return *text*, a document whose value is *old*, changed to mean *new*. Raises InjectionError."""
    try:
        handler = _handler(text)
        tree = handler.load(text)
        text, old = cut(text, tree, old, new)
        tree = handler.load(text)
        _change_map(tree, old, new, _shared(tree))
        stream = io.StringIO()
        handler.dump(tree, stream)
    except YAMLError as error:
        raise InjectionError(f"cannot be changed in its text: {' '.join(str(error).split()):.200}") from None
    return stream.getvalue()


class _Verbatim(PlainScalarString):
    """A scalar that is no text: it keeps the form in which it is written (0644, ~, 1.0)."""

    tag_meant: Any


class _Constructor(RoundTripConstructor):
    def verbatim(self, node: ScalarNode) -> _Verbatim:
        found: Any = _Verbatim(node.value, anchor=node.anchor)
        found.tag_meant = node.tag
        return cast(_Verbatim, found)


class _Representer(RoundTripRepresenter):
    def verbatim(self, data: _Verbatim) -> Any:
        return self.represent_scalar(data.tag_meant, data, style="", anchor=data.yaml_anchor(any=True))


for _kind in ("null", "bool", "int", "float", "timestamp"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.verbatim)
_Representer.add_representer(_Verbatim, _Representer.verbatim)


def _handler(text: str) -> YAML:
    handler = YAML(typ="rt")
    handler.preserve_quotes = True
    handler.width = _WIDTH
    handler.allow_unicode = True
    mapping, offset, width = _indents(text)
    handler.indent(mapping=mapping, sequence=offset + width, offset=offset)
    handler.Constructor = _Constructor
    handler.Representer = _Representer
    return handler


def _indents(text: str) -> tuple[int, int, int]:
    """Return how far most mappings stand right of their key, most lists' dashes of theirs, and most
    items of their dash.
    """
    mappings: Counter[int] = Counter()
    lists: Counter[int] = Counter()
    items: Counter[int] = Counter()
    key = 0
    before = None
    last = None
    for token in YAML(typ="rt").scan(text):
        if isinstance(token, KeyToken):
            if isinstance(last, BlockMappingStartToken) and isinstance(before, ValueToken):
                mappings[token.start_mark.column - key] += 1
            key = token.start_mark.column
        elif isinstance(token, BlockEntryToken) and token.start_mark.column >= key:
            lists[token.start_mark.column - key] += 1
        if isinstance(last, BlockEntryToken) and token.start_mark.line == last.start_mark.line:
            items[token.start_mark.column - last.start_mark.column] += 1
        before, last = last, token
    return _usual(mappings, 2), _usual(lists, 0), _usual(items, 2)


def _usual(found: Counter[int], default: int) -> int:
    return found.most_common(1)[0][0] if found else default


# -- from one value to the other --


def _shared(tree: object) -> frozenset[int]:
    """Return the ids of what stands at more than one place (anchors): it is replaced where it
    changes, not changed everywhere.
    """
    seen: Counter[int] = Counter()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, CommentedMap | CommentedSeq):
            continue
        seen[id(node)] += 1
        if seen[id(node)] == 1:
            waiting += node.values() if isinstance(node, CommentedMap) else node
    return frozenset(each for each, times in seen.items() if times > 1)


def _change_map(node: CommentedMap, old: Document, new: Document, shared: frozenset[int]) -> None:
    for key in [key for key in old if key not in new]:
        del node[key]
    for index, (key, value) in enumerate(new.items()):
        if key not in old:
            node.insert(index, key, _fresh(value))
        elif not _same(old[key], value):
            _change_item(node, key, old[key], value, shared)


def _change_item(node: Any, key: Any, old: Any, new: Any, shared: frozenset[int]) -> None:
    held = node[key]
    if isinstance(held, CommentedMap) and isinstance(new, dict) and id(held) not in shared:
        _change_map(held, old, new, shared)
    elif (
        isinstance(held, CommentedSeq)
        and isinstance(new, list)
        and id(held) not in shared
        and named(old)
        and named(new)
    ):
        _change_list(held, old, new, shared)
    else:
        value = _fresh(new)
        # A text in the place of another takes its quotes over (CommentedMap does that); in the
        # place of what is no text there are none.
        node[key] = PlainScalarString(value) if type(value) is str and isinstance(held, _Verbatim) else value
        _move_comment(node, key, len(str(new)) - len(str(old)))


def _move_comment(node: Any, key: Any, by: int) -> None:
    """Keep the comment behind a value as far from it as it was."""
    for token in node.ca.items.get(key) or ():
        if isinstance(token, CommentToken) and token.value.startswith("#"):
            token.start_mark = cast(Any, CommentMark(max(0, token.start_mark.column + by)))


def _change_list(node: CommentedSeq, old: list[Document], new: list[Document], shared: frozenset[int]) -> None:
    """Items are matched by name; those that stay keep their order."""
    kept = {item["name"] for item in new}
    held = [item for item in old if item["name"] in kept]
    for index in reversed(range(len(old))):
        if old[index]["name"] not in kept:
            del node[index]
    for index, item in enumerate(new):
        if index < len(held) and held[index]["name"] == item["name"]:
            if not _same(held[index], item):
                _change_item(node, index, held[index], item, shared)
        else:
            node.insert(index, _fresh(item))
            held.insert(index, item)


def _same(one: object, other: object) -> bool:
    """As JSON: True is not 1."""
    return json.dumps(one) == json.dumps(other)


def _fresh(value: object) -> object:
    if isinstance(value, dict):
        return CommentedMap({key: _fresh(child) for key, child in value.items()})
    if isinstance(value, list):
        return CommentedSeq([_fresh(child) for child in value])
    if isinstance(value, str):
        if "\n" in value:
            return LiteralScalarString(value)
        return value if _is_plain(value) else DoubleQuotedScalarString(value)
    return value


def _is_plain(text: str) -> bool:
    """Say whether *text* needs no quotes: it is text to every reader."""
    try:
        return _MEANING(yaml.ScalarNode, text, (True, False)) == _TEXT and yaml_text.plain(text) == text
    except ValueError:
        return False
