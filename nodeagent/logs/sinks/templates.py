"""Names with places in them: ``logs-{namespace}-{date}``, ``{label:app}``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from nodeagent.logs.records import LogOrigin, LogRecords
from nodeagent.logs.sinks.settings import PLACE

_OF_DATE: Final = {"date": slice(0, 10), "year": slice(0, 4), "month": slice(5, 7), "day": slice(8, 10)}
_NOT_IN_INDEX: Final = re.compile(r'[\\/*?"<>|\s,#:\x00-\x1f]')
MAX_INDEX: Final = 255
"""Bytes of an index's name."""


def filled(template: str, origin: LogOrigin, date: str = "") -> str:
    """Return *template* with what *origin* has at its places, and *date* (``2026-11-29``) where it wants
    that; what there is not is empty.
    """
    return PLACE.sub(lambda place: _value(place[1], origin, date), template)


def _value(place: str, origin: LogOrigin, date: str) -> str:
    if place.startswith("label:"):
        return origin.labels.get(place.removeprefix("label:"), "")
    if place in _OF_DATE:
        return date[_OF_DATE[place]].replace("-", ".")
    return str(getattr(origin, place))


@dataclass(frozen=True, slots=True)
class DateWindow:
    """The days around now that an index may be named by: a pod's clock, or what it writes as a time, makes
    no others.

    What lies outside belongs to the index of the day on which it is sent, as with a data stream, whose
    index of now takes whatever comes. The nearest day of the window would often be one that a cluster
    writes to no more: it merges, freezes and deletes an index by its age.
    """

    back: int
    """Days before today."""
    ahead: int
    """Days after it: clocks differ, and so do zones."""
    clock: Callable[[], float]
    """Seconds since 1970."""

    def days(self) -> tuple[bytes, bytes, bytes]:
        """Return the first day, today and the last day, in UTC, such as ``2026-11-29``."""
        today = datetime.fromtimestamp(self.clock(), UTC).date()
        first = today - timedelta(self.back)
        last = today + timedelta(self.ahead)
        return str(first).encode(), str(today).encode(), str(last).encode()


class IndexName:
    """The name of the index that a record belongs to."""

    def __init__(self, template: str, window: DateWindow) -> None:
        self._template = template
        self._window = window
        self._dated = any(place in _OF_DATE for place in PLACE.findall(template))

    def of(self, records: LogRecords) -> dict[bytes, str]:
        """Return the names for *records*, by the first ten characters of a record's time."""
        if not self._dated:
            return {b"": self._name(records.origin, b"")}
        first, today, last = self._window.days()
        dates = {time[:10] for time in records.times}
        return {date: self._name(records.origin, date if first <= date <= last else today) for date in dates}

    def _name(self, origin: LogOrigin, date: bytes) -> str:
        name = _NOT_IN_INDEX.sub("-", filled(self._template, origin, date.decode())).lower().lstrip("-_+.")
        return name.encode()[:MAX_INDEX].decode("utf-8", "ignore") or "logs"
