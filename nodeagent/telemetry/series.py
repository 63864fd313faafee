"""Series of the istio_* families that traffic fills, and all that the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodeagent.telemetry.metrics import BUCKETS, HTTP_FAMILIES, TCP_FAMILIES, Labels
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


class TcpSeries:
    """The counters of TCP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("amounts", "labels", "written")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.amounts = [0] * len(TCP_FAMILIES)
        self.written: str | None = None
        """The labels' text, once it was written."""

    def add(self, amounts: Iterable[int]) -> None:
        """Add one increment for each of TCP_FAMILIES."""
        for place, amount in enumerate(amounts):
            self.amounts[place] += amount


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """What the store holds; the mappings may grow while they are written."""

    http: Mapping[Labels, HttpSeries]
    tcp: Mapping[Labels, TcpSeries]
    plain: Mapping[str, Mapping[Labels, float]]
    """Name of a family of PLAIN -> its series."""
