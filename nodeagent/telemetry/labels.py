"""Istio's label values for a pair of workloads, computed once per connection or route, never per request."""

from __future__ import annotations

from typing import Literal

from nodeagent.mesh.entries import Service, Workload
from nodeagent.telemetry.metrics import UNKNOWN, Labels

SecurityPolicy = Literal["mutual_tls", "kernel_attested", "none", "unknown"]
"""Istio's values, and ``kernel_attested``: both ends on this node, told apart by the kernel, no TLS in between."""
PASSTHROUGH = (UNKNOWN, "PassthroughCluster", UNKNOWN)
"""destination_service, _name and _namespace of an address that is not in the mesh."""


def side(workload: Workload | None, principal: str | None, cluster: str) -> Labels:
    """Return the eight values of one side; *principal* is the identity it proved, None in plaintext."""
    if workload is None:
        return (UNKNOWN, UNKNOWN, principal or UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    return (
        workload.workload or UNKNOWN,
        workload.namespace or UNKNOWN,
        principal or UNKNOWN,
        workload.app or UNKNOWN,
        workload.version or UNKNOWN,
        workload.canonical_service or UNKNOWN,
        workload.canonical_revision or "latest",
        cluster,
    )


def service(entry: Service | None) -> Labels:
    """Return destination_service, destination_service_name and destination_service_namespace."""
    return (entry.host, entry.name, entry.namespace) if entry else PASSTHROUGH


def peers(source: Labels, destination: Labels, destination_service: Labels, policy: SecurityPolicy) -> Labels:
    """Return the values of PEER_LABELS from those of :func:`side`, :func:`side` and :func:`service`."""
    return (*source, *destination, *destination_service, policy)


def http(peers: Labels, code: int, flags: str, protocol: str = "http", grpc_status: str = "") -> Labels:
    """Return the values of HTTP_LABELS; *code* 0 when the client left before an answer, *flags* ``-`` for none."""
    return (*peers, protocol, str(code), grpc_status, flags)


def messages(peers: Labels) -> Labels:
    """Return the values of MESSAGE_LABELS."""
    return (*peers, "grpc", "-")


def tcp(peers: Labels, flags: str = "-") -> Labels:
    """Return the values of TCP_LABELS."""
    return (*peers, "tcp", flags)
