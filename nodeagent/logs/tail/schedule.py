"""When which file is looked at: what grew lately often, what is idle in turn, so that a thousand idle files cost
what they cost evenly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final

from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.log import FollowedLog

BUSY_SECONDS: Final = 0.1
"""Between two looks at a file that grew lately: what comes in between is one chunk, which is cheaper than many."""
_STEPS: Final = 5
"""Idle files are looked at in so many parts."""
_FULL_LOOK: Final = 4
"""Every so many looks at an idle file its state is read, which costs three times what reading at its end does."""
_COOLING: Final = 10
"""A file is idle after so many looks in a row that found nothing."""


class _Idle:
    __slots__ = ("file", "log", "looks")

    def __init__(self, file: OpenFile, log: FollowedLog) -> None:
        self.file = file
        self.log = log
        self.looks = 0


class Looks:
    """Which files are due."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._idle: deque[_Idle] = deque()
        self._busy: dict[OpenFile, list[int]] = {}
        self._logs: dict[OpenFile, FollowedLog] = {}
        self._looked_busy = -math.inf
        self._looked_idle = -math.inf

    def __len__(self) -> int:
        return len(self._logs)

    def add(self, file: OpenFile, log: FollowedLog) -> None:
        """Have *file* looked at from now on."""
        self._logs[file] = log
        self._busy[file] = [0]

    def remove(self, file: OpenFile) -> None:
        """*file* is closed."""
        del self._logs[file]
        self._busy.pop(file, None)

    def look(self, now: float) -> Iterator[FollowedLog]:
        """Look at all that is due; return the logs of files in which something changed."""
        if now >= self._looked_busy + BUSY_SECONDS:
            self._looked_busy = now
            yield from self._look_busy(now)
        step = self._idle_seconds / _STEPS
        if now >= self._looked_idle + step:
            parts = min((now - self._looked_idle) / self._idle_seconds, 1.0)
            self._looked_idle = now
            yield from self._look_idle(now, math.ceil(len(self._idle) * parts))

    def _look_busy(self, now: float) -> Iterator[FollowedLog]:
        for file, quiet in list(self._busy.items()):
            log = self._logs[file]
            if log.look(file, now):
                quiet[0] = 0
                yield log
                continue
            quiet[0] += 1
            if quiet[0] >= _COOLING:
                del self._busy[file]
                self._idle.append(_Idle(file, log))
            if file.removed is not None:
                yield log

    def _look_idle(self, now: float, count: int) -> Iterator[FollowedLog]:
        """Look at the next *count* idle files, each time whether one grew; every fourth time at all of it."""
        idle = self._idle
        for _ in range(count):
            one = idle.popleft()
            file = one.file
            if file.closed:
                continue
            one.looks += 1
            if one.looks % _FULL_LOOK and not file.grew():
                idle.append(one)
                continue
            if one.log.look(file, now):
                self._busy[file] = [0]
                yield one.log
                continue
            idle.append(one)
            if file.removed is not None:
                yield one.log

    def seconds_left(self, now: float) -> float:
        """Return after how many seconds some file is due."""
        step = self._idle_seconds / _STEPS
        left = self._looked_idle + step - now if self._idle else self._idle_seconds
        if self._busy:
            left = min(left, self._looked_busy + BUSY_SECONDS - now)
        return max(left, 0.0)
