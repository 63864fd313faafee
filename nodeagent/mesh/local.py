"""Which pods of this node are captured, and with which exceptions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.mesh.entries import Address, PodUid, SpiffeId
from nodeagent.resources.objects import Pod

NETNS, CGROUP = "lab.nodeagent.io/netns", "lab.nodeagent.io/cgroup"
ENROLL: Final = "nodeagent.io/enroll"
SIDECAR: Final = "sidecar.istio.io/status"
EXCLUDE_INBOUND: Final = "traffic.sidecar.istio.io/excludeInboundPorts"
EXCLUDE_OUTBOUND: Final = "traffic.sidecar.istio.io/excludeOutboundPorts"


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node that shall be enrolled."""

    uid: PodUid
    pod: str
    namespace: str
    addresses: tuple[Address, ...]
    identity: SpiffeId
    netns: str
    """Path of its network namespace's file."""
    cgroup: str
    """Path of its cgroup."""
    exclude_inbound: frozenset[int]
    exclude_outbound: frozenset[int]
    faults: tuple[str, ...] = ()
    """Annotations that were wrong and have no effect; the pod is captured without those exceptions."""


def local_pod(pod: Pod, node: str, addresses: tuple[Address, ...], identity: SpiffeId) -> LocalPod | None:
    """Return how *pod* is to be enrolled on *node*; None: it is not this node's, shares the node's network, brings its
    own proxy, asks to be left alone, or has no network (yet or any more)."""
    netns = pod.annotations.get(NETNS, "")
    if pod.node != node or pod.host_network or not netns or not addresses or finished(pod) or SIDECAR in pod.annotations:
        return None
    if (pod.labels.get(ENROLL) or pod.annotations.get(ENROLL, "")).lower() == "false":
        return None
    faults: list[str] = []
    inbound, outbound = (excluded_ports(pod, name, faults) for name in (EXCLUDE_INBOUND, EXCLUDE_OUTBOUND))
    return LocalPod(pod.uid, pod.name, pod.namespace, addresses, identity, netns, pod.annotations.get(CGROUP, ""), inbound, outbound, tuple(faults))


def finished(pod: Pod) -> bool:
    """Say whether all that ran in *pod* has ended: its addresses may be another's by now."""
    return pod.phase in ("Succeeded", "Failed")


def excluded_ports(pod: Pod, annotation: str, faults: list[str]) -> frozenset[int]:
    """Return the ports of a comma-separated *annotation*; what is wrong goes to *faults*. A wrong one excludes nothing: no typing error opens a hole."""
    text = pod.annotations.get(annotation, "")
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 and 0 < int(part) < 65536 for part in parts):
        faults.append(f"metadata.annotations[{annotation}]: {text!r:.80}: ports from 1 to 65535, separated by commas, are allowed; it has no effect")
        return frozenset()
    return frozenset(int(part) for part in parts)
