"""The processes that control asked for: workers and the collector, as the supervisor holds them.

Control asks by role and number (``messages.Fork``) with both ends of a channel; what cannot be
forked, because the machine has no room, waits and is tried again. A control that dies leaves its
ends here, for its successor (``messages.Orphan``).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.channel import close_all
from nodeagent.errors import shown
from nodeagent.forking import CONTROL, Forking, Role
from nodeagent.log_lines import say
from nodeagent.messages import Exited, Fork, Forked, Orphan
from nodeagent.pulse import Pulse, Pulses
from nodeagent.wire import FileDescriptor, MessageError

AGAIN_SECONDS: Final = 1.0
"""After this time a process that could not be forked is tried again."""
LATELY_SECONDS: Final = 5.0
"""Whose loop has turned within this time carries connections."""
log = logging.getLogger("nodeagent.supervisor")


@dataclass(frozen=True, slots=True)
class _Child:
    role: str
    pulse: Pulse
    end: FileDescriptor
    """Control's end of its channel: a control that dies leaves it to its successor."""


class ChildProcesses:
    """All processes but control. True while there is one."""

    def __init__(self, roles: Mapping[str, Role], pulses: Pulses, fork: Forking) -> None:
        self._roles = roles
        self._pulses = pulses
        self._fork = fork
        self._by_pid: dict[int, _Child] = {}
        self._asked: list[Fork] = []
        """Not forked yet."""
        self.fork_at = 0.0
        """When what could not be forked is tried again; 0: nothing waits."""
        self._on_trial: set[int] | None = None
        """Those of a control that is not up yet, by pid; None: it is."""

    def __len__(self) -> int:
        return len(self._by_pid)

    def try_control(self) -> None:
        """A control is started: what it asks for from now on is on trial with it, until :meth:`trust_control`."""
        self._on_trial = set()

    def trust_control(self) -> None:
        """Control is up."""
        self._on_trial = None

    def end_tried(self) -> None:
        """Control is dead. One that never came up leaves no more of those that carry connections, where others do:
        if the next ones do not come up either, there would be more and more of them.
        """
        tried, self._on_trial = self._on_trial or set(), None
        if any(child.pulse.felt(LATELY_SECONDS) for pid, child in self._carrying() if pid not in tried):
            for pid in tried & dict(self._carrying()).keys():
                self.signal(pid, signal.SIGUSR1)

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(self._by_pid)

    def ask(self, asked: Fork) -> None:
        """Take in that control asks for a process; :meth:`forked` forks it. Raises MessageError: no such role."""
        if asked.role == CONTROL or asked.role not in self._roles:
            close_all((asked.theirs, asked.controls))
            known = ", ".join(sorted(self._roles.keys() - {CONTROL}))
            raise MessageError(f"Fork: no role is called {shown(asked.role)}; there are: {known}")
        self._asked.append(asked)

    def forked(self) -> Iterator[Forked]:
        """Fork what was asked for, and yield what control is to be told of each."""
        self.fork_at = 0.0
        while self._asked:
            asked = self._asked[0]
            pulse = self._pulses.claim()
            try:
                pid = self._forked(self._roles[asked.role], asked, pulse)
            except OSError as error:
                say(log, f"a {asked.role} cannot be forked: {error.strerror}")
                self._pulses.free(pulse)
                self.fork_at = time.monotonic() + AGAIN_SECONDS
                return
            del self._asked[0]
            os.close(asked.theirs)
            self._by_pid[pid] = _Child(asked.role, pulse, asked.controls)
            if self._on_trial is not None:
                self._on_trial.add(pid)
            yield Forked(asked.role, asked.number, pid)

    def _forked(self, role: Role, asked: Fork, pulse: Pulse) -> int:
        """Return the pid of a child with a copy of its end. Raises OSError."""
        with socket.socket(fileno=os.dup(asked.theirs)) as end:
            return self._fork(partial(role.main, end, pulse), {end.fileno()})

    def forget_asked(self) -> None:
        """What a control that is gone asked for, its successor asks for anew, by numbers of its own."""
        for asked in self._asked:
            close_all((asked.theirs, asked.controls))
        self._asked.clear()
        self.fork_at = 0.0

    def orphans(self) -> list[Orphan]:
        """Return what a new control is told of those that are there already."""
        return [Orphan(child.role, pid, child.end) for pid, child in self._by_pid.items()]

    def died(self, pid: int, code: int) -> Exited:
        """Forget the child *pid*, which ended with the status *code*; return what control is told of it."""
        child = self._by_pid.pop(pid)
        if self._on_trial is not None:
            self._on_trial.discard(pid)
        self._pulses.free(child.pulse)
        os.close(child.end)
        return Exited(child.role, pid, code)

    def felt(self, seconds: float) -> bool:
        """Say whether a loop of those that carry connections has turned within *seconds*."""
        return any(child.pulse.felt(seconds) for _, child in self._carrying())

    def _carrying(self) -> list[tuple[int, _Child]]:
        """Return those that carry connections, by pid."""
        return [(pid, child) for pid, child in self._by_pid.items() if self._roles[child.role].beats]

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to *pid*, if it is one of these; who may not is no worse off than before: a worker
        is another user's.
        """
        if pid not in self._by_pid:
            return
        try:
            os.kill(pid, number)
        except PermissionError:
            say(log, f"process {pid} cannot be told to end: the daemon's container allows no CAP_KILL")

    def end(self) -> None:
        """Tell all to end in order."""
        for pid in self._by_pid:
            self.signal(pid, signal.SIGUSR1)

    def kill(self) -> None:
        for pid in self._by_pid:
            self.signal(pid, signal.SIGKILL)

    def inherit(self) -> list[int]:
        """Return the descriptors that a child must not have: above all control's end of another's
        channel. What is left in the child is nobody's.
        """
        found = [child.end for child in self._by_pid.values()]
        for asked in self._asked:
            found += (asked.theirs, asked.controls)
        self._by_pid.clear()
        self._asked.clear()
        return [*found]
