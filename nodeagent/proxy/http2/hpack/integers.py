"""Integers of HPACK (RFC 7541 section 5.1): what fits the bits that a byte has left stands in them;
else these are all ones, and the rest follows, seven bits a byte, least first.
"""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.http2.hpack.errors import CompressionError

_MOST_SHIFT: Final = 28
"""Five bytes may follow: every number below 2**32, and no peer's endless row of zeros."""


def read_rest(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Return the integer whose first byte ended before *at* with all its bits one (*prefix*), and
    where it ends. Raises CompressionError.
    """
    value = prefix
    shift = 0
    end = len(block)
    while at < end and shift <= _MOST_SHIFT:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise CompressionError("the block ends inside an integer" if at == end else "an integer has more than six bytes")


def written(value: int, form: int, prefix: int) -> bytes:
    """Return *value* after the bits *form*, in a first byte that has the bits *prefix* (all ones) left."""
    if value < prefix:
        return bytes((form | value,))
    parts = [form | prefix]
    value -= prefix
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
