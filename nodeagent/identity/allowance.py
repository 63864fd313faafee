"""How much a caller may cost: a bucket that fills with time."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """*burst* at once, then *per_second*."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._left = burst
        self._at = clock()

    def take(self, amount: float = 1) -> bool:
        """Take *amount*; False: so much is not there, and all that was is gone."""
        now = self._clock()
        left = min(self._burst, self._left + (now - self._at) * self._per_second) - amount
        self._left = max(0.0, left)
        self._at = now
        return left >= 0
