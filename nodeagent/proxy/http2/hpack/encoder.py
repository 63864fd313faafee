"""Writing header blocks (RFC 7541 section 6): which fields the peer's table is to hold.

A field is put into the table when it comes for the second time, and never if its values seldom come
again, so that what differs in every request (ids, paths, lengths) does not push out what is the
same in all: then the table rests, and so does what the peer remembers of blocks
(``decoder.py``). Secrets are written so that no table on the way holds them.

Strings are written as they stand. Huffman's code would save a quarter of what is new to a
connection, some ten bytes a request inside of a cluster, for more time at both ends than that takes
on any wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodeagent.proxy.http2.hpack.integers import written
from nodeagent.proxy.http2.hpack.secret import NeverIndexed
from nodeagent.proxy.http2.hpack.static import STATIC
from nodeagent.proxy.http2.hpack.table import DEFAULT_SIZE, FIELD_OVERHEAD, Table

_STATIC_END: Final = len(STATIC)
_INDEXED: Final = 0x80
_INSERTED: Final = 0x40
_RESIZED: Final = 0x20
_NEVER: Final = 0x10
_PASSING: Final = 0x00
"""The forms of section 6 by their first bits; those of literals leave 6, 4 and 4 bits for the name's index."""
_BY_INDEX: Final = [written(index, _INDEXED, 0x7F) for index in range(_STATIC_END + DEFAULT_SIZE // FIELD_OVERHEAD + 1)]
"""Each indexed field that there can be."""
_SHORT_COOKIE: Final = 20
"""Bytes below which a cookie may be guessed (RFC 7541 section 7.1.3)."""
_SECRET: Final = frozenset((b"authorization", b"proxy-authorization"))
_SELDOM_AGAIN: Final = frozenset(
    (
        b"age", b"content-length", b"content-range", b"date", b"etag", b"expires", b"grpc-timeout", b"if-match",
        b"if-modified-since", b"if-none-match", b"last-modified", b"location", b"range", b"set-cookie",
        b"traceparent", b"tracestate", b"b3", b"x-b3-parentspanid", b"x-b3-spanid", b"x-b3-traceid", b"x-request-id",
        b"x-cloud-trace-context", b"x-datadog-parent-id", b"x-datadog-trace-id", b"x-envoy-upstream-service-time",
        b"uber-trace-id",
    )
)  # fmt: skip
"""Names of fields whose value is another one in almost every message, or every second."""
_LONGEST_SHARE: Final = 2
"""A field that takes more than this part of the table is not put in: it would push out all others."""
_MET: Final = 64
"""Fields met once that are remembered, by their hash."""


_STATIC_FIELDS: Final = {field: index for index, field in enumerate(STATIC) if index}
_STATIC_NAMES: Final = {field[0]: index for index, field in reversed(list(enumerate(STATIC))) if index}
_LENGTHS: Final = [bytes((length,)) for length in range(0x7F)]


def _string(text: bytes) -> bytes:
    """Return *text* as a string (section 5.2) without Huffman's code."""
    length = len(text)
    return (_LENGTHS[length] if length < 0x7F else written(length, 0, 0x7F)) + text


def _name(name: bytes, form: int, prefix: int) -> bytes:
    """Return how a literal of this *form* begins, whose first byte has the bits *prefix* left for an index."""
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return written(index, form, prefix)
    return bytes((form,)) + _string(name)


_PASSING_NAMES: Final = {name: _name(name, _PASSING, 0x0F) for name in {*_STATIC_NAMES, *_SELDOM_AGAIN}}


class Encoder:
    """What one side of a connection sends, written in order."""

    def __init__(self) -> None:
        self._table = Table()
        self._known: dict[tuple[bytes, ...], int] = {}
        """The number in the table of each field that is there; below zero: the index of a static one."""
        self._met: set[int] = set()
        self._smallest = DEFAULT_SIZE
        """The least size since the last block, of which the peer must hear (section 4.2)."""
        self._resized = False

    def resize(self, max_table: int) -> None:
        """Follow the peer's SETTINGS_HEADER_TABLE_SIZE: it allows a table of *max_table* bytes, of
        which never more than 4096 are used. The next block tells the peer.
        """
        capacity = min(max_table, DEFAULT_SIZE)
        if capacity == self._table.capacity:
            return
        self._smallest = min(self._smallest, capacity)
        self._resized = True
        self._forget(self._table.resize(capacity))

    def encode(self, fields: Sequence[tuple[bytes, ...]]) -> bytes:
        """Return the block of *fields*, pairs of name, in lower case, and value; pseudo-header fields first."""
        parts: list[bytes] = []
        if self._resized:
            self._tell_size(parts)
        known = self._known
        never = NeverIndexed  # another module's name is looked up each time
        for field in fields:
            number = known.get(field)
            if number is None or type(field[1]) is never:
                parts.append(self._literal(field))
            elif number < 0:
                parts.append(_BY_INDEX[-number])
            else:
                parts.append(_BY_INDEX[self._table.inserted - number + _STATIC_END - 1])
        return b"".join(parts)

    def _tell_size(self, parts: list[bytes]) -> None:
        capacity = self._table.capacity
        if self._smallest < capacity:
            parts.append(written(self._smallest, _RESIZED, 0x1F))
        parts.append(written(capacity, _RESIZED, 0x1F))
        self._smallest = capacity
        self._resized = False

    def _literal(self, field: tuple[bytes, ...]) -> bytes:
        """Return *field*, which is not in the table, in the form that it is to have."""
        name = field[0]
        value = field[1]
        if type(value) is NeverIndexed or name in _SECRET or (name == b"cookie" and len(value) < _SHORT_COOKIE):
            return _name(name, _NEVER, 0x0F) + _string(value)
        index = _STATIC_FIELDS.get(field)
        if index is not None:
            self._known[field] = -index
            return _BY_INDEX[index]
        if name not in _SELDOM_AGAIN and self._met_before(field):
            size = len(name) + len(value) + FIELD_OVERHEAD
            if size * _LONGEST_SHARE <= self._table.capacity:
                self._insert(field, size)
                return _name(name, _INSERTED, 0x3F) + _string(value)
        return (_PASSING_NAMES.get(name) or _name(name, _PASSING, 0x0F)) + _string(value)

    def _met_before(self, field: tuple[bytes, ...]) -> bool:
        met = self._met
        mark = hash(field)
        if mark in met:
            return True
        if len(met) >= _MET:
            met.clear()
        met.add(mark)
        return False

    def _insert(self, field: tuple[bytes, ...], size: int) -> None:
        self._forget(self._table.insert(field, size))
        self._known[field] = self._table.inserted - 1

    def _forget(self, evicted: list[tuple[bytes, ...]]) -> None:
        for field in evicted:
            del self._known[field]
