"""What a route counts under."""

from __future__ import annotations

from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.route import NAMED, Destination, Route
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
