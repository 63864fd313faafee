"""Series, and what a scrape gets: Prometheus' text format 0.0.4, or OpenMetrics 1.0.0.

prometheus_client declares the families and writes them, a slice of SLICE_SAMPLES at a time, between
which others have their turn. Importing it adds 1.3 MB to the daemon, all its processes together.

One thing is done beside it, because the library works a label set out anew for every line: 65 µs of
processor time for a line with Istio's 26 labels. 5,000 lines took it 0.34 s, and the bound, 5,000
sets of labels (355,000 lines), 23 s, twice Prometheus' timeout and all of it control's. So a series
of the istio_* families has its labels written by the library once, when it begins, and its lines
are put together from that: 1.6 µs a line, 8 ms and 0.9 s. No piece takes longer than 1 ms. A test
holds the whole equal, byte for byte and in both formats, to what the library alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as write_text
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as write_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nodeagent.telemetry.metrics import BUCKETS, HTTP_FAMILIES, PLAIN, REQUESTS, TCP_FAMILIES, Labels, Metric
from nodeagent.telemetry.reports import Histogram

PIECE_BYTES: Final = 65536
SLICE_SAMPLES: Final = 64
"""Lines that the library writes at once: 1 ms with few labels, as all that it writes have."""
_BUCKETS: Final = len(BUCKETS) + 1
_EXACT: Final = 1_000_000
"""From here on Go, and the library, write a number with an exponent."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the exposition."""

    content_type: str
    quality: float
    """How much the daemon itself prefers it, 0 to 1: what a client says it prefers is multiplied by it."""
    bounds: Labels
    """The upper bounds of a histogram's buckets, as the format writes them."""
    write: Callable[[Collector], bytes]
    """The library's writer."""
    end: bytes
    """What the writer puts behind the last family."""


def number(value: float) -> str:
    """Return *value* as the library writes it."""
    if isinstance(value, int) and value < _EXACT:
        return f"{value}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


TEXT: Final = Format(
    CONTENT_TYPE_PLAIN_0_0_4,
    1.0,
    (*(f"{float(bound):g}" if bound < 1e6 else f"{int(bound)}" for bound in BUCKETS), "+Inf"),
    write_text,
    b"",
)
OPENMETRICS: Final = Format(
    CONTENT_TYPE_LATEST,
    0.49,
    (*(number(bound) for bound in BUCKETS), "+Inf"),
    write_openmetrics,
    b"# EOF\n",
)
"""Bounds are canonical there (OpenMetrics 1.0, Canonical Numbers): ``le="1.0"`` is another series
than the ``le="1"`` of the text format, to Prometheus 2. So a client that takes both gets, as ever,
the text, unless it prefers OpenMetrics more than twice as much; Prometheus does not.
"""
FORMATS: Final = (TEXT, OPENMETRICS)


class HttpSeries:
    """The histograms of HTTP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("after_bound", "before_bound", "buckets", "labels", "sums")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        written = label_text((*REQUESTS.labels, "le"), (*labels, ""))
        self.before_bound, _, self.after_bound = written.partition('le=""')
        self.buckets = [[0] * _BUCKETS for _ in HTTP_FAMILIES]
        self.sums = [0.0] * len(HTTP_FAMILIES)

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

    def request_line(self) -> str:
        """Return the line of REQUESTS."""
        return f"{REQUESTS.name}{{{self._text()}}} {number(self.count())}\n"

    def histogram_lines(self, name: str, place: int, bounds: Labels) -> str:
        """Return the lines of family *name*, number *place* of HTTP_FAMILIES: cumulative buckets
        named by *bounds*, count and sum.
        """
        head = f'{name}_bucket{{{self.before_bound}le="'
        tail = f'"{self.after_bound}}} '
        text = self._text()
        cumulative = list(accumulate(self.buckets[place]))
        lines = [f"{head}{bound}{tail}{number(count)}\n" for bound, count in zip(bounds, cumulative, strict=True)]
        lines.append(f"{name}_count{{{text}}} {number(cumulative[-1])}\n")
        lines.append(f"{name}_sum{{{text}}} {number(self.sums[place])}\n")
        return "".join(lines)

    def _text(self) -> str:
        return self.before_bound + self.after_bound[1:]


class TcpSeries:
    """The counters of TCP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("amounts", "labels", "text")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.text = label_text(TCP_FAMILIES[0].labels, labels)
        self.amounts = [0] * len(TCP_FAMILIES)

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


class _Slice(Collector):
    """A collector of one family, or of a part of its samples."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


def _plain(held: StoredSeries) -> Iterator[Family]:
    for name, metric in PLAIN.items():
        yield from _numbers(metric, list(held.plain[name].items()))


def _numbers(metric: Metric, series: Iterable[tuple[Labels, float]]) -> Iterator[Family]:
    for some in _portions(series, SLICE_SAMPLES):
        family = family_of(metric)
        assert not isinstance(family, HistogramMetricFamily)
        for labels, value in some:
            family.add_metric(labels, value)
        yield family


def _portions(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def render(held: StoredSeries, wanted: Format = TEXT) -> Iterator[bytes]:
    """Yield the exposition of what is *held* in pieces of at most about PIECE_BYTES."""
    yield from _pieces(_istio_texts(held, wanted))
    yield from _written(_plain(held), wanted)
    if wanted.end:
        yield wanted.end


def _written(parts: Iterable[Family], wanted: Format) -> Iterator[bytes]:
    """Write *parts*; what heads a family (HELP, TYPE) stands before its first part only."""
    before = ""
    for family in parts:
        text = wanted.write(_Slice(family)).removesuffix(wanted.end)
        if family.name == before:
            text = text.split(b"\n", 2)[2]
        before = family.name
        yield text


def _pieces(texts: Iterable[str]) -> Iterator[bytes]:
    buffer: list[str] = []
    size = 0
    for text in texts:
        buffer.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield "".join(buffer).encode()
            buffer.clear()
            size = 0
    if buffer:
        yield "".join(buffer).encode()


def _istio_texts(held: StoredSeries, wanted: Format) -> Iterator[str]:
    """Yield what the library writes of the istio_* families that traffic fills."""
    if held.http:
        http = list(held.http.values())
        yield _head(REQUESTS, wanted)
        for request in http:
            yield request.request_line()
        for place, metric in enumerate(HTTP_FAMILIES):
            yield _head(metric, wanted)
            for request in http:
                yield request.histogram_lines(metric.name, place, wanted.bounds)
    if held.tcp:
        tcp = list(held.tcp.values())
        for place, metric in enumerate(TCP_FAMILIES):
            yield _head(metric, wanted)
            for connection in tcp:
                yield f"{metric.name}{{{connection.text}}} {number(connection.amounts[place])}\n"


def _head(metric: Metric, wanted: Format) -> str:
    return wanted.write(_Slice(family_of(metric))).removesuffix(wanted.end).decode()


def family_of(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    """Return *metric* as the library's family, without samples; its names are checked there."""
    match metric.kind:
        case "counter":
            return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        case "gauge":
            return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


def label_text(names: Labels, values: Labels) -> str:
    """Return ``name="value",…`` as the library writes it: by name, the values escaped."""
    family = GaugeMetricFamily("x", "", labels=names)
    family.add_metric(values, 0)
    line = write_text(_Slice(family)).decode().split("\n", 2)[2]
    return line.removeprefix("x{").removesuffix("} 0.0\n")
