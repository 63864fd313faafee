"""Start a pod's pause process and its containers' processes in the namespaces and cgroups that are theirs.

The caller forks, so it must have one thread. Children report what went wrong on a pipe that closes when they exec:
:meth:`Started.settle` turns that into an error. Every pause process dies with the kubelet, and with it the pod's pid namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nodeagent.errors import LabError
from nodeagent.lab import cgroup
from nodeagent.lab.layout import NETNS_DIRECTORY
from nodeagent.lab.linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    MS_UNBINDABLE,
    bind,
    children_in,
    die_with_parent,
    mount,
    pivot_root,
    setns,
    unmount,
    unshare,
)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a pod's containers share."""

    hostname: str
    cgroup: Path
    etc: Path
    """The folder with the pod's ``resolv.conf`` and ``hosts``."""
    own_network: bool


@dataclass(frozen=True, slots=True)
class Mount:
    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Process:
    """A process to be started in a pod."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    cgroup: Path
    namespaces: int
    """The pid (as the caller sees it) of the process whose net, uts, ipc and mount namespaces it enters."""
    pause: int
    """The pid of the pod's pause process, whose pid namespace it enters."""
    log: Path
    """Where its output is appended."""
    mounts: tuple[Mount, ...] = ()
    root: Path | None = None
    """An empty folder on which to build the container's own root, if it has mounts."""
    user: int = 0
    group: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """A child that was forked and may not have come to its exec yet."""

    pid: int
    what: str
    report: int

    def settle(self) -> int:
        """Wait until the program runs and return its pid; raises LabError if it could not be started."""
        with os.fdopen(self.report, "rb") as report:
            fault = report.read().decode(errors="replace")
        if fault:
            os.waitpid(self.pid, 0)
            raise LabError(f"{self.what}: {fault}")
        return self.pid


def start_pause(sandbox: Sandbox) -> Started:
    """Start pid 1 of a new pod: it makes the pod's namespaces, then sleeps, and (SIGCHLD ignored) has the kernel reap orphans."""
    sleep = shutil.which("sleep") or "/bin/sleep"

    def child() -> NoReturn:
        die_with_parent(signal.SIGKILL)
        os.setsid()
        cgroup.join(sandbox.cgroup)
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (CLONE_NEWNET if sandbox.own_network else 0))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        unmount(NETNS_DIRECTORY)  # or this mount namespace would keep every other pod's netns alive
        mount("proc", "/proc", "proc")
        for name in ("resolv.conf", "hosts"):
            bind(sandbox.etc / name, f"/etc/{name}")
        socket.sethostname(sandbox.hostname)
        _standard_streams(Path(os.devnull))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.execv(sleep, ["pause", "infinity"])

    with children_in(None):
        return _fork(child, f"pod {sandbox.hostname}: sandbox")


def start(process: Process) -> Started:
    """Start *process*; its exit status is the caller's to take. Raises LabError if the pod is gone."""
    kinds = {"net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "mnt": CLONE_NEWNS}

    def child() -> NoReturn:
        os.setsid()
        cgroup.join(process.cgroup)
        descriptors = [(os.open(f"/proc/{process.namespaces}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind) for name, kind in kinds.items()]
        _standard_streams(process.log)
        if process.user:
            os.fchown(1, process.user, process.group)  # so that it may open /dev/stdout, as in a container
        for descriptor, kind in descriptors:
            setns(descriptor, kind)
        if process.root:
            _build_root(process.root, process.mounts)
        os.chdir(process.directory)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that would be inherited
            signal.signal(number, signal.SIG_DFL)
        if process.user or process.group:
            os.setgroups([])
            os.setresgid(process.group, process.group, process.group)
            os.setresuid(process.user, process.user, process.user)
        os.execvpe(process.argv[0], process.argv, dict(process.environment))

    try:
        pid_namespace = os.open(f"/proc/{process.pause}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise LabError(f"{process.argv[0]}: the pod's pause process {process.pause} is gone: delete the pod and apply it again") from None
    try:
        with children_in(pid_namespace):
            return _fork(child, process.argv[0])
    finally:
        os.close(pid_namespace)


def _fork(child: Callable[[], NoReturn], what: str) -> Started:
    report, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException as error:  # noqa: BLE001 (a forked child must never return into the caller's code)
            os.write(write, str(error).encode()[:4096] or b"failed")
        finally:
            os._exit(127)
    os.close(write)
    return Started(pid, what, report)


def _standard_streams(output: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _build_root(root: Path, mounts: tuple[Mount, ...]) -> None:
    """Give the process a root that shows the host's folders, in which mount points can be made without touching the host."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("lab", root, "tmpfs", data="mode=0755")
    mount("none", root, flags=MS_UNBINDABLE)  # not part of the copies that follow
    for entry in os.scandir("/"):
        target = root / entry.name
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            target.mkdir()
            bind(entry.path, target)
        else:
            target.touch()
            bind(entry.path, target)
    pivot_root(root)
    mount("none", "/", flags=MS_PRIVATE)  # an overlay takes no layer from an unbindable mount
    overlaid: set[Path] = set()
    # Found before an overlay covers them: behind one, a socket is not the one that somebody listens on.
    sources = {each.source: os.open(each.source, os.O_PATH | os.O_CLOEXEC) for each in mounts}
    for each in sorted(mounts, key=lambda each: each.target):
        _mount_point(Path(each.target), each.source.is_dir(), overlaid)
        bind(f"/proc/self/fd/{sources[each.source]}", each.target, read_only=each.read_only)


def _mount_point(target: Path, directory: bool, overlaid: set[Path]) -> None:
    """Make *target* if it is not there: on the root's tmpfs, or on an overlay over its nearest folder of the host."""
    if target.exists():
        return
    parent = next(parent for parent in target.parents if parent.is_dir())
    if parent.stat().st_dev != Path("/").stat().st_dev and parent not in overlaid:
        _overlay(parent, Path(f"/.lab/{len(overlaid)}"))
        overlaid.add(parent)
    (target if directory else target.parent).mkdir(parents=True, exist_ok=True)
    if not directory:
        target.touch()


def _overlay(directory: Path, layers: Path) -> None:
    """Make *directory* writable without the host seeing it. An overlay shows no mounts below its lower folder, so they are bound again."""
    for name in ("upper", "work", "below"):
        (layers / name).mkdir(parents=True)
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in points if directory in point.parents]
    bind(directory, layers / "below")
    mount("overlay", directory, "overlay", data=f"lowerdir={directory},upperdir={layers}/upper,workdir={layers}/work")
    for point in below:
        bind(layers / "below" / point.relative_to(directory), point)
