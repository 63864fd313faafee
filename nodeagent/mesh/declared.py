"""What a pod declares that it may be asked without an identity: its probes by its node, its metrics by
anybody. Pure; the data plane and ``nodeagent explain`` decide by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nodeagent.mesh.entries import DeclaredProbe, Workload

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
"""What a gRPC probe calls (grpc.health.v1)."""


def open_at(workload: Workload, port: int, *, from_node: bool) -> tuple[DeclaredProbe, ...]:
    """Return what of *workload*'s *port* whoever proves no identity may ask, as policies have no say in;
    *from_node*: it is the node of the pod itself.
    """
    declared = (*workload.probes, *workload.scrapes) if from_node else workload.scrapes
    return tuple(probe for probe in declared if probe.port == port)


def is_among(probes: Iterable[DeclaredProbe], method: bytes, target: bytes) -> bool:
    """Say whether a request is one of the HTTP probes or scrapes among *probes*."""
    return method == b"GET" and any(
        probe.kind in ("http", "scrape") and target == probe.path.encode() for probe in probes
    )


def health_among(probes: Iterable[DeclaredProbe], method: str, target: str) -> tuple[str, ...]:
    """Return the services whose health a request may ask for, where it is a gRPC probe's; none: it is not."""
    if (method, target) != ("POST", HEALTH_CHECK):
        return ()
    return tuple(dict.fromkeys(probe.path for probe in probes if probe.kind == "grpc"))
