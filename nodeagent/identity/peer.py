"""Who calls on a unix socket: the kernel says in which network namespace the calling socket was
made, and which process connected it.

Nothing that the caller says is asked. The namespace's cookie decides: it is a property of the
socket (unix_stream_connect makes the accepted one in the caller's namespace), outlives the process,
and is never used again. The process's cgroup is looked at besides, which keeps out what entered the
pod's network from outside. A process id may be given to another process when its first owner has
died: it is held by a pidfd, and nothing read by its number counts unless the process still exists
afterwards.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.places.place import Place
from nodeagent.redirect.netns import cookie_at, cookie_of

SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h, since Linux 6.5; not in Python's socket module."""


def stranger(connection: socket.socket, pod: Place) -> str:
    """Return why the process that connected *connection*, a unix socket, is none of *pod*'s; empty: it is one."""
    try:
        if cookie_of(connection) != cookie_at(Path(pod.netns)):
            return "its socket is of another network namespace"
        pid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if pid <= 0:
            return "its process cannot be seen from here"
        pidfd = _pidfd(connection, pid)
    except KernelError as error:
        return f"the pod has no network any more: {error}"
    except OSError as error:
        return f"its process is gone: {error.strerror}"
    try:
        return outsider(pid, pod, pidfd)
    finally:
        os.close(pidfd)


def outsider(pid: int, pod: Place, pidfd: int) -> str:
    """Return why the process *pid*, held by *pidfd*, is none of *pod*'s; empty: it is one."""
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
        own = os.stat(pod.netns)
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        signal.pidfd_send_signal(pidfd, 0)
    except OSError as error:
        return f"its process is gone: {error.strerror}"
    if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
        return "its process is in another network namespace"
    if pod.cgroup and not _is_within(lines, pod.cgroup):
        return "its process is in another cgroup"
    return ""


def _pidfd(connection: socket.socket, pid: int) -> int:
    """Return a pidfd of the process that connected. Raises OSError."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        # Before Linux 6.5. Were the number another process's by now, the cookie has still told
        # whose the socket is.
        return os.pidfd_open(pid)
    os.set_inheritable(pidfd, False)
    return pidfd


def _is_within(lines: list[str], cgroup: str) -> bool:
    """Say whether the *lines* of a ``/proc/<pid>/cgroup`` name *cgroup* or one below it in the
    cgroup2 hierarchy (cgroups(7)).
    """
    within = next((line[3:] for line in lines if line.startswith("0::")), "")
    path = PurePosixPath(f"{_hierarchy()}{within}")
    return bool(within) and PurePosixPath(cgroup) in (path, *path.parents)


@cache
def _hierarchy() -> str:
    """Return where cgroup2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return before.split()[4]
    return "/sys/fs/cgroup"
