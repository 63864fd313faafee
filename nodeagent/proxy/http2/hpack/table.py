"""The dynamic table (RFC 7541 sections 2.3.2 and 4): the fields that were sent last, as many as its size allows."""

from __future__ import annotations

from typing import Final

DEFAULT_SIZE: Final = 4096
"""What a table may take until a peer's SETTINGS_HEADER_TABLE_SIZE says otherwise (RFC 9113 section 6.5.2)."""
FIELD_OVERHEAD: Final = 32
"""What a field takes besides its name and value (RFC 7541 section 4.1)."""
_NONE: Final[list[tuple[bytes, ...]]] = []
_GONE: Final[tuple[bytes, ...]] = ()
_SLACK: Final = 64
"""Places of evicted fields that are kept before the list is moved."""


class Table:
    """Fields by age. Each has a number, counted from 0 in the order in which they came, by which an
    encoder remembers it; on the wire the youngest is 1, the one before it 2.
    """

    def __init__(self) -> None:
        self.capacity = DEFAULT_SIZE
        """Bytes that its fields may take (RFC 7541 section 4.1)."""
        self.size = 0
        self.inserted = 0
        """How many fields ever came: the number of the next one."""
        self._fields: list[tuple[bytes, ...]] = []
        self._first = 0
        """Where the oldest stands in the list; before it are those that went."""

    def field(self, age: int) -> tuple[bytes, ...] | None:
        """Return the field of that *age*, 1 for the youngest; None beyond the oldest."""
        fields = self._fields
        if age < 1 or age > len(fields) - self._first:
            return None
        return fields[len(fields) - age]

    def insert(self, field: tuple[bytes, ...], size: int) -> list[tuple[bytes, ...]]:
        """Take *field*, of that *size*, and return the oldest ones, which give way. One that is
        larger than the table only empties it (section 4.4).
        """
        evicted = self._evict(max(self.capacity - size, 0)) if self.size + size > self.capacity else _NONE
        if size <= self.capacity:
            self._fields.append(field)
            self.size += size
            self.inserted += 1
        return evicted

    def resize(self, capacity: int) -> list[tuple[bytes, ...]]:
        """Change how much may be held; return the oldest fields, which give way."""
        self.capacity = capacity
        return self._evict(capacity)

    def _evict(self, size: int) -> list[tuple[bytes, ...]]:
        """Let the oldest fields go until *size* bytes are left, and return them."""
        evicted: list[tuple[bytes, ...]] = []
        fields = self._fields
        first = self._first
        while self.size > size:
            gone = fields[first]
            fields[first] = _GONE
            self.size -= len(gone[0]) + len(gone[1]) + FIELD_OVERHEAD
            evicted.append(gone)
            first += 1
        if first > _SLACK:
            del fields[:first]
            first = 0
        self._first = first
        return evicted
