"""Times of records (RFC 3339) as numbers."""

from __future__ import annotations

import calendar
import time
from functools import lru_cache

_DIGITS = frozenset(b"0123456789")


@lru_cache(4096)
def _seconds(until_second: bytes, zone: bytes) -> int:
    parsed = time.strptime(until_second.decode("ascii"), "%Y-%m-%dT%H:%M:%S")
    if zone in (b"Z", b"z"):
        offset = 0
    else:
        sign = {b"+": 1, b"-": -1}[zone[:1]]
        offset = sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    return calendar.timegm(parsed) - offset


def within(nanos: int, most: int) -> int:
    """Return *nanos*, or of what a protocol can say, 0 up to *most* nanoseconds since 1970, the nearest."""
    return min(max(nanos, 0), most)


def nanoseconds(stamp: bytes) -> int:
    """Return the nanoseconds since 1970 of *stamp*, such as ``2026-11-29T10:00:00.123456789+09:00``. Raises
    ValueError where it is not RFC 3339.
    """
    at = 20
    fraction = b"0"
    if stamp[19:20] == b".":
        while at < len(stamp) and stamp[at] in _DIGITS:
            at += 1
        fraction = stamp[20:at]
    else:
        at = 19
    try:
        return _seconds(stamp[:19], stamp[at:]) * 1_000_000_000 + int(fraction.ljust(9, b"0")[:9])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"{stamp!r:.60}: not a time of RFC 3339") from None
