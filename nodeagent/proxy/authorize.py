"""May this peer talk to this workload? Pure: facts in, a permit or a refusal out.

Here the mTLS mode decides; what AuthorizationPolicies and their like say of a permitted connection
is ``proxy/guard.py``. Later stages require the permit; it carries what the decision rested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.errors import PLAINTEXT_REFUSED, Reason
from nodeagent.mesh.entries import DeclaredProbe, Workload
from nodeagent.proxy.connection import Peer

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""With what an HTTP/2 client begins (RFC 9113 section 3.4)."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The connection may go on. ``probes``: requests that pass whatever policies say;
    ``only_probes``: and nothing else does.
    """

    probes: tuple[DeclaredProbe, ...] = ()
    only_probes: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: Reason


OPEN = Permit()


def authorize_connection(peer: Peer, workload: Workload, port: int, *, from_node: bool) -> Permit | Refusal:
    """Decide whether *peer* may open a connection to *port* of *workload*.

    STRICT takes only peers whose identity was proved, and from the node itself the probes that the
    pod's spec declares. Declared probes pass policies too, as in Istio, where the agent in the pod
    asks the application in the kubelet's stead.
    """
    declared = (
        tuple(probe for probe in workload.probes if probe.port == port) if from_node and peer.security == "none" else ()
    )
    if peer.security != "none" or workload.mtls_at(port) != "STRICT":
        return Permit(declared) if declared else OPEN
    return Permit(declared, only_probes=True) if declared else Refusal(PLAINTEXT_REFUSED)


def asked_health(permit: Permit, early: bytes) -> frozenset[str]:
    """Return the services that a client whose first bytes are *early* may ask the health of: those
    of the gRPC probes that *permit* lets through.
    """
    return (
        frozenset(probe.path for probe in permit.probes if probe.kind == "grpc")
        if early and PREFACE.startswith(early[: len(PREFACE)])
        else frozenset()
    )


def is_probe(permit: Permit, method: bytes, target: bytes) -> bool:
    """Say whether a request is one of the HTTP probes that *permit* lets through."""
    return method == b"GET" and any(probe.kind == "http" and target == probe.path.encode() for probe in permit.probes)
