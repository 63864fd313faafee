"""A daemon takes a node over from the one that runs: at STRICT no request fails and no connection is
cut, whoever dies in between; what drains hears of every policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import Agent, merge
from tests.netns.world import (
    QUICK,
    Client,
    account,
    client,
    client_in,
    cluster,
    cluster_ip,
    growth,
    parent_of,
    server,
)
from tests.waiting import eventually

TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)
SERVERS = ("local", "remote")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Everything is STRICT; between the nodes there is mTLS."""
    with cluster("t-upgrade", TEXT, agent=merge(QUICK, {"mtls": {"mode": "STRICT"}})) as made:
        yield made


@contextmanager
def asking(lab: Lab) -> Iterator[list[Client]]:
    """New TCP connections, HTTP requests on new ones and on old ones, to this node and to the other, without end."""
    kinds = [("knock", 9000, ()), ("load", 80, ("--fresh",)), ("load", 80, ("--connections", 3))]
    with ExitStack() as stack:
        yield [
            stack.enter_context(client_in(lab, "client", what, cluster_ip(lab, name), port, *more, "--pause", 0.02))
            for name in SERVERS
            for what, port, more in kinds
        ]


@contextmanager
def holding(lab: Lab) -> Iterator[list[Client]]:
    """TCP connections that stay open, to this node and to the other."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(client_in(lab, "client", "hold", cluster_ip(lab, name), 9000, "--connections", 5))
            for name in SERVERS
        ]


def go_on(clients: list[Client], more: int = 20) -> None:
    """Wait until every client has been served as often again."""
    before = [each.say()["ok"] for each in clients]
    eventually(
        lambda: all(each.say()["ok"] > count + more for each, count in zip(clients, before, strict=True)),
        "all are served",
    )


def none_failed(clients: list[Client]) -> None:
    results = [each.finish() for each in clients]
    assert all(set(result) == {"ok"} for result in results), results


def all_there(held: list[Client]) -> None:
    assert [each.say() for each in held] == [{"ok": 5, "bad": []}] * len(held)


def dead_events(lab: Lab, node: str) -> float:
    """Connections that the kernel refused or let pass because no daemon looked."""
    counted = growth(lab, node).before
    kinds = [(direction, what) for direction in ("outbound", "inbound") for what in ("passed", "refused")]
    events = [f"{direction}_dead_{what}" for direction, what in kinds]
    return sum(counted.sum("nodeagent_kernel_events_total", event=event) for event in events)


def gone(pid: int) -> bool:
    """Say whether the daemon *pid* has ended, and all that it started."""
    return not any(pid in (each, parent_of(each)) for each in running())


def running() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def supervisors(agent: Agent) -> list[int]:
    """Return the pids of the daemons in the cgroup of *agent*."""
    inside = set(agent.processes())
    return sorted(pid for pid in inside if parent_of(pid) not in inside and parent_of(pid))


@pytest.mark.timeout(400)
def test_nothing_fails_and_nothing_is_cut_when_a_daemon_takes_over(lab: Lab) -> None:
    """Input: both nodes' daemons are succeeded, twice each. Verdict: no request and no connection
    fails, old ones and new ones; the kernel refused nobody for want of a daemon; the old daemons
    end when the last connection has.
    """
    old: list[int] = []
    before = {node: dead_events(lab, node) for node in lab.nodes}
    with asking(lab) as clients:
        with holding(lab) as held:
            for _ in range(2):
                for node in lab.nodes:
                    old.append(lab.agent(node).succeed())
                    go_on(clients)
                    all_there(held)
            assert not any(gone(pid) for pid in old[:2]), "they carry connections yet"
        for pid in old:
            eventually(lambda pid=pid: gone(pid), "the old daemon has ended")
        go_on(clients)
        none_failed(clients)
    assert {node: dead_events(lab, node) for node in lab.nodes} == before
    for node in lab.nodes:
        assert supervisors(lab.agent(node)) == [lab.agent(node).pid]
