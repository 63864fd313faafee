"""The logs in control's metrics: what the collector counts and how far it is, as long as their pods are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from nodeagent.telemetry import metrics
from nodeagent.telemetry.metrics import Labels, Metric
from nodeagent.telemetry.reports import ReportError, parse
from nodeagent.telemetry.store import Store
from nodeagent.wire import Unchecked

KEPT_SECONDS: Final = 600.0
"""For how long the series of a pod that is gone are told: until who scrapes has its last numbers, and no longer than
until all its records are settled.
"""
PodName = tuple[str, str]


class LogMetrics:
    """Puts them into *store*."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        """*clock*, in seconds, is injected for tests."""
        self._store = store
        self._clock = clock
        self._there: set[PodName] = set()
        self._gone: dict[PodName, float] = {}
        self._counted: set[tuple[Metric, Labels]] = set()

    def count(self, report: Unchecked) -> None:
        """Add what the collector has counted; a report that is malformed is dropped whole, and counted."""
        self._store.merge(report)
        with suppress(ReportError):  # the store has said so
            counted = ((metric, labels) for metric, labels, _ in parse(report).counts)
            self._counted.update(found := {each for each in counted if each[0] in metrics.LOG_FAMILIES})
            for pod in {_pod(*each) for each in found} - self._there:
                if pod[0]:
                    self._gone.setdefault(pod, self._clock())

    def died(self) -> None:
        """A collector died."""
        self._store.add(metrics.LOG_RESTARTS)

    def ended(self) -> None:
        """A collector is no more: what it had not settled is offered again by the next one, and counted twice."""
        for labels, number in self._unsettled().items():
            self._store.add(metrics.LOG_RETURNED, labels, number)
            self._counted.add((metrics.LOG_RETURNED, labels))

    def _unsettled(self) -> dict[Labels, float]:
        """Return how many records are offered to a sink and not settled there, by sink and pod."""
        unsettled: dict[Labels, float] = {}
        signs = {metrics.LOG_OFFERED: 1}
        for metric, labels in self._counted:
            if metric.labels[:1] == ("sink",) and metric is not metrics.LOG_RETRIED:
                value = self._store.value(metric, labels)
                unsettled[labels[:3]] = unsettled.get(labels[:3], 0) + signs.get(metric, -1) * value
        return {labels: number for labels, number in unsettled.items() if number > 0}

    def tell(self, files: Iterable[Unchecked], sinks: Iterable[Unchecked], troubles: int = 0) -> None:
        """Set how far reading is, by *files*, and what waits, by *sinks*: rows of the collector's answer, which names
        so many *troubles*.
        """
        lag_bytes: dict[Labels, float] = {}
        lag_seconds: dict[Labels, float] = {}
        number = 0
        for row in files:
            number += 1
            pod = (_text(row, "namespace"), _text(row, "pod"))
            lag_bytes[pod] = lag_bytes.get(pod, 0) + _number(row, "lagBytes")
            lag_seconds[pod] = max(lag_seconds.get(pod, 0), _number(row, "lagSeconds"))
        rows = list(sinks)
        self._store.replace(metrics.LOG_LAG_BYTES, lag_bytes)
        self._store.replace(metrics.LOG_LAG_SECONDS, lag_seconds)
        waiting: dict[Labels, float] = {(_text(row, "name"),): _number(row, "waiting") for row in rows}
        buffered: dict[Labels, float] = {(_text(row, "name"),): _number(row, "bufferedBytes") for row in rows}
        self._store.replace(metrics.LOG_WAITING, waiting)
        self._store.replace(metrics.LOG_BUFFERED, buffered)
        failing: dict[Labels, float] = {(_text(row, "name"),): bool(_text(row, "trouble")) for row in rows}
        self._store.replace(metrics.LOG_SINK_FAILING, failing)
        self._store.set(metrics.LOG_FILES, (), number)
        self._store.set(metrics.LOG_TROUBLES, (), troubles)

    def follow(self, pods: Iterable[PodName]) -> None:
        """The node's pods are *pods* now: series of others end after a while, once none of their records waits."""
        there = set(pods)
        now = self._clock()
        for gone in self._there - there:
            self._gone[gone] = now
        for back in there & self._gone.keys():
            del self._gone[back]
        self._there = there
        ended = {pod for pod, since in self._gone.items() if now - since >= KEPT_SECONDS}
        if ended:
            ended -= {(namespace, pod) for _, namespace, pod in self._unsettled()}
        for pod in ended:
            del self._gone[pod]
        for metric, labels in [each for each in self._counted if _pod(*each) in ended]:
            self._store.discard(metric, labels)
            self._counted.discard((metric, labels))


def _pod(metric: Metric, labels: Labels) -> PodName:
    """Return the pod that a series is of."""
    at = metric.labels.index("namespace")
    return labels[at], labels[at + 1]


def _text(row: Mapping[str, object], name: str) -> str:
    return str(row.get(name, ""))


def _number(row: Mapping[str, object], name: str) -> float:
    value = row.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
