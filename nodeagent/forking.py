"""What a process of the daemon is, and how it is forked and reaped."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.pulse import Pulse

_PR_SET_PDEATHSIG: Final = 1
RoleMain = Callable[[socket.socket, Pulse], None]
"""What a child runs on its end of the channel to control (control: to the supervisor) until it ends."""
Forking = Callable[[Callable[[], None], set[int]], int]
"""Fork a process that runs a function, and of the supervisor's own descriptors has no others than
those given; return its pid. Raises OSError.
"""
CONTROL: Final = "control"
"""The role that the supervisor itself starts; all others control asks for."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a child does."""

    main: RoleMain
    beats: bool = False
    """The data plane works while a loop of such a child turns."""


def fork(child: Callable[[], None], close_inherited: Callable[[], None], signals: Iterable[int]) -> int:
    """Fork a process that runs *child*, after *close_inherited* and with default handlers of
    *signals*, and ends; return its pid. It dies with this process. Raises OSError.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        close_inherited()
        child()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - the process's last frame: whatever it was must be told, then the process ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def reaped() -> dict[int, int]:
    """Return the children that have ended, with their exit codes; a signal's number is below zero."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found[pid] = os.waitstatus_to_exitcode(status)
