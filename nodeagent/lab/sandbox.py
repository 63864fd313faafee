"""Start a pod's pause process and its containers' processes in the namespaces and cgroups that are
theirs.

The caller forks, so it must have one thread. Children report what went wrong on a pipe that closes
when they exec: :meth:`Started.settle` turns that into an error. Every pause process dies with the
kubelet, and with it the pod's pid namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nodeagent.errors import LabError
from nodeagent.lab import cgroup
from nodeagent.lab.linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
    children_in,
    die_with_parent,
    mount,
    setns,
    unshare,
)
from nodeagent.lab.root import Mount, Volumes, enter


@dataclass(frozen=True, slots=True)
class PauseHome:
    """What a pod's containers share."""

    hostname: str
    cgroup: Path
    etc: Path
    """The folder with the pod's ``resolv.conf`` and ``hosts``."""
    root: Path
    """An empty folder, on which the pod's view of the machine's files is built."""
    own_network: bool


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
    mounts: tuple[Mount, ...] = ()
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


def start_pause(sandbox: PauseHome) -> Started:
    """Start pid 1 of a new pod: it makes the pod's namespaces, then sleeps, and (SIGCHLD ignored)
    has the kernel reap orphans.
    """
    sleep = shutil.which("sleep") or "/bin/sleep"

    def child() -> NoReturn:
        die_with_parent(signal.SIGKILL)
        os.setsid()
        cgroup.join(sandbox.cgroup)
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (CLONE_NEWNET if sandbox.own_network else 0))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        files = Volumes(
            tuple(Mount(sandbox.etc / name, f"/etc/{name}", read_only=False) for name in ("resolv.conf", "hosts"))
        )
        # and with the old root go the other pods' network namespaces, which this mount namespace
        # would keep alive
        enter(sandbox.root)
        files.attach()
        socket.sethostname(sandbox.hostname)
        null = os.open(os.devnull, os.O_RDWR)
        _standard_streams(null, null)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.execv(sleep, ["pause", "infinity"])

    with children_in(None):
        return _fork(child, f"pod {sandbox.hostname}: sandbox")


def start(process: Process, output: int, errors: int) -> Started:
    """Start *process*, which writes to the descriptors *output* and *errors*; its exit status is the caller's to
    take. Raises LabError if the pod is gone.
    """
    kinds = {"net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "mnt": CLONE_NEWNS}

    def child() -> NoReturn:
        os.setsid()
        cgroup.join(process.cgroup)
        descriptors = [
            (os.open(f"/proc/{process.namespaces}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind)
            for name, kind in kinds.items()
        ]
        _standard_streams(output, errors)
        if process.user:
            for stream in (1, 2):  # so that it may open /dev/stdout, as in a container
                if not stat.S_ISCHR(os.fstat(stream).st_mode):  # but /dev/null is the machine's
                    os.fchown(stream, process.user, process.group)
        volumes = Volumes(process.mounts)
        for descriptor, kind in descriptors:
            setns(descriptor, kind)
        if process.mounts:
            unshare(CLONE_NEWNS)
            mount("none", "/", flags=MS_REC | MS_PRIVATE)
            volumes.attach()
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
        raise LabError(
            f"{process.argv[0]}: the pod's pause process {process.pause} is gone: delete the pod and apply it again"
        ) from None
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


def _standard_streams(output: int, errors: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
