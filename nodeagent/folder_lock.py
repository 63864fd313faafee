"""One daemon for a folder: whoever holds a folder's lock owns what is in it.

The lock is flock(2) on the folder itself, so that nothing is written that could outlive its holder,
and it holds in bpffs too, where no file could. The kernel gives it up with the last copy of its
descriptor, however that process ends; /proc/locks names it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nodeagent.errors import ControlError


@contextmanager
def held(folder: Path, setting: str) -> Iterator[int]:
    """Hold the lock of *folder* and yield the close-on-exec descriptor that holds it. One that is
    missing is made, and removed again if it stays empty.

    *setting*: what in agent.yaml names the folder, for messages. Raises ControlError when another
    process holds it, or it cannot be had.
    """
    missing = not folder.exists()
    descriptor = _lock(folder, setting)
    try:
        yield descriptor
    finally:
        if missing:
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


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
            raise ControlError(
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
