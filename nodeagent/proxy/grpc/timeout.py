"""``grpc-timeout``: how long a client waits for its call, read and written (PROTOCOL-HTTP2.md). Pure."""

from __future__ import annotations

from typing import Final

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DIGITS: Final = 8
ROUNDED: Final = 0.002
"""Seconds that a value may be shorter than what was meant (:func:`written`), and some."""
_MOST: Final = 10**_DIGITS - 1


def parse(value: bytes) -> float:
    """Return the seconds that *value* says, -1 for what is no timeout."""
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > _DIGITS:
        return -1.0
    return int(digits) * unit


def written(seconds: float) -> bytes:
    """Return *seconds* as a value, which is positive, rounded down: to milliseconds from a second on.

    So coarse that calls which a client gives the same time have the same field again, and a header
    block that was seen before.
    """
    if seconds < 1.0:
        return b"%du" % max(int(seconds * 1e6), 1)
    if seconds * 1000 <= _MOST:
        return b"%dm" % int(seconds * 1000)
    return b"%dS" % min(int(seconds), _MOST)
