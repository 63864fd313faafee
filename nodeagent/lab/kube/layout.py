"""Names, paths and addresses of a cluster: everything follows from its name, its folder and the
number of its nodes. Pure but for the two look-ups of folders.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from nodeagent.errors import LabError
from nodeagent.lab.layout import NETNS_DIRECTORY

STATE_ROOT: Final = Path("/run/nodeagent/kube")
"""One file a cluster; a room of tests has a /run of its own, and so clusters of its own."""
FOLDERS: Final = Path("/var/tmp")
"""On a disk: containerd's layers would take memory in a tmpfs, and overlayfs takes no overlay as upper layer."""
FOLDER_PREFIX: Final = "nodeagent-kube-"
MAX_NODES: Final = 9
CONTROL: Final = "control"
"""The name of the control plane where a node's could stand."""
WIRE: Final = (IPv4Network("10.87.0.0/24"), IPv6Network("fd00:87::/64"))
SERVICES: Final = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112"))
PODS: Final = (IPv4Network("10.88.0.0/16"), IPv6Network("fd00:88::/48"))
API: Final = f"https://{WIRE[0][1]}:6443"
DNS: Final = SERVICES[0][10]
"""The cluster's DNS, where every cluster that kubeadm makes has it."""


def cache() -> Path:
    """Return the folder for what is built once a machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nodeagent"


def built() -> Path:
    """Return the newest binary that ``make kube`` built; raises LabError where there is none."""
    found = sorted(cache().glob("kube-*/kube"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabError(f"{cache()}/kube-*/kube: not there: `make kube` builds Kubernetes, once, or --binary names one")
    return found[-1]


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A node's name and addresses; *number* counts from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"node-{chr(ord('a') + self.number - 1)}"

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Its InternalIPs."""
        return WIRE[0][10 + self.number], WIRE[1][10 + self.number]

    @property
    def pods(self) -> tuple[IPv4Network, IPv6Network]:
        """The ranges of its pods' addresses."""
        return IPv4Network(f"10.88.{self.number}.0/24"), IPv6Network(f"fd00:88:0:{self.number:x}::/64")


@dataclass(frozen=True, slots=True)
class KubeLayout:
    """Where a cluster keeps its things. *folder* is its own, and has a name that no other one has."""

    name: str
    folder: Path

    @property
    def identifier(self) -> str:
        """What tells its cgroups from those of a cluster in another room, as rooms share the v1 hierarchies."""
        return self.folder.name.removeprefix(FOLDER_PREFIX)

    @property
    def admin(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.conf"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def lock(self) -> Path:
        """Held by the first process of every node: a cluster without a holder is what a crash left."""
        return self.folder / "lock"

    @property
    def serving(self) -> Path:
        """There when the API server is ready; kubelets start then."""
        return self.folder / "serving"

    def node(self, name: str) -> Path:
        return self.folder / name

    def log(self, place: str, component: str) -> Path:
        """Return what *component* of *place*, a node or ``control``, has written."""
        return self.folder / place / f"{component}.log"

    def netns(self, place: str) -> Path:
        return NETNS_DIRECTORY / f"kube-{self.name}.{place}"

    def cgroup(self, hierarchy: Path, place: str) -> Path:
        return hierarchy / f"kube-{self.identifier}-{place}"


def state_file(name: str) -> Path:
    """Return the file that says where the cluster *name* is; raises LabError for what is no name."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise LabError(f"--name: {name!r}: allowed: up to 32 of a-z, 0-9 and '-', not at the ends")
    return STATE_ROOT / f"{name}.json"
