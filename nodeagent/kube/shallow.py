"""JSON of any depth, read and written as far down as anybody looks: orjson reads 1024 levels and writes
254, and one object that is deeper must not keep the others from being known.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

MAX_DEPTH: Final = 100
"""Nothing that is read of any object stands deeper."""
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]')
"""Texts, and what begins and ends lists and mappings."""


def loads(content: bytes) -> object:
    """Return what *content* says; where it is too deep, null stands for what is below MAX_DEPTH.
    Raises orjson.JSONDecodeError.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        cut = _cut(content)
        if cut is None:
            raise
        return orjson.loads(cut)


def dumps(document: object) -> bytes:
    """Return *document*, which is of JSON, as text; where it is too deep, null stands for what is below MAX_DEPTH."""
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return orjson.dumps(_pruned(document, MAX_DEPTH))


def _cut(content: bytes) -> bytes | None:
    """Return *content* with null for what is too deep; None: nothing is."""
    kept: list[bytes] = []
    depth = 0
    begin = 0
    for token in _TOKEN.finditer(content):
        mark = content[token.start()]
        if mark in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += (content[begin : token.start()], b"null")
        elif mark in b"]}":
            if depth == MAX_DEPTH + 1:
                begin = token.end()
            depth -= 1
    return b"".join([*kept, content[begin:]]) if kept and depth == 0 else None


def _pruned(value: object, depth: int) -> object:
    """Return *value* with None for what stands more than *depth* levels down."""
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return None
    if isinstance(value, dict):
        return {name: _pruned(each, depth - 1) for name, each in value.items()}
    return [_pruned(each, depth - 1) for each in value]
