"""Series and their Prometheus text (exposition format 0.0.4).

A series writes its label text once; a scrape then costs one short format per line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from nodeagent.telemetry.metrics import BUCKETS, HTTP_FAMILIES, PLAIN, REQUESTS, TCP_FAMILIES, Labels, Metric
from nodeagent.telemetry.reports import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PIECE_BYTES: Final = 65536
_LES: Final = (*(f"{float(bound):g}" if bound < 1e6 else f"{int(bound)}" for bound in BUCKETS), "+Inf")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class HttpSeries:
    """The histograms of HTTP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("buckets", "sums", "text")

    def __init__(self, labels: Labels) -> None:
        self.text = label_text(REQUESTS.labels, labels)
        self.buckets = [[0] * len(_LES) for _ in HTTP_FAMILIES]
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

    def histogram(self, name: str, place: int) -> str:
        """Return the lines of family *name*, number *place* of HTTP_FAMILIES: cumulative buckets, sum and count."""
        head = f'{name}_bucket{{{self.text},le="'
        cumulative = list(accumulate(self.buckets[place]))
        lines = "".join([f'{head}{le}"}} {count}\n' for le, count in zip(_LES, cumulative, strict=True)])
        return (
            f"{lines}{name}_sum{{{self.text}}} {number(self.sums[place])}\n{name}_count{{{self.text}}} "
            f"{cumulative[-1]}\n"
        )


class TcpSeries:
    """The counters of TCP_FAMILIES for one set of labels (``reporter`` first)."""

    __slots__ = ("amounts", "text")

    def __init__(self, labels: Labels) -> None:
        self.text = label_text(TCP_FAMILIES[0].labels, labels)
        self.amounts = [0] * len(TCP_FAMILIES)

    def add(self, amounts: Iterable[int]) -> None:
        """Add one increment for each of TCP_FAMILIES."""
        for place, amount in enumerate(amounts):
            self.amounts[place] += amount


def render(
    http: Mapping[Labels, HttpSeries], tcp: Mapping[Labels, TcpSeries], plain: Mapping[str, Mapping[Labels, float]]
) -> Iterator[bytes]:
    """Yield the whole exposition in pieces of about PIECE_BYTES; the mappings may grow meanwhile."""
    buffer: list[str] = []
    size = 0
    for text in _texts(http, tcp, plain):
        buffer.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield "".join(buffer).encode()
            buffer, size = [], 0
    yield "".join(buffer).encode()


def _texts(
    http: Mapping[Labels, HttpSeries], tcp: Mapping[Labels, TcpSeries], plain: Mapping[str, Mapping[Labels, float]]
) -> Iterator[str]:
    if http:
        http_series = list(http.values())
        yield _head(REQUESTS)
        for request in http_series:
            yield f"{REQUESTS.name}{{{request.text}}} {request.count()}\n"
        for place, metric in enumerate(HTTP_FAMILIES):
            yield _head(metric)
            for request in http_series:
                yield request.histogram(metric.name, place)
    if tcp:
        tcp_series = list(tcp.values())
        for place, metric in enumerate(TCP_FAMILIES):
            yield _head(metric)
            for connection in tcp_series:
                yield f"{metric.name}{{{connection.text}}} {connection.amounts[place]}\n"
    for name, metric in PLAIN.items():
        if series := list(plain[name].items()):
            yield _head(metric)
            for labels, value in series:
                text = label_text(metric.labels, labels)
                yield f"{name}{{{text}}} {number(value)}\n" if text else f"{name} {number(value)}\n"


def _head(metric: Metric) -> str:
    return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"


def label_text(names: Labels, values: Labels) -> str:
    """Return ``name="value",…`` with the values escaped."""
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)])


def number(value: float) -> str:
    """Return *value* without an exponent or fraction that it does not need."""
    return str(int(value)) if value == int(value) else repr(value)
