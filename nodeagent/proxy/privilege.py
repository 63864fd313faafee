"""What a worker gives up before the first byte from a pod: user, groups, capabilities, and the way
back to any of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from typing import Final

from nodeagent.errors import KernelError

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_LAST_CAPABILITY: Final = 63


def hide() -> None:
    """Keep memory, descriptors and dumps of this process from others of its user: pods' keys are in
    it.

    What the process reads of itself (/proc/self/fd) stays open to it. Root, with CAP_SYS_PTRACE,
    sees everything as before.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop(parent: int, user: int) -> None:
    """Become *user*, and the group of that number, for good; a no-op for who is not root. *parent* is the pid whose
    death shall end this process.

    The kernel counts by user: epoll's watches (beyond ``fs.epoll.max_user_watches`` libuv aborts), inotify's,
    pages of pipes, pending signals, processes, locked memory, a file system's quota. What a pod's process of the
    same user uses up, this one has not: *user* is one that no pod can be, for who carries traffic.

    Raises KernelError when the kernel refuses: a worker that kept privileges must not carry
    traffic.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL beyond those that this kernel has
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # drops every capability (capabilities(7))
    except OSError as error:
        likely = (
            "this user namespace has none of that number (/proc/self/uid_map): set proxy.user"
            if error.errno == errno.EINVAL
            else "does the daemon's container allow CAP_SETUID and CAP_SETGID?"
        )
        raise KernelError(f"this process cannot become user {user}: {error.strerror}; {likely}") from None
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user clears it
    hide()
    if os.getppid() != parent:
        raise KernelError("the supervisor died while this worker started")
