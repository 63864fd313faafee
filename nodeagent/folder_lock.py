"""One daemon for a folder: whoever holds a folder's lock owns what is in it.

The lock is flock(2) on the folder itself, so that nothing is written that could outlive its holder,
and it holds in bpffs too, where no file could. The kernel gives it up with the last copy of its
descriptor, however that process ends; /proc/locks names who took it.

A daemon that takes the node over is given copies of the descriptors (hand_over.py): the lock is
held without a gap, and whoever lives longer holds it. Nobody else gets in between.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nodeagent.errors import ControlError


class InUseError(ControlError):
    """Another process holds the folder."""


class FolderLock:
    """A lock that this process holds, maybe together with another one."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        """*descriptor*, close-on-exec, is the lock's from now on."""
        self.folder = folder
        self.descriptor = descriptor

    def close(self) -> None:
        """Hold it no more. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


@contextmanager
def held(folder: Path, setting: str) -> Iterator[FolderLock]:
    """Hold the lock of *folder*. One that is missing is made, and removed again if it stays empty.

    *setting*: what in agent.yaml names the folder, for messages. Raises InUseError when another
    process holds it, ControlError when it cannot be had.
    """
    missing = not folder.exists()
    lock = FolderLock(folder, _lock(folder, setting))
    try:
        yield lock
    finally:
        if missing and lock.descriptor >= 0:
            with suppress(OSError):
                folder.rmdir()
        lock.close()


def is_free(folder: Path) -> bool:
    """Say whether nobody holds the lock of *folder*; one that is not there, or cannot be read, is free."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def shared(folder: Path, setting: str, descriptor: int) -> FolderLock:
    """Return the lock of *folder* that another daemon holds and shares by *descriptor*, which is its own.

    Raises ControlError where that is another folder's: two daemons would work on one half each.
    """
    try:
        same = os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except OSError:
        same = False
    if same:
        return FolderLock(folder, descriptor)
    os.close(descriptor)
    raise ControlError(
        f"{setting} {folder}: the daemon that runs on this node has another folder: give both the same "
        "redirect.pinDirectory and runtimeDirectory, or end that one first"
    )


def _lock(folder: Path, setting: str) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ControlError(
                f"{setting} {folder}: cannot be made: {error.strerror}; the daemon runs as root"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise ControlError(
                    f"{setting} {folder}: cannot be locked: {error.strerror}; a folder of this machine's own is "
                    "expected"
                ) from None
            holder = owner(folder)
            raise InUseError(
                f"{setting} {folder} is in use by {f'the daemon with pid {holder}' if holder else 'another daemon'}: "
                f"end that one first{f' (kill {holder})' if holder else ''}, or give this one other folders "
                "(redirect.pinDirectory and runtimeDirectory)"
            ) from None
        with suppress(FileNotFoundError):  # another daemon's end took the folder in between
            if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def owner(folder: Path) -> int | None:
    """Return the pid of the process that took the lock of *folder*, by proc_locks(5); None when
    nobody holds it, or none of this pid namespace does.
    """
    try:
        status = folder.stat()
    except OSError:
        return None
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        if match := re.fullmatch(rf"\d+: FLOCK +ADVISORY +WRITE (\d+) {inode} .*", line):
            return int(match[1]) or None
    return None
