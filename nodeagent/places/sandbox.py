"""What a container runtime says of a pod's sandbox, looked at before anything is done with it.

The sandbox holds the pod's namespaces; its network namespace and cgroup are in the verbose status,
``info["info"]``, a JSON object that each runtime shapes for itself. containerd and CRI-O both put
OCI's runtime-spec into it (``runtimeSpec``), and the process that holds the namespaces (``pid``),
which is asked where the spec says no path.

A runtime is root on the node and yet believed only so far: control enters what it names. A path
must be where runtimes keep namespaces, and must not be the node's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import NodeagentError, shown
from nodeagent.places.cgroups import pod_cgroup, processes
from nodeagent.places.place import Place
from nodeagent.vocabulary import Address, Json, PodUid

MAX_INFO: Final = 1 << 20
"""Characters of a verbose status."""
MAX_ADDRESSES: Final = 16
_NETNS: Final = re.compile(r"/(?:var/)?run/[^\0]{1,1024}|/proc/[1-9][0-9]{0,9}/ns/net")
_PID_LIMIT: Final = 1 << 22
"""The kernel's PID_MAX_LIMIT."""


class SandboxError(NodeagentError):
    """What a runtime says of a sandbox is no place to be, and why."""


class SandboxGone(SandboxError):
    """It has ended, and nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A sandbox that is ready, as the runtime's list has it."""

    id: str
    uid: PodUid
    namespace: str
    name: str
    attempt: int
    """How often the pod's sandbox was made anew."""
    created: int
    """Nanoseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """A sandbox's verbose status: ``info`` is the runtime's own JSON object, empty where it has none."""

    addresses: tuple[str, ...]
    host_network: bool
    info: str
    ready: bool = True
    """Its own process, which holds its namespaces, runs."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What holds a pod's network namespace on this node."""

    uid: PodUid
    namespace: str
    name: str
    id: str
    """The runtime's; another one means that the pod was made anew, in another namespace."""
    place: Place
    addresses: tuple[Address, ...]
    """The first is the pod's main one. Empty: not told."""


class SandboxReader:
    """Makes sandboxes of reports, for pods below the cgroup *root*. *proc* is where procfs is."""

    def __init__(self, root: Path, proc: Path = Path("/proc")) -> None:
        self._root = root
        self._proc = proc

    def read(self, listed: Listed, report: SandboxReport) -> Sandbox:
        """Return the sandbox *listed*, of which the runtime says *report*. Raises SandboxError, SandboxGone."""
        info = _info(report.info)
        linux = _part(_part(info, "runtimeSpec"), "linux")
        found = self._netns(linux, info.get("pid")) if report.ready else None
        cgroup = pod_cgroup(self._root, _text(linux, "cgroupsPath"), listed.uid)
        if not cgroup and not report.ready:
            raise SandboxGone("it has ended, and its cgroup is gone")
        if not cgroup:
            raise SandboxError(
                f"its cgroup is not below {self._root}, so nothing that it opens could be captured: the runtime says "
                f"{shown(_text(linux, 'cgroupsPath'))}; see redirect.cgroup"
            )
        netns, network = found or self._left(linux, Path(cgroup))
        place = Place(netns, cgroup, listed.id, network)
        return Sandbox(listed.uid, listed.namespace, listed.name, listed.id, place, addresses(report.addresses))

    def _netns(self, linux: Mapping[str, Json], pid: Json) -> tuple[str, tuple[int, int]]:
        """Return the path of the network namespace that can be entered here, and its file. Raises SandboxError."""
        own = os.stat(self._proc / "self/ns/net")
        said = _netns_path(linux)
        tried = [said] if said else []
        if isinstance(pid, int) and 0 < pid < _PID_LIMIT:
            tried.append(f"{self._proc}/{pid}/ns/net")
        for path in tried:
            try:
                found = os.stat(path)
            except OSError:
                continue
            if found.st_dev != own.st_dev:  # the file on which the namespace is mounted, but not here
                continue
            if found.st_ino == own.st_ino:
                raise SandboxError(f"{path} is the node's own network namespace, though the pod has one of its own")
            return path, (found.st_dev, found.st_ino)
        if not tried:
            raise SandboxError("the runtime says neither its network namespace nor its process")
        raise SandboxError(
            f"{' and '.join(tried)} cannot be seen from here: mount the folder into the agent's pod with "
            "mountPropagation: HostToContainer"
        )

    def _left(self, linux: Mapping[str, Json], cgroup: Path) -> tuple[str, tuple[int, int]]:
        """Return the path of the network namespace of a sandbox whose own process has ended, and its file: where the
        runtime has it mounted, else of a process of the pod, if all that are left in *cgroup* are in the same one.
        Raises SandboxGone where none is left, and SandboxError where they are in several, as a process can make one
        for itself, or cannot be looked at; OSError.
        """
        own = os.stat(self._proc / "self/ns/net")
        said = _netns_path(linux)
        if said and not said.startswith("/proc/"):
            with suppress(OSError):
                found = os.stat(said)
                if found.st_dev == own.st_dev and found.st_ino != own.st_ino:
                    return said, (found.st_dev, found.st_ino)
        paths = self._left_in(cgroup)
        if not paths:
            raise SandboxGone("it has ended, and so have its processes")
        if (own.st_dev, own.st_ino) in paths:
            raise SandboxError("it has ended, and a process that is left of it is in the node's own network namespace")
        if len(paths) > 1:
            raise SandboxError(f"it has ended, and what is left of it is in {len(paths)} network namespaces")
        ((network, path),) = paths.items()
        return path, network

    def _left_in(self, cgroup: Path) -> Mapping[tuple[int, int], str]:
        """Return the network namespaces in which processes of *cgroup* are, with a path of each. Raises SandboxError
        where these are not seen from here; OSError.
        """
        seen: dict[int, tuple[int, int]] = {}
        for pid in processes(cgroup):
            if not pid:
                raise SandboxError("it has ended, and its processes are not seen: the agent's pod needs hostPID: true")
            with suppress(FileNotFoundError, ProcessLookupError):
                found = os.stat(f"{self._proc}/{pid}/ns/net")
                seen[pid] = found.st_dev, found.st_ino
        # one that ended meanwhile may have left its number to a process of another pod
        still = set(processes(cgroup))
        return {network: f"{self._proc}/{pid}/ns/net" for pid, network in seen.items() if pid in still}


def addresses(said: tuple[str, ...]) -> tuple[Address, ...]:
    """Return those of *said* that a pod can have, in their canonical form."""
    found: list[Address] = []
    for text in said[:MAX_ADDRESSES]:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local):
            found.append(Address(str(address)))
    return tuple(dict.fromkeys(found))


def _info(text: str) -> Mapping[str, Json]:
    if len(text) > MAX_INFO:
        raise SandboxError(f"its verbose status has {len(text)} characters, at most {MAX_INFO} are read")
    try:
        found: Json = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise SandboxError(f"its verbose status is no JSON: {error}") from None
    return found if isinstance(found, Mapping) else {}


def _part(of: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    found = of.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(of: Mapping[str, Json], name: str) -> str:
    found = of.get(name)
    return found if isinstance(found, str) else ""


def _netns_path(linux: Mapping[str, Json]) -> str:
    """Return the path of the network namespace that a runtime-spec's *linux* says; empty: none.
    Raises SandboxError where it is none that a runtime would keep.
    """
    namespaces = linux.get("namespaces")
    for each in namespaces if isinstance(namespaces, list) else ():
        if isinstance(each, Mapping) and each.get("type") == "network":
            path = _text(each, "path")
            if path and (not _NETNS.fullmatch(path) or not path.isprintable() or ".." in path.split("/")):
                raise SandboxError(f"its network namespace is said to be {shown(path)}: a file below /run is expected")
            return path
    return ""
