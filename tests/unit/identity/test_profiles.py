"""What is read of a certificate, whichever version of cryptography is installed."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nodeagent.identity import profiles

BEGIN = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as cryptography before 42 says it
END = BEGIN + timedelta(days=1)


class Old:
    """A certificate of cryptography before 42: UTC, without saying so."""

    not_valid_before = BEGIN
    not_valid_after = END


class New:
    """A certificate of a newer one, which warns of the names without a zone."""

    not_valid_before_utc = BEGIN.replace(tzinfo=UTC)
    not_valid_after_utc = END.replace(tzinfo=UTC)

    @property
    def not_valid_before(self) -> datetime:
        return _deprecated(BEGIN)

    @property
    def not_valid_after(self) -> datetime:
        return _deprecated(END)


def _deprecated(time: datetime) -> datetime:
    warnings.warn("Properties that return a naïve datetime object have been deprecated", stacklevel=3)
    return time


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("certificate", [Old(), New()])
def test_a_certificates_time_is_utc_and_nobody_is_warned(certificate: Any) -> None:
    assert profiles.begins(certificate) == BEGIN.replace(tzinfo=UTC).timestamp()
    assert profiles.ends(certificate) - profiles.begins(certificate) == 86400
    assert profiles.end(certificate).tzinfo is UTC
