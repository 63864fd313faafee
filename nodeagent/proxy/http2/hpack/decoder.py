"""Reading header blocks (RFC 7541 sections 3.2 and 6).

Once the table is warm the blocks of one peer repeat byte for byte: what a block says under a table
that did not change since is looked up whole. A change of the table forgets all of it, and a bound
on the blocks' bytes holds what a peer can make us remember.
"""

from __future__ import annotations

from typing import Final, cast

from nodeagent.proxy.http2.hpack import huffman
from nodeagent.proxy.http2.hpack.errors import CompressionError, ListTooLarge
from nodeagent.proxy.http2.hpack.integers import read_rest
from nodeagent.proxy.http2.hpack.secret import NeverIndexed
from nodeagent.proxy.http2.hpack.static import STATIC
from nodeagent.proxy.http2.hpack.table import DEFAULT_SIZE, FIELD_OVERHEAD, Table

_STATIC_END: Final = len(STATIC)
_SEEN_BYTES: Final = 2048
"""Of blocks that are remembered, a connection."""
_MOST_UPDATES: Final = 2
"""In one block: the smallest size since the last one, and the final one (section 4.2)."""


class Decoder:
    """What one side of a connection sends, read in order."""

    def __init__(self, max_table: int, max_list: int, max_fields: int = 100) -> None:
        """Accept a table of *max_table* bytes: our SETTINGS_HEADER_TABLE_SIZE, not below the 4096
        with which every peer begins. A list may have *max_fields* fields and take *max_list* bytes,
        counted as SETTINGS_MAX_HEADER_LIST_SIZE does: 32 a field beside name and value.
        """
        if max_table < DEFAULT_SIZE:
            raise ValueError(f"a table of {max_table} bytes is less than the {DEFAULT_SIZE} that peers begin with")
        self._max_table = max_table
        self._max_list = max_list
        self._max_fields = max_fields
        self.table = Table()
        self._seen: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self._seen_bytes = 0
        self._changed = False
        """The block that is read changed the table."""
        self.repeated = False
        """The list that was returned last is one that was returned before."""

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Return the fields of *block*, a whole field block (RFC 9113 section 4.3).

        The list may be returned for the same block again: nobody changes it. Values that came as
        never-indexed literals are NeverIndexed. Raises CompressionError and ListTooLarge.
        """
        seen = self._seen.get(block)
        self.repeated = seen is not None
        if seen is not None:
            return seen
        self._changed = False
        fields = self._read(block)
        if not self._changed:
            self._remember(block, fields)
        return fields

    def _remember(self, block: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        size = len(block)
        if size > _SEEN_BYTES:
            return
        if self._seen_bytes + size > _SEEN_BYTES:
            self._forget()
        self._seen[block] = fields
        self._seen_bytes += size

    def _forget(self) -> None:
        self._changed = True
        if self._seen_bytes:
            self._seen.clear()
            self._seen_bytes = 0

    def _read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        fields: list[tuple[bytes, ...]] = []
        room = self._max_list
        end = len(block)
        at = self._updates(block)
        while at < end:
            byte = block[at]
            if byte >= 0x80:
                field, at = self._indexed(block, at + 1, byte & 0x7F)
            elif 0x20 <= byte < 0x40:
                raise CompressionError("the table's size is changed after a field, or too often")
            else:
                field, at = self._literal(block, at + 1, byte)
            size = len(field[0]) + len(field[1]) + FIELD_OVERHEAD
            if 0x40 <= byte < 0x80:
                self._forget()
                self.table.insert(field, size)
            room -= size
            if room >= 0 and len(fields) <= self._max_fields:
                fields.append(field)
        if room < 0 or len(fields) > self._max_fields:
            raise ListTooLarge(f"more than {self._max_fields} fields, or {self._max_list} bytes of them")
        return cast(list[tuple[bytes, bytes]], fields)

    def _updates(self, block: bytes) -> int:
        """Follow the changes of the table's size (section 6.3) with which *block* begins; return where they end."""
        at = 0
        for _ in range(_MOST_UPDATES):
            if at == len(block) or block[at] & 0xE0 != 0x20:
                break
            capacity = block[at] & 0x1F
            at += 1
            if capacity == 0x1F:
                capacity, at = read_rest(block, at, 0x1F)
            if capacity > self._max_table:
                raise CompressionError(f"a table of {capacity} bytes, and {self._max_table} are allowed")
            self._forget()
            self.table.resize(capacity)
        return at

    def _indexed(self, block: bytes, at: int, index: int) -> tuple[tuple[bytes, ...], int]:
        """Return the field of an indexed one (section 6.1) and where it ends."""
        if index == 0x7F:
            index, at = read_rest(block, at, 0x7F)
        return self._at(index), at

    def _literal(self, block: bytes, at: int, byte: int) -> tuple[tuple[bytes, ...], int]:
        """Return the field of a literal that begins with *byte* (section 6.2) and where it ends."""
        prefix = 0x3F if byte >= 0x40 else 0x0F
        index = byte & prefix
        if index == prefix:
            index, at = read_rest(block, at, prefix)
        if index:
            name = self._at(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        if 0x10 <= byte < 0x20:
            value = NeverIndexed(value)
        return (name, value), at

    def _at(self, index: int) -> tuple[bytes, ...]:
        """Return the field with *index* (section 2.3.3)."""
        if index >= _STATIC_END:
            field = self.table.field(index - _STATIC_END + 1)
            if field is not None:
                return field
        elif index:
            return STATIC[index]
        raise CompressionError(f"no field has the index {index}")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Return the string (section 5.2) that begins at *at* and where it ends."""
    if at >= len(block):
        raise CompressionError("the block ends before a string")
    byte = block[at]
    at += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, at = read_rest(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise CompressionError("the block ends inside a string")
    text = block[at:end]
    return (huffman.decode(text) if byte & 0x80 else text), end
