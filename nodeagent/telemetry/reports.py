"""A worker's metrics report, checked: the shape of what ``WorkerMetrics.delta`` makes, and nothing
else.

A worker parses what pods send; if one is taken over, it must not be able to do more here than to
miscount.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import shown
from nodeagent.telemetry.metrics import (
    BUCKETS,
    BUSY_POLL,
    HTTP_FAMILIES,
    HTTP_LABELS,
    LOOP_LAG,
    MESSAGE_FAMILIES,
    MESSAGE_LABELS,
    OPEN_CONNECTIONS,
    PLAIN,
    REPORTERS,
    TCP_FAMILIES,
    TCP_LABELS,
    Kind,
    Labels,
    Metric,
)

_LABEL_LENGTH: Final = 1024
_OWN_GAUGES: Final = (LOOP_LAG, BUSY_POLL, OPEN_CONNECTIONS)
LARGEST: Final = 1 << 53
"""Beyond it a float, which is what Prometheus makes of it, is not exact."""

Histogram = tuple[list[tuple[int, int]], float]
"""Sparse (bucket index, count) pairs and the sum of what was observed."""


class ReportError(Exception):
    """What is wrong with a report; stays inside the package, because no user can act on it."""


@dataclass(frozen=True, slots=True)
class Report:
    http: list[tuple[Labels, Labels, list[Histogram]]]
    """(reporters, HTTP_LABELS, one histogram for each of HTTP_FAMILIES)."""
    tcp: list[tuple[Labels, Labels, list[int]]]
    """(reporters, TCP_LABELS, one amount for each of TCP_FAMILIES)."""
    messages: list[tuple[Labels, Labels, list[int]]]
    """(reporters, MESSAGE_LABELS, one amount for each of MESSAGE_FAMILIES)."""
    counts: list[tuple[Metric, Labels, int]]
    gauges: list[tuple[Metric, Labels, float]]


def parse(message: Mapping[str, object]) -> Report:
    """Return *message* as a Report. Raises ReportError; never any other error, whatever the message holds."""
    return Report(
        http=[_http(item) for item in _items(message, "http")],
        tcp=[_amounts(item, TCP_LABELS, TCP_FAMILIES) for item in _items(message, "tcp")],
        messages=[_amounts(item, MESSAGE_LABELS, MESSAGE_FAMILIES) for item in _items(message, "messages")],
        counts=[_count(item) for item in _items(message, "counts")],
        gauges=[_gauge(item) for item in _items(message, "gauges")],
    )


def _http(item: object) -> tuple[Labels, Labels, list[Histogram]]:
    reporters, labels, values = _sequence(item, 3)
    return (
        _reporters(reporters),
        _labels(labels, len(HTTP_LABELS)),
        [_histogram(value) for value in _sequence(values, len(HTTP_FAMILIES))],
    )


def _amounts(item: object, names: Labels, families: tuple[Metric, ...]) -> tuple[Labels, Labels, list[int]]:
    """Return a series with the labels *names* of counters, one for each of *families*."""
    reporters, labels, values = _sequence(item, 3)
    return (
        _reporters(reporters),
        _labels(labels, len(names)),
        [_amount(value) for value in _sequence(values, len(families))],
    )


def _count(item: object) -> tuple[Metric, Labels, int]:
    name, labels, amount = _sequence(item, 3)
    metric = _metric(name, "counter")
    return metric, _labels(labels, len(metric.labels)), _amount(amount)


def _gauge(item: object) -> tuple[Metric, Labels, float]:
    name, labels, value = _sequence(item, 3)
    metric = _metric(name, "gauge")
    if metric not in _OWN_GAUGES:
        raise ReportError(f"{metric.name} is not for a worker to set")
    return metric, _labels(labels, len(metric.labels)), _number(value)


def _histogram(item: object) -> Histogram:
    buckets, total = _sequence(item, 2)
    pairs = [_sequence(pair, 2) for pair in _sequence(buckets)]
    return [(_index(index), _amount(count)) for index, count in pairs], _number(total)


def _index(value: object) -> int:
    if type(value) is not int or not 0 <= value <= len(BUCKETS):
        raise ReportError(f"no bucket has the number {shown(value)}")
    return value


def _items(message: Mapping[str, object], key: str) -> list[object]:
    return _sequence(message.get(key, []))


def _sequence(value: object, length: int | None = None) -> list[object]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise ReportError(f"expected {length or 'any number of'} items, not {shown(value)}")
    return list(value)


def _reporters(value: object) -> Labels:
    told = _sequence(value)
    reporters = tuple(reporter for reporter in REPORTERS if reporter in told)
    if not reporters or len(reporters) != len(told):
        raise ReportError(f"reporters are some of {REPORTERS!r}, not {shown(value)}")
    return reporters


def _labels(value: object, count: int) -> Labels:
    return tuple(_label(each) for each in _sequence(value, count))


def _label(value: object) -> str:
    if type(value) is not str or len(value) > _LABEL_LENGTH:
        raise ReportError(f"a label is text of at most {_LABEL_LENGTH} characters: {shown(value)}")
    return value


def _metric(name: object, kind: Kind) -> Metric:
    metric = PLAIN.get(name) if isinstance(name, str) else None
    if metric is None or metric.kind != kind:
        raise ReportError(f"no {kind} is called {shown(name)}")
    return metric


def _amount(value: object) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ReportError(f"a count is a whole number below 2^53, not {shown(value)}")
    return value


def _number(value: object) -> float:
    if type(value) is int:
        value = float(value) if value < LARGEST else math.inf
    if type(value) is not float or not 0 <= value < LARGEST:
        raise ReportError(f"a value is a number from 0 to 2^53, not {shown(value)}")
    return value
