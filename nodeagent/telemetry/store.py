"""The node's metrics in control: sums up what workers report and holds control's own.

Workers parse what pods send, so their reports are checked whole
before anything is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TypeVar

from nodeagent.telemetry.formats import TEXT, Format
from nodeagent.telemetry.metrics import PLAIN, REJECTED, SERIES_LIMIT, Labels, Metric, reported
from nodeagent.telemetry.reports import ReportError, parse
from nodeagent.telemetry.series import HttpSeries, MessageSeries, StoredSeries, TcpSeries

_log = logging.getLogger(__name__)
_S = TypeVar("_S", HttpSeries, TcpSeries, MessageSeries)


class Store:
    """Counters and gauges of the whole node."""

    def __init__(self, series_limit: int = SERIES_LIMIT) -> None:
        self._limit = series_limit
        self._http: dict[Labels, HttpSeries] = {}
        self._tcp: dict[Labels, TcpSeries] = {}
        self._messages: dict[Labels, MessageSeries] = {}
        self._plain: dict[str, dict[Labels, float]] = {name: {} for name in PLAIN}

    def set(self, metric: Metric, labels: Labels, value: float) -> None:
        """Set one series of a gauge, or of a counter that someone else keeps (the kernel)."""
        self._plain[metric.name][_checked(metric, labels)] = value

    def replace(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Set a family whole: series that are not in *values* end (certificates of released pods)."""
        self._plain[metric.name] = {_checked(metric, labels): value for labels, value in values.items()}

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1) -> None:
        """Add to one series of a counter."""
        family = self._plain[metric.name]
        family[_checked(metric, labels)] = family.get(labels, 0) + amount

    def discard(self, metric: Metric, labels: Labels) -> None:
        """End one series, if it is there (a worker slot that is no more)."""
        self._plain[metric.name].pop(labels, None)

    def value(self, metric: Metric, labels: Labels = ()) -> float:
        """Return one value of a plain family, 0 if nothing was counted."""
        return self._plain[metric.name].get(labels, 0)

    def merge(self, message: Mapping[str, object]) -> None:
        """Add a worker's report (``WorkerMetrics.delta``); one that is malformed is counted, logged
        and dropped whole.
        """
        try:
            report = parse(message)
        except ReportError as error:
            self.add(REJECTED, ("malformed",))
            _log.warning("a worker's metrics report was dropped: %s", error)
            return
        for reporters, labels, histograms in report.http:
            for http_series in self._series(self._http, HttpSeries, reporters, labels):
                http_series.add(histograms)
        for reporters, labels, amounts in report.tcp:
            for tcp_series in self._series(self._tcp, TcpSeries, reporters, labels):
                tcp_series.add(amounts)
        for reporters, labels, amounts in report.messages:
            for message_series in self._series(self._messages, MessageSeries, reporters, labels):
                message_series.add(amounts)
        for metric, labels, amount in report.counts:
            if self._has_room(metric, labels):
                self.add(metric, labels, amount)
        for metric, labels, value in report.gauges:
            if self._has_room(metric, labels):
                self.set(metric, labels, value)

    @property
    def held(self) -> StoredSeries:
        """Everything, as it grows."""
        return StoredSeries(self._http, self._tcp, self._messages, self._plain)

    def exposition(self, wanted: Format = TEXT) -> Iterator[bytes]:
        """Yield the exposition in the format *wanted* in pieces of at most about 64 KB, so that its
        memory stays flat and others run between them.

        Each series is consistent in itself; what is merged between two pieces may show in later
        ones.
        """
        from nodeagent.telemetry import exposition  # 2.7 MB, for those only who scrape

        return exposition.render(self.held, wanted)

    def _has_room(self, metric: Metric, labels: Labels) -> bool:
        """Say whether a worker may count into the series *labels*, which may be a new one; what it
        may not is counted as rejected.
        """
        family = self._plain[metric.name]
        if labels in family or len(family) < self._limit:
            return True
        self.add(REJECTED, ("series",))
        return False

    def _series(self, known: dict[Labels, _S], make: type[_S], reporters: Labels, labels: Labels) -> Iterator[_S]:
        for reporter in reporters:
            key = reported(reporter, labels)
            series = known.get(key)
            if series is None:
                if len(known) >= self._limit:
                    self.add(REJECTED, ("series",))
                    continue
                series = known[key] = make(key)
            yield series


def _checked(metric: Metric, labels: Labels) -> Labels:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name}: labels {labels!r} do not match {metric.labels!r}")
    return labels
