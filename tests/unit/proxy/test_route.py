"""What a route counts under."""

from __future__ import annotations

import pytest

from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.route import ANSWERS, NAMED, Destination, Route
from nodeagent.proxy.view import Resolved
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.vocabulary import Address, PodUid


def test_a_pod_that_dials_every_port_of_another_makes_a_bounded_number_of_series() -> None:
    metrics = WorkerMetrics()
    pod, quiet = (
        PodState(PodUid(uid), 1, f"spiffe://cluster.local/ns/n/sa/{uid}", lambda family, count: None)
        for uid in ("scanner", "quiet")
    )

    def dial(by: PodState, port: int) -> None:
        target = Resolved(Address("10.0.0.9"), port, "auto", None, ())
        connection = Connection(
            by, "outbound", Peer("10.0.0.1", 4000, by.identity, "kernel_attested", None), target, 0.0
        )
        Route(metrics, connection, Destination(None, None, "none", None, "-", delivers=False), "c").tcp(
            "UF"
        ).opened += 1

    for port in range(1, 5000):
        dial(pod, port)
    dial(quiet, 4999)
    told = {labels[16]: values[0] for message in metrics.delta() for _, labels, values in message.get("tcp", ())}
    assert len(told) == NAMED + 2
    assert told["10.0.0.9:64"] == told["10.0.0.9:4999"] == 1
    assert told["10.0.0.9:0"] == 4999 - NAMED, "none is lost"


@pytest.mark.parametrize("grpc", [False, True])
def test_a_server_that_makes_statuses_up_makes_a_bounded_number_of_series(grpc: bool) -> None:
    metrics = WorkerMetrics(per_pod=10_000)
    pod = PodState(PodUid("client"), 1, "spiffe://cluster.local/ns/n/sa/client", lambda family, count: None)
    target = Resolved(Address("10.0.0.9"), 80, "auto", None, ())
    peer = Peer("10.0.0.1", 4000, pod.identity, "kernel_attested", None)
    route = Route(
        metrics,
        Connection(pod, "outbound", peer, target, 0.0),
        Destination(None, None, "none", None, "-", delivers=False),
        "c",
    )
    cells = set()
    for _ in range(2):
        for status in range(100, 1000):
            for code in (str(code) for code in range(17 if grpc else 1)):
                cell = route.call_cell(status, code, "-") if grpc else route.cell(status, "-")
                cell.observe(1, 1, 1)
                cells.add(cell)
    assert len(cells) <= ANSWERS + 9
    told = [labels for message in metrics.delta() for _, labels, _ in message.get("http", ())]
    assert len(told) == len(cells), "each is told, so that none is lost"
