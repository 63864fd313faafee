"""A policy that denies a pod denies it by whatever way it comes, though plaintext is taken: as
itself, or as the pod whose address it has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.test_agent_policy import Policies, policy
from tests.netns.world import APPS, QUICK, account, address_of, client, cluster, growth, server
from tests.waiting import eventually

PROGRAM = [sys.executable, str(APPS / "around.py")]
EXCLUDED = 'traffic.sidecar.istio.io/excludeOutboundPorts: "8080"'
SOURCES = {"evil": "", "excused": EXCLUDED, "apart": 'nodeagent.io/enroll: "false"'}
"""Pods of the account that is denied, with what their author has them kept out of."""
WAYS = ("plain", "device", "mptcp", "fast-open")
SERVERS = {"near": "node1", "far": "node2"}
TEXT = "".join(
    (
        account("evil", "good"),
        *(client(name, "node1", account="evil", annotations=annotations) for name, annotations in SOURCES.items()),
        client("good", "node1", account="good", annotations=EXCLUDED),
        *(server(name, node) for name, node in SERVERS.items()),
    )
)
DENIED = policy(
    "denied", "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/evil]}}]}]}"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("policies")
    with cluster("t-around", TEXT, agent=merge(QUICK, {"resources": [str(folder)]})) as lab:
        for server_name in SERVERS:
            assert "200" in answer(lab, "good", "plain", server_name, 4)
        policies = Policies(lab, folder)
        policies.put("denied", DENIED)
        for node in SERVERS.values():
            eventually(
                lambda node=node: [row["state"] for row in policies.rows(node)] == ["in force"],
                "the policy is in force",
            )
        yield lab


def answer(lab: Lab, source: str, way: str, target: str, version: int) -> str:
    done = lab.exec(source, [*PROGRAM, way, address_of(lab, target, version), "8080"])
    assert done.returncode == 0, done
    return done.stdout.strip()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize("source", SOURCES)
def test_no_way_leads_around_a_deny_by_principal(lab: Lab, source: str, target: str, version: int) -> None:
    got = {way: answer(lab, source, way, target, version) for way in WAYS}
    assert not any("200" in line for line in got.values()), got
    assert "200" in answer(lab, "good", "plain", target, version), "who is not denied comes in as before"


def test_the_client_is_told_and_it_is_counted(lab: Lab) -> None:
    counted = growth(lab)
    assert answer(lab, "excused", "plain", "near", 4) == "HTTP/1.1 403 Forbidden"
    counted.comes_to(1, "nodeagent_policy_events_total", policy="default/denied", event="deny")
