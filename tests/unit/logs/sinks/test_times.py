"""Times of records as numbers."""

from __future__ import annotations

import pytest

from nodeagent.logs.sinks.times import nanoseconds


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"1970-01-01T00:00:01.5Z", 1_500_000_000),
        (b"2026-11-29T10:00:00.123456789Z", 1795946400_123456789),
        (b"2026-11-29T19:00:00.123456789+09:00", 1795946400_123456789),
        (b"2026-11-29T04:30:00-05:30", 1795946400_000000000),
        (b"1970-01-01T00:00:00.1234567891Z", 123_456_789),
    ],
)
def test_times(stamp: bytes, expected: int) -> None:
    assert nanoseconds(stamp) == expected


@pytest.mark.parametrize(
    "stamp", [b"", b"now", b"2026-13-01T00:00:00Z", b"2026-11-29T10:00:00", b"2026-11-29T10:00:00.Q"]
)
def test_what_is_no_time(stamp: bytes) -> None:
    with pytest.raises(ValueError, match="not a time"):
        nanoseconds(stamp)
