"""What the service manager is told of the daemon: sd_notify(3), a datagram a message, and whoever waits for a
daemon that it began in the background (``nodeagent run --replace``).

systemd hears READY=1 with the first beat, so that a unit is active when pods are carried, and
WATCHDOG=1 with those that follow: a daemon whose supervisor hangs, or of which no worker's loop
turns, is ended and started anew. MAINPID= says who the unit's process is after a hand-over within
one unit: the one before it drains in the same cgroup, and ends by itself.

Nothing here waits, and nobody who does not listen matters.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG_SECONDS: Final = 5.0
"""Between two signs of life. A successor is not told WATCHDOG_USEC, which is for the unit's first process:
the unit's WatchdogSec is a multiple of this.
"""


class ServiceManager:
    """Who waits for the daemon; nobody by default."""

    def __init__(self, address: str = "", waiting: int = -1) -> None:
        """*address*: of systemd's socket, ``@`` for an abstract one; empty: there is none. *waiting*:
        a pipe, which is given a byte when the daemon carries pods; it is this object's from now on.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.waiting = waiting
        self._next = 0.0

    @classmethod
    def of(cls, environment: MutableMapping[str, str], waiting: int = -1) -> ServiceManager:
        """Return the manager that *environment* names, and take it out: it is no child's to talk to."""
        return cls(environment.pop(NOTIFY_SOCKET, ""), waiting)

    def beaten(self, now: float) -> None:
        """The data plane works, at *now* by the monotonic clock."""
        if not self._next:
            self._tell(f"MAINPID={os.getpid()}\nREADY=1\nSTATUS=Carrying pods")
            self._release()
        elif now < self._next:
            return
        self._next = now + WATCHDOG_SECONDS
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon ends, and no other one has taken over from it."""
        self._tell("STOPPING=1\nSTATUS=Stopping")

    def _release(self) -> None:
        if self.waiting < 0:
            return
        try:
            os.write(self.waiting, b"\n")
        except OSError:
            pass  # it has given up waiting
        os.close(self.waiting)
        self.waiting = -1

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as end:
                end.sendto(message.encode(), self._address)
        except OSError:
            pass  # its queue is full, or it is gone: the next sign of life may be heard
