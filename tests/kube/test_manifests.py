"""What daemonset/ holds is taken by a real API server: every overlay whole, and of policies those that are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.resources import security
from tests.kube.cluster import Cluster
from tests.prometheus_operator import DEFINITIONS

DAEMONSET = Path(__file__).parents[2] / "daemonset"
OVERLAYS = sorted(path.name for path in (DAEMONSET / "overlays").iterdir())
BY_THEMSELVES = ("crds", "sidecar-comparison")
"""Overlays without the agents."""
BUCKET = {"maxTokens": 1, "fillInterval": "1s"}
ALL = {"matchLabels": {"app": "*"}}
WEB = {"matchLabels": {"app": "web"}}
MISTYPED = {"matchLabel": {"app": "web"}}
FULL_RULE = {
    "from": [{"source": {"principals": ["a"], "notNamespaces": ["b"]}}],
    "to": [{"operation": {"methods": ["GET"], "notPaths": ["/a"], "ports": ["80"]}}],
    "when": [{"key": "source.ip", "values": ["10.0.0.0/8"], "notValues": ["10.0.0.1"]}],
}
POLICIES: dict[str, tuple[str, list[tuple[dict[str, Any], str]]]] = {
    "RateLimit": (
        "nodeagent.io/v1alpha1",
        [
            ({"local": [{"tokenBucket": {"maxTokens": 5, "fillInterval": "1s"}}]}, ""),
            ({"selector": WEB, "local": [{"tokenBucket": BUCKET, "by": ["principal", {"header": "x-key"}]}]}, ""),
            ({"selector": MISTYPED, "local": [{"tokenBucket": BUCKET}]}, "matchLabels is expected"),
            ({}, "at least one limit is expected in local or global"),
            ({"local": [{"tokenBucket": {"maxTokens": 0, "fillInterval": "1s"}}]}, "maxTokens"),
            ({"local": [{"match": {}}]}, "tokenBucket"),
            ({"selector": ALL, "local": [{"tokenBucket": BUCKET}]}, "without '*'"),
            ({"global": {"provider": "p", "domain": "d", "descriptors": [], "failureMode": "open"}}, "failureMode"),
        ],
    ),
    "PeerAuthentication": (
        "security.istio.io/v1beta1",
        [
            ({"mtls": {"mode": "STRICT"}}, ""),
            ({"selector": WEB, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}, ""),
            ({"mtls": {"mode": "strict"}}, "mode"),
            ({"portLevelMtls": {"8080": {"mode": "DISABLE"}}}, "portLevelMtls needs a selector"),
            ({"selector": WEB, "portLevelMtls": {"70000": {"mode": "STRICT"}}}, "a port from 1 to 65535"),
            ({"mtl": {"mode": "STRICT"}}, "mtls or portLevelMtls is expected"),
            ({"mtls": {"mod": "STRICT"}}, "mode"),
        ],
    ),
    "AuthorizationPolicy": (
        "security.istio.io/v1",
        [
            ({}, ""),
            ({"action": "CUSTOM", "provider": {"name": "sso"}, "rules": [{}]}, ""),
            ({"action": "CUSTOM", "rules": [{}]}, "CUSTOM needs one"),
            ({"provider": {"name": "sso"}}, "CUSTOM needs one"),
            ({"rules": [FULL_RULE]}, ""),
            ({"action": "REFUSE"}, "action"),
            ({"selector": MISTYPED}, "matchLabels is expected"),
            ({"rules": [{"to": [{"operation": {"methods": "GET"}}]}]}, "must be of type array"),
            ({"rules": [{"to": [{"operation": {"ports": [80]}}]}]}, "must be of type string"),
            ({"selector": {}, "targetRef": {"kind": "Service", "name": "web"}}, "only one of selector"),
        ],
    ),
    "RequestAuthentication": (
        "security.istio.io/v1",
        [
            ({"jwtRules": [{"issuer": "me", "jwksUri": "https://me.example/keys"}]}, ""),
            ({"jwtRules": [{"jwksUri": "https://me.example/keys"}]}, "issuer"),
            ({"jwtRules": [{"issuer": "me", "jwks": "{}", "jwksUri": "https://me.example/keys"}]}, "only one of jwks"),
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def defined(cluster: Cluster) -> Cluster:
    """The cluster with all kinds: Istio's, ours, and the operator's."""
    for folder in ("overlays/crds", "base/crds"):
        cluster.kubectl("apply", "-k", str(DAEMONSET / folder))
    cluster.kubectl("apply", "-f", str(DEFINITIONS))
    for group in ("security.istio.io", "nodeagent.io", "monitoring.coreos.com"):
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *_definitions(cluster, group))
    return cluster


def _definitions(cluster: Cluster, group: str) -> list[str]:
    names = cluster.kubectl("get", "crds", "-o", "name").split()
    return [name for name in names if name.endswith(f".{group}")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_taken_whole_and_changes_nothing_again(defined: Cluster, overlay: str) -> None:
    folder = str(DAEMONSET / "overlays" / overlay)
    applied = defined.kubectl("apply", "-k", folder, "-o", "name").split()
    again = defined.kubectl("diff", "-k", folder)
    assert applied
    assert again == ""
    if overlay not in BY_THEMSELVES:
        assert "daemonset.apps/nodeagent" in applied


@pytest.mark.parametrize(
    ("kind", "spec", "refusal"),
    [(kind, spec, refusal) for kind, (_, cases) in POLICIES.items() for spec, refusal in cases],
)
def test_a_policy_is_refused_for_what_the_agent_would_refuse(
    defined: Cluster, kind: str, spec: dict[str, Any], refusal: str
) -> None:
    version = POLICIES[kind][0]
    group, number = version.split("/")
    plural = {"AuthorizationPolicy": "authorizationpolicies"}.get(kind, f"{kind.lower()}s")
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "tried"}, "spec": spec}
    path = f"/apis/{group}/{number}/namespaces/default/{plural}"
    status, answer = defined.call("POST", path, document)
    if refusal:
        assert status == 422
        assert refusal in answer["message"]
    else:
        assert status == 201
        assert answer["spec"] == spec  # nothing is pruned
        defined.ok("DELETE", f"{path}/tried")


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("AuthorizationPolicy", {"acton": "DENY", "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]}),
        ("AuthorizationPolicy", {"rules": [{"form": [{"source": {"principals": ["a"]}}]}]}),
        ("AuthorizationPolicy", {"rules": [{"from": [{"sorce": {"principals": ["a"]}}]}]}),
        ("AuthorizationPolicy", {"rules": [{"from": [{"source": {"principal": ["a"]}}]}]}),
        ("PeerAuthentication", {"selecter": WEB, "mtls": {"mode": "DISABLE"}}),
        ("PeerAuthentication", {"selector": WEB, "portLevelMtls": {"80": {"mode": "STRICT", "mod": "DISABLE"}}}),
        ("RequestAuthentication", {"jwtRules": [{"issuer": "me", "audience": ["a"]}]}),
        ("RateLimit", {"local": [{"tokenBucket": {**BUCKET, "burst": 5}}]}),
    ],
)
def test_a_mistyped_field_comes_to_who_refuses_it(defined: Cluster, kind: str, spec: dict[str, Any]) -> None:
    """Verdict: the API server keeps it for the agent, whose reader names it: without it a policy may say less."""
    document = {"apiVersion": POLICIES[kind][0], "kind": kind, "metadata": {"name": "tried"}, "spec": spec}
    said = defined.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(document))
    kept = json.loads(said)
    assert kept["spec"] == spec
    with pytest.raises(ResourceError, match="unknown field"):
        security.parse(kept)


def test_a_node_says_that_its_last_pod_is_enrolled_no_more(defined: Cluster) -> None:
    """Server-side apply takes an emptied set away altogether."""
    path = "/apis/nodeagent.io/v1alpha1/nodestatuses/tried"
    for uids in (["a"], []):
        status = {"renewTime": "2026-01-01T00:00:00Z", "leaseDurationSeconds": 40, "count": len(uids), "enrolled": uids}
        document = {"apiVersion": "nodeagent.io/v1alpha1", "kind": "NodeStatus", "metadata": {"name": "tried"}}
        body = {**document, "status": status}
        found = defined.ok("PATCH", f"{path}?fieldManager=a&force=true", body, "application/apply-patch+yaml")
        assert found["status"].get("enrolled", []) == uids
    defined.ok("DELETE", path)
