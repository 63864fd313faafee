"""Control is away (killed, stopped), or the daemon is told to stop: what is asked meanwhile is
served, and what policy protects stays protected.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.world import (
    QUICK,
    Client,
    account,
    client,
    client_in,
    cluster,
    cluster_ip,
    control,
    curl,
    growth,
    server,
)
from tests.waiting import eventually

HEARTBEAT = QUICK["redirect"]["heartbeatTimeoutSeconds"]
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Everything is STRICT. A worker that is replaced drains for long: nothing here may wait for that."""
    settings = merge(QUICK, {"mtls": {"mode": "STRICT"}, "proxy": {"timeouts": {"drain": 600, "stop": 8}}})
    with cluster("t-away", TEXT, agent=settings) as made:
        yield made


@contextmanager
def asking(lab: Lab) -> Iterator[list[Client]]:
    """New TCP connections and HTTP requests on new connections without end, to this node and to the other."""
    kinds = [("knock", 9000, ()), ("load", 80, ("--fresh",))]
    with ExitStack() as stack:
        yield [
            stack.enter_context(client_in(lab, "client", what, cluster_ip(lab, name), port, *more, "--pause", 0.02))
            for name in ("local", "remote")
            for what, port, more in kinds
        ]


def go_on(clients: list[Client], more: int) -> None:
    """Wait until every client has been served as often again."""
    before = [each.say()["ok"] for each in clients]
    eventually(
        lambda: all(each.say()["ok"] > count + more for each, count in zip(clients, before, strict=True)),
        "all are served",
    )


def none_failed(clients: list[Client]) -> None:
    results = [each.finish() for each in clients]
    assert all(set(result) == {"ok"} for result in results), results


def dead_events(lab: Lab, node: str) -> tuple[float, float]:
    """Connections that the kernel refused or let pass because no daemon looked."""
    counted = growth(lab, node).before
    kinds = [(direction, what) for direction in ("outbound", "inbound") for what in ("passed", "refused")]
    found = {
        (direction, what): counted.sum("nodeagent_kernel_events_total", event=f"{direction}_dead_{what}")
        for direction, what in kinds
    }
    return sum(found[each, "passed"] for each in ("outbound", "inbound")), sum(
        found[each, "refused"] for each in ("outbound", "inbound")
    )


def test_a_killed_control_costs_no_new_connection(lab: Lab) -> None:
    """Input: kill -9 of control while connections use up sockets inside pods, 50 a second each.
    Verdict: each connection is served; the heartbeat goes on.
    """
    with asking(lab) as clients:
        for node in lab.nodes:
            before = dead_events(lab, node)
            old = control(lab, node)
            os.kill(old, signal.SIGKILL)
            go_on(clients, 20)
            lab.agent(node).wait_ready()
            assert control(lab, node) != old
            go_on(clients, 20)
            assert dead_events(lab, node) == before
        none_failed(clients)


def test_a_control_that_stands_still_costs_nothing(lab: Lab) -> None:
    """Input: control is stopped for longer than the heartbeat's timeout. Verdict: nothing is
    refused, and nothing passes by the proxy.
    """
    before = {node: dead_events(lab, node) for node in lab.nodes}
    with asking(lab) as clients:
        for node in lab.nodes:
            pid = control(lab, node)
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(2 * HEARTBEAT)  # longer than the kernel would trust a silent daemon
            finally:
                os.kill(pid, signal.SIGCONT)
            go_on(clients, 20)
        none_failed(clients)
    assert {node: dead_events(lab, node) for node in lab.nodes} == before


def served(lab: Lab, source: str, where: str) -> bool:
    return '"pod"' in curl(lab, source, f"http://{where}/about").stdout


def test_a_stop_serves_while_it_waits_and_waits_briefly(lab: Lab) -> None:
    """Input: a stop with a long connection open. Verdict: new ones are served in the first half of
    ``timeouts.stop``, then refused; it ends in time.
    """
    agent = lab.agent("node1")
    here = cluster_ip(lab, "local")
    with client_in(lab, "client", "hold", here, 9000) as held:
        os.kill(agent.pid, signal.SIGTERM)
        assert served(lab, "client", here)
        assert held.say() == {"ok": 1, "bad": []}
        agent.stop()
    assert not served(lab, "client", here)
    assert not served(lab, "plain", f"{lab.address('local')}:8080")
    agent.start()
    assert served(lab, "client", here)
    assert not served(lab, "plain", f"{lab.address('local')}:8080")
