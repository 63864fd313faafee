"""From a worker's cells through reports and the store to the exposition."""

from __future__ import annotations

import bisect
import subprocess
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nodeagent.channel import MESSAGE_BYTES
from nodeagent.mesh.entries import Service, Workload
from nodeagent.telemetry import exposition, labels, metrics
from nodeagent.telemetry.cells import HttpCell, WorkerMetrics
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Address, PodUid, SpiffeId

BOTH = ("source", "destination")
PRODUCT = Workload(
    *(
        PodUid("1"),
        "productpage-v1-abc",
        "default",
        "node1",
        (Address("10.0.0.1"),),
        "productpage",
        SpiffeId("spiffe://cluster.local/ns/default/sa/productpage"),
    ),
    *("productpage-v1", "productpage", "v1", "productpage", "v1", True, True),
)
REVIEWS = replace(
    PRODUCT, workload="reviews-v2", app="reviews", version="v2", canonical_service="reviews", canonical_revision="v2"
)
SERVICE = Service("reviews", "default", "reviews.default.svc.cluster.local", (), ())
PEERS = labels.peers(
    labels.side(PRODUCT, "spiffe://cluster.local/ns/default/sa/productpage", "Kubernetes"),
    labels.side(REVIEWS, "spiffe://cluster.local/ns/default/sa/reviews", "Kubernetes"),
    labels.service(SERVICE),
    "mutual_tls",
)
# Istio's documentation of its standard metrics, with the order of no importance.
ISTIO_SIDE = {
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
    "canonical_service",
    "canonical_revision",
}
ISTIO_HTTP = {f"{side}_{name}" for side in ("source", "destination") for name in ISTIO_SIDE} | {
    *(
        "reporter",
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
        "connection_security_policy",
    ),
    *("request_protocol", "response_code", "grpc_response_status", "response_flags"),
}


def reported(worker: WorkerMetrics, store: Store) -> None:
    for message in worker.delta():
        store.merge(orjson.loads(orjson.dumps(message)))


def written(store: Store) -> str:
    return b"".join(store.exposition()).decode()


def samples(store: Store, **wanted: str) -> dict[str, float]:
    """Return the samples whose labels include *wanted*, by name (and bucket); read by
    prometheus_client's own parser.
    """
    return {
        sample.name + (f" {sample.labels['le']}" if "le" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(written(store))
        for sample in family.samples
        if wanted.items() <= sample.labels.items()
    }


def everything() -> Store:
    """Return a store in which every family has a series."""
    worker, store = WorkerMetrics(), Store()
    worker.http(BOTH, labels.http(PEERS, 200, "-")).observe(3.2, 420, 1300)
    worker.tcp(("source",), labels.tcp(PEERS)).opened += 1
    worker.messages(BOTH, labels.messages(PEERS)).requests += 1
    reported(worker, store)
    for metric in metrics.PLAIN.values():
        store.set(metric, ("x",) * len(metric.labels), 1.5)
    return store


def test_the_labels_are_istios() -> None:
    assert set(metrics.REQUESTS.labels) == ISTIO_HTTP
    assert set(metrics.TCP_OPENED.labels) == ISTIO_HTTP - {"response_code", "grpc_response_status"}
    assert len(set(metrics.HTTP_LABELS)) == len(metrics.HTTP_LABELS)
    assert len(labels.http(PEERS, 200, "-")) == len(metrics.HTTP_LABELS)
    assert len(labels.tcp(PEERS)) == len(metrics.TCP_LABELS)


def test_a_request_inside_the_node_counts_for_both_reporters() -> None:
    worker, store = WorkerMetrics(), Store()
    worker.http(BOTH, labels.http(PEERS, 200, "-")).observe(7, 400, 1200)
    reported(worker, store)
    server = {"reporter": "destination", "connection_security_policy": "mutual_tls", "response_code": "200"}
    # The client's side never knows what the server accepted: Istio has it say "unknown".
    for expected in (server, {**server, "reporter": "source", "connection_security_policy": "unknown"}):
        found = samples(
            store,
            destination_workload="reviews-v2",
            destination_service="reviews.default.svc.cluster.local",
            **expected,
        )
        assert found["istio_requests_total"] == 1
        assert found["istio_request_duration_milliseconds_sum"] == 7
        assert found["istio_request_bytes_sum"] == 400
        assert found["istio_response_bytes_sum"] == 1200


def test_a_missing_side_is_unknown() -> None:
    peers = labels.peers(
        labels.side(None, None, "Kubernetes"), labels.side(PRODUCT, None, "Kubernetes"), labels.service(None), "none"
    )
    named = dict(zip(metrics.PEER_LABELS, peers, strict=True))
    assert named["source_workload"] == named["source_principal"] == named["source_cluster"] == "unknown"
    assert named["destination_workload"] == "productpage-v1"
    assert named["destination_service_name"] == "PassthroughCluster"


def test_buckets_are_inclusive_and_cumulative() -> None:
    worker, store = WorkerMetrics(), Store()
    cell = worker.http(("source",), labels.http(PEERS, 200, "-"))
    for milliseconds in (0, 0.5, 0.51, 5, 3600000, 3600001):
        cell.observe(milliseconds, 0, 1)
    reported(worker, store)
    found = samples(store)
    duration = "istio_request_duration_milliseconds"
    assert [found[f"{duration}_bucket {le}"] for le in ("0.5", "1", "5", "1800000", "3600000", "+Inf")] == [
        2,
        3,
        4,
        4,
        5,
        6,
    ]
    assert found[f"{duration}_count"] == found["istio_requests_total"] == 6
    assert found["istio_request_bytes_bucket 0.5"] == 6
    assert found["istio_response_bytes_bucket 0.5"] == 0
    assert found["istio_response_bytes_bucket 1"] == 6


@given(st.lists(st.tuples(st.floats(0, 1e7), st.integers(0, 10**8), st.integers(0, 10**8)), max_size=30))
def test_a_cell_counts_as_a_plain_histogram_does(requests: list[tuple[float, int, int]]) -> None:
    cell = HttpCell()
    for request in requests:
        cell.observe(*request)
    taken = cell.take()
    if not requests:
        assert taken is None
        return
    assert taken is not None
    for place, (pairs, total) in enumerate(taken):
        expected = [0] * (len(metrics.BUCKETS) + 1)
        for request in requests:
            expected[bisect.bisect_left(metrics.BUCKETS, request[place])] += 1
        assert dict(map(tuple, pairs)) == {index: count for index, count in enumerate(expected) if count}
        assert total == pytest.approx(sum(request[place] for request in requests))
    assert cell.take() is None


def test_cells_are_shared_and_deltas_hold_only_what_changed() -> None:
    worker, store = WorkerMetrics(), Store()
    first = worker.http(BOTH, labels.http(PEERS, 200, "-"))
    assert worker.http(BOTH, labels.http(PEERS, 200, "-")) is first
    assert worker.tcp(BOTH, labels.tcp(PEERS)) is worker.tcp(BOTH, labels.tcp(PEERS))
    assert worker.delta() == []
    first.observe(1, 1, 1)
    worker.tcp(BOTH, labels.tcp(PEERS)).sent += 100
    worker.count(metrics.REFUSED, ("no_endpoints",))
    worker.count(metrics.REFUSED, ("no_endpoints",), 2)
    worker.gauge(metrics.LOOP_LAG, ("0",), 0.25)
    reported(worker, store)
    assert worker.delta() == []
    assert store.value(metrics.REFUSED, ("no_endpoints",)) == 3
    assert store.value(metrics.LOOP_LAG, ("0",)) == 0.25
    assert samples(store, reporter="source")["istio_tcp_sent_bytes_total"] == 100


def test_counters_go_on_when_a_worker_is_replaced() -> None:
    store = Store()
    for _ in range(3):
        worker = WorkerMetrics()
        worker.http(BOTH, labels.http(PEERS, 200, "-")).observe(1, 1, 1)
        reported(worker, store)
    assert samples(store, reporter="source")["istio_requests_total"] == 3


def test_a_report_fits_the_channel() -> None:
    worker = WorkerMetrics()
    for number in range(500):
        names = [f"{number}-".ljust(253, "x")] * len(metrics.HTTP_LABELS)
        worker.http(BOTH, tuple(names)).observe(1, 1, 1)
    messages = worker.delta()
    assert len(messages) > 1
    assert sum(len(message["http"]) for message in messages) == 500
    assert max(len(orjson.dumps(message)) for message in messages) < MESSAGE_BYTES


def test_counts_of_many_policies_fit_the_channel() -> None:
    worker = WorkerMetrics()
    for number in range(3000):
        worker.count(metrics.POLICY_EVENTS, ("server", f"{number}-".ljust(253, "x"), "deny"), number)
    messages = worker.delta()
    assert sum(amount for message in messages for _, _, amount in message["counts"]) == sum(range(3000))
    assert max(len(orjson.dumps(message)) for message in messages) < MESSAGE_BYTES


GOOD: list[Any] = [["source"], list(labels.http(PEERS, 200, "-")), [[[[2, 1]], 1.5], [[[0, 1]], 0], [[[0, 1]], 0]]]
COUNT = metrics.REFUSED.name


def test_the_messages_of_calls_are_counted_while_they_go_on() -> None:
    worker = WorkerMetrics()
    store = Store()
    cell = worker.messages(BOTH, labels.messages(PEERS))
    cell.requests += 1
    reported(worker, store)
    cell.responses += 70
    reported(worker, store)
    for reporter in BOTH:
        found = samples(store, reporter=reporter, request_protocol="grpc")
        assert found["istio_request_messages_total"] == 1
        assert found["istio_response_messages_total"] == 70
    assert len(labels.messages(PEERS)) == len(metrics.MESSAGE_LABELS)
    assert worker.delta() == []


@pytest.mark.parametrize(
    "message",
    [
        {"http": 1},
        {"http": [1]},
        {"http": [[["source"], ["too", "few"], GOOD[2]]]},
        {"http": [[["nobody"], GOOD[1], GOOD[2]]]},
        {"http": [[["source", "source"], GOOD[1], GOOD[2]]]},
        {"http": [[[["source"]], GOOD[1], GOOD[2]]]},
        {"http": [[["source"], [*GOOD[1][:-1], 7], GOOD[2]]]},
        {"http": [[["source"], [*GOOD[1][:-1], "x" * 2000], GOOD[2]]]},
        {"http": [[["source"], GOOD[1], [[[[99, 1]], 1.5], *GOOD[2][1:]]]]},
        {"http": [[["source"], GOOD[1], [[[[1, -1]], 1.5], *GOOD[2][1:]]]]},
        {"http": [[["source"], GOOD[1], [[[[1, True]], 1.5], *GOOD[2][1:]]]]},
        {"http": [[["source"], GOOD[1], [[[[1, 1]], float("nan")], *GOOD[2][1:]]]]},
        {"tcp": [[["source"], list(labels.tcp(PEERS)), [1, 1, 1]]]},
        {"messages": [[["source"], list(labels.messages(PEERS)), [1]]]},
        {"messages": [[["source"], list(labels.messages(PEERS)), [1, -1]]]},
        {"tcp": [[["source"], list(labels.tcp(PEERS)), [1, 1, 1, 1 << 60]]]},
        {"counts": [["istio_requests_total", [], 1]]},
        {"counts": [[COUNT, ["x", "y"], 1]]},
        {"counts": [[COUNT, ["x"], -1]]},
        {"counts": [[metrics.LOOP_LAG.name, ["0"], 1]]},
        {"gauges": [[COUNT, ["x"], 1]]},
        {"gauges": [[metrics.LOOP_LAG.name, ["0"], "1"]]},
        {"gauges": [[metrics.CERTIFICATE_EXPIRY.name, ["spiffe://cluster.local/ns/a/sa/b"], 1]]},
        {"http": orjson.loads(b'{"a":' * 1000 + b"1" + b"}" * 1000)},
    ],
)
def test_a_malformed_report_is_dropped_whole(message: dict[str, Any]) -> None:
    store = Store()
    store.merge(
        {"counts": [[COUNT, ["good"], 1]], **message} if "counts" not in message else {"http": [GOOD], **message}
    )
    assert samples(store) == {"nodeagent_telemetry_rejected_total": 1}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([COUNT, "source", *metrics.PLAIN]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["http", "tcp", "messages", "counts", "gauges", "other"]), JSON))
def test_no_report_can_raise(message: dict[str, Any]) -> None:
    store = Store()
    store.merge(message)
    list(text_string_to_metric_families(written(store)))


def test_the_number_of_series_is_bounded() -> None:
    worker, store = WorkerMetrics(), Store(series_limit=4)
    for code in range(10):
        worker.http(("source",), labels.http(PEERS, code, "-")).observe(1, 1, 1)
    reported(worker, store)
    assert len([line for line in written(store).splitlines() if line.startswith("istio_requests_total")]) == 4
    assert store.value(metrics.REJECTED, ("series",)) == 6


def test_the_number_of_a_workers_plain_series_is_bounded() -> None:
    store = Store(series_limit=4)
    store.merge(
        {
            "counts": [[COUNT, [f"{number}"], 1] for number in range(10)],
            "gauges": [[metrics.LOOP_LAG.name, [f"{number}"], 1] for number in range(10)],
        }
    )
    assert sum(line.startswith((COUNT, metrics.LOOP_LAG.name)) for line in written(store).splitlines()) == 8
    assert store.value(metrics.REJECTED, ("series",)) == 12
    store.merge({"counts": [[COUNT, ["0"], 1]]})
    assert store.value(metrics.REFUSED, ("0",)) == 2


def test_the_number_of_cells_is_bounded() -> None:
    worker, store = WorkerMetrics(series_limit=4), Store()
    for code in range(10):
        worker.http(("source",), labels.http(PEERS, code, "-")).observe(1, 1, 1)
        worker.tcp(("source",), labels.tcp(PEERS, str(code))).opened += 1
        worker.messages(("source",), labels.tcp(PEERS, str(code))).requests += 1
    reported(worker, store)
    assert (
        sum(
            line.startswith(("istio_requests_total", "istio_tcp_connections_opened", "istio_request_messages"))
            for line in written(store).splitlines()
        )
        == 12
    )
    assert store.value(metrics.REJECTED, ("series",)) == 18


def test_what_one_pod_makes_up_costs_the_others_no_series() -> None:
    worker, store = WorkerMetrics(series_limit=100, per_pod=10), Store()
    for code in range(1000):
        worker.http(("source",), labels.http(PEERS, code, "-"), "hostile").observe(1, 1, 1)
        worker.tcp(("source",), labels.tcp(PEERS, str(code)), "hostile").opened += 1
    worker.http(("source",), labels.http(PEERS, 2000, "-"), "other").observe(1, 1, 1)
    reported(worker, store)
    assert samples(store, response_code="2000")["istio_requests_total"] == 1
    assert (
        sum(
            line.startswith(("istio_requests_total", "istio_tcp_connections_opened"))
            for line in written(store).splitlines()
        )
        == 11
    )
    assert store.value(metrics.REJECTED, ("series",)) == 1990
    assert len({worker.http(("source",), labels.http(PEERS, code, "-"), "hostile") for code in range(1000)}) == 6


def test_families_can_be_replaced_and_series_ended() -> None:
    store = Store()
    store.replace(metrics.CERTIFICATE_EXPIRY, {("a",): 1, ("b",): 2})
    store.replace(metrics.CERTIFICATE_EXPIRY, {("b",): 3})
    store.set(metrics.LOOP_LAG, ("0",), 1)
    store.discard(metrics.LOOP_LAG, ("0",))
    store.add(metrics.REPAIRS, ("link",))
    store.add(metrics.REPAIRS, ("link",), 2)
    assert samples(store) == {"nodeagent_certificate_expiry_timestamp_seconds": 3, "nodeagent_repairs_total": 3}
    with pytest.raises(ValueError, match="do not match"):
        store.set(metrics.LOOP_LAG, (), 1)


@given(st.text(), st.floats(0, 2**53))
def test_any_label_value_survives(text: str, value: float) -> None:
    # The exposition is split at line feeds only; prometheus_client's parser knows no others either.
    text = text.encode(errors="replace").decode()
    store = Store()
    store.set(metrics.REPAIRS, (text,), value)
    (family,) = text_string_to_metric_families(written(store))
    assert family.samples[0].labels == {"fault": text}
    assert family.samples[0].value == value


def test_pieces_are_small_and_make_up_the_whole() -> None:
    worker, store = WorkerMetrics(), Store()
    for code in range(100, 200):
        worker.http(BOTH, labels.http(PEERS, code, "-")).observe(1, 1, 1)
    reported(worker, store)
    pieces = list(store.exposition())
    assert len(pieces) > 50
    assert max(map(len, pieces)) < 2 * exposition.PIECE_BYTES
    families = list(text_string_to_metric_families(b"".join(pieces).decode()))
    assert {family.name: len(family.samples) for family in families} == {
        "istio_requests": 200,
        **dict.fromkeys(
            ("istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"), 200 * 22
        ),
    }


def test_promtool_accepts_every_family() -> None:
    """All families at once; the one complaint is about the unit in a name that is Istio's."""
    text = written(everything())
    assert {metric.name for metric in metrics.PLAIN.values()} <= {
        line.split("{")[0].split(" ")[0] for line in text.splitlines()
    }
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert complaints == ['istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds"']
