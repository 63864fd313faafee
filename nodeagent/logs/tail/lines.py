"""Where a read of a file ends so that it holds whole lines; pure."""

from __future__ import annotations

_CONTINUES = 0xC0
_CONTINUATION = 0x80
_LONGEST_CHARACTER = 4


def whole(data: bytes, begin: int, limit: int) -> tuple[int, bool]:
    """Return where in *data* the last whole line after *begin* ends, and whether it was cut there for its length.

    *begin* itself: there is no whole line, and not yet *limit* bytes of one. A line of more than *limit* bytes is
    cut after them, or up to 3 bytes before so that no UTF-8 character is; what is read for that has one byte
    more. Where it is cut depends on nothing but the line and the limit.
    """
    end = data.rfind(b"\n", begin) + 1
    if end > begin:
        return end, False
    if len(data) - begin <= limit:
        return begin, False
    cut = begin + limit
    while cut > begin + limit - _LONGEST_CHARACTER and data[cut] & _CONTINUES == _CONTINUATION:
        cut -= 1
    if cut == begin + limit - _LONGEST_CHARACTER:
        cut = begin + limit  # no UTF-8 anyway
    return max(cut, begin + 1), True
