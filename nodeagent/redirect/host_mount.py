"""Mounts a folder, read-only, into the node's own mount namespace, and takes it away again: for
volumes, which the kubelet wants to find where the node has its pods' folders.

A container that may make such mounts would have to be privileged (mount propagation Bidirectional).
Here a short-lived process, this module run as a program, enters the namespace of the node's first
process instead, as :mod:`nodeagent.redirect.pod_mount` does with pods: it needs hostPID, CAP_SYS_ADMIN,
CAP_SYS_CHROOT and CAP_SYS_PTRACE, and whatever it is that fails is told in its words.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect.pod_mount import attach, detach, detached, enter, is_mounted

FIRST: Final = 1
"""The process whose mount namespace is the node's; only with hostPID."""
PATIENCE_SECONDS: Final = 10.0


class HostMounts:
    """Mounts in the mount namespace of the process *first*."""

    def __init__(self, first: int = FIRST) -> None:
        self._first = first

    def missing(self) -> str:
        """Return what keeps mounts from being made here; empty: nothing is known that does."""
        if self._first in (os.getpid(), os.getppid()):  # the agent's own, by its container's numbering
            return "the node's processes cannot be seen: hostPID is missing"
        try:
            os.stat(f"/proc/{self._first}/ns/mnt")
        except OSError as error:
            return f"/proc/{self._first}/ns/mnt: {error.strerror}: CAP_SYS_PTRACE is missing"
        return ""

    async def mount(self, folder: Path, target: str) -> None:
        """Have *folder* be at *target*, which is made; nothing is done where it is already. Raises KernelError."""
        if not is_mounted(await asyncio.to_thread(self._table), folder, target):
            await self._run("mount", target, str(folder))

    async def unmount(self, target: str) -> None:
        """Have nothing be at *target*, nor *target* itself. Raises KernelError."""
        await self._run("unmount", target)

    def _table(self) -> bytes:
        try:
            return Path(f"/proc/{self._first}/mountinfo").read_bytes()
        except OSError as error:
            raise KernelError(f"/proc/{self._first}/mountinfo: {error.strerror}") from None

    async def _run(self, *arguments: str) -> None:
        if fault := self.missing():  # or it were done where the agent alone sees it, and the kubelet told that it is
            raise KernelError(f"{arguments[1]}: {fault}")
        try:
            pidfd = os.pidfd_open(self._first)
        except OSError as error:
            raise KernelError(f"process {self._first}: {error.strerror}") from None
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(pidfd), *arguments),
                pass_fds=(pidfd,), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(pidfd)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            raise KernelError(f"{arguments[1]}: no answer within {PATIENCE_SECONDS:g} s") from None
        if process.returncode:
            words = said.decode(errors="replace").strip()[-300:]
            raise KernelError(
                f"{arguments[1]}: {words or 'the mount failed'} (CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed)"
            )


def mount(pidfd: int, target: str, folder: str) -> None:
    """Mount *folder* at *target* where the process *pidfd* is. Raises OSError."""
    tree = detached(folder)
    enter(pidfd)
    os.makedirs(target, 0o750, exist_ok=True)
    attach(tree, os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def unmount(pidfd: int, target: str) -> None:
    """Take away what is mounted at *target*, once or more, where the process *pidfd* is, and the
    folder. Raises OSError.
    """
    enter(pidfd)
    try:
        while True:
            detach(target)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # no mount (any more); no folder
            raise
    with suppress(FileNotFoundError):
        os.rmdir(target)


if __name__ == "__main__":
    try:
        if sys.argv[2] == "mount":
            mount(int(sys.argv[1]), sys.argv[3], sys.argv[4])
        else:
            unmount(int(sys.argv[1]), sys.argv[3])
    except OSError as error:
        sys.exit(error.strerror)
