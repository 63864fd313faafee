"""Who calls on a unix socket: the kernel says in which network namespace the calling socket was
made, and which process connected it.

Nothing that the caller says is asked. The namespace's cookie decides: it is a property of the
socket (unix_stream_connect makes the accepted one in the caller's namespace), outlives the process,
and is never used again. The process's cgroup is looked at besides, which keeps out what entered the
pod's network from outside. A process id may be given to another process when its first owner has
died: it is held by a pidfd, and nothing read by its number counts unless the process still exists
afterwards.

Cgroups are compared by what the kernel numbers them by, never by their paths: those are told from
the reader's own cgroup namespace, and an agent without privilege has one of its own, in which other
pods' are ``/../…``. Where no path leads to a process's cgroup from here, the pod's own list of its
processes is asked.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.places import cgroups
from nodeagent.places.place import Place
from nodeagent.redirect.netns import cookie_at, cookie_of

SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h, since Linux 6.5; not in Python's socket module."""


def stranger(connection: socket.socket, pod: Place) -> str:
    """Return why the process that connected *connection*, a unix socket, is none of *pod*'s; empty: it is one."""
    try:
        if cookie_of(connection) != cookie_at(Path(pod.netns), pod.network):
            return "its socket is of another network namespace"
        pid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if pid <= 0:
            return "its process cannot be seen from here: the agent's pod needs hostPID: true"
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
        within = not pod.cgroup or cgroups.holds(Path(pod.cgroup), pid)
        elsewhere = _is_elsewhere(pid, pod)
        gone = _has_ended(pidfd)
    except PermissionError:
        return "its namespaces cannot be looked at: the agent's container needs the capability SYS_PTRACE"
    except OSError as error:
        return f"its process is gone: {error.strerror}"
    if gone:
        return "its process is gone"
    if elsewhere:
        return "its process is in another network namespace"
    return "" if within else "its process is in another cgroup"


def _is_elsewhere(pid: int, pod: Place) -> bool:
    """Say whether the process *pid* is in another network namespace than *pod*. Raises OSError,
    PermissionError where nothing else would tell it from others.
    """
    own = os.stat(pod.netns)
    if pod.network is not None and (own.st_dev, own.st_ino) != pod.network:
        return True
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except PermissionError:
        # Of another user, without SYS_PTRACE: whoever calls has shown the namespace's cookie, and
        # its cgroup is the pod's or not.
        if pod.cgroup:
            return False
        raise
    return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


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


def _has_ended(pidfd: int) -> bool:
    """Say whether the process of *pidfd* has ended (pidfd_open(2)); a signal of 0 would want the right to send one."""
    asked = select.poll()
    asked.register(pidfd, select.POLLIN)
    return bool(asked.poll(0))
