"""A daemon that is dead: what a policy protects is refused, from the same node and from another;
what none does passes by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.test_agent_policy import Policies, policy
from tests.netns.world import QUICK, about, client, cluster, curl, pod, pod_row, server
from tests.unit.policy.jwt_issuer import ISSUER, key_set
from tests.waiting import eventually

ANYBODY = "rules: [{to: [{operation: {methods: [GET]}}]}]"
BUCKET = "local: [{tokenBucket: {maxTokens: 100000, tokensPerFill: 1000, fillInterval: 1s}}]"
KINDS = {
    "strict": ("PeerAuthentication", "mtls: {mode: STRICT}", True),
    "allow": ("AuthorizationPolicy", ANYBODY, True),
    "deny": ("AuthorizationPolicy", "action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]", True),
    "jwt": ("RequestAuthentication", f"jwtRules: [{{issuer: {ISSUER}, jwks: '{key_set()}'}}]", True),
    "limit": ("RateLimit", BUCKET, True),
    "audit": ("AuthorizationPolicy", f"action: AUDIT, {ANYBODY}", False),
    "open": ("", "", False),
}
"""A server each: kind of its policy, what that says, and whether it protects."""
SOURCES = ("client", "far", "node1")
PROBES = (
    "readinessProbe: {httpGet: {port: 8080, path: /about}, periodSeconds: 1, failureThreshold: 2}, "
    "livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 2}"
)
TEXT = "".join(
    (
        client("client", "node1"),
        client("far", "node2"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        *(server(name, "node1") for name in KINDS),
        pod("probed", "node1", container=PROBES),
    )
)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    written = Policies(None, folder)  # type: ignore[arg-type]
    for name, (kind, spec, _) in KINDS.items():
        if kind:
            written.put(name, selecting(name, spec, kind))
    written.put("probed", selecting("probed", KINDS["deny"][1], "AuthorizationPolicy"))
    with cluster("t-dead", TEXT, agent=merge(QUICK, {"resources": [str(folder)]})) as lab:
        yield Policies(lab, folder)


def selecting(name: str, spec: str, kind: str) -> str:
    return policy(name, f"{{selector: {{matchLabels: {{app: {name}}}}}, {spec}}}", kind=kind)


def answered(lab: Lab, source: str, name: str) -> bool:
    """Say whether the application *name* answered; refused is told at once, nothing hangs."""
    done = curl(lab, source, f"http://{lab.address(name)}:8080/about")
    assert done.returncode != 28, done
    return '"pod"' in done.stdout


def when_dead(lab: Lab, name: str) -> str:
    return str(pod_row(lab, name)["when_dead"])


@pytest.fixture
def dead(policies: Policies) -> Iterator[Callable[[], Lab]]:
    """Kill the daemon of node1; it is back after the test."""
    agent = policies.lab.agent("node1")

    def kill() -> Lab:
        agent.kill()
        eventually(lambda: answered(policies.lab, "node1", "open"), "the heartbeat has aged")
        return policies.lab

    yield kill
    agent.start()


def test_what_a_policy_protects_is_refused(policies: Policies, dead: Callable[[], Lab]) -> None:
    lab = policies.lab
    assert {name: when_dead(lab, name) for name in KINDS} == {
        name: "refuse" if protects else "pass" for name, (*_, protects) in KINDS.items()
    }
    dead()
    for name, (*_, protects) in KINDS.items():
        for source in SOURCES:
            # the other node still speaks mTLS to a pod that its daemon left without a good-bye
            if source != "far" or protects:
                assert answered(lab, source, name) == (not protects), (source, name)


MASQUERADE = (
    "table ip masked { chain out { type nat hook postrouting priority 90; tcp dport { 8080, 9000 } masquerade; }; }"
)


def test_declared_probes_go_on_and_nothing_else_of_the_node(policies: Policies, dead: Callable[[], Lab]) -> None:
    """Input: no daemon, and a pod under DENY with probes. Verdict: kubelet goes on and restarts
    nothing; neither another port, nor a pod whose packets the node masquerades, comes in.
    """
    lab = policies.lab
    assert pod_row(lab, "probed")["when_dead_ports"] == {"8080": "probes", "9000": "probes"}
    dead()
    eventually(lambda: answered(lab, "node1", "probed"), "the node probes")
    assert not curl(lab, "node1", f"http://{lab.address('probed')}:9001/").stdout
    nft(lab, MASQUERADE)
    try:
        assert not answered(lab, "plain", "probed")
        unprotected = f"http://{lab.address('open')}:8080"
        assert about(lab, "plain", unprotected)["seen"] == about(lab, "node1", unprotected)["seen"], (
            "what the node masquerades has its address"
        )
    finally:
        nft(lab, "delete table ip masked")
    time.sleep(4)  # twice as long as kubelet has patience
    status = lab.pod("probed")["status"]
    assert all(each["ready"] and each["restartCount"] == 0 for each in status["containerStatuses"]), status


def nft(lab: Lab, rules: str) -> None:
    lab.exec("node1", ["nft", "-f", "-"], input=rules)


def test_a_change_of_policy_changes_what_is_refused(policies: Policies) -> None:
    """Tightened and loosened, each before the daemon dies; what was open is refused."""
    lab = policies.lab
    policies.put("open", selecting("open", ANYBODY, "AuthorizationPolicy"))
    policies.drop("deny")
    eventually(lambda: (when_dead(lab, "open"), when_dead(lab, "deny")) == ("refuse", "pass"), "both are taken in")
    lab.agent("node1").kill()
    eventually(lambda: answered(lab, "node1", "deny"), "what is no longer protected passes by")
    assert not answered(lab, "client", "open")
    lab.agent("node1").start()
