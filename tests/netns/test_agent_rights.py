"""The agent with few capabilities: what it can do without which, and the words for what it cannot."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from nodeagent.errors import LabError
from nodeagent.lab import Lab
from nodeagent.lab.agent import READY_SECONDS, merge
from nodeagent.redirect import rights
from tests.netns.identity import SOCKET, asking, workload
from tests.netns.world import (
    QUICK,
    about,
    account,
    admin,
    client,
    cluster,
    cluster_ip,
    curl,
    get,
    scrape,
    server,
    workers,
)
from tests.waiting import eventually

LEAST = {"SYS_ADMIN", "SETUID", "SETGID"}
ALL = {right.name for right in rights.RIGHTS}
WORKLOAD_API = "/run/nodeagent/socket"
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client", annotations="nodeagent.io/workload-api: enabled"),
        asking("volume", "node1", account="client"),
        client("stranger", "node2", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)


class Restart(Protocol):
    def __call__(self, held: set[str], *before: str, wait_seconds: float = READY_SECONDS) -> None: ...


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Everything is STRICT; between the nodes there is mTLS."""
    with cluster("t-rights", TEXT, agent=merge(QUICK, {"mtls": {"mode": "STRICT"}})) as lab:
        yield lab


@pytest.fixture
def restart(lab: Lab, tmp_path: Path) -> Restart:
    """Start node1's agent again with only some capabilities, by a command *before* it."""
    interpreter = sys.executable

    def start(held: set[str], *before: str, wait_seconds: float = READY_SECONDS) -> None:
        sets = ",".join(["-all", *(f"+{name.lower()}" for name in sorted(held))])
        limited = tmp_path / "python"
        limited.write_text(
            f"#!/bin/sh\nexec {' '.join(before)} setpriv --bounding-set {sets} --inh-caps -all --no-new-privs "
            f'{interpreter} "$@"\n'
        )
        limited.chmod(0o755)
        agent = lab.agent("node1")
        agent.stop()
        agent.log.unlink(missing_ok=True)
        agent.start(python=str(limited), wait_seconds=wait_seconds)

    return start


def carries_traffic(lab: Lab) -> None:
    for name in ("local", "remote"):
        got = about(lab, "client", f"http://{cluster_ip(lab, name)}")
        assert got["pod"] == name
        assert "spiffe://" in str(got["headers"]), "with the client's identity"
    assert scrape(lab).sum("nodeagent_kernel_events_total", event="outbound_captured") > 0


REFUSED, RESET = 7, 56
"""How curl ends where nobody takes its connection, and where somebody took it and ended it without an answer."""


def told_to_a_stranger(lab: Lab) -> int:
    """Return how curl ends, outside of the mesh, that asks a STRICT server of node1."""
    return curl(lab, "stranger", f"http://{lab.address('local')}:8080/about").returncode


def holds_nothing(lab: Lab) -> bool:
    """Say whether node1's workers have no capability, and are not root."""
    for pid in workers(lab, "node1"):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if "0" in status["Uid"].split() or any(int(status[each], 16) for each in ("CapPrm", "CapEff", "CapAmb")):
            return False
    return True


@pytest.mark.parametrize("missing", sorted(ALL - LEAST))
def test_without_any_other_one_it_carries_traffic_and_lets_nobody_in(lab: Lab, restart: Restart, missing: str) -> None:
    """Input: all rights of the manifest but one. Verdict: it is ready, STRICT servers answer who is in the mesh, on a
    node and between nodes, and no stranger; workers have no right whatever.
    """
    restart(ALL - {missing})
    carries_traffic(lab)
    assert told_to_a_stranger(lab) == RESET
    assert holds_nothing(lab)


def test_the_least_carries_traffic(lab: Lab, restart: Restart) -> None:
    """Verdict: and a worker that hangs and cannot be killed ends nobody else."""
    restart(LEAST)
    assert {row["state"] for row in admin(lab, "node1", "/pods")} <= {"enrolled", ""}
    carries_traffic(lab)
    assert workload(lab, "volume", "svid", path=SOCKET)["id"].endswith("/sa/client"), "by a volume, it takes no more"
    (hanging,) = workers(lab, "node1")
    os.kill(hanging, signal.SIGSTOP)
    try:
        agent = lab.agent("node1")
        eventually(lambda: "allows no CAP_KILL" in agent.log.read_text(), "it is said")
    finally:
        os.kill(hanging, signal.SIGCONT)
    eventually(lambda: get(lab, "node1", 15021, "/ready")[0] == 200, "it goes on")
    carries_traffic(lab)


def test_with_all_that_it_uses_everything_works(lab: Lab, restart: Restart) -> None:
    restart(ALL)
    carries_traffic(lab)
    eventually(lambda: lab.exec("client", ["test", "-S", WORKLOAD_API]).returncode == 0, "the Workload API is there")
    assert workload(lab, "client", "svid", path=WORKLOAD_API)["id"].endswith("/sa/client")
    (hanging,) = workers(lab, "node1")
    os.kill(hanging, signal.SIGSTOP)
    eventually(lambda: hanging not in workers(lab, "node1"), "a worker that hangs is replaced")
    # Until the kernel feels the new one's heart, what nothing protects goes by.
    eventually(lambda: carries_traffic(lab) or True, "the new one carries")


@pytest.mark.parametrize(
    ("missing", "words"),
    [("SYS_ADMIN", "CAP_SYS_ADMIN"), ("SETUID", "CAP_SETUID"), ("SETGID", "CAP_SETGID")],
)
def test_what_it_cannot_do_without_is_named(lab: Lab, restart: Restart, missing: str, words: str) -> None:
    with pytest.raises(LabError, match=f"(?s){words}"):
        restart(LEAST - {missing}, wait_seconds=40)  # it has said why long before
    assert told_to_a_stranger(lab) == REFUSED, "nobody is there to decide"


@pytest.mark.parametrize("missing", ["SYS_PTRACE", "SYS_CHROOT"])
def test_what_keeps_a_pod_from_its_socket_is_shown_with_the_pod(lab: Lab, restart: Restart, missing: str) -> None:
    """A pod that has no volume for it; one that has needs neither right."""
    restart(ALL - {missing})
    name = f"lacks-{missing[4:].lower()}"
    lab.apply(text=client(name, "node1", account="client", annotations="nodeagent.io/workload-api: enabled"))

    def told() -> bool:
        (row,) = (each for each in admin(lab, "node1", "/pods") if each["pod"] == name)
        return any("its socket: " in fault and fault.endswith(f"capability {missing}") for fault in row["faults"])

    eventually(told, "the capability is named")
    assert workload(lab, "volume", "svid", path=SOCKET)["id"].endswith("/sa/client")


def test_an_agent_in_a_cgroup_namespace_of_its_own_knows_its_pods(lab: Lab, restart: Restart) -> None:
    """As a container runtime gives one to whoever is not privileged: other pods' cgroups are ``/../…`` there."""
    restart(ALL, "unshare", "--cgroup")
    assert workload(lab, "volume", "svid", path=SOCKET)["id"].endswith("/sa/client")
    carries_traffic(lab)
