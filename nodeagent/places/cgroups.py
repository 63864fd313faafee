"""Where the pods' cgroups are: the root of all pods of the node, and the one of a pod.

BPF attaches to cgroup2. The kubelet makes one cgroup a pod below ``kubepods`` (driver cgroupfs) or
``kubepods.slice`` (driver systemd), which lies below another one where the kubelet has a
``cgroupRoot`` (a node that is a container itself). A runtime names a container's cgroup in OCI's
``cgroupsPath``; its pod's is the one above, whatever the container is called in it.

Paths that the kernel writes into ``mountinfo`` and ``/proc/PID/cgroup`` are seen from the reader's
cgroup namespace: a mount of the node's tree into a pod that has a namespace of its own has ``/../..``
as its root. So cgroups are compared by what the kernel numbers them by, the inode of their folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from nodeagent.errors import ConfigError

DEPTH: Final = 3
"""How many cgroups below the top the pods' root is looked for."""
MAX_LOOKED_AT: Final = 20_000
"""Cgroups that are looked at for it."""
MAX_PROCESSES: Final = 4096
MAX_BELOW: Final = 1024
"""Processes of a pod, and cgroups below its own: it may make as many as it likes."""
_ROOT_NAME: Final = re.compile(r"kubepods|(?:[^/]+-)?kubepods\.slice")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Cgroup2Mount:
    """Where a cgroup2 hierarchy is mounted, and which of its cgroups is there, seen from this process's own."""

    point: Path
    root: str


def cgroup2_mounts(mountinfo: str) -> tuple[Cgroup2Mount, ...]:
    """Return the mounts of cgroup2 in *mountinfo* (proc_pid_mountinfo(5)), in its order."""
    found = []
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.startswith("cgroup2 ") and len(fields) > 5:
            found.append(Cgroup2Mount(Path(plain(fields[4])), plain(fields[3])))
    return tuple(found)


def kernel_lines(path: Path) -> list[str]:
    """Return the lines of the file *path* of /proc. Names in them may hold any byte but the few that the kernel
    escapes: bytes that are no UTF-8, and what Python takes for an end of line too. Raises OSError.
    """
    return os.fsdecode(path.read_bytes()).split("\n")[:-1]


def plain(field: str) -> str:
    """Return *field* of mountinfo without the kernel's octal numbers (seq_path)."""
    return _ESCAPED.sub(lambda sign: chr(int(sign[1], 8)), field)


def own_mountinfo() -> str:
    """Return this process's mountinfo. Raises OSError."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())


def pods_root(mountinfo: str) -> Path:
    """Return the cgroup below which the kubelet makes all pods', found in the hierarchies of
    *mountinfo*: the one nearest to the top, and of several there the only one with processes.

    Raises ConfigError that says what was looked for, and where.
    """
    mounts = cgroup2_mounts(mountinfo)
    if not mounts:
        first = any(after.startswith("cgroup ") for _, _, after in map(_halves, mountinfo.split("\n")))
        raise ConfigError(
            "redirect.cgroup: no cgroup2 hierarchy is mounted here"
            + (
                ", only cgroup v1, to which BPF cannot be attached: boot with systemd.unified_cgroup_hierarchy=1"
                if first
                else ": mount the node's /sys/fs/cgroup into the agent's pod"
            )
        )
    for mount in mounts:
        if found := _nearest(mount.point):
            return _chosen(found)
    points = ", ".join(str(mount.point) for mount in mounts)
    raise ConfigError(
        f"redirect.cgroup: neither kubepods nor kubepods.slice is within {DEPTH} cgroups of {points}: is a kubelet on "
        "this node, and is the node's /sys/fs/cgroup mounted into the agent's pod? Otherwise set it in agent.yaml"
    )


def _halves(line: str) -> tuple[str, str, str]:
    return line.partition(" - ")


def _nearest(top: Path) -> list[Path]:
    """Return the cgroups that are called like a pods' root, of the first level below *top* that has any."""
    level = [top]
    looked_at = 0
    for _ in range(DEPTH):
        below = list(_children(level))
        looked_at += len(below)
        found = [path for path in below if _ROOT_NAME.fullmatch(path.name)]
        if found or looked_at > MAX_LOOKED_AT:
            return found
        level = below
    return []


def _children(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue  # removed meanwhile
        for name in names:
            yield folder / name


def _chosen(found: list[Path]) -> Path:
    """Return the one of *found* that is meant. Raises ConfigError where that cannot be said."""
    busy = found if len(found) == 1 else [path for path in found if _populated(path)]
    if len(busy) == 1:
        return busy[0]
    names = ", ".join(map(str, found[:8]))
    raise ConfigError(f"redirect.cgroup: which of {names} is this node's cannot be said: set it in agent.yaml")


def _populated(cgroup: Path) -> bool:
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False


def pod_path(cgroups_path: str) -> str:
    """Return the path, from the hierarchy's top, of the pod's cgroup: of the one above *cgroups_path*,
    which is a container's as OCI's runtime-spec has it (``/kubepods/podUID/ID``), or as runc reads
    it for systemd (``SLICE:PREFIX:ID``). Empty where none can be meant.
    """
    parent = slice_path(cgroups_path.split(":")[0]) if ":" in cgroups_path else os.path.dirname(cgroups_path)
    path = PurePosixPath(parent)
    plain = parent.startswith("/") and parent.isprintable() and ".." not in path.parts and len(path.parts) > 1
    return str(path) if plain else ""


def slice_path(name: str) -> str:
    """Return the path of the systemd slice *name*: ``a-b.slice`` lies in ``a.slice`` (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem == name or "/" in name:
        return ""
    parts = stem.split("-")
    return "/" + "/".join("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))


def pod_cgroup(root: Path, cgroups_path: str, uid: str) -> str:
    """Return the cgroup of the pod *uid*, whose sandbox has *cgroups_path*, below the pods' *root*;
    empty where there is none.

    The runtime's path begins at the top that the runtime sees: the hierarchy's, or the cgroup that
    holds *root*. Where it says none that is there, the kubelet's own name for the pod decides.
    """
    path = pod_path(cgroups_path)
    tops = (*root.parents, root) if path else ()
    said = [Path(f"{top}{path}") for top in tops]
    for candidate in (*said, *_by_uid(root, uid)):
        if candidate.is_relative_to(root) and candidate != root and candidate.is_dir():
            return str(candidate)
    return ""


def _by_uid(root: Path, uid: str) -> Iterator[Path]:
    """Yield where the kubelet makes the cgroup of the pod *uid*, whatever its class (cm/cgroup_manager_linux.go)."""
    if not _UID.fullmatch(uid):
        return
    for folder in ("", "burstable", "besteffort"):
        yield root / folder / f"pod{uid}"
    stem = root.name.removesuffix(".slice")
    name = uid.replace("-", "_")
    yield root / f"{stem}-pod{name}.slice"
    for kind in ("burstable", "besteffort"):
        yield root / f"{stem}-{kind}.slice" / f"{stem}-{kind}-pod{name}.slice"


def holds(cgroup: Path, pid: int) -> bool:
    """Say whether the process *pid* is in *cgroup* or one below it. Raises OSError where it is gone."""
    path = next((line[3:] for line in _cgroup_lines(pid) if line.startswith("0::")), "")
    try:
        wanted = os.stat(cgroup).st_ino
        if (where := _seen_at(cgroup, path)) is not None:
            return any(os.stat(one).st_ino == wanted for one in where)
    except FileNotFoundError:
        return False
    return pid in processes(cgroup)


def _cgroup_lines(pid: int) -> list[str]:
    return kernel_lines(Path(f"/proc/{pid}/cgroup"))


def _seen_at(cgroup: Path, path: str) -> list[Path] | None:
    """Return the cgroup *path* of a ``/proc/PID/cgroup`` and those above it, as they are mounted where
    *cgroup* is; None where paths there begin elsewhere than those in ``/proc`` do.
    """
    mounts = [mount for mount in _own_mounts() if cgroup.is_relative_to(mount.point)]
    mount = max(mounts, key=lambda one: len(one.point.parts), default=None)
    if mount is None or mount.root != "/" or not path.startswith("/") or path.startswith("/.."):
        return None
    found = Path(f"{mount.point}{path}")
    return [one for one in (found, *found.parents) if one.is_relative_to(mount.point)]


@cache
def _own_mounts() -> tuple[Cgroup2Mount, ...]:
    return cgroup2_mounts(own_mountinfo())


def processes(cgroup: Path) -> list[int]:
    """Return the processes in *cgroup* and those below it, at most MAX_PROCESSES: 0 for one that is
    of no process namespace that is seen from here.
    """
    found: list[int] = []
    for count, (directory, _, _) in enumerate(os.walk(cgroup)):
        try:
            found += map(int, (Path(directory) / "cgroup.procs").read_text().split())
        except OSError:
            continue  # removed meanwhile, or threaded: its processes are in the list of the one above
        if len(found) > MAX_PROCESSES or count > MAX_BELOW:
            break
    return found[:MAX_PROCESSES]
