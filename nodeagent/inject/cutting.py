"""What goes out of a YAML document, cut out of its text with the comment above it: who reads the text into a
tree has a comment with what stands before it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeGuard

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from nodeagent.errors import ResourceError
from nodeagent.inject.model import Document
from nodeagent.resources import yaml_text

_DASH: Final = re.compile(r" *- +")


def cut(text: str, tree: CommentedMap, old: Document, new: Document) -> tuple[str, Document]:
    """Return *text*, whose value is *old* and which was read into *tree*, without what *new* has not, and its value.

    What does not stand on lines of its own stays, and so does all where the rest would mean something else.
    """
    lines = text.splitlines(keepends=True)
    gone: list[range] = []
    kept = _kept_map(tree, old, new, lines, gone)
    for each in sorted(gone, key=lambda span: span.start, reverse=True):
        before_blank = each.start > 0 and not lines[each.start - 1].strip()
        after_blank = each.stop >= len(lines) or not lines[each.stop].strip()
        del lines[each.start - (before_blank and after_blank) : each.stop]
    thinned = "".join(lines)
    try:
        same = yaml_text.load(thinned) == [kept]
    except ResourceError:
        same = False
    return (thinned, kept) if gone and same else (text, old)


def _kept(node: object, old: object, new: object, lines: list[str], gone: list[range]) -> object:
    if isinstance(node, CommentedMap) and isinstance(old, dict) and isinstance(new, dict):
        return _kept_map(node, old, new, lines, gone)
    if isinstance(node, CommentedSeq) and named(old) and named(new):
        return _kept_list(node, old, new, lines, gone)
    return old


def _kept_map(node: CommentedMap, old: Document, new: Document, lines: list[str], gone: list[range]) -> Document:
    kept: Document = {}
    for index, (key, value) in enumerate(old.items()):
        if key in new:
            kept[key] = value if value == new[key] else _kept(node[key], value, new[key], lines, gone)
            continue
        line, column = node.lc.key(key)
        if lines[line][:column].strip() or not old.keys() & new.keys():
            kept[key] = value
        else:
            gone.append(_span(lines, line, column, first=index == 0, dashes=isinstance(value, list)))
    return kept


def _kept_list(
    node: CommentedSeq, old: list[Document], new: list[Document], lines: list[str], gone: list[range]
) -> list[object]:
    wanted = {item["name"]: item for item in new}
    some = any(item["name"] in wanted for item in old)
    kept: list[object] = []
    for index, item in enumerate(old):
        if item["name"] in wanted:
            kept.append(_kept(node[index], item, wanted[item["name"]], lines, gone))
            continue
        line, column = node.lc.item(index)
        dash = _DASH.match(lines[line])
        if not some or dash is None or dash.end() != column:
            kept.append(item)
        else:
            gone.append(_span(lines, line, lines[line].index("-"), first=index == 0))
    return kept


def named(items: object) -> TypeGuard[list[Document]]:
    """Say whether *items* is a list whose items have names, by which they are told from each other."""
    return isinstance(items, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in items
    )


def _span(lines: list[str], line: int, column: int, *, first: bool, dashes: bool = False) -> range:
    """Return the lines of what begins at *line* and *column*, with the comment right above, unless it is the *first*:
    that may be said of all, or of what something was put before. *dashes*: it is a list, whose items may begin at
    that column, too.
    """
    begin = line
    while not first and begin and lines[begin - 1].startswith(f"{' ' * column}#"):
        begin -= 1
    end = line + 1
    for number, text in _below(lines, line, column, dashes=dashes):
        if text.strip():
            end = number + 1
    return range(begin, end)


def _below(lines: list[str], line: int, column: int, *, dashes: bool) -> Iterator[tuple[int, str]]:
    for number in range(line + 1, len(lines)):
        text = lines[number]
        indent = len(text) - len(text.lstrip(" "))
        item = dashes and indent == column and text[indent:].startswith("-")
        if text.strip() and indent <= column and not item:
            return
        yield number, text
