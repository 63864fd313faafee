"""An agent that comes back to less than it had: no certificates, other maps, a port that is taken.
What is protected stays so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import Agent, merge
from nodeagent.lab.processes import inside
from tests.netns.world import (
    QUICK,
    about,
    account,
    admin,
    ask,
    client,
    client_in,
    cluster,
    cluster_ip,
    curl,
    pod_row,
    scrape,
    server,
)
from tests.waiting import eventually

SETTINGS = merge(QUICK, {"mtls": {"mode": "STRICT"}, "telemetry": {"accessLog": {"path": ""}}})
TEXT = "".join(
    (
        account("client", "server"),
        client("near", "node1", account="client"),
        client("far", "node2", account="client"),
        server("one", "node1", account="server"),
        server("two", "node1", account="server"),
        server("other", "node2", account="server"),
        server("bare", "node2", annotations='nodeagent.io/enroll: "false"'),
    )
)
LATE = account("late") + client("late", "node1", account="late")
EVENTS = "nodeagent_kernel_events_total"
DENY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-two, namespace: default}
spec: {selector: {matchLabels: {app: two}}, action: DENY, rules: [{from: [{source: {namespaces: [default]}}]}]}
"""


TAKEN = 15999
HOLD = f"""
import socket, sys
held = socket.create_server(("", {TAKEN}), family=socket.AF_INET6, dualstack_ipv6=True)
print("taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def port_taken(lab: Lab, place: str) -> Iterator[None]:
    """Within, somebody else listens at the port TAKEN of *place*."""
    command = inside(lab.netns(place), [sys.executable, "-c", HOLD])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"taken\n"
            yield
        finally:
            holder.communicate(timeout=60)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-away", TEXT, agent=SETTINGS) as made:
        yield made


@contextlib.contextmanager
def without_authority(lab: Lab, node: str, path: Path) -> Iterator[Agent]:
    """The agent of *node*, started anew, as a client of an authority that is nowhere."""
    (path / "token").write_text("token")
    (path / "roots.pem").write_bytes((lab.layout.state / "ca" / "root-cert.pem").read_bytes())
    ca = {
        "address": "127.0.0.1:9",
        "tokenFile": str(path / "token"),
        "rootCertFile": str(path / "roots.pem"),
        "timeout": 2,
    }
    agent = dataclasses.replace(
        lab.agent(node), overlay=merge(SETTINGS, {"identity": {"caDirectory": None, "istioCa": ca}})
    )
    lab.agent(node).stop()
    agent.start(wait_seconds=0)
    try:
        yield agent
    finally:
        agent.stop()
        lab.agent(node).start()


def pending(lab: Lab, *names: str) -> None:
    """Wait until the pods are captured, all of them without a certificate."""

    def all_are() -> bool:
        with contextlib.suppress(OSError):
            return all(
                (row := pod_row(lab, name)) and (row["state"], row["listeners"]) == ("pending", 4) for name in names
            )
        return False

    eventually(all_are, f"{names} are captured")


def test_a_restart_without_certificates_opens_nothing(lab: Lab, tmp_path: Path) -> None:
    """Input: while node2 asks one of node1's STRICT pods in plaintext all the time, node1's agent
    comes back without an authority.
    """
    address = lab.address("one")
    with (
        client_in(lab, "node2", "load", address, 8080, "--fresh", "--pause", 0.02) as stranger,
        without_authority(lab, "node1", tmp_path),
    ):
        pending(lab, "near", "one", "two")
        checks = admin(lab, "node1", "/pods")
        assert {row["state"] for row in checks} == {"pending"}
        before = sum(stranger.say().values())
        eventually(lambda: sum(stranger.say().values()) > before + 50, "the stranger goes on asking")
        # Within the node the kernel says who is who.
        assert about(lab, "near", f"http://{cluster_ip(lab, 'one')}")["pod"] == "one"
        # To another node it cannot be proved; what comes from there cannot be answered.
        done = curl(lab, "near", "-w", " %{http_code}", f"http://{cluster_ip(lab, 'other')}/about")
        assert done.stdout.endswith(" 503"), done
        assert "no_certificate" in done.stdout
        assert (
            curl(lab, "far", "-o", "/dev/null", "-w", "%{http_code}", f"http://{cluster_ip(lab, 'one')}/about").stdout
            != "200"
        )
        answers = stranger.finish()
    assert answers.pop("ok", 0) == 0, answers
    assert about(lab, "far", f"http://{cluster_ip(lab, 'one')}")["pod"] == "one"


def test_a_denial_beside_a_pod_that_gets_no_certificate(lab: Lab, tmp_path: Path) -> None:
    """Verdict: the open connection on the kernel path is closed and new ones are refused, while the new pod waits."""
    with without_authority(lab, "node1", tmp_path):
        pending(lab, "near", "two")
        target = cluster_ip(lab, "two")
        with client_in(lab, "near", "hold", target, 9000) as held:
            eventually(
                lambda: [flow["path"] for flow in admin(lab, "node1", "/flows")["flows"]] == ["kernel"],
                "the connection is on the kernel path",
            )
            lab.apply(text=LATE + DENY, wait_seconds=0)
            eventually(lambda: held.say()["ok"] == 0, "the connection is closed")
        assert ask(lab, "near", "dial", target, 9000)["error"] == "ECONNREFUSED"
        pending(lab, "late")
    lab.delete(("AuthorizationPolicy", "default", "deny-two"))
    lab.delete_pod("late")


def test_a_restart_with_other_maps_that_fails_opens_nothing(lab: Lab) -> None:
    """Input: node1's agent comes back with room for another number of pods, first without a port
    that it needs. Verdict: nobody gets in, and no pod's connection goes out as that of one which
    the kernel does not know.
    """
    own, address = lab.agent("node1"), lab.address("one")
    sizes = {"redirect": {"maps": {"pods": 2048}}}
    failing = dataclasses.replace(own, overlay=merge(SETTINGS, merge(sizes, {"telemetry": {"metricsPort": TAKEN}})))
    unknown = scrape(lab).sum(EVENTS, event="outbound_unknown_allowed")
    fresh = ("--fresh", "--pause", 0.02)
    with (
        client_in(lab, "node2", "load", address, 8080, *fresh) as stranger,
        client_in(lab, "near", "load", lab.address("bare"), 8080, *fresh) as own_pod,
        port_taken(lab, "node1"),
    ):
        own.stop()
        failing.start(wait_seconds=0)
        eventually(lambda: "Address already in use" in failing.log.read_text(), "it fails")
        failing.kill()
        dataclasses.replace(own, overlay=merge(SETTINGS, sizes)).start()
        assert about(lab, "far", f"http://{cluster_ip(lab, 'one')}")["pod"] == "one"
        answers, outcomes = stranger.finish(), own_pod.finish()
    assert answers.pop("ok", 0) == 0, answers
    assert sum(answers.values()) > 50
    assert min(outcomes.get(one, 0) for one in ("ok", "EPERM")) > 0, outcomes
    assert scrape(lab).sum(EVENTS, event="outbound_unknown_allowed") == unknown
    own.stop()
    own.start()
