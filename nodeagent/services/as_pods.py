"""A unit, and what agent.yaml says of it, as a pod. Pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.places.place import Place
from nodeagent.services.settings import NAMES_LENGTH, ServiceSettings
from nodeagent.services.units import Unit, namespace_file
from nodeagent.vocabulary import Address, JsonObject, PodUid

UNIT: Final = "nodeagent.io/unit"
"""The annotation by which a pod is a service."""
NETNS: Final = "nodeagent.io/netns"
CGROUP: Final = "nodeagent.io/cgroup"
CONTAINER: Final = "service"
"""What its only container is called."""
HINT: Final = "give it one in a drop-in: NetworkNamespacePath=/run/netns/NAME (docs/install.md)"


@dataclass(frozen=True, slots=True)
class Network:
    """A network namespace: the kernel's number for it, which it never uses again, and its addresses."""

    cookie: int
    addresses: frozenset[Address]
    file: tuple[int, int] | None = None
    """As ``Place.network`` has it: a unit's process stands for its namespace."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What tells one machine's services from another's."""

    node: str
    boot: uuid.UUID
    """Of this run of the kernel (/proc/sys/kernel/random/boot_id)."""
    cgroups: Path
    """The top of its cgroups."""
    network: int
    """The cookie of its own network."""
    captured: Path
    """The cgroup below which connections are captured."""


@dataclass(frozen=True, slots=True)
class ServicePod:
    """A service that can be captured."""

    unit: str
    uid: PodUid
    namespace: str
    name: str
    place: Place
    document: JsonObject
    logs: tuple[Path, ...]
    """Its folders of logs."""


def pod_name(setting: ServiceSettings, node: str) -> str:
    """Return the name of the pod that the unit is; units of one name on several machines are several pods."""
    return setting.name or _dns(f"{stem(setting.unit)}-{node}", NAMES_LENGTH - len(setting.namespace))


def stem(unit: str) -> str:
    """Return the name of *unit*, without its kind."""
    return unit.removesuffix(".service")


def _dns(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "service"


def absent(unit: Unit, where: Path | None) -> str:
    """Return why *unit*, whose namespace file is *where*, is no pod now though nothing is wrong with that;
    empty: it should be one.
    """
    if unit.loaded == "loaded" and where is None:
        return f"it does not run ({unit.state}), and its network comes with it"
    return ""


def service_pod(
    setting: ServiceSettings, unit: Unit, network: Network, machine: Machine, created: str
) -> ServicePod | str:
    """Return the pod that *unit* is with *network*, or what is wrong with it. *created*: RFC 3339."""
    where = namespace_file(unit)
    if unit.loaded != "loaded" or where is None:
        return f"systemd has it as {unit.loaded or 'unknown'}: is the name right, and was daemon-reload run?"
    if network.cookie == machine.network:
        return f"it runs in the machine's own network, where one service cannot be told from another: {HINT}"
    if not network.addresses:
        return f"{where} has no address but loopback's: nobody can reach it, and it reaches nobody"
    uid = PodUid(str(uuid.uuid5(machine.boot, f"{unit.name}/{network.cookie}")))
    cgroup = f"{machine.cgroups}{unit.cgroup}" if unit.cgroup else ""
    if cgroup and not Path(cgroup).is_relative_to(machine.captured):
        return (
            f"its cgroup {cgroup} is not below redirect.cgroup, {machine.captured}, so that what it sends would not "
            f"be captured: redirect.cgroup: {machine.cgroups} has all that runs on this machine"
        )
    place = Place(str(where), cgroup, sandbox=str(network.cookie), network=network.file)
    logs = tuple(Path("/var/log", name) for name in unit.logs)
    document = _document(setting, unit, place, network, uid, machine.node, created)
    return ServicePod(unit.name, uid, setting.namespace, pod_name(setting, machine.node), place, document, logs)


def clashes(pods: Sequence[ServicePod]) -> dict[str, str]:
    """Return what is wrong with those of *pods* that are not alone in their network, where one has the address and
    the identity of another, or not alone with their name; by unit.
    """
    networks: dict[str, list[str]] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for pod in pods:
        networks.setdefault(pod.place.sandbox, []).append(pod.unit)
        names.setdefault((pod.namespace, pod.name), []).append(pod.unit)
    found: dict[str, str] = {}
    for pod in pods:
        named = _others(pod, names[pod.namespace, pod.name])
        sharing = _others(pod, networks[pod.place.sandbox])
        if named:
            found[pod.unit] = f"it is {pod.namespace}/{pod.name}, as {named} is: give each its own `name` in agent.yaml"
        if sharing:
            found[pod.unit] = f"it shares its network with {sharing}, where one cannot be told from another: {HINT}"
    return found


def _others(pod: ServicePod, units: Sequence[str]) -> str:
    """Return those of *units* that are not that of *pod*, in words."""
    return ", ".join(unit for unit in units if unit != pod.unit)


def _document(
    setting: ServiceSettings, unit: Unit, place: Place, network: Network, uid: PodUid, node: str, created: str
) -> JsonObject:
    """Return the Pod. Its annotations change with its place, so that whoever reads it is told of that."""
    addresses = sorted(network.addresses, key=lambda address: (":" in address, address))
    owner: JsonObject = {
        "apiVersion": "nodeagent.io/v1",
        "kind": "Unit",
        "name": stem(setting.unit),
        "controller": True,
    }
    own = {UNIT: unit.name, NETNS: place.netns, CGROUP: place.cgroup}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(setting, node),
            "namespace": setting.namespace,
            "uid": uid,
            "creationTimestamp": created,
            "labels": dict(setting.labels),
            "annotations": {**setting.annotations, **own},
            "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": setting.service_account,
            "containers": [{"name": CONTAINER}],
        },
        "status": {
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [{"type": "Ready", "status": "True" if unit.ready else "False"}],
        },
    }
