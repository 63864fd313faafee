"""Mounts a folder of the host, read-only, into a pod's mount namespaces: for pods whose spec has no
volume for it.

A process must have one thread to enter a mount namespace, and would not come back the same: so a
short-lived process does it, this module run as a program. It enters by a pidfd, makes the mount
point name by name without following a symbolic link, and leaves nothing behind when it fails. No
process of the pod is touched, and the pod's own root is all that it can reach.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.identity.peer import outsider
from nodeagent.places import cgroups
from nodeagent.places.place import Place
from nodeagent.redirect import rights

CLONE_NEWNS: Final = 0x00020000
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
"""System calls, by the numbers that all architectures share (Linux 5.2, 5.2, 5.12)."""
_AT_FDCWD: Final = -100
_EMPTY_PATH = 0x1000
_CLONE = 1
_CLOEXEC = os.O_CLOEXEC
_FROM_EMPTY = 0x04
_TO_EMPTY = 0x40
_READ_ONLY = 1
_NO_SUID = 2
_NO_DEVICES = 4
_NO_EXEC = 8
_DETACH = 2
_NOT_A_LINK = 8
"""Of umount2(2)."""
_ESCAPED: Final = re.compile(rb"[ \t\n\\]")
"""What the kernel writes as octal numbers in a path (seq_path)."""
PATIENCE_SECONDS: Final = 10.0
"""A pod's file system may be one that never answers (FUSE): nobody else's mounts wait for it longer."""
_SILENT: Final = f"the pod's file system has not answered for {PATIENCE_SECONDS:g} s"
ENTERING: Final = ("SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE")
"""Capabilities that it takes to enter the mount namespace of another user's process."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0


@dataclass(slots=True)
class _Attempt:
    """A mount namespace in which it failed; times are of the monotonic clock, in seconds."""

    fault: str
    pause: float
    not_before: float


class PodMount:
    """*folder* at *target* in the mount namespaces of *pod*'s processes: containers come and go,
    and each brings its own.
    """

    def __init__(self, folder: Path, target: str, pod: Place) -> None:
        self._folder = folder
        self._target = target
        self._pod = pod
        self._failed: dict[int, _Attempt] = {}

    async def everywhere(self) -> None:
        """Mount it where it is not. Raises KernelError when it is nowhere; where it failed it is
        tried again, after growing pauses.
        """
        seen: set[int] = set()
        answers = True
        for pid in self._processes():
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue  # it has ended
            try:
                namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
                if namespace not in seen and not outsider(pid, self._pod, pidfd):
                    seen.add(namespace)
                    answers = await self._into(namespace, pid, pidfd)
            except PermissionError as error:
                raise KernelError(f"its processes cannot be looked at: {error.strerror}{_lacking()}") from None
            except OSError:
                continue
            finally:
                os.close(pidfd)
            if not answers:  # the pod has had its time; the next of its namespaces has the next turn
                raise KernelError(_SILENT)
        self._failed = {namespace: attempt for namespace, attempt in self._failed.items() if namespace in seen}
        # The sandbox's own process (pause) often has a root without a single folder: it needs no
        # socket.
        if self._failed and len(self._failed) == len(seen):
            raise KernelError(next(iter(self._failed.values())).fault)

    def _processes(self) -> list[int]:
        """Return the pod's processes. Raises KernelError where there are some, and none is seen from here."""
        found = cgroups.processes(Path(self._pod.cgroup))
        if found and not any(found):
            raise KernelError("its processes cannot be seen from here: the agent's pod needs hostPID: true")
        return [pid for pid in found if pid]

    async def _into(self, namespace: int, pid: int, pidfd: int) -> bool:
        """Mount it in *namespace*, which the process *pid* is in, if it is due; return whether that
        was answered. Raises OSError when the process is gone.
        """
        # In a thread: a pod may have made as many mounts as the kernel lets it, and to list them
        # takes seconds then.
        table = await asyncio.to_thread(Path(f"/proc/{pid}/mountinfo").read_bytes)
        if is_mounted(table, self._folder, self._target):
            self._failed.pop(namespace, None)
            return True
        before = self._failed.get(namespace)
        if before is not None and time.monotonic() < before.not_before:
            return True
        if fault := await _run(self._folder, self._target, pidfd):
            pause = min(2 * before.pause, LONGEST_PAUSE) if before is not None else FIRST_PAUSE
            self._failed[namespace] = _Attempt(fault, pause, time.monotonic() + pause)
        else:
            self._failed.pop(namespace, None)
        return fault != _SILENT


def is_mounted(table: bytes, folder: Path, target: str) -> bool:
    """Say whether by *table*, a process's mountinfo (proc_pid_mountinfo(5)), the topmost mount at
    *target* is *folder*.

    Its cost is that of a search for the target's name, whatever else is mounted.
    """
    ours = f"/{folder.parent.name}/{folder.name}".encode()
    point = _ESCAPED.sub(lambda sign: b"\\%03o" % sign[0][0], target.encode())
    end = len(table)
    while (end := table.rfind(b" %s " % point, 0, end)) >= 0:
        fields = table[table.rfind(b"\n", 0, end) + 1 : end + len(point) + 1].split(b" ")
        if len(fields) == 5:
            return fields[3].endswith(ours)
    return False


async def _run(folder: Path, target: str, pidfd: int) -> str:
    """Run this module as a program; return its words when it fails."""
    argv = [sys.executable, "-m", __name__, str(pidfd), str(folder), target]
    process = await asyncio.create_subprocess_exec(
        *argv, pass_fds=(pidfd,), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        return _SILENT
    if process.returncode:
        return f"{said.decode(errors='replace').strip()[-300:] or 'the mount failed'}{_lacking()}"
    return ""


def _lacking() -> str:
    """Say which capability that it takes this process does not have (setns(2), ptrace(2))."""
    names = [right.name for right in rights.lacking(rights.held()) if right.name in ENTERING]
    return f": the agent's container needs the capability {' and '.join(names)}" if names else ""


def main(pidfd: int, folder: str, target: str) -> None:
    """Mount *folder* at *target* where the process *pidfd* is. Raises OSError."""
    tree = detached(folder)
    enter(pidfd)
    attach(tree, _mount_point(target))


def detached(folder: str) -> int:
    """Return the descriptor of a mount of *folder*, read-only, that is nowhere yet. Raises OSError."""
    tree = _call(OPEN_TREE, _AT_FDCWD, folder.encode(), _CLONE | _CLOEXEC)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_EXEC, 0, 0, 0)
    _call(MOUNT_SETATTR, tree, b"", _EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
    return tree


def enter(pidfd: int) -> None:
    """Have this process, of one thread, be in the mount namespace of *pidfd*'s. Raises OSError."""
    if _libc.setns(pidfd, CLONE_NEWNS) < 0:
        raise _error()


def attach(tree: int, point: int) -> None:
    """Put the mount *tree* at the folder *point*. Raises OSError."""
    _call(MOVE_MOUNT, tree, b"", point, b"", _FROM_EMPTY | _TO_EMPTY)


def detach(target: str) -> None:
    """Take the mount at *target* away, whoever uses it. Raises OSError."""
    if _libc.umount2(target.encode(), _DETACH | _NOT_A_LINK) < 0:
        raise _error()


def _mount_point(target: str) -> int:
    """Return *target*'s descriptor, making what is missing of it. Raises OSError, also where a
    symbolic link is on the way.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open("/", flags)
    for name in PurePosixPath(target).parts[1:]:
        try:
            below = os.open(name, flags, dir_fd=at)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=at)
            below = os.open(name, flags, dir_fd=at)
        except NotADirectoryError:
            raise OSError(errno.ENOTDIR, f"{name} is no folder, and a symbolic link is not followed", target) from None
        os.close(at)
        at = below
    return at


_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    except OSError as error:
        sys.exit(error.strerror)
