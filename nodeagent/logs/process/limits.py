"""How many bytes a pod may log a second; time is injected, pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class ByteRate:
    """A token bucket in bytes: all logs of a pod share one."""

    __slots__ = ("__weakref__", "_burst", "_last", "_left", "_rate")

    def __init__(self, bytes_per_second: int, burst_seconds: float = 5.0) -> None:
        """*burst_seconds*: for how long nothing may be logged to have as much more at once; a record larger than
        that passes a full bucket alone.
        """
        self._rate = bytes_per_second
        self._burst = bytes_per_second * burst_seconds
        self._left = self._burst
        self._last: float | None = None

    def take(self, sizes: Sequence[int], now: float) -> int:
        """Return how many of the first of *sizes* (bytes) there is room for at Unix time *now* (seconds)."""
        last = now if self._last is None else self._last
        self._last = now
        # A clock that was set back gives nothing; one that was set forward gives a burst.
        self._left = min(self._burst, self._left + max(0.0, now - last) * self._rate)
        sums = list(accumulate(sizes))
        taken = bisect_right(sums, self._left)
        if not taken and sums and self._left >= self._burst:
            taken = 1
        if taken:
            self._left = max(0.0, self._left - sums[taken - 1])
        return taken
