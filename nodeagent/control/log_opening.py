"""Opens files beneath a folder for somebody without rights: whatever a pod puts there, nothing outside
of the folder is opened, nothing blocks, and nothing but a regular file is read.

A pod owns what is below its volumes, and changes it while it is looked at. So a path is never looked
up twice: openat2(2) resolves it beneath the folder's descriptor, without symbolic links and without
leaving the file system, into a descriptor that can do nothing yet (O_PATH). What that is, is known
before it is opened: opening a device or a FIFO may block or do something.
"""

from __future__ import annotations

import ctypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError

_OPENAT2: Final = 437
"""On every architecture (Linux 5.6)."""
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_STRICT: Final = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class UnfitError(KernelError):
    """What is there is no regular file of the folder; it says what it is."""


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


@dataclass(frozen=True, slots=True)
class Opened:
    """A regular file, open for reading."""

    descriptor: int
    device: int
    inode: int
    size: int


def open_folder(path: Path) -> int:
    """Return a descriptor of the folder *path*, one of the kubelet's own. Raises OSError."""
    return os.open(path, FOLDER | os.O_NOFOLLOW)


def open_folder_beneath(folder: int, path: str) -> int:
    """Return a descriptor of the folder *path* beneath *folder*. Raises OSError."""
    return _openat2(folder, path, FOLDER, _STRICT | _RESOLVE_NO_XDEV)


def open_file_beneath(folder: int, name: str, links: int = 0) -> Opened:
    """Open the regular file *name* beneath *folder* for reading. Raises UnfitError for anything else, and for one that
    has more than so many *links* (0: any number): another name of it may be in another pod's folder, or the node's.
    Raises OSError where it cannot be opened: it may be gone.
    """
    handle = _openat2(folder, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, _STRICT | _RESOLVE_NO_XDEV)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnfitError(f"it is {_kind(status.st_mode)}, and only regular files are read")
        if 0 < links < status.st_nlink:
            raise UnfitError(f"it is a hard link: {status.st_nlink - links} names of it are not in this folder")
        descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(handle)
    return Opened(descriptor, status.st_dev, status.st_ino, status.st_size)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    """Raises OSError."""
    how = _How(flags, 0, resolve)
    descriptor = _libc.syscall(_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(descriptor)
