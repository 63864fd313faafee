"""May this peer talk to this workload? Pure: facts in, a permit or a refusal out.

Later stages require the permit; it carries what the decision rested on.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.errors import PLAINTEXT_REFUSED, PROBE_REFUSED, Reason
from nodeagent.mesh.entries import Probe, Workload
from nodeagent.proxy.connection import Peer


@dataclass(frozen=True, slots=True)
class Permit:
    """The connection may go on; ``probes``: only if it is one of these requests."""

    probes: tuple[Probe, ...] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: Reason


OPEN = Permit()


def authorize_connection(peer: Peer, workload: Workload, port: int, *, strict: bool, from_node: bool) -> Permit | Refusal:
    """Decide whether *peer* may open a connection to *port* of *workload*.

    STRICT takes only peers whose identity was proved, and from the node itself the probes that the pod's spec declares.
    """
    if not strict or peer.security != "none":
        return OPEN
    declared = tuple(probe for probe in workload.probes if probe.port == port)
    if from_node and declared:
        return Permit(declared)
    return Refusal(PLAINTEXT_REFUSED)


def authorize_request(permit: Permit, method: bytes, target: bytes) -> Refusal | None:
    """Decide whether one request may pass on a connection with *permit*; None: it may."""
    if permit.probes is None:
        return None
    for probe in permit.probes:
        if probe.kind == "http" and method == b"GET" and target == probe.path.encode():
            return None
    return Refusal(PROBE_REFUSED)
