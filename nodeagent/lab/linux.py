"""The system calls for namespaces, mounts and turns of a processor that Python 3.11 lacks, as functions that raise
OSError with what was tried.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_OPEN_TREE = 428
_MOVE_MOUNT = 429
"""System calls: the same numbers on every architecture."""
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""By architecture."""
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""``struct sched_attr``: size, policy, flags, nice, priority, runtime, deadline, period (sched_setattr(2))."""
_AUTOGROUP = Path("/proc/self/autogroup")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace of *fd* (for a pid namespace: the caller's later children do)."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Leave the namespaces of *flags* (CLONE_NEW…) for new ones."""
    _check(_libc.unshare(flags), "unshare")


def step_behind(niceness: int = 19, slice_seconds: float = 0.1) -> None:
    """Have this process, which leads its session, run behind all others of its processor, those of other sessions too
    (``kernel/sched/autogroup.c``): its turns are so long that any other one's ends them (``PREEMPT_SHORT``,
    kernel/sched/features.h, since Linux 6.12). Raises OSError where the kernel has no such call.
    """
    if _AUTOGROUP.exists():
        _AUTOGROUP.write_text(str(niceness))
    runtime = int(slice_seconds * 1e9)
    wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_BATCH, 0, niceness, 0, runtime, 0, 0)
    _check(_libc.syscall(_SCHED_SETATTR.get(os.uname().machine, -1), 0, wanted, 0), "sched_setattr")


def release(fd: int, end: int) -> None:
    """Give the file system back what the open file *fd* has below byte *end*; its length stays (fallocate(2)).
    Raises OSError, as where the file system cannot.
    """
    flags = ctypes.c_int(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE)
    _check(_libc.fallocate64(ctypes.c_int(fd), flags, ctypes.c_int64(0), ctypes.c_int64(end)), "fallocate")


def mount(source: Path | str, target: Path | str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def bind(source: Path | str, target: Path | str) -> None:
    """Bind *source*, with the mounts below it, on *target*."""
    mount(source, target, flags=MS_BIND | MS_REC)


def detached(source: Path) -> int:
    """Return a descriptor of a bind mount of *source*, with the mounts below it, that is nowhere
    yet: for attach(), in any mount namespace (open_tree(2)).
    """
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    descriptor = _libc.syscall(
        _OPEN_TREE, ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(source)), ctypes.c_uint(flags)
    )
    _check(descriptor, f"open_tree {source}")
    return int(descriptor)


def attach(tree: int, target: Path) -> None:
    """Mount what detached() returned on *target* (move_mount(2))."""
    empty = ctypes.c_char_p(b"")
    to = ctypes.c_char_p(os.fsencode(target))
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _check(
        _libc.syscall(_MOVE_MOUNT, ctypes.c_int(tree), empty, ctypes.c_int(_AT_FDCWD), to, flags),
        f"move_mount {target}",
    )


def unmount(target: Path | str) -> None:
    """Detach *target* and the mounts below it, at once and however busy they are."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def pivot_root(root: Path) -> None:
    """Make the mount point *root* the root of this mount namespace and drop the old one."""
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), f"pivot_root {root}")
    unmount(".")
    os.chdir("/")


def die_with_parent(signal: int) -> None:
    """Have the kernel send *signal* to this process when its parent dies."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal)), "prctl")


@contextmanager
def children_in(pid_namespace: int | None) -> Iterator[None]:
    """Within, children of this process start in the pid namespace of that fd; ``None``: in a new
    one, whose first child is pid 1.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if pid_namespace is None:
            unshare(CLONE_NEWPID)
        else:
            setns(pid_namespace, CLONE_NEWPID)
        try:
            yield
        finally:
            setns(own, CLONE_NEWPID)
    finally:
        os.close(own)


def drop_namespace(path: Path) -> None:
    """Take away *path*, at which a namespace was or should have been kept: it ends with its last process."""
    with suppress(OSError):  # not mounted: the crash was before that
        unmount(path)
    path.unlink(missing_ok=True)


@contextmanager
def new_network_namespace() -> Iterator[None]:
    """Within, this thread is in a network namespace of its own, which is kept by whoever opens or
    mounts it meanwhile.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


@contextmanager
def network_namespace(path: Path) -> Iterator[None]:
    """Within, what this thread opens belongs to the network namespace *path*. Nothing else may run
    in the thread meanwhile: no await.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(other, CLONE_NEWNET)
        finally:
            os.close(other)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
