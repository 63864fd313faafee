"""What a scrape gets: Prometheus' text format 0.0.4, or OpenMetrics 1.0.0.

prometheus_client declares the families and writes them, a slice of SLICE_SAMPLES at a time, between
which others have their turn. Importing and using it takes 45 ms and 2.7 MB of control, so the first scrape does.

One thing is done beside it, because the library works a label set out anew for every line: 65 µs of
processor time for a line with Istio's 26 labels. 5,000 lines took it 0.34 s, and the bound, 5,000
sets of labels (355,000 lines), 23 s, twice Prometheus' timeout and all of it control's. So a series
of the istio_* families has its labels written by the library once, and its lines are put together
from that: 1.6 µs a line, 8 ms and 0.9 s. No piece takes longer than 1 ms. A test holds the whole
equal, byte for byte and in both formats, to what the library alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final, TypeVar

from prometheus_client.exposition import generate_latest as write_text
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as write_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nodeagent.telemetry.formats import OPENMETRICS, TEXT, Format
from nodeagent.telemetry.metrics import BUCKETS, HTTP_FAMILIES, PLAIN, REQUESTS, Labels, Metric
from nodeagent.telemetry.series import CounterSeries, HttpSeries, StoredSeries

PIECE_BYTES: Final = 65536
SLICE_SAMPLES: Final = 64
"""Lines that the library writes at once: 1 ms with few labels, as all that it writes have."""
_EXACT: Final = 1_000_000
"""From here on Go, and the library, write a number with an exponent."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Writer:
    """How a format is written."""

    bounds: Labels
    """The upper bounds of a histogram's buckets."""
    write: Callable[[Collector], bytes]
    """The library's function."""
    end: bytes
    """What it puts behind the last family."""


def number(value: float) -> str:
    """Return *value* as the library writes it."""
    if isinstance(value, int) and value < _EXACT:
        return f"{value}.0"
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


WRITERS: Final = {
    TEXT: Writer(
        (*(f"{float(bound):g}" if bound < 1e6 else f"{int(bound)}" for bound in BUCKETS), "+Inf"), write_text, b""
    ),
    OPENMETRICS: Writer((*(number(bound) for bound in BUCKETS), "+Inf"), write_openmetrics, b"# EOF\n"),
}


class _Slice(Collector):
    """A collector of one family, or of a part of its samples."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


def render(held: StoredSeries, wanted: Format = TEXT) -> Iterator[bytes]:
    """Yield the exposition of what is *held* in pieces of at most about PIECE_BYTES."""
    writer = WRITERS[wanted]
    yield from _pieces(_istio_texts(held, writer))
    yield from _written(_plain(held), writer)
    if writer.end:
        yield writer.end


def _plain(held: StoredSeries) -> Iterator[Family]:
    for name, metric in PLAIN.items():
        for some in _portions(list(held.plain[name].items()), SLICE_SAMPLES):
            family = family_of(metric)
            assert not isinstance(family, HistogramMetricFamily)
            for labels, value in some:
                family.add_metric(labels, value)
            yield family


def _portions(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _written(parts: Iterable[Family], writer: Writer) -> Iterator[bytes]:
    """Write *parts*; what heads a family (HELP, TYPE) stands before its first part only."""
    before = ""
    for family in parts:
        text = writer.write(_Slice(family)).removesuffix(writer.end)
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


def _istio_texts(held: StoredSeries, writer: Writer) -> Iterator[str]:
    """Yield what the library writes of the istio_* families that traffic fills."""
    if held.http:
        http = list(held.http.values())
        yield _head(REQUESTS, writer)
        for request in http:
            before, after = _around_bound(request)
            yield f"{REQUESTS.name}{{{before}{after[1:]}}} {number(request.count())}\n"
        for place, metric in enumerate(HTTP_FAMILIES):
            yield _head(metric, writer)
            for request in http:
                yield _histogram(request, metric.name, place, writer.bounds)
    yield from _counters(list(held.tcp.values()), writer)
    yield from _counters(list(held.messages.values()), writer)


def _counters(held: Sequence[CounterSeries], writer: Writer) -> Iterator[str]:
    """Yield the families of *held*, all of which have the same ones."""
    for place, metric in enumerate(held[0].families if held else ()):
        yield _head(metric, writer)
        for series in held:
            yield f"{metric.name}{{{_text(series)}}} {number(series.amounts[place])}\n"


def _histogram(series: HttpSeries, name: str, place: int, bounds: Labels) -> str:
    """Return the lines of family *name*, number *place* of HTTP_FAMILIES: cumulative buckets named
    by *bounds*, count and sum.
    """
    before, after = _around_bound(series)
    head = f'{name}_bucket{{{before}le="'
    tail = f'"{after}}} '
    text = before + after[1:]
    cumulative = list(accumulate(series.buckets[place]))
    lines = [f"{head}{bound}{tail}{number(count)}\n" for bound, count in zip(bounds, cumulative, strict=True)]
    lines.append(f"{name}_count{{{text}}} {number(cumulative[-1])}\n")
    lines.append(f"{name}_sum{{{text}}} {number(series.sums[place])}\n")
    return "".join(lines)


def _around_bound(series: HttpSeries) -> tuple[str, str]:
    if series.written is None:
        before, _, after = label_text((*REQUESTS.labels, "le"), (*series.labels, "")).partition('le=""')
        series.written = (before, after)
    return series.written


def _text(series: CounterSeries) -> str:
    if series.written is None:
        series.written = label_text(series.families[0].labels, series.labels)
    return series.written


def _head(metric: Metric, writer: Writer) -> str:
    return writer.write(_Slice(family_of(metric))).removesuffix(writer.end).decode()


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
