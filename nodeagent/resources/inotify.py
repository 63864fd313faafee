"""inotify(7) for asyncio: which files of watched folders have changed.

Written here: watchfiles would add 1 MB and a thread of its own, and tells what has changed every 50
ms; this is a descriptor in the loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError

CREATE = 0x100
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
DELETE = 0x200
IGNORED = 0x8000
OVERFLOW = 0x4000
READS: Final = 128
"""Of 64 KiB: more than the kernel's queue has (fs.inotify.max_queued_events, by default)."""
_ONLYDIR: Final = 0x01000000
_EVENT: Final = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


def open_instance() -> int:
    """Return a non-blocking inotify descriptor. Raises KernelError."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise KernelError(f"inotify: {os.strerror(code)}: raise fs.inotify.max_user_instances")
    return int(descriptor)


def watch(descriptor: int, path: Path, mask: int) -> int:
    """Watch the folder *path* and return the watch's number. Raises FileNotFoundError when there is
    no such folder, KernelError.
    """
    number = _libc.inotify_add_watch(descriptor, os.fsencode(path), mask | _ONLYDIR)
    if number < 0:
        code = ctypes.get_errno()
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise FileNotFoundError(code, os.strerror(code), str(path))
        hint = ": raise fs.inotify.max_user_watches" if code == errno.ENOSPC else ""
        raise KernelError(f"{path}: cannot be watched: {os.strerror(code)}{hint}")
    return int(number)


def unwatch(descriptor: int, number: int) -> None:
    """End the watch *number*."""
    _libc.inotify_rm_watch(descriptor, number)


def events(descriptor: int, reads: int = READS) -> list[tuple[int, int, str]]:
    """Return the waiting events as (watch, mask, file name), of at most so many *reads*: the descriptor stays readable
    while there are more, and somebody may make them as fast as they are read.
    """
    found: list[tuple[int, int, str]] = []
    for _ in range(reads):
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            break
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            found.append((number, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
    return found
