"""Series of the istio_* families that traffic fills, and all that the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from nodeagent.telemetry.metrics import BUCKETS, HTTP_FAMILIES, MESSAGE_FAMILIES, TCP_FAMILIES, Labels, Metric
from nodeagent.telemetry.reports import Histogram


class HttpSeries:
    """The histograms of HTTP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("buckets", "labels", "sums", "written")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.buckets = [[0] * (len(BUCKETS) + 1) for _ in HTTP_FAMILIES]
        self.sums = [0.0] * len(HTTP_FAMILIES)
        self.written: tuple[str, str] | None = None
        """The labels' text before and after a bucket's bound, once it was written."""

    def add(self, histograms: Iterable[Histogram]) -> None:
        """Add one increment for each of HTTP_FAMILIES."""
        for place, (pairs, total) in enumerate(histograms):
            buckets = self.buckets[place]
            for index, count in pairs:
                buckets[index] += count
            self.sums[place] += total

    def count(self) -> int:
        """Return the number of requests."""
        return sum(self.buckets[0])


class CounterSeries:
    """The counters of some families for one set of labels (``reporter`` first)."""

    __slots__ = ("amounts", "labels", "written")
    families: ClassVar[tuple[Metric, ...]]

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.amounts = [0] * len(self.families)
        self.written: str | None = None
        """The labels' text, once it was written."""

    def add(self, amounts: Iterable[int]) -> None:
        """Add one increment for each of ``families``."""
        for place, amount in enumerate(amounts):
            self.amounts[place] += amount


class TcpSeries(CounterSeries):
    """Those of a pair's TCP connections."""

    __slots__ = ()
    families = TCP_FAMILIES


class MessageSeries(CounterSeries):
    """Those of a pair's gRPC messages."""

    __slots__ = ()
    families = MESSAGE_FAMILIES


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """What the store holds; the mappings may grow while they are written."""

    http: Mapping[Labels, HttpSeries]
    tcp: Mapping[Labels, TcpSeries]
    messages: Mapping[Labels, MessageSeries]
    plain: Mapping[str, Mapping[Labels, float]]
    """Name of a family of PLAIN -> its series."""
