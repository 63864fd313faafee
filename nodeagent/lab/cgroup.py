"""The lab's cgroups: plain directories of the cgroup2 hierarchy, in which everything that the lab
starts lives and can be killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from nodeagent.errors import LabError

_KILL_SECONDS = 60.0
_REAP_SECONDS = 1.0


def hierarchy() -> Path:
    """Return where cgroup2 is mounted; raises LabError if it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise LabError("no cgroup2 is mounted, and capture needs one: mount -t cgroup2 none /sys/fs/cgroup/unified")


def join(group: Path) -> None:
    """Move the calling process into *group*."""
    (group / "cgroup.procs").write_text("0")


def processes(group: Path) -> list[int]:
    """Return the pids in *group* and below it."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        try:
            found += map(int, (Path(directory) / "cgroup.procs").read_text().split())
        except OSError:  # removed meanwhile
            continue
    return [pid for pid in found if pid]


def kill(group: Path, *, parent: bool = False) -> None:
    """Kill every process in *group* and below it, and wait until they are gone; raises LabError if
    some stay.

    A *parent* of theirs takes their exit statuses: the first process of a pid namespace ends only
    after that of all others was taken.
    """
    if not group.exists():
        return
    deadline = time.monotonic() + _KILL_SECONDS
    seen: set[int] = set()
    while victims := processes(group):
        seen.update(victims)
        if (group / "cgroup.kill").exists():  # Linux 5.14
            (group / "cgroup.kill").write_text("1")
        else:
            for pid in victims:
                _signal(pid)
        if parent:
            seen = {pid for pid in seen if reap(pid)}
        if time.monotonic() > deadline:
            raise LabError(f"{group}: processes {victims} do not die: are they stuck in the kernel (ps -o stat,wchan)?")
        time.sleep(0.002)
    if parent:
        reap_all(seen)


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reap(pid: int) -> bool:
    """Take the exit status of *pid* if it has ended; return whether it is a child of the caller that has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def reap_all(pids: Iterable[int]) -> None:
    """Take the exit status of those of *pids* that are dying children of the caller."""
    deadline = time.monotonic() + _REAP_SECONDS
    while (pids := {pid for pid in pids if reap(pid)}) and time.monotonic() < deadline:
        time.sleep(0.002)


def remove(group: Path, *, parent: bool = False) -> None:
    """Kill what is in *group*, as :func:`kill` does, and remove it with everything below.

    Again and again, as a process may still be on its way into the group, and a group is busy for a
    moment after its last process died.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    while group.exists():
        kill(group, parent=parent)
        try:
            for directory, _, _ in os.walk(group, topdown=False):
                Path(directory).rmdir()
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"{group}: cannot be removed: {error}") from None
            time.sleep(0.002)
