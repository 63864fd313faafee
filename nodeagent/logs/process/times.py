"""Times of log lines: what is RFC 3339, for one and for thousands at once; pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final

_TIME: Final = re.compile(
    rb"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_SHAPE_IN_UTC: Final = re.compile(rb"0000-00-00T00:00:00(?:\.0{1,9})?Z")


def is_time(text: bytes) -> bool:
    """Return whether *text* is a time after RFC 3339, with up to nanoseconds, of a day that there was;
    a leap second is none, since no runtime writes one.
    """
    return _TIME.fullmatch(text) is not None and _is_date(text[:10])


def are_times(texts: list[bytes]) -> bool:
    """Return whether each of *texts* is what :func:`is_time` takes.

    Lines written within a few seconds differ in digits alone: the few shapes that are left when all digits
    are made alike are looked at, and every different second.
    """
    shapes = set(b" ".join(texts).translate(_DIGITS).split(b" "))
    if not all(map(_SHAPE_IN_UTC.fullmatch, shapes)):
        return all(map(is_time, texts))
    return all(is_time(second + b"Z") for second in {text[:19] for text in texts})


def rfc3339(seconds: float) -> bytes:
    """Return Unix time *seconds* as RFC 3339 in UTC with microseconds.

    Raises:
        ValueError, OverflowError, OSError: no calendar has it.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z").encode()


@lru_cache(256)
def _is_date(text: bytes) -> bool:
    try:
        date.fromisoformat(text.decode())
    except ValueError:
        return False
    return True
