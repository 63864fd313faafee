"""What a store has summed up, as reports that another daemon's store adds (``Store.merge``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from nodeagent.telemetry.cells import PLAIN_CHARACTERS, SERIES_CHARACTERS, Message, chunks, sparse
from nodeagent.telemetry.metrics import PLAIN
from nodeagent.telemetry.reports import LARGEST
from nodeagent.telemetry.series import CounterSeries, HttpSeries, StoredSeries

VERSION: Final = 1
"""Of the reports. What labels, buckets and families of ``metrics.py`` traffic fills is not written in them: whoever
changes those raises it, for the two daemons may be of different releases. A new counter needs no new version.
"""
_ISTIO: Final = ("http", "tcp", "messages")
_Item = tuple[int, list[object]]
"""A series, with the characters that it takes at most."""


def reports(held: StoredSeries) -> Iterator[Message]:
    """Yield all counters and histograms that are *held*, in messages that fit a packet each. Gauges are left out: they
    are of processes that their daemon alone has.
    """
    for kind, series in (
        ("http", _http(held.http.values())),
        ("tcp", _counters(held.tcp.values())),
        ("messages", _counters(held.messages.values())),
        ("counts", _plain(held)),
    ):
        for chunk in chunks(series):
            yield {kind: chunk}


def known(report: Mapping[str, object]) -> Message:
    """Return what is for this release in *report*, which another daemon made: no gauges, and no counters that only
    that one's release has. What is wrong with the rest, the store says.
    """
    counts = report.get("counts", [])
    if isinstance(counts, list):
        counts = [each for each in counts if not _unknown(each)]
    return {"counts": counts} | {kind: report[kind] for kind in _ISTIO if kind in report}


def _unknown(item: object) -> bool:
    """Say whether *item* counts something of which this release does not know the name."""
    return isinstance(item, list) and bool(item) and isinstance(item[0], str) and item[0] not in PLAIN


def _http(held: Iterable[HttpSeries]) -> Iterator[_Item]:
    for each in held:
        histograms = [
            [[[index, _told(count)] for index, count in sparse(buckets)], _told(total)]
            for buckets, total in zip(each.buckets, each.sums, strict=True)
        ]
        yield _item(SERIES_CHARACTERS, each.labels, [each.labels[:1], each.labels[1:], histograms])


def _counters(held: Iterable[CounterSeries]) -> Iterator[_Item]:
    for each in held:
        yield _item(SERIES_CHARACTERS, each.labels, [each.labels[:1], each.labels[1:], [*map(_told, each.amounts)]])


def _plain(held: StoredSeries) -> Iterator[_Item]:
    for name, series in held.plain.items():
        if PLAIN[name].kind == "counter":
            for labels, value in series.items():
                yield _item(PLAIN_CHARACTERS, labels, [name, labels, _told(int(value))])


def _item(characters: int, labels: Iterable[str], item: list[object]) -> _Item:
    return characters + sum(map(len, labels)), item


def _told(value: float) -> float:
    """Return *value* as a report may have it: what is too large, by a worker that was taken over, would have the whole
    report refused, and others' counts with it.
    """
    return min(value, LARGEST - 1)
