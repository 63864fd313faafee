"""How often each address may ask the daemon's HTTP servers: who asks more often waits, and keeps
nobody else waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SOURCES: Final = 1024
"""Addresses that are remembered; the one that was quiet longest is forgotten first."""
LONGEST_SECONDS: Final = 5.0


class Sources:
    """A leaky bucket an address: *burst* requests at once, then *per_second*."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_second
        self._slack = burst / per_second
        self._clock = clock
        self._due: dict[str, float] = {}

    def wait(self, source: str) -> float:
        """Count a request of *source*; return the seconds after which it may be answered, at most LONGEST_SECONDS."""
        now = self._clock()
        due = min(max(self._due.pop(source, now), now), now + self._slack + LONGEST_SECONDS)
        self._due[source] = due + self._interval
        if len(self._due) > SOURCES:
            del self._due[next(iter(self._due))]
        return max(0.0, due - now - self._slack)
