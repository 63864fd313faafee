"""Names with places in them: ``logs-{namespace}-{date}``, ``{label:app}``."""

from __future__ import annotations

import re
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


class IndexName:
    """The name of the index that a record belongs to."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._dated = any(place in _OF_DATE for place in PLACE.findall(template))

    def of(self, records: LogRecords) -> dict[bytes, str]:
        """Return the names for *records*, by the first ten characters of a record's time."""
        dates = {time[:10] for time in records.times} if self._dated else {b""}
        return {date: self._name(records.origin, date.decode("ascii", "replace")) for date in dates}

    def _name(self, origin: LogOrigin, date: str) -> str:
        name = _NOT_IN_INDEX.sub("-", filled(self._template, origin, date)).lower().lstrip("-_+.")
        return name.encode()[:MAX_INDEX].decode("utf-8", "ignore") or "logs"
