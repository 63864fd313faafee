"""A daemon takes a node over from the one that runs: at STRICT no request fails and no connection is
cut, whoever dies in between; what drains hears of every policy.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.errors import LabError
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
    curl,
    get,
    growth,
    parent_of,
    scrape,
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


def log_of(agent: Agent, start: int, words: str) -> bool:
    """Say whether the log has *words* from byte *start* on."""
    return words in agent.log.read_text()[start:]


def ready(lab: Lab) -> str:
    """Return what node2's daemon says of itself."""
    return get(lab, "node2", 15021, "/ready")[1]


DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-more}
spec: {selector: {matchLabels: {app: remote}}, action: DENY, rules: [{}]}
"""


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


@pytest.mark.timeout(600)
def test_maps_of_another_size_lose_nothing(lab: Lab) -> None:
    """Input: the newcomer's maps have another size, so its programs remember elsewhere what the old
    workers still accept. Verdict: as with the same maps.
    """
    agent = lab.agent("node1")
    with asking(lab) as clients, holding(lab) as held:
        sizes = {"redirect": {"maps": {"connections": 4096, "pods": 100}}}
        replace(agent, overlay=merge(agent.overlay, sizes)).succeed()
        go_on(clients)
        all_there(held)
        none_failed(clients)


@pytest.mark.timeout(600)
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


@pytest.mark.timeout(600)
def test_a_newcomer_may_have_more_workers_or_fewer(lab: Lab) -> None:
    """Input: two workers, then one, two, and one again; the daemons before drain. Verdict: every new connection
    is served, by the slots that there are: while they drain, and after that.
    """
    agent = lab.agent("node1")
    old: list[int] = []

    def all_served() -> None:
        for name in SERVERS * 10:
            done = curl(lab, "client", "--max-time", "60", f"http://{cluster_ip(lab, name)}/")
            assert done.returncode == 0, (name, done.stderr)

    with holding(lab) as held:
        for workers in (2, 1, 2, 1):
            newcomer = replace(agent, overlay=merge(agent.overlay, {"proxy": {"workers": workers}}))
            old.append(newcomer.succeed())
            all_served()
            all_there(held)
    for pid in old:
        eventually(lambda pid=pid: gone(pid), "the old daemon has ended")
    all_served()


@pytest.mark.timeout(600)
def test_what_drains_hears_of_every_policy(lab: Lab) -> None:
    """Input: a DENY policy after the daemon was succeeded that carries the connections. Verdict:
    they are cut, by the old one, which has nothing left then and ends; others go on. Until then it says for
    which pod it is still there.
    """
    agent = lab.agent("node2")
    start = len(agent.log.read_text())
    local, remote = (cluster_ip(lab, name) for name in SERVERS)
    with (
        client_in(lab, "client", "hold", local, 9000, "--connections", 5) as other,
        client_in(lab, "client", "hold", remote, 9000, "--connections", 5) as held,
    ):
        old = agent.succeed()
        assert held.say() == {"ok": 5, "bad": []}
        says = re.compile(r"this daemon ends when what is open has ended.*: default/remote \d+ \(for ")
        eventually(lambda: says.search(agent.log.read_text()[start:]), "it says so")  # fewer, if one worker is silent
        told = "warning: an earlier daemon is there beside this one until its last connection ends"
        eventually(lambda: re.search(f"{told}.*: default/remote ", ready(lab)), "its successor says so, too")
        lab.apply(text=DENY)
        try:
            eventually(lambda: held.say()["ok"] == 0, "they are cut")
            assert other.say() == {"ok": 5, "bad": []}
            eventually(lambda: gone(old), "the old daemon has ended")
            assert "beside this one" not in ready(lab)
        finally:
            lab.delete(("AuthorizationPolicy", "default", "no-more"))


KEPT = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80)
connection.connect()
connection.auto_open = 0
while True:
    connection.request("GET", "/about")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, flush=True)
    if not sys.stdin.readline():
        break
"""


@contextmanager
def kept(lab: Lab, name: str) -> Iterator[Client]:
    """An HTTP connection to *name* that was asked once and stays open; each line asks again."""
    argv = [sys.executable, "-c", KEPT, cluster_ip(lab, name)]
    pipe = subprocess.PIPE
    with lab.popen("client", argv, stdin=pipe, stdout=pipe, text=True) as process:
        client = Client(process)
        try:
            assert client.hear() == 200
            yield client
        finally:
            process.kill()


@pytest.mark.timeout(600)
def test_what_drains_is_in_the_metrics_of_who_has_the_node(lab: Lab) -> None:
    """Input: a kept connection is asked after the hand-over; connections end after a second one. Verdict: the
    request is counted by the daemon that took over, the ends by the third one, each once.
    """
    agent = lab.agent("node1")
    pair = {"reporter": "source", "source_workload": "client", "destination_workload": "remote"}
    with client_in(lab, "client", "hold", cluster_ip(lab, "remote"), 9000, "--connections", 5) as held:
        with kept(lab, "remote") as asked:
            first = agent.succeed()
            eventually(lambda: "is there beside this one" in get(lab, "node1", 15021, "/ready")[1], "it drains")
            second = growth(lab, "node1")
            assert second.before.sum("istio_requests_total", **pair) == 0
            assert asked.say() == 200
            second.comes_to(1, "istio_requests_total", **pair, response_code="200")
        ended = agent.succeed()
        eventually(lambda: gone(ended), "the second daemon has ended: what it had is closed")
        third = growth(lab, "node1")
        assert held.say() == {"ok": 5, "bad": []}
    third.comes_to(5, "istio_tcp_connections_closed_total", **pair)
    eventually(lambda: gone(first), "the first daemon has ended")
    now = scrape(lab, "node1")
    assert now.sum("istio_tcp_received_bytes_total", **pair) > 0
    assert now.sum("istio_tcp_connections_opened_total", **pair) == 0
    assert now.sum("istio_tcp_connections_closed_total", **pair) == 5


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["is about to take over", "this one writes nothing of it any more"])
def test_a_newcomer_that_dies_costs_nothing(lab: Lab, stage: str) -> None:
    """Input: it is killed while it prepares, and while it takes over. Verdict: no request fails, no
    connection is cut, the daemon is ready, pods are captured as before, and the next one takes over.
    """
    agent = lab.agent("node1")
    before = dead_events(lab, "node1")
    with asking(lab) as clients, holding(lab) as held:
        start = len(agent.log.read_text())
        old = agent.succeed(wait_seconds=0)
        eventually(lambda: log_of(agent, start, stage), stage, 60)
        os.kill(agent.pid, signal.SIGKILL)
        eventually(lambda: supervisors(agent) == [old], "only the old daemon is there")
        agent.is_again(old)
        go_on(clients)
        all_there(held)
        eventually(agent.ready, "the old daemon is ready", 60)
        assert agent.succeed() == old
        go_on(clients)
        all_there(held)
        none_failed(clients)
    assert dead_events(lab, "node1") == before
    eventually(lambda: supervisors(agent) == [agent.pid], "the old daemon has ended", 60)


@pytest.mark.timeout(600)
def test_a_daemon_that_dies_while_it_is_succeeded_is_succeeded(lab: Lab) -> None:
    """Input: the old daemon is killed when it has resigned. Verdict: its connections are lost and
    what is protected is refused, not passed, until the newcomer is there, which goes on alone.
    """
    agent = lab.agent("node1")
    start = len(agent.log.read_text())
    old = agent.succeed(wait_seconds=0)
    eventually(lambda: log_of(agent, start, "this one writes nothing of it any more"), "it has resigned", 60)
    os.kill(old, signal.SIGKILL)
    eventually(lambda: supervisors(agent) == [agent.pid], "the old daemon is dead")  # who could still answer
    agent.wait_ready(60)
    with asking(lab) as clients:
        go_on(clients)
        none_failed(clients)
    agent.succeed()
    with asking(lab) as clients:
        go_on(clients)
        none_failed(clients)


# -- earlier releases --

RELEASED = "053ec17"
"""The state that was handed to users last: what a node has when today's comes, and what it is rolled back to."""
BEFORE = "bea6431"
"""The last commit without a hand-over."""
ROOT = Path(__file__).parents[2]


def interpreter(folder: Path, commit: str) -> str:
    """Return a Python of its own in *folder* that runs the release *commit*: its sources from this repository's
    history.
    """
    archive = folder / "sources.tar"
    done = subprocess.run(
        ["git", "-C", str(ROOT), "-c", "safe.directory=*", "archive", "--output", str(archive), commit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"the history must be there (git fetch --unshallow): {done.stderr}"
    subprocess.run(["tar", "--extract", "--file", str(archive), "--directory", str(folder)], check=True)
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\ncd {folder}\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.fixture(scope="module")
def python_released(tmp_path_factory: pytest.TempPathFactory) -> str:
    return interpreter(tmp_path_factory.mktemp("released"), RELEASED)


@pytest.fixture(scope="module")
def python_before(tmp_path_factory: pytest.TempPathFactory) -> str:
    return interpreter(tmp_path_factory.mktemp("before"), BEFORE)


@pytest.mark.timeout(600)
def test_a_node_is_rolled_back_and_upgraded_under_load(lab: Lab, python_released: str) -> None:
    """Input: today's daemon is succeeded by the release before, and that one by today's. Verdict: each time the node
    is handed over, no request fails and no connection is cut, and nobody is refused for want of a daemon.
    """
    agent = lab.agent("node1")
    before = dead_events(lab, "node1")
    old: list[int] = []
    with asking(lab) as clients:
        with holding(lab) as held:
            for python in (python_released, sys.executable):
                old.append(agent.succeed(python=python, wait_seconds=180))  # it may compile its programs first
                assert is_released(agent.pid, python_released) == (python == python_released)
                go_on(clients)
                all_there(held)
        for pid in old:
            eventually(lambda pid=pid: gone(pid), "the old daemon has ended", 60)
        go_on(clients)
        none_failed(clients)
    assert dead_events(lab, "node1") == before
    assert supervisors(agent) == [agent.pid]


def is_released(pid: int, python: str) -> bool:
    """Say whether the daemon *pid* runs the sources beside the interpreter *python*."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return f"PYTHONPATH={Path(python).parent}".encode() in environment


@pytest.mark.timeout(600)
def test_releases_before_and_after_the_hand_over_follow_each_other(lab: Lab, python_before: str) -> None:
    """Input: stop the daemon, start one of the earlier release, stop it, start today's. Verdict: each
    works on the pins of the other; in between what is protected is refused, and nothing passes by;
    beside each other neither does anything, and the error says why.
    """
    agent = lab.agent("node1")
    for python in (python_before, sys.executable):
        agent.stop()
        assert refused(lab)
        agent.start(python=python, wait_seconds=60)
        with asking(lab) as clients:
            go_on(clients)
            none_failed(clients)
        other = sys.executable if python == python_before else python_before
        with pytest.raises(LabError, match=r"is in use by|hands nothing over"):
            agent.succeed(python=other)
        agent.is_again(*supervisors(agent))
        with asking(lab) as clients:
            go_on(clients)
            none_failed(clients)


def refused(lab: Lab) -> bool:
    """Say that a protected pod lets nobody in, for no daemon is there."""
    done = curl(lab, "client", "--max-time", "5", f"http://{lab.address('local')}:8080/about")
    return done.returncode != 0
