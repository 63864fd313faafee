"""``grpc-timeout``, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.proxy.grpc.timeout import parse, written


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"0S", 0)),
        (b"99999999H", 99999999 * 3600),
    ],
)
def test_read(value: bytes, seconds: float) -> None:
    assert parse(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"5", b"5s", b"-5S", b"+5S", b"1.5S", b"5 S", b" 5S", b"123456789S"])
def test_what_is_no_timeout(value: bytes) -> None:
    assert parse(value) == -1


@given(st.floats(1e-6, 1e9))
def test_written_is_a_value_that_is_no_longer_and_hardly_shorter(seconds: float) -> None:
    value = written(seconds)
    again = parse(value)
    assert again >= 0
    assert again <= seconds * (1 + 1e-9) or seconds > 99_999_999
    assert again >= min(seconds, 99_999_999) - max(2e-6, seconds * 2e-3)


def test_calls_with_the_same_time_have_the_same_field_again() -> None:
    assert {written(5 - elapsed) for elapsed in (0.00002, 0.0001, 0.0009)} == {b"4999m"}
