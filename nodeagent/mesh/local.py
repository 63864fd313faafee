"""How pods of this node are captured, and with which exceptions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, cast, get_args

from nodeagent.istio import AMBIENT_REDIRECTION, INBOUND_PORT, OUTBOUND_PORT, STATUS, TUNNEL
from nodeagent.places.place import Place
from nodeagent.policy.model import PathSetting
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import Address, PodUid, SpiffeId

TLS_MODE: Final = "security.istio.io/tlsMode"
PATH: Final = "nodeagent.io/path"
_PATHS: Final = get_args(PathSetting)
BYPASS: Final = "nodeagent.io/bypass"
WORKLOAD_API: Final = "nodeagent.io/workload-api"
DRIVERS: Final = frozenset({"csi.nodeagent.io", "csi.spiffe.io"})
"""CSI drivers whose volumes hold a pod's sockets."""
PATH_MAX: Final = 4096
SOCKETS: Final = "/run/nodeagent"
"""Where ``nodeagent.io/workload-api: enabled`` puts them."""
EXCLUDE_INBOUND: Final = "traffic.sidecar.istio.io/excludeInboundPorts"
EXCLUDE_OUTBOUND: Final = "traffic.sidecar.istio.io/excludeOutboundPorts"
MAX_EXCLUDED: Final = 64
"""Ports of each of these: the node's pods share a map."""


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node that shall be enrolled."""

    uid: PodUid
    pod: str
    namespace: str
    addresses: tuple[Address, ...]
    identity: SpiffeId
    place: Place
    exclude_inbound: frozenset[int]
    exclude_outbound: frozenset[int]
    faults: tuple[str, ...] = ()
    """Annotations that were wrong and have no effect; the pod is captured without those exceptions."""


@dataclass(frozen=True, slots=True)
class AskingPod:
    """A pod of this node that asks for its own certificate: for a folder with the socket of the
    SPIFFE Workload API and Envoy's SDS.
    """

    uid: PodUid
    pod: str
    namespace: str
    identity: SpiffeId
    place: Place
    mount_at: str
    """Where the folder is to be mounted in the pod; empty: a volume of its spec does that."""


def asking_pod(pod: PodObject, place: Place | None, identity: SpiffeId, faults: list[str]) -> AskingPod | None:
    """Return what *pod* of this node, which runs at *place*, asks for, by a volume or by annotation;
    what is wrong goes to *faults*. A pod need not be captured to ask.

    None: it does not ask, or has no network of its own, by which it is known.
    """
    text = pod.annotations.get(WORKLOAD_API, "")
    mount_at = {"enabled": SOCKETS, "disabled": ""}.get(text, text)
    if mount_at and not _is_mount_point(mount_at):
        faults.append(
            f"metadata.annotations[{WORKLOAD_API}]: {text!r:.80}: enabled, disabled, or an absolute path without "
            "'..' is allowed; it has no effect"
        )
        mount_at = ""
    if place is None or pod.host_network or finished(pod):
        return None
    if not mount_at and not DRIVERS.intersection(pod.drivers):
        return None
    return AskingPod(pod.uid, pod.name, pod.namespace, identity, place, mount_at)


def _is_mount_point(path: str) -> bool:
    """Say whether *path* can name a folder below a pod's root, in one way only, and in a line of mountinfo."""
    plain = path.isprintable() and len(path.encode()) < PATH_MAX
    return (
        plain
        and path.startswith("/")
        and str(PurePosixPath(path)) == path
        and ".." not in path.split("/")
        and path not in ("/", "//")
    )


def local_pod(
    pod: PodObject, place: Place | None, addresses: tuple[Address, ...], identity: SpiffeId, faults: list[str]
) -> LocalPod | None:
    """Return how *pod* of this node, which is in the mesh and runs at *place*, is to be enrolled;
    what is wrong goes to *faults*, which the pod has then all.

    None: it has no network, yet or any more.
    """
    if place is None or not addresses or finished(pod):
        return None
    inbound = excluded_ports(pod, EXCLUDE_INBOUND, faults)
    outbound = excluded_ports(pod, EXCLUDE_OUTBOUND, faults)
    return LocalPod(pod.uid, pod.name, pod.namespace, addresses, identity, place, inbound, outbound, tuple(faults))


def reserved_ports(pod: PodObject) -> list[str]:
    """Say which ports *pod* declares that are the agent's own in a captured pod."""
    ports: set[int] = set()
    for container in pod.containers:
        ports.update(port.number for port in container.ports)
    own = ", ".join(str(port) for port in (OUTBOUND_PORT, INBOUND_PORT) if port in ports)
    return [f"spec.containers[].ports: {own}: the agent listens there in a captured pod: take another"] if own else []


def finished(pod: PodObject) -> bool:
    """Say whether all that ran in *pod* has ended: its addresses may be another's by now."""
    return pod.phase in ("Succeeded", "Failed")


def excluded_ports(pod: PodObject, annotation: str, faults: list[str]) -> frozenset[int]:
    """Return the ports of a comma-separated *annotation*; what is wrong goes to *faults*. A wrong
    one excludes nothing: no typing error opens a hole.
    """
    text = pod.annotations.get(annotation, "")
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 and 0 < int(part) < 65536 for part in parts):
        faults.append(
            f"metadata.annotations[{annotation}]: {text!r:.80}: ports from 1 to 65535, separated by commas, are "
            "allowed; it has no effect"
        )
        return frozenset()
    ports = frozenset(int(part) for part in parts)
    if len(ports) > MAX_EXCLUDED:
        faults.append(
            f"metadata.annotations[{annotation}]: {len(ports)} ports: {MAX_EXCLUDED} are allowed at most; it has no "
            "effect"
        )
        return frozenset()
    return ports


def path_setting(annotations: Mapping[str, str], whose: str, faults: list[str]) -> PathSetting | None:
    """Return what ``nodeagent.io/path`` among *annotations* asks for, None when it does not; a
    wrong value goes to *faults* with *whose* it is.
    """
    text = annotations.get(PATH)
    if text is None:
        return None
    if text in _PATHS:
        return cast(PathSetting, text)
    faults.append(
        f"{whose}metadata.annotations[{PATH}]: {text!r:.80}: {', '.join(_PATHS)} are allowed; it has no effect"
    )
    return None


def bypass(annotations: Mapping[str, str], faults: list[str]) -> bool:
    """Say whether ``nodeagent.io/bypass`` among *annotations* asks for it; a wrong value goes to *faults*."""
    text = annotations.get(BYPASS, "disabled")
    if text not in ("enabled", "disabled"):
        faults.append(f"metadata.annotations[{BYPASS}]: {text!r:.80}: enabled, disabled are allowed; it has no effect")
    return text == "enabled"


def takes_hbone(pod: PodObject) -> bool:
    """Say whether *pod* says that it takes HBONE, be it that a ztunnel does for it."""
    return pod.annotations.get(AMBIENT_REDIRECTION) == "enabled" or "http" in pod.labels.get(TUNNEL, "").split(",")


def has_sidecar(pod: PodObject) -> bool:
    """Say whether *pod* brings a classic sidecar, which takes mTLS for it."""
    return STATUS in pod.annotations or pod.labels.get(TLS_MODE) == "istio"
