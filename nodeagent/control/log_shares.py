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
"""At once, however little each takes of a processor: those that wait for a disk take none."""


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
    """Tells when others of control are to have their turn, and how much work was done in all."""

    def __init__(self, work: Callable[[], float]) -> None:
        """*work* tells what was taken of a processor, in seconds."""
        self.spent = 0.0
        """Seconds, of the slices that are over."""
        self._work = work
        self.begin()

    def is_over(self) -> bool:
        """Say, after each step, whether this slice was long enough; then it is counted, and :meth:`begin` begins the
        next.
        """
        self._steps += 1
        passed = self._work() - self._begun
        if passed < SLICE_SECONDS and self._steps < SLICE_STEPS:
            return False
        self.spent += passed
        return True

    def begin(self) -> None:
        """The next slice begins."""
        self._begun = self._work()
        self._steps = 0

    def end(self) -> float:
        """Return the seconds that were spent, this slice included."""
        return self.spent + self._work() - self._begun
