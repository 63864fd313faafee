"""How many files each pod may have open, and how long a look for them may keep others of control waiting. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from nodeagent.logs.settings import LogLimits

KEPT: Final = 16
"""Files that every followed pod may have open, whatever others have; fewer where there are too few for all."""
MOST: Final = 3 / 4
"""Of what others neither have nor are kept, that one pod may have: pods that come later find some."""
SLICE_SECONDS: Final = 0.004
"""Of a processor, at once."""
SLICE_STEPS: Final = 500
"""At once, however little each takes."""
BLOCKED_SECONDS: Final = 0.05
"""At once, with what waits for a disk: it takes nothing of a processor, and others of control wait with it."""


def room_of(limits: LogLimits, open_files: int, others: Iterable[int], gone: int = 0) -> int:
    """Return how many more files a pod may have open that has so many *open_files*; *others*: how many each other
    followed pod has; *gone*: how many are open of pods that are gone.

    What is open stays open until it is gone, so nothing can be taken back of a pod that has thousands: what the
    others will want has to be kept from the beginning.
    """
    theirs = list(others)
    kept = min(KEPT, limits.files // (len(theirs) + 1))
    left = limits.files - gone - sum(max(each, kept) for each in theirs)
    most = min(left, limits.files_per_pod, max(kept, math.ceil(left * MOST)))
    return max(0, most - open_files)


class TimeSlice:
    """Tells when others of control are to have their turn, and how long it took in all what was done: of a processor
    and of disks, but not what passed until a processor was free.
    """

    def __init__(self, work: Callable[[], float], clock: Callable[[], float], queued: Callable[[], float]) -> None:
        """*work* tells what was taken of a processor, *queued* for how long one was waited for, and *clock* the time;
        all in seconds.
        """
        self.spent = 0.0
        """Seconds, of the slices that are over."""
        self._work = work
        self._clock = clock
        self._queued = queued
        self.begin()

    def is_over(self) -> bool:
        """Say, after each step, whether this slice was long enough; then it is counted, and :meth:`begin` begins the
        next.
        """
        self._steps += 1
        if self._worked() < SLICE_SECONDS and self._steps < SLICE_STEPS and not self._was_blocked():
            return False
        self.spent += self._taken()
        return True

    def begin(self) -> None:
        """The next slice begins."""
        self._work_begun = self._work()
        self._begun = self._clock()
        self._queued_begun = self._queued()
        self._steps = 0

    def end(self) -> float:
        """Return the seconds that were spent, this slice included."""
        return self.spent + self._taken()

    def _worked(self) -> float:
        return self._work() - self._work_begun

    def _passed(self) -> float:
        return self._clock() - self._begun

    def _taken(self) -> float:
        return max(self._worked(), self._passed() - (self._queued() - self._queued_begun))

    def _was_blocked(self) -> bool:
        # What was queued is a file to be read: not after each step.
        return self._passed() >= BLOCKED_SECONDS and self._taken() >= BLOCKED_SECONDS
