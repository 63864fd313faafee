"""Event loops that stand still while their processes go on: a process's first thread, in which its loop
runs, is stopped by ptrace(2) where it waits for what comes, so that it holds no lock of Python's, and
all other threads run. Only the thread that holds it can let it go.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import time
from contextlib import suppress
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
EVENT_STOP = 128
"""PTRACE_EVENT_STOP: what stopped it is INTERRUPT."""
ANY_THREAD = 0x40000000
"""__WALL"""
WAITING = {"x86_64": (232, 281, 441), "aarch64": (22, 441)}[platform.machine()]
"""epoll_wait, epoll_pwait, epoll_pwait2"""
SOON = 1.0
PAUSE = 0.005
"""In seconds: for how long a loop is tried to be held, and between two attempts."""
_libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, ctypes.c_void_p(data)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _held(pid: int) -> bool:
    """Try once; say whether the loop of *pid* stands still now."""
    _ptrace(SEIZE, pid)
    _ptrace(INTERRUPT, pid)
    _, status = os.waitpid(pid, ANY_THREAD)
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    if status >> 16 == EVENT_STOP and os.WSTOPSIG(status) == signal.SIGTRAP and number in map(str, WAITING):
        return True
    _ptrace(DETACH, pid, 0 if status >> 16 else os.WSTOPSIG(status))  # a signal that came first goes its way
    return False


def hold(pid: int) -> None:
    """Have the loop of the process *pid* stand still, if there is a moment soon in which it waits for what comes."""
    until = time.monotonic() + SOON
    with suppress(ProcessLookupError):
        while time.monotonic() < until and not _held(pid):
            time.sleep(PAUSE)


def let_go(pid: int) -> None:
    """Let the loop of the process *pid* go on; nothing is done where it is not held, or has ended."""
    with suppress(ProcessLookupError):
        _ptrace(DETACH, pid)
