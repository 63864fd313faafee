"""Busy polling: a worker whose next event is likely to come at once looks for it, again and again,
instead of sleeping until it is woken.

Going to sleep and being woken costs some µs each, more on a virtual machine, and a request on its
way pays for it twice. As a halted processor is polled for (KVM's halt polling), only events that
have lately come soon are waited for in this way, so what it can cost is processor time of a worker
that is busy anyway, which is offered to others at each look (sched_yield(2)).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from time import perf_counter
from typing import Final

_WEIGHT: Final = 1 / 32
"""Of one event in the running share of those that came soon: a few dozen decide."""
_LIKELY: Final = 0.8
_MANY: Final = 4
"""Events with no vain look between them: this worker hardly sleeps anyway, and the processors are
wanted by those that ask it.
"""
_MANY_SECONDS: Final = 0.05
"""How long it then goes without."""


class BusyPoll:
    """One worker's. *seconds*: how soon is soon, and how long it looks for an event before it
    sleeps after all; 0: never.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._clock = clock
        self._soon = 0.0
        self._last = self._not_before = self._reported = clock()
        self._events = 0
        self._seen = 0
        self._seen_in_vain = 0
        self._idle_since = 0.0
        self._spent = 0.0
        self.polling = False

    def event(self, now: float) -> None:
        """A request or an answer came, or bytes of a TCP connection, at *now* by the clock."""
        gap = now - self._last
        self._last = now
        self._events += 1
        self._soon += ((1.0 if gap < self._seconds else 0.0) - self._soon) * _WEIGHT
        if self._soon > _LIKELY and not self.polling and now > self._not_before:
            self.polling = True
            self._seen_in_vain = self._events
            self._loop.call_soon(self._look)

    def share(self) -> float:
        """Return the part of the time since the last call that was spent looking in vain, 0 to 1."""
        now = self._clock()
        share = self._spent / max(now - self._reported, 1e-9)
        self._spent = 0.0
        self._reported = now
        return share

    def _look(self) -> None:
        """One turn of the event loop: a callback that is due keeps it from sleeping."""
        events = self._events
        if events != self._seen:
            self._seen = events
            self._idle_since = 0.0
            if events - self._seen_in_vain >= _MANY:
                self.polling = False
                self._not_before = self._last + _MANY_SECONDS
                return
        else:
            now = self._clock()
            if self._idle_since:
                self._spent += now - self._idle_since
            self._idle_since = now
            self._seen_in_vain = events
            if now - self._last > self._seconds:
                self._idle_since = 0.0
                self.polling = False
                return
            os.sched_yield()
        self._loop.call_soon(self._look)
