"""What a store has summed up, told to another daemon's store."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from nodeagent.channel import MESSAGE_BYTES
from nodeagent.messages import LateCounts
from nodeagent.telemetry import labels, metrics
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.late_reports import VERSION, known, reports
from nodeagent.telemetry.reports import LARGEST
from nodeagent.telemetry.store import Store
from nodeagent.wire import encode
from tests.unit.telemetry.test_metrics import BOTH, PEERS


def exposed(store: Store) -> str:
    return b"".join(store.exposition()).decode()


def told(store: Store) -> Store:
    """Return the store that was told what *store* has counted."""
    other = Store()
    for report in reports(store.held):
        other.merge(known(report))
    return other


def counted() -> WorkerMetrics:
    worker = WorkerMetrics()
    for code in (200, 503):
        worker.http(BOTH, labels.http(PEERS, code, "-")).observe(3.5, 100, 200 + code)
    worker.http(("destination",), labels.http(PEERS, 404, "-")).observe(1e7, 0, 1 << 40)
    worker.tcp(BOTH, labels.tcp(PEERS)).closed += 2
    worker.messages(("source",), labels.tcp(PEERS)).requests += 3
    worker.count(metrics.DRAIN_CUT, (), 4)
    worker.count(metrics.POLICY_EVENTS, ("web", "no-more", "deny"), 5)
    return worker


def test_another_store_has_all_of_it() -> None:
    store = Store()
    for report in counted().delta():
        store.merge(report)
    assert exposed(told(store)) == exposed(store)
    assert "istio_requests_total" in exposed(store)


def test_gauges_are_of_the_daemon_that_has_the_processes() -> None:
    worker, store = counted(), Store()
    worker.gauge(metrics.OPEN_CONNECTIONS, ("0",), 7)
    for report in worker.delta():
        store.merge(report)
    assert 'nodeagent_open_connections{worker="0"}' not in exposed(told(store))
    other = Store()
    other.set(metrics.OPEN_CONNECTIONS, ("0",), 3)
    other.merge(known({"gauges": [[metrics.OPEN_CONNECTIONS.name, ["0"], 7]]}))
    assert other.value(metrics.OPEN_CONNECTIONS, ("0",)) == 3


def test_nothing_was_counted() -> None:
    assert list(reports(Store().held)) == []


def test_many_series_take_many_messages_of_a_packet_each() -> None:
    worker, store = WorkerMetrics(), Store()
    for code in range(400):
        worker.http(BOTH, labels.http(PEERS, code, "-")).observe(code, code, code)
    for report in worker.delta():
        store.merge(report)
    messages = list(reports(store.held))
    assert len(messages) > 5
    assert all(len(encode(LateCounts(VERSION, 1, each))[0]) < MESSAGE_BYTES for each in messages)
    assert exposed(told(store)) == exposed(store)


def test_what_one_worker_makes_up_costs_the_others_nothing() -> None:
    """Input: a worker that was taken over counts as much as a report may say, twice, beside an honest one."""
    store = Store()
    worker = WorkerMetrics()
    worker.tcp(BOTH, labels.tcp(PEERS)).sent += 100
    worker.count(metrics.REFUSED, ("no_endpoints",), 2)
    for report in worker.delta():
        store.merge(report)
    forged = [["source"], labels.tcp(PEERS, "UF"), [0, 0, LARGEST - 1, 0]]
    for _ in range(2):
        store.merge({"tcp": [forged], "counts": [[metrics.DRAIN_CUT.name, [], LARGEST - 1]]})
    other = told(store)
    assert other.value(metrics.REFUSED, ("no_endpoints",)) == 2
    assert other.value(metrics.DRAIN_CUT) == LARGEST - 1
    assert other.value(metrics.REJECTED, ("malformed",)) == 0
    assert sorted(series.amounts[2] for series in other.held.tcp.values()) == [100, 100, LARGEST - 1]


@pytest.mark.parametrize("counts", [7, [[]], [[7, [], 1]], [["nodeagent_event_loop_lag_seconds", [], 1]]])
def test_what_no_daemon_says_is_dropped_whole(counts: Any) -> None:
    store = Store()
    store.merge(known({"counts": counts}))
    assert store.value(metrics.REJECTED, ("malformed",)) == 1


def test_what_another_release_counts_besides_is_left_out() -> None:
    store = Store()
    store.merge(known({"counts": [["nodeagent_of_tomorrow_total", ["x"], 1], [metrics.DRAIN_CUT.name, [], 2]], "x": 1}))
    assert store.value(metrics.DRAIN_CUT) == 2
    assert store.value(metrics.REJECTED, ("malformed",)) == 0


def test_who_changes_what_is_not_written_in_a_report_raises_its_version() -> None:
    families = (metrics.HTTP_FAMILIES, metrics.TCP_FAMILIES, metrics.MESSAGE_FAMILIES)
    names = [[each.name for each in group] for group in families]
    shape = repr((metrics.HTTP_LABELS, metrics.TCP_LABELS, metrics.MESSAGE_LABELS, metrics.BUCKETS, names))
    digest = hashlib.sha256(shape.encode()).hexdigest()[:12]
    assert {1: "fc5521e2398a"}[VERSION] == digest, "VERSION is to be raised, and the digest beside it"
