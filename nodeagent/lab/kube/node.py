"""``python -m nodeagent.lab.kube.node FOLDER NAME CGROUP…``: make a node of the calling process, which is in
the node's network namespace already, and run the folder's ``init`` as its first process.

The node's files are an overlay over the machine's, so nothing that a pod writes to the node stays. On
the disk, and in the node where every node has it, is what is large: see ``config.NODE_FOLDERS``. The
files ``pid`` and ``init.log`` in the node's folder say the pid of the first process as the caller's pid
namespace knows it, and what went wrong.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from nodeagent.lab import cgroup, linux, root
from nodeagent.lab.kube.config import NODE_FOLDERS, TUNABLES

_MS_SHARED: Final = 1 << 20
_CLONE_NEWCGROUP: Final = 0x02000000
_NAMESPACES: Final = linux.CLONE_NEWNS | _CLONE_NEWCGROUP | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWPID
_TUNABLES: Final = Path("/run/tunables")


def v1_hierarchies() -> Sequence[Path]:
    """Return where cgroup v1's hierarchies are mounted."""
    lines = map(str.split, Path("/proc/mounts").read_text().splitlines())
    return list(dict.fromkeys(Path(line[1]) for line in lines if line[2] == "cgroup"))


def make_groups(groups: Sequence[Path]) -> None:
    """Make a node's cgroups, all of the same name, one a hierarchy; a cpuset begins without any."""
    for group in groups:
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            given = group.parent / name
            if given.exists() and not (group / name).read_text().strip():
                (group / name).write_text(given.read_text())


def main(arguments: Sequence[str]) -> None:
    """Become a node; returns in the caller, when the node has its first process."""
    folder = Path(arguments[0])
    name = arguments[1]
    lock = os.open(folder / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.set_inheritable(lock, True)
    for group in map(Path, arguments[2:]):
        cgroup.join(group)
    linux.unshare(_NAMESPACES)
    if pid := os.fork():
        (folder / name / "pid").write_text(str(pid))
        return
    os.setsid()
    _be(folder, name)


def _be(folder: Path, name: str) -> NoReturn:
    """Be the node's first process."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    own = folder / name
    held = {folder: linux.detached(folder)}
    held |= {target: linux.detached(own / part) for part, target in NODE_FOLDERS.items()}
    root.enter(own / "view")
    for target, tree in held.items():
        target.mkdir(parents=True, exist_ok=True)
        linux.attach(tree, target)
        os.close(tree)
    _mount_kernel()
    _hide_tunables()
    socket.sethostname(name)
    linux.mount("none", "/", flags=linux.MS_REC | _MS_SHARED)
    os.execvp("bash", ["bash", str(own / "init")])


def _mount_kernel() -> None:
    """Mount /sys, the cgroup hierarchies and bpffs anew: what they show is the namespaces'."""
    controllers = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    linux.unmount("/sys")
    linux.mount("sysfs", "/sys", "sysfs")
    top = Path("/sys/fs/cgroup")
    first = [each for each in controllers if each]
    if first:
        linux.mount("cgroup", top, "tmpfs", data="mode=0755")
    for each in first:
        place = top / each.removeprefix("name=")
        place.mkdir()
        linux.mount("cgroup", place, "cgroup", data=f"none,{each}" if "=" in each else each)
    unified = top / "unified" if first else top
    unified.mkdir(exist_ok=True)
    linux.mount("cgroup2", unified, "cgroup2")
    if not first:
        _delegate(unified)
    linux.mount("bpf", "/sys/fs/bpf", "bpf", data="mode=0700")
    Path("/run/netns").mkdir()
    Path("/run/lock").mkdir()


def _delegate(top: Path) -> None:
    """Let pods have cgroup v2's controllers: a group with processes of its own can give none on."""
    (top / "init").mkdir(exist_ok=True)
    cgroup.join(top / "init")
    for controller in (top / "cgroup.controllers").read_text().split():
        with suppress(OSError):  # not every one can be given on
            (top / "cgroup.subtree_control").write_text(f"+{controller}")


def _hide_tunables() -> None:
    """Show the kubelet that the machine's settings are as it wants them."""
    _TUNABLES.mkdir()
    for name, value in TUNABLES.items():
        real = Path("/proc/sys", name)
        if real.exists():
            shown = _TUNABLES / real.name
            shown.write_text(f"{value}\n")
            linux.bind(shown, real)


if __name__ == "__main__":
    main(sys.argv[1:])
