"""Pods with our own classic sidecar among themselves and beside sidecarless ones, STRICT: identity, policy, routes out, metrics, access log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.classic import Sidecar, pod, sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import QUICK, about, account, address_of, ask, bracketed, client, cluster, cluster_ip, curl, eventually, pod_row, server

POLICY = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded}
spec:
  selector: {matchLabels: {guard: "on"}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/one, cluster.local/ns/default/sa/less]}}]
    to: [{operation: {methods: [GET], paths: [/about]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/one, cluster.local/ns/default/sa/less]}}]
    to: [{operation: {ports: ["9000", "9001"]}}]
"""
SIDECARS = {"one": "node1", "near-by": "node1", "far-off": "node2"}
LESS = {"less-near": "node1", "less-far": "node2"}
TEXT = "".join(
    (
        account(*SIDECARS, "less", "intruder"),
        *(pod(name, node, account=name, labels="" if name == "one" else 'guard: "on"') for name, node in SIDECARS.items()),
        *(server(name, node, account="less", labels='guard: "on"') for name, node in LESS.items()),
        client("intruder", "node1", account="intruder"),
        client("plain", "node2", annotations='nodeagent.io/enroll: "false"'),
        POLICY,
    )
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-classic", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 120}})) as lab:
        yield lab


@pytest.fixture(scope="module")
def sidecars(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sidecar]]:
    logs = tmp_path_factory.mktemp("sidecars")
    with ExitStack() as stack:
        yield {name: stack.enter_context(sidecar(lab, name, logs)) for name in SIDECARS}


@pytest.fixture(autouse=True)
def _running(sidecars: dict[str, Sidecar]) -> None:
    for each in sidecars.values():
        assert each.process.poll() is None, each.log.read_text()[-2000:]


def urls(lab: Lab, name: str) -> list[str]:
    """Return every way to the pod *name* over HTTP: itself and its Service, IPv4 and IPv6."""
    own = [f"http://{bracketed(address_of(lab, name, version))}:8080" for version in (4, 6)]
    return own + [f"http://{bracketed(cluster_ip(lab, name, version))}" for version in (4, 6)]


def status(lab: Lab, source: str, url: str, *arguments: str) -> int:
    return int(curl(lab, source, "-o", "/dev/null", "-w", "%{http_code}", *arguments, url).stdout[-3:])


def says(lab: Lab, source: str, target: str, version: int = 4) -> str:
    return str(ask(lab, source, "dial", address_of(lab, target, version), 9000, "--send", "a word", "--half-close")["received"])


def test_the_agent_leaves_the_pod_alone(lab: Lab) -> None:
    assert pod_row(lab, "one") is None


@pytest.mark.parametrize("target", ["near-by", "far-off", *LESS])
def test_http_goes_by_identity(lab: Lab, target: str) -> None:
    for url in urls(lab, target):
        seen = about(lab, "one", url)
        assert seen["pod"] == target
        assert f"URI={PREFIX}/one" in seen["headers"]["x-forwarded-client-cert"]
        assert status(lab, "one", f"{url}/about", "-X", "POST") == 403
        assert status(lab, "one", f"{url}/other") == 403
        refused = curl(lab, "intruder", f"{url}/about")
        assert refused.stdout == "RBAC: access denied"
