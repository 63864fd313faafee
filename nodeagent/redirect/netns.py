"""Network namespaces of pods: told apart by cookie, entered for as long as it takes to make a
socket.

Written here, three system calls: pyroute2's netns would bring the whole library into control (8.6
MB), and makes namespaces in a child process (18 ms) to keep them by name.

setns(2) moves only the calling thread, and nothing is awaited inside, so no other code of the
process ever runs there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.redirect import syscall

SO_NETNS_COOKIE: Final = 71
"""asm-generic/socket.h; not in Python's socket module."""
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


def cookie_of(of: socket.socket) -> int:
    """Return the cookie of the network namespace that *of* was made in. Raises OSError."""
    return int(struct.unpack("=Q", of.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def own_cookie() -> int:
    """Return the cookie of the calling thread's network namespace: 64 bits that the kernel never uses again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return cookie_of(probe)


def create() -> int:
    """Make a network namespace without a name, with lo up; return its descriptor, which keeps it. Raises OSError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall.unshare()
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _raise_loopback()
        finally:
            syscall.setns(home)
    finally:
        os.close(home)
    return made


def _raise_loopback() -> None:
    """SIOCSIFFLAGS with IFF_UP (netdevice(7)): no ip(8) needed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", _IFF_UP))


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body (no await in it!) in the network namespace *fd*. Raises OSError when it cannot be entered."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall.setns(fd)
        try:
            yield
        finally:
            syscall.setns(home)
    finally:
        os.close(home)


@dataclass(frozen=True, slots=True)
class PodNetns:
    """An open network namespace; whoever opened it closes it. Holding it keeps the namespace."""

    path: Path
    fd: int
    cookie: int
    inode: int

    @classmethod
    def open(cls, path: Path, network: tuple[int, int] | None = None) -> PodNetns:
        """Open the namespace file *path*, of device and number *network* where these are known. Raises KernelError,
        also where it is another one's.
        """
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(fd)
            if network is not None and (found.st_dev, found.st_ino) != network:
                os.close(fd)
                raise KernelError(
                    f"{path}: it is another network namespace by now, which is not entered: is the pod still there?"
                )
            with inside(fd):
                cookie = own_cookie()
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise KernelError(
                f"{path}: the network namespace cannot be entered: {error.strerror}; is the pod still there?"
            ) from None
        return cls(path, fd, cookie, found.st_ino)

    def close(self) -> None:
        os.close(self.fd)


def cookie_at(path: Path, network: tuple[int, int] | None = None) -> int:
    """Return the cookie of the network namespace whose file is *path*; *network* as for ``PodNetns.open``.
    Raises KernelError.
    """
    with contextlib.closing(PodNetns.open(path, network)) as namespace:
        return namespace.cookie
