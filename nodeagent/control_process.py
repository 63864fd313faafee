"""Control's process as the supervisor holds it: the channel to it, and whether it lives.

Control may be busy, stopped or dead, and the supervisor never waits for it: what it is to be told is
queued. One whose loop does not turn any more is killed, but not one that only gets no processor.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from functools import partial
from typing import Final

from nodeagent.channel import Outbox, Packet, pair, receive
from nodeagent.forking import Forking, RoleMain
from nodeagent.heart import Patience, Progress, stat_of
from nodeagent.log_lines import say
from nodeagent.messages import FromSupervisor
from nodeagent.pulse import Pulse

SILENT_SECONDS: Final = 30.0
"""A control whose loop turned once, and has not for this long, is killed and succeeded: without
one, sockets inside pods run out.
"""
log = logging.getLogger("nodeagent.supervisor")


class ControlProcess:
    """Control, again and again: one process at a time. True while there is one."""

    def __init__(self, main: RoleMain, pulse: Pulse) -> None:
        self._main = main
        self._pulse = pulse
        self._patience = Patience(SILENT_SECONDS, asleep=SILENT_SECONDS)
        self._progress = Progress()
        self._pid = 0
        self._channel: socket.socket
        self._outbox: Outbox[FromSupervisor]
        self.started = 0.0
        """When it was forked last (``time.monotonic``)."""

    def __bool__(self) -> bool:
        return self._pid > 0

    def start(self, fork: Forking) -> None:
        """Fork one with a channel of its own. Raises OSError; nothing is left of it then."""
        self.started = time.monotonic()
        self._pulse.rest()
        ours, theirs = pair()
        self._channel = ours
        self._outbox = Outbox(ours)
        try:
            self._pid = fork(partial(self._main, theirs, self._pulse), {theirs.fileno()})
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def waits_for(self) -> dict[int, int]:
        """Return the descriptor to poll, with its events."""
        if not self._pid:
            return {}
        return {self._channel.fileno(): select.POLLIN | (select.POLLOUT if self._outbox else 0)}

    def flush(self) -> None:
        """Send on what is queued."""
        self._outbox.flush()
        self._check_told()

    def read(self) -> Packet | None:
        """Return what it says next; None: nothing now."""
        try:
            try:
                packet = receive(self._channel)
            except ConnectionResetError:
                # told once of an end that had not read everything (net/unix/af_unix.c); what it sent
                # before follows
                packet = receive(self._channel)
        except OSError:
            return None
        return packet if packet.payload else None

    def tell(self, message: FromSupervisor) -> None:
        """Queue *message*. A control that it cannot be told, for want of descriptors here, would not
        know what it has to: it is killed, and its successor is told everything.
        """
        if not self._pid:
            return
        try:
            self._outbox.send(message)
        except OSError as error:
            say(log, f"control cannot be told {type(message).__name__} and is killed: {error.strerror}")
            self.kill()
        self._check_told()

    def _check_told(self) -> None:
        """As above: who was not told that a worker is gone, say, never fills its slot."""
        if self._outbox.lost:
            self._outbox.lost = False
            say(log, "control cannot be told what it has to know, for want of memory, and is killed")
            self.kill()

    def look_after(self) -> None:
        """Kill one that hangs."""
        felt = not self._pulse.begun() or self._pulse.felt(SILENT_SECONDS)
        if felt:
            self._progress.heard()
        if self._patience.over(time.monotonic(), felt) and self._pid:
            if self._progress.is_starved(stat_of(self._pid)):
                return
            self._pulse.rest()
            say(log, f"control's event loop has not turned for {SILENT_SECONDS:g} s; it is killed")
            self.kill()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self._pid:
            os.kill(self._pid, number)

    def ended(self, dead: dict[int, int]) -> int | None:
        """Return its status if it is among the *dead*, by pid; what it said last can still be read,
        until :meth:`close`.
        """
        if self._pid not in dead:
            return None
        pid, self._pid = self._pid, 0
        return dead[pid]

    def close(self) -> None:
        """Nothing more is read from the one that ended, nor told to it."""
        self._channel.close()
        self._outbox.close()

    def inherit(self) -> list[int]:
        """Return the descriptors that a child must not have. What is left in the child is nobody's."""
        self._outbox.close()
        return [self._channel.detach()] if self._channel.fileno() >= 0 else []
