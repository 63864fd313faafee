"""What the collector counts, as control's metrics have it: what differs from what was told last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeAlias

from nodeagent.logs.delivery.counts import PodCounts, SinkCounts
from nodeagent.logs.process.processor import ProcessCounts
from nodeagent.logs.tail.interfaces import TailCounts
from nodeagent.telemetry import metrics
from nodeagent.telemetry.metrics import Labels, Metric
from nodeagent.vocabulary import PodUid

PodName = tuple[str, str]
"""Namespace and name; both empty: the node itself."""
Count: TypeAlias = tuple[Metric, Labels, int]
"""The series; the sum until now."""
Counter: TypeAlias = tuple[tuple[str, ...], object, int, Callable[[], Iterable[Count]]]
"""Who counts, so that what it told before is known; what holds its sums, another one begins at 0; a number that grows
with each of its sums; the sums, always in the same order, to which more come at the end.
"""


class CountsTold:
    """Remembers the sums that were told, and makes reports of what was counted since. Who counted nothing costs next
    to nothing: most of a node's files are idle.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], tuple[object, int, tuple[int, ...]]] = {}

    def report(self, counters: Iterable[Counter]) -> dict[str, Any]:
        """Return what control's store merges (``telemetry/reports.py``). Who is not among *counters* any more is
        forgotten.
        """
        rows: list[list[object]] = []
        told: dict[tuple[str, ...], tuple[object, int, tuple[int, ...]]] = {}
        for who, holder, grown, counts in counters:
            found = self._told.get(who)
            if found is None or found[0] is not holder or grown < found[1]:
                found = (holder, 0, ())
            _, before, sums = told[who] = found
            if grown == before:
                continue
            now = tuple(counts())
            told[who] = holder, grown, tuple(value for _, _, value in now)
            for (metric, labels, value), past in zip(now, chain(sums, repeat(0)), strict=False):
                if value > past:
                    rows.append([metric.name, list(labels), value - past])
        self._told = told
        return {"counts": rows}


def processed(source: str, pod: PodName, counts: ProcessCounts) -> Counter:
    """Return what became of the lines of *source*."""
    grown = counts.lines + counts.records + counts.unparsed + counts.malformed + sum(counts.dropped.values())
    return ("source", source), counts, grown, partial(_of_source, pod, counts)


def _of_source(pod: PodName, counts: ProcessCounts) -> Iterator[Count]:
    yield metrics.LOG_LINES, pod, counts.lines
    yield metrics.LOG_RECORDS, pod, counts.records
    yield metrics.LOG_PARSE_FAILURES, pod, counts.unparsed + counts.malformed
    for reason, number in counts.dropped.items():
        yield metrics.LOG_FILTERED, (*pod, reason), number


def tailed(pods: Mapping[PodUid, PodName], counts: Mapping[PodUid, TailCounts]) -> Iterator[Counter]:
    """Yield what was read of pods, by uid; *pods* are their names."""
    for uid, each in counts.items():
        pod = pods.get(uid)
        if pod is not None:
            grown = each.bytes_read + each.lines_cut + each.bytes_lost
            yield ("pod", uid), None, grown, partial(_of_tail, pod, each)  # they are added up for each report


def _of_tail(pod: PodName, counts: TailCounts) -> Iterator[Count]:
    yield metrics.LOG_BYTES, pod, counts.bytes_read
    yield metrics.LOG_LINES_CUT, pod, counts.lines_cut
    yield metrics.LOG_BYTES_LOST, pod, counts.bytes_lost


def delivered(name: str, sink: SinkCounts) -> Iterator[Counter]:
    """Yield what became of the records offered to the sink *name*."""
    for pod, counts in sink.pods.items():
        grown = counts.offered + counts.settled + counts.retried
        yield ("sink", name, *pod), counts, grown, partial(_of_pod, (name, *pod), counts)


def _of_pod(labels: Labels, counts: PodCounts) -> Iterator[Count]:
    yield metrics.LOG_OFFERED, labels, counts.offered
    yield metrics.LOG_DELIVERED, labels, counts.delivered
    yield metrics.LOG_RETRIED, labels, counts.retried
    yield metrics.LOG_DEAD_LETTERED, labels, counts.dead_lettered
    for reason, number in counts.dropped.items():
        yield metrics.LOG_RECORDS_DROPPED, (*labels, reason), number


def waiting(sink: SinkCounts) -> int:
    """Return how many records of those offered are not settled at their sink."""
    total = sink.total()
    return total.offered - total.settled
