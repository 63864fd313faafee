"""What the collector counts, as control's metrics have it: what differs from what was told last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodeagent.logs.delivery.counts import PodCounts
from nodeagent.logs.delivery.lane import Lane
from nodeagent.logs.process.processor import ProcessCounts
from nodeagent.logs.tail.interfaces import TailCounts
from nodeagent.telemetry import metrics
from nodeagent.telemetry.metrics import Labels, Metric
from nodeagent.vocabulary import PodUid

PodName = tuple[str, str]
"""Namespace and name; both empty: the node itself."""
Count = tuple[str, Metric, Labels, int]
"""Who counts, so that what it told before is known; the series; the sum until now."""


class CountsTold:
    """Remembers the sums that were told, and makes reports of what was counted since."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, Labels], int] = {}

    def report(self, counts: Iterable[Count]) -> dict[str, Any]:
        """Return what control's store merges (``telemetry/reports.py``). Who is not among *counts* any more is
        forgotten.
        """
        rows: list[list[object]] = []
        sums: dict[tuple[str, str, Labels], int] = {}
        for counter, metric, labels, value in counts:
            key = (counter, metric.name, labels)
            before = self._sums.get(key, 0)
            sums[key] = value
            if value > before:
                rows.append([metric.name, list(labels), value - before])
        self._sums = sums
        return {"counts": rows}


def processed(source: str, pod: PodName, counts: ProcessCounts) -> Iterator[Count]:
    """Yield what became of the lines of *source*."""
    yield source, metrics.LOG_LINES, pod, counts.lines
    yield source, metrics.LOG_RECORDS, pod, counts.records
    yield source, metrics.LOG_PARSE_FAILURES, pod, counts.unparsed + counts.malformed
    for reason, number in counts.dropped.items():
        yield source, metrics.LOG_FILTERED, (*pod, reason), number


def tailed(pods: Mapping[PodUid, PodName], counts: Mapping[PodUid, TailCounts]) -> Iterator[Count]:
    """Yield what was read of pods, by uid; *pods* are their names."""
    for uid, each in counts.items():
        pod = pods.get(uid)
        if pod is None:
            continue
        yield uid, metrics.LOG_BYTES, pod, each.bytes_read
        yield uid, metrics.LOG_LINES_CUT, pod, each.lines_cut
        yield uid, metrics.LOG_BYTES_LOST, pod, each.bytes_lost


def delivered(name: str, lane: Lane) -> Iterator[Count]:
    """Yield what became of the records offered to the sink *name*."""
    for pod, counts in lane.counts.pods.items():
        yield from _of_pod(name, (name, *pod), counts)


def _of_pod(name: str, labels: Labels, counts: PodCounts) -> Iterator[Count]:
    yield name, metrics.LOG_OFFERED, labels, counts.offered
    yield name, metrics.LOG_DELIVERED, labels, counts.delivered
    yield name, metrics.LOG_RETRIED, labels, counts.retried
    yield name, metrics.LOG_DEAD_LETTERED, labels, counts.dead_lettered
    for reason, number in counts.dropped.items():
        yield name, metrics.LOG_RECORDS_DROPPED, (*labels, reason), number


def waiting(lane: Lane) -> int:
    """Return how many records of those offered are not settled at their sink."""
    total = lane.counts.total()
    return total.offered - total.settled
