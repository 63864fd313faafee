"""The calls of one client's one connection go to all endpoints, and none fails but those of an
endpoint that is killed: while endpoints come, go and drain, workers are killed and agents reloaded.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from tests.netns.grpc_world import calling, calls_server, calls_service, rpc, target
from tests.netns.test_agent_processes import reload
from tests.netns.world import account, client, cluster, growth, workers
from tests.waiting import eventually

NODES = {"one": "node1", "two": "node1", "three": "node2"}
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        *(
            calls_server(name, node, account="server", labels="tier: calls", leaves=True)
            for name, node in NODES.items()
        ),
        calls_service("calls", "tier: calls"),
    )
)
CRITICAL = 13.8
"""Of chi-square with 2 degrees of freedom at p = 0.001."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-grpc-balance", TEXT) as made:
        yield made


def chi_square(counts: dict[str, int]) -> float:
    expected = sum(counts.values()) / len(NODES)
    return sum((counts.get(name, 0) - expected) ** 2 / expected for name in NODES)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("parallel", [1, 20])
def test_the_calls_of_one_connection_are_balanced(lab: Lab, version: int, parallel: int) -> None:
    answers = rpc(lab, "client", target(lab, "calls", version), "Who", calls=600, parallel=parallel)["answers"]
    assert sum(answers.values()) == 600
    assert set(answers) == set(NODES)
    if parallel == 1:  # drawn at random; with calls under way the less busy one of two is taken
        assert chi_square(answers) < CRITICAL, answers
    else:  # and one of another node, whose calls take longer, gets fewer: the more so, the busier the machine
        assert min(answers.values()) > 60, answers


def test_streams_are_balanced_too(lab: Lab) -> None:
    counted = growth(lab)
    with calling(lab, "client", target(lab, "calls"), "Tick", data="1000", calls=30, parallel=30):
        for name in NODES:
            eventually(
                lambda name=name: (
                    counted.of("istio_response_messages_total", reporter="source", destination_workload=name) >= 5
                )
            )


def test_reloads_fail_no_call(lab: Lab) -> None:
    counted = growth(lab)
    with calling(lab, "client", target(lab, "calls"), "Count", data="50 1000", calls=0, parallel=8) as load:
        for node in lab.nodes:
            before = counted.of("istio_requests_total", reporter="source")
            reload(lab, node)
            eventually(
                lambda before=before: counted.of("istio_requests_total", reporter="source") > before + 50,
                "calls go on",
            )
        told = load.result()
    assert set(told["codes"]) == {"OK"}, told
    assert told["messages"] == 50 * told["codes"]["OK"]


def test_an_endpoint_that_drains_and_one_that_comes_fail_no_call(lab: Lab) -> None:
    """The pod is asked to end: it says GOAWAY, and answers what it was asked."""
    counted = growth(lab)
    with calling(lab, "client", target(lab, "calls"), "Count", data="50 1000", calls=0, parallel=8) as load:

        def asked(name: str) -> float:
            return counted.of("istio_requests_total", reporter="source", destination_workload=name)

        for name in ("one", "three"):
            eventually(lambda name=name: asked(name) > 20, "it is asked")
            lab.delete_pod(name)
            lab.apply(text=calls_server(name, NODES[name], account="server", labels="tier: calls", leaves=True))
            before = asked(name)
            eventually(lambda name=name, before=before: asked(name) > before + 20, "it is asked again")
        told = load.result()
    assert set(told["codes"]) == {"OK"}, told["words"]


def test_a_killed_endpoint_fails_only_its_own_calls(lab: Lab) -> None:
    counted = growth(lab)
    with calling(lab, "client", target(lab, "calls"), "Count", data="50 1000", calls=0, parallel=8) as load:

        def asked(name: str) -> float:
            return counted.of("istio_requests_total", reporter="source", destination_workload=name)

        eventually(lambda: asked("two") > 20, "it is asked")
        lab.delete_pod("two", grace_seconds=0)
        before = asked("one")
        eventually(lambda: asked("one") > before + 50, "calls go on")
        told = load.result()
    lab.apply(text=calls_server("two", NODES["two"], account="server", labels="tier: calls", leaves=True))
    failed = sum(count for code, count in told["codes"].items() if code != "OK")
    assert set(told["codes"]) <= {"OK", "Unavailable", "Internal"}, told
    assert failed <= 8 * 4, told


def test_a_killed_worker_loses_its_own_calls_and_the_client_goes_on(lab: Lab) -> None:
    counted = growth(lab)
    with calling(lab, "client", target(lab, "calls"), "Count", data="50 1000", calls=0, parallel=8) as load:
        eventually(lambda: counted.of("istio_requests_total", reporter="source") > 50, "calls are made")
        (pid,) = workers(lab, "node1")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: workers(lab, "node1") not in ([], [pid]), "another worker is there")
        before = counted.of("istio_requests_total", reporter="source")
        eventually(lambda: counted.of("istio_requests_total", reporter="source") > before + 50, "calls go on")
        told = load.result()
    assert set(told["codes"]) <= {"OK", "Unavailable"}, told
    assert told["codes"]["OK"] > 100
