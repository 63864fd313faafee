"""Names, paths and addresses of a lab: everything follows from its name and the number of its
nodes.

So whatever a crash left behind can be found again. Pure but for the small JSON files below
``state``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, Final, NewType

from nodeagent.errors import LabError

NodeName = NewType("NodeName", str)
"""``node1``, ``node2``, …"""

Object = Mapping[str, Any]
"""A Kubernetes object as the lab keeps it: made from YAML that was validated, so read by key."""
Draft = dict[str, Any]
"""One that is being made."""

STATE_ROOT = Path("/run/nodeagent/lab")
NETNS_DIRECTORY = Path("/run/netns")
MAX_NODES = 200
FIRST_HOST = 2
LAST_HOST = 254
"""Host numbers of pods within their node's range."""
SERVICES = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112"))
PODS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:10:244::/48"))
UNDERLAY = (IPv4Network("172.18.0.0/16"), IPv6Network("fd00:18::/64"))
OUTSIDE = (UNDERLAY[0][1], UNDERLAY[1][1])
"""The bridge's own addresses: where a test puts what is not in the cluster."""
GATEWAY6 = IPv6Address("fe80::1")
"""The node's end of every pod's link."""
POD6 = IPv6Address("fe80::2")

PAUSE_PID: Final = "lab.nodeagent.io/pid"
"""Annotation on pods, beside their places (``places/annotation.py``): the process that holds their namespaces."""
ADDRESSES: Final = "lab.nodeagent.io/addresses"
"""Annotation on pods that the lab reads: comma-separated addresses to use."""
LOG_BYTES: Final = "lab.nodeagent.io/log-max-bytes"
"""Annotation on pods that the lab reads: at which size a container's log is rotated (the kubelet's
containerLogMaxSize); 10 MiB without it.
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node's addresses."""

    index: int

    @property
    def name(self) -> NodeName:
        return NodeName(f"node{self.index}")

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """The node's InternalIPs, at which it also answers DNS."""
        return UNDERLAY[0][10 + self.index], UNDERLAY[1][10 + self.index]

    @property
    def pods(self) -> tuple[IPv4Network, IPv6Network]:
        """The ranges of its pods' addresses."""
        return IPv4Network(f"10.244.{self.index}.0/24"), IPv6Network(f"fd00:10:244:{self.index:x}::/64")

    @property
    def gateways(self) -> tuple[IPv4Address, IPv6Address]:
        """The addresses of the node's end of every pod's link, as CNI's ``ptp`` has it."""
        return self.pods[0][1], self.pods[1][1]

    def pod_addresses(self, host: int) -> tuple[IPv4Address, IPv6Address]:
        """Return the addresses of the pod with number *host* (2 to 254)."""
        return self.pods[0][host], self.pods[1][host]


def canonical(address: str) -> str:
    """Return *address* in the one text form that Kubernetes and the kernel's tools use (RFC 5952)."""
    return str(ip_address(address))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a lab keeps its things."""

    name: str
    root: Path = STATE_ROOT

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", self.name):
            raise LabError(f"--name: {self.name!r}: allowed: up to 32 of a-z, 0-9 and '-', not at the ends")

    @property
    def state(self) -> Path:
        return self.root / self.name

    @property
    def objects(self) -> Path:
        return self.state / "objects"

    @property
    def cluster(self) -> Path:
        return self.state / "cluster.json"

    def node(self, node: str) -> Path:
        return self.state / node

    def desired(self, node: str) -> Path:
        """Return the folder of the pods that *node* shall run, ``<uid>.json``."""
        return self.node(node) / "pods"

    def volumes(self, node: str, uid: str) -> Path:
        return self.node(node) / "volumes" / uid

    def pod_sockets(self, node: str, uid: str) -> Path:
        """Return the folder in which *node*'s agent opens the sockets that are for one pod."""
        return self.node(node) / "run" / "pods" / uid

    def socket(self, node: str) -> Path:
        """Return the socket on which *node*'s kubelet takes orders."""
        return self.node(node) / "kubelet.sock"

    def pod_logs(self, node: str) -> Path:
        """Return what is ``/var/log/pods`` on a cluster's node."""
        return self.node(node) / "log" / "pods"

    def logs(self, pod: Object) -> Path:
        """Return the folder of the logs of *pod*, which has been placed: in it there is one a container."""
        metadata = pod["metadata"]
        name = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        return self.pod_logs(pod["spec"]["nodeName"]) / name

    def netns(self, name: str) -> Path:
        """Return the netns file of *name*: a node, ``underlay`` or ``<namespace>.<pod>``. The dot
        keeps labs apart: names hold none.
        """
        return NETNS_DIRECTORY / f"{self.name}.{name}"

    def cgroup(self, hierarchy: Path) -> Path:
        return hierarchy / f"nodeagent-lab-{self.name}"

    def pins(self, node: str) -> Path:
        return Path(f"/sys/fs/bpf/nodeagent-lab-{self.name}-{node}")

    def object_file(self, kind: str, namespace: str, name: str) -> Path:
        return self.objects / f"{kind}.{namespace}.{name}.json"


def write_json(path: Path, value: object) -> None:
    """Replace *path* by *value*, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def read_objects(directory: Path, prefix: str = "") -> list[Draft]:
    """Return the JSON objects in the files of *directory* that begin with *prefix*, by name; one
    that vanishes meanwhile is left out.
    """
    found = []
    for path in sorted(directory.glob(f"{prefix}*.json")):
        if path.name.startswith("."):
            continue
        try:
            found.append(json.loads(path.read_text()))
        except FileNotFoundError:
            continue
    return found
