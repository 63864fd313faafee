"""What policies cost where they are compiled: a whole snapshot, and one change to it."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from nodeagent.istio import ROOT_NAMESPACE
from nodeagent.mesh.compile import Mesh
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change

_NODE: Final = "node1"
_NAMESPACES: Final = 10


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    validate: float
    """All policies, from parsed YAML."""
    compile: float
    """The whole snapshot, from validated objects."""
    change: float
    """One policy of one workload, validated and compiled."""
    mesh_wide: float
    """A PeerAuthentication that changes every workload."""


def measure(policies: int = 10_000, workloads: int = 1_000) -> Times:
    """Return what it costs on this machine with as many policies, each for one of as many workloads."""
    begin = perf_counter()
    given: list[AnyChange] = [_policy(number, number % workloads, "GET") for number in range(policies)]
    validated = perf_counter()
    cluster: list[AnyChange] = [_pod(number) for number in range(workloads)]
    mesh = Mesh(_NODE, "cluster.local")
    ready = perf_counter()
    mesh.apply(cluster + given)
    compiled = perf_counter()
    mesh.apply([_policy(0, 0, "POST")])
    changed = perf_counter()
    mesh.apply([_change("PeerAuthentication", "default", ROOT_NAMESPACE, {"mtls": {"mode": "STRICT"}})])
    return Times(validated - begin, compiled - ready, changed - compiled, perf_counter() - changed)


def _change(kind: str, name: str, namespace: str, spec: dict[str, Any]) -> Change:
    document = {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    return Change(kind, namespace, name, security.parse(document))


def _policy(number: int, workload: int, method: str) -> Change:
    rule = {"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}], "to": [{"operation": {"methods": [method], "paths": ["/items*"]}}]}
    spec = {"selector": {"matchLabels": {"app": f"app{workload}"}}, "rules": [rule]}
    return _change("AuthorizationPolicy", f"p{number}", f"ns{workload % _NAMESPACES}", spec)


def _pod(number: int) -> Change:
    namespace, name = f"ns{number % _NAMESPACES}", f"pod{number}"
    metadata = {"name": name, "namespace": namespace, "uid": name, "labels": {"app": f"app{number}"}}
    status = {"phase": "Running", "podIP": f"10.0.{number >> 8}.{number & 255}"}
    return Change("Pod", namespace, name, objects.parse({"kind": "Pod", "metadata": metadata, "spec": {"nodeName": _NODE}, "status": status}))
