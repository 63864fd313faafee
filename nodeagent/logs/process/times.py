"""Times of log lines: what is RFC 3339, for one and for thousands at once; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final

from nodeagent.errors import ConfigError
from nodeagent.logs.process.members import RecordMember

_TIME: Final = re.compile(
    rb"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)
ANY_DIGIT: Final = bytes.maketrans(b"123456789", b"000000000")
"""For ``translate``: all digits become 0."""
_SHAPE_IN_UTC: Final = re.compile(rb"0000-00-00T00:00:00(?:\.0{1,9})?Z")


def is_time(text: bytes) -> bool:
    """Return whether *text* is a time after RFC 3339, with up to nanoseconds, of a day that there was;
    a leap second is none, since no runtime writes one.
    """
    return _TIME.fullmatch(text) is not None and _is_date(text[:10])


def are_times(texts: list[bytes]) -> bool:
    """Return whether each of *texts* is what :func:`is_time` takes.

    Lines written within a few seconds differ in digits alone. With all digits made alike few shapes are left,
    most often one; then, within one minute, only the earliest and the latest have to be looked at.
    """
    if not texts:
        return True
    shape = texts[0].translate(ANY_DIGIT)
    shaped = b" ".join(texts).translate(ANY_DIGIT)
    if shaped != b" ".join([shape] * len(texts)):
        if not all(map(_SHAPE_IN_UTC.fullmatch, set(shaped.split(b" ")))):
            return all(map(is_time, texts))
    elif not _SHAPE_IN_UTC.fullmatch(shape):
        return all(map(is_time, texts))
    return _are_in_range(texts)


def are_alike_times(texts: Sequence[bytes]) -> bool:
    """Return the same for one or more *texts* that differ in digits alone."""
    if not _SHAPE_IN_UTC.fullmatch(texts[0].translate(ANY_DIGIT)):
        return all(map(is_time, texts))
    return _are_in_range(texts)


def _are_in_range(texts: Sequence[bytes]) -> bool:
    """Return whether *texts* of the right shape are times that there were."""
    earliest = min(texts)
    latest = max(texts)
    if earliest[:17] == latest[:17]:
        return is_time(earliest) and is_time(latest)
    return all(is_time(second + b"Z") for second in {text[:19] for text in texts})


def rfc3339(seconds: float) -> bytes:
    """Return Unix time *seconds* as RFC 3339 in UTC with microseconds.

    Raises:
        ValueError, OverflowError, OSError: no calendar has it.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z").encode()


@dataclass(frozen=True, slots=True)
class TimeKey:
    """A member that says when; values that are no time leave the runtime's."""

    member: RecordMember
    form: str = ""
    """As strptime(3) has it, ``%L`` and ``%N`` standing for fractions of a second; empty: RFC 3339 or alike,
    or seconds since 1970, thousandths, millionths or milliardths of them by their size.
    """

    def times(self, objects: Sequence[bytes], year: int) -> dict[int, bytes]:
        """Return times (RFC 3339) by the indices of those of *objects* that have one; a form without a year
        is of *year*.
        """
        found: dict[int, bytes] = {}
        for at, value in self.member.values(objects).items():
            made = self._read(value, year)
            if made:
                found[at] = made
        return found

    def _read(self, value: str, year: int) -> bytes:
        text = value.encode()
        if not self.form and is_time(text):
            return text
        try:
            return _by_form(value, self.form, year) if self.form else _by_itself(value)
        except (ValueError, OverflowError, OSError):
            return b""


_FRACTION: Final = re.compile(r"%[LN]|%\dN")


_HAS_YEAR: Final = re.compile(r"%[YysGcx]")
_DIRECTIVE: Final = re.compile(r"%(.)")


def _by_form(value: str, form: str, year: int) -> bytes:
    form = _FRACTION.sub("%f", form)
    if not _HAS_YEAR.search(form):
        # 29 February is read in a year that has it.
        value = f"{year} {value}"
        form = f"%Y {form}"
    if form == "%s":
        return rfc3339(float(value))
    # strptime takes six digits of a fraction.
    value = re.sub(r"([.,]\d{6})\d+", r"\1", value)
    return _in_utc(datetime.strptime(value, form))  # noqa: DTZ007 - a time without a zone is UTC


def time_form(form: str) -> str:
    """Return *form* if each of its directives is one of strptime(3), and there once. Raises ConfigError."""
    found = [each for each in _DIRECTIVE.findall(_FRACTION.sub("%f", form)) if each != "%"]
    for each in found:
        if found.count(each) > 1:
            raise ConfigError(f"{form!r:.80}: %{each} is there twice; once is expected")
    try:
        _by_form("", form, 2000)
    except ValueError as error:  # no time is read from nothing; a directive that is none is told before that
        if "bad directive" in str(error) or "stray" in str(error):
            raise ConfigError(f"{error}; %L stands for fractions of a second, %s for seconds since 1970") from None
    except re.error as error:
        # Two that say the same: %c and %H, %T and %M.
        raise ConfigError(f"{form!r:.80}: what one directive says another says too: {error}") from None
    return form


def _by_itself(value: str) -> bytes:
    if _NUMBER.fullmatch(value):
        number = float(value)
        while number >= _MILLISECONDS:
            number /= 1000
        return rfc3339(number)
    return _in_utc(datetime.fromisoformat(value.replace(",", ".")))


_NUMBER: Final = re.compile(r"\d{1,19}(?:\.\d{1,9})?")
_MILLISECONDS: Final = 1e11
"""More is no count of seconds: it would be the year 5138."""


def _in_utc(time: datetime) -> bytes:
    zoned = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return zoned.isoformat(timespec="microseconds").replace("+00:00", "Z").encode()


@lru_cache(256)
def _is_date(text: bytes) -> bool:
    try:
        date.fromisoformat(text.decode())
    except ValueError:
        return False
    return True
