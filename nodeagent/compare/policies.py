"""What policies cost where they are compiled: a whole snapshot, and one change to it."""

from __future__ import annotations

from time import perf_counter
from typing import Final

from nodeagent.mesh.compile import Mesh
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change

_NODE: Final = "node1"
_NAMESPACES: Final = 10


def measure(policies: int = 10_000, workloads: int = 1_000) -> tuple[float, float]:
    """Return what *policies*, each for one of *workloads*, cost on this machine, in seconds: to
    compile all of it, and to change one of them.
    """
    cluster: list[AnyChange] = [_pod(number) for number in range(workloads)]
    cluster += [_policy(number, number % workloads, "GET") for number in range(policies)]
    mesh = Mesh(_NODE, "cluster.local")
    begin = perf_counter()
    mesh.apply(cluster)
    compiled = perf_counter()
    mesh.apply([_policy(0, 0, "POST")])
    return compiled - begin, perf_counter() - compiled


def _policy(number: int, workload: int, method: str) -> Change:
    rule = {
        "from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}],
        "to": [{"operation": {"methods": [method], "paths": ["/items*"]}}],
    }
    spec = {"selector": {"matchLabels": {"app": f"app{workload}"}}, "rules": [rule]}
    kind = "AuthorizationPolicy"
    name = f"p{number}"
    namespace = f"ns{workload % _NAMESPACES}"
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return Change(kind, namespace, name, security.parse(document))


def _pod(number: int) -> Change:
    namespace = f"ns{number % _NAMESPACES}"
    name = f"pod{number}"
    metadata = {"name": name, "namespace": namespace, "uid": name, "labels": {"app": f"app{number}"}}
    status = {"phase": "Running", "podIP": f"10.0.{number >> 8}.{number & 255}"}
    return Change(
        "Pod",
        namespace,
        name,
        objects.parse({"kind": "Pod", "metadata": metadata, "spec": {"nodeName": _NODE}, "status": status}),
    )
