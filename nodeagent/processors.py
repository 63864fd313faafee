"""How many processors this process may use: for ``proxy.workers: auto``.

As many as it may run on (sched_getaffinity(2)), or fewer where a cgroup above it has a CPU limit: a
container's, `cpu.max` of cgroup v2 or the CFS quota of v1. A limit of one and a half is one worker:
two that are busy would use the quota up before its period ends, and then the whole daemon stands
still, heartbeat and all.

A cgroup is found by /proc/self/cgroup where that can be said in the tree that is mounted (cgroups(7),
cgroup_namespaces(7)); by this process's id in `cgroup.procs` where the node's whole tree is mounted
into a container that has a cgroup namespace of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_PROC: Final = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class CpuHierarchy:
    """A mounted tree of cgroups that can limit CPU: which cgroup its *point* shows, and this process's in it."""

    point: Path
    shows: PurePosixPath
    own: PurePosixPath
    unified: bool


def usable(proc: Path = _PROC, runnable: int | None = None) -> int:
    """Return how many processors may be used at once, at least 1. *runnable*: on how many this
    process may run, None: as the kernel says.
    """
    count = len(os.sched_getaffinity(0)) if runnable is None else runnable
    least = float(count)
    for tree in hierarchies(proc):
        least = min([least, *_limits(tree)])
    return max(1, int(least))


def hierarchies(proc: Path = _PROC) -> list[CpuHierarchy]:
    """Return the mounted trees by which CPU can be limited; of the mounts of one tree, the last one."""
    try:
        mounts = (proc / "mountinfo").read_text()
        cgroups = (proc / "cgroup").read_text()
    except OSError:
        return []
    owns: dict[bool, PurePosixPath] = {}
    for line in cgroups.splitlines():
        number, controllers, path = line.split(":", 2)
        unified = number == "0"
        if unified or "cpu" in controllers.split(","):
            owns[unified] = PurePosixPath(path)
    found: dict[bool, CpuHierarchy] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        unified = kind == "cgroup2"
        if unified in owns and (unified or (kind == "cgroup" and "cpu" in options.split(","))):
            shows, point = before.split()[3:5]
            found[unified] = CpuHierarchy(Path(point), PurePosixPath(shows), owns[unified], unified)
    return list(found.values())


def _limits(tree: CpuHierarchy) -> Iterator[float]:
    """Yield the limits, in processors, of this process's cgroup and of all that are above it and are seen."""
    folder = _folder(tree)
    while folder is not None:
        limit = _v2(folder) if tree.unified else _v1(folder)
        if limit is not None:
            yield limit
        folder = None if folder == tree.point else folder.parent


def _folder(tree: CpuHierarchy) -> Path | None:
    if ".." not in tree.own.parts and tree.own.is_relative_to(tree.shows):
        return tree.point / tree.own.relative_to(tree.shows)
    me = str(os.getpid())
    for folder, _, _ in os.walk(tree.point):
        if me in _words(Path(folder, "cgroup.procs")):
            return Path(folder)
    return None


def _v2(folder: Path) -> float | None:
    """Return what cpu.max says: ``max PERIOD``, or ``QUOTA PERIOD``, in microseconds."""
    match _words(folder / "cpu.max"):
        case [quota, period] if quota.isdecimal() and period.isdecimal():
            return int(quota) / int(period)
    return None


def _v1(folder: Path) -> float | None:
    """Return the quota of the completely fair scheduler, in processors; -1 there is none."""
    match _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us"):
        case [quota], [period] if quota.isdecimal() and period.isdecimal():
            return int(quota) / int(period)
    return None


def _words(path: Path) -> list[str]:
    """Return the words of a cgroup's file; none where it cannot be read, as a cgroup may vanish meanwhile."""
    try:
        return path.read_text().split()
    except OSError:
        return []
