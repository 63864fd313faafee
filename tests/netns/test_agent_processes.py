"""Processes die, are replaced, reloaded, stopped and started again; who loses what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.config import WORKERS_USER
from nodeagent.lab import Lab
from tests.netns.world import (
    about,
    account,
    address_of,
    ask,
    bracketed,
    client,
    client_in,
    cluster,
    cluster_ip,
    control,
    curl,
    growth,
    scrape,
    server,
    workers,
)
from tests.waiting import eventually

TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("far", "node2", account="client"),
        client("plain", "node2", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)
NODEAGENT = [sys.executable, "-m", "nodeagent"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-proc", TEXT) as made:
        yield made


def reload(lab: Lab, node: str) -> None:
    done = subprocess.run(
        [*NODEAGENT, "reload", "--admin", str(lab.agent(node).admin_socket)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done


def test_a_worker_has_no_privilege(lab: Lab) -> None:
    """What parses the pods' bytes cannot read the CA's key, enter a namespace or come back to root."""
    for pid in workers(lab, "node1"):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(WORKERS_USER)}
        assert not int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16)
        assert status["NoNewPrivs"].strip() == "1"


def test_reload_loses_no_request(lab: Lab) -> None:
    """Keep-alive clients and clients with a connection a request, same node and other node, while
    both agents are reloaded twice.
    """
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                client_in(lab, "client", "load", cluster_ip(lab, name), 80, "--connections", connections, *more)
            )
            for name in ("local", "remote")
            for connections, more in ((2, ()), (2, ("--kind", "pause")), (2, ("--fresh",)))
        ]
        before = {node: workers(lab, node) for node in lab.nodes}
        for _ in range(2):
            for node in lab.nodes:
                reload(lab, node)
                counts = [each.say() for each in clients]
                eventually(
                    lambda counts=counts: all(
                        each.say()["ok"] > count["ok"] + 20 for each, count in zip(clients, counts, strict=True)
                    ),
                    "they go on",
                )
        results = [each.finish() for each in clients]
    for result in results:
        assert set(result) == {"ok"}, results
        assert result["ok"] > 100
    for node in lab.nodes:
        eventually(lambda node=node: set(workers(lab, node)).isdisjoint(before[node]), "the old workers have ended")
        assert scrape(lab, node).sum("nodeagent_worker_restarts_total") == 0  # reloaded is not restarted


def test_reload_leaves_long_connections_alone(lab: Lab) -> None:
    with client_in(lab, "client", "hold", cluster_ip(lab, "remote"), 9000, "--connections", 20) as held:
        for node in lab.nodes:
            reload(lab, node)
        assert held.say() == {"ok": 20, "bad": []}


def test_counters_survive_a_reload(lab: Lab) -> None:
    about(lab, "client", f"http://{cluster_ip(lab, 'local')}")
    before = scrape(lab).sum("istio_requests_total")
    reload(lab, "node1")
    assert scrape(lab).sum("istio_requests_total") >= before > 0


def test_a_killed_worker_is_replaced_and_costs_only_its_connections(lab: Lab) -> None:
    counted = growth(lab)
    (worker,) = eventually(lambda: only_one(workers(lab, "node1")), "one worker, the drained ones are gone")
    here, there = cluster_ip(lab, "local"), cluster_ip(lab, "remote")
    with (
        client_in(lab, "client", "hold", here, 9000, "--connections", 5) as held,
        client_in(lab, "far", "hold", there, 9000) as other,
    ):
        os.kill(worker, signal.SIGKILL)
        # The very next connection waits in the listener's backlog, if need be, and is answered.
        assert about(lab, "client", f"http://{cluster_ip(lab, 'local')}")["pod"] == "local"
        assert held.say()["ok"] == 0
        assert other.say() == {"ok": 1, "bad": []}
    eventually(lambda: counted.of("nodeagent_worker_restarts_total", worker="0") == 1, "the restart is counted")
    assert worker not in workers(lab, "node1")
    assert len(workers(lab, "node1")) == 1


def only_one(pids: list[int]) -> list[int]:
    return pids if len(pids) == 1 else []


def test_a_worker_that_is_killed_under_load_is_back_within_a_second(lab: Lab) -> None:
    (worker,) = eventually(lambda: only_one(workers(lab, "node1")), "one worker")
    with client_in(lab, "client", "load", cluster_ip(lab, "local"), 80, "--connections", 4) as load:
        os.kill(worker, signal.SIGKILL)
        eventually(
            lambda: len(workers(lab, "node1")) == 1 and worker not in workers(lab, "node1"),
            "a new worker",
            1.0 * slowness(),
        )
        before = load.say()
        eventually(lambda: load.say()["ok"] > before["ok"] + 50, "requests are answered again")
        result = load.finish()
    assert sum(count for outcome, count in result.items() if outcome != "ok") <= 4 + 1, result


def slowness() -> float:
    """How much longer than usual things take here now, at least 1: a second is a second of an idle machine."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return max(1.0, (time.perf_counter() - begun) / 0.03)


def test_a_killed_control_costs_no_request(lab: Lab) -> None:
    here, there = cluster_ip(lab, "local"), cluster_ip(lab, "remote")
    with (
        client_in(lab, "client", "load", here, 80, "--connections", 4) as load,
        client_in(lab, "client", "load", there, 80, "--fresh") as fresh,
    ):
        for node in lab.nodes:
            # The worker that holds them drains when its successor is up: they are looked at within
            # that time.
            with client_in(lab, "client", "hold", cluster_ip(lab, "remote"), 9000, "--connections", 5) as held:
                old = control(lab, node)
                os.kill(old, signal.SIGKILL)
                eventually(lambda node=node, old=old: control_or_none(lab, node) not in (None, old), "control is back")
                lab.agent(node).wait_ready()
                assert held.say() == {"ok": 5, "bad": []}
        counts = load.say(), fresh.say()
        eventually(
            lambda: load.say()["ok"] > counts[0]["ok"] + 50 and fresh.say()["ok"] > counts[1]["ok"] + 20, "they go on"
        )
        results = load.finish(), fresh.finish()
    assert set(results[0]) == set(results[1]) == {"ok"}, results


def control_or_none(lab: Lab, node: str) -> int | None:
    try:
        return control(lab, node)
    except IndexError:
        return None


@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_without_the_daemon_permissive_pods_pass_by(lab: Lab, ending: str) -> None:
    agent = lab.agent("node1")
    pins = {path.name for path in (agent.pins / "links").iterdir()}
    getattr(agent, ending)()
    assert not agent.alive
    for version in (4, 6):
        for source, name in (("client", "local"), ("client", "remote"), ("plain", "local"), ("node2", "local")):
            address = address_of(lab, name, version)
            seen = eventually(
                lambda source=source, address=address: reached(lab, source, f"{bracketed(address)}:8080"),
                f"{source} reaches {name}",
            )
            assert "x-forwarded-client-cert" not in seen
        assert eventually(
            lambda version=version: reached(lab, "client", bracketed(cluster_ip(lab, "remote", version))),
            "a Service is reached",
        )
    if ending == "stop":  # a daemon that leaves says so: the other node's pods then send plaintext, which passes
        eventually(lambda: reached(lab, "far", f"{lab.address('local')}:8080"), "the other node's pods reach it")
    assert {path.name for path in (agent.pins / "links").iterdir()} == pins
    agent.start()
    assert {path.name for path in (agent.pins / "links").iterdir()} == pins
    seen = about(lab, "client", f"http://{cluster_ip(lab, 'remote')}")
    assert seen["headers"]["x-forwarded-client-cert"].endswith("URI=spiffe://cluster.local/ns/default/sa/client")
    assert (
        ask(lab, "far", "duplex", cluster_ip(lab, "local"), 9001, "--send-bytes", 100000, "--receive-bytes", 100000)[
            "ok"
        ]
        == 1
    )


def reached(lab: Lab, source: str, where: str) -> str:
    done = curl(lab, source, f"http://{where}/about")
    return done.stdout if done.returncode == 0 and '"pod"' in done.stdout else ""


def test_connections_of_before_the_daemon_died_are_the_only_ones_lost(lab: Lab) -> None:
    """A connection that passed by while the daemon was away lives on when it is back."""
    agent = lab.agent("node1")
    agent.kill()
    eventually(lambda: reached(lab, "client", f"{lab.address('remote')}:8080"), "passing by")
    with client_in(lab, "client", "hold", lab.address("remote"), 9000, "--connections", 3) as held:
        agent.start()
        about(lab, "client", f"http://{cluster_ip(lab, 'remote')}")
        assert held.say() == {"ok": 3, "bad": []}


def test_a_graceful_stop_finishes_what_is_under_way(lab: Lab) -> None:
    agent = lab.agent("node1")
    here = cluster_ip(lab, "local")
    with (
        client_in(lab, "client", "load", here, 80, "--connections", 4) as load,
        client_in(lab, "client", "load", here, 80, "--fresh") as fresh,
    ):
        agent.stop()
        counts = load.say(), fresh.say()
        eventually(
            lambda: load.say()["ok"] > counts[0]["ok"] + 20 and fresh.say()["ok"] > counts[1]["ok"] + 20, "they pass by"
        )
        agent.start()
        counts = load.say(), fresh.say()
        eventually(
            lambda: load.say()["ok"] > counts[0]["ok"] + 20 and fresh.say()["ok"] > counts[1]["ok"] + 20, "they go on"
        )
        results = load.finish(), fresh.finish()
    assert set(results[0]) == set(results[1]) == {"ok"}, results


def uninstall(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*NODEAGENT, "uninstall", "-c", str(lab.agent("node1").config_path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_uninstall_leaves_nothing_of_a_stopped_agent(lab: Lab) -> None:
    """A daemon that runs is not touched; after kill -9 all is removed, also what it told other
    nodes; once more does nothing.
    """
    agent = lab.agent("node1")
    agent.start()
    links = agent.pins / "links"
    before = {path.name for path in links.iterdir()}
    done = uninstall(lab)
    assert done.returncode == 1
    assert f"in use by the daemon with pid {agent.pid}" in done.stderr
    assert {path.name for path in links.iterdir()} == before
    agent.kill()
    done = uninstall(lab, "-o", "json")
    assert done.returncode == 0, done
    removed = json.loads(done.stdout)
    assert {row["kind"] for row in removed} == {"mark", "link", "program", "map", "file"}
    assert {Path(row["path"]).name for row in removed if row["kind"] == "link"} == before
    assert {row["path"] for row in removed if row["kind"] == "mark"} == {
        lab.pod(name)["metadata"]["uid"] for name in ("client", "local")
    }
    assert not agent.pins.exists()
    assert list((agent.directory / "run").iterdir()) == []
    assert "x-forwarded-client-cert" not in about(lab, "client", f"http://{cluster_ip(lab, 'local')}")["headers"]
    done = uninstall(lab, "-o", "json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    agent.start()
    assert "x-forwarded-client-cert" in about(lab, "client", f"http://{cluster_ip(lab, 'local')}")["headers"]
