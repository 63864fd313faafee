"""Pods that a sink limits, each with a way of its own beside all others': a lane that asks, waits, pauses and goes to
disk for them alone. So nobody waits for a pod that is over a limit of its own, and it loses nothing.

A pod has a lane from when the sink took nothing of it. Once another one begins to need one, it has it no more if all of
it is delivered, and nothing was refused there for QUIET_SECONDS. What an earlier process had on disk for a pod goes on
there. Of more than MAX_LANES such pods some share one, and wait for each other.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from nodeagent.log_lines import SparingLog
from nodeagent.logs.delivery.counts import PodName, SinkCounts

MAX_LANES: Final = 64
QUIET_SECONDS: Final = 600.0
"""How long a pod goes by itself after the sink refused anything of it: the next time is likely."""
TOLD: Final = 3
"""Lanes, and pods of one, that are told of by name."""
log = logging.getLogger("nodeagent.logs")


class SideLane(Protocol):
    """What is asked of one here."""

    held: int
    """Bytes in memory of what is not settled."""

    @property
    def unsaved(self) -> int:
        """Bytes in memory of what is not on disk besides."""

    @property
    def refused_at(self) -> float:
        """When the sink last took nothing."""

    def open(self) -> Iterable[PodName]:
        """Find what an earlier process left on disk; return whose it is."""

    def troubles(self) -> list[str]:
        """Return, in words, what keeps records from the sink, or from the disk."""


Lane = TypeVar("Lane", bound=SideLane)


class SideLanes(Generic[Lane]):
    """One sink's."""

    def __init__(self, sink: str, counts: SinkCounts, make: Callable[[int], Lane]) -> None:
        """*make* returns the lane of a number."""
        self._sink = sink
        self._counts = counts
        self._make = make
        self._lanes: dict[int, Lane] = {}
        self._of: dict[PodName, int] = {}
        self._sparing = SparingLog(log)

    def open(self, number: int) -> None:
        """Have the lane of that *number*, for the pods of which an earlier process left records there, if it did."""
        lane = self._lanes[number] = self._make(number)
        self._of |= dict.fromkeys(lane.open(), number)

    def of(self, pod: PodName) -> Lane | None:
        """Return the lane of *pod*, if it has one of its own."""
        number = self._of.get(pod)
        return None if number is None else self._lanes[number]

    def take(self, pod: PodName, why: str, now: float) -> Lane:
        """Return a lane for *pod*, of which the sink takes nothing, and says *why*; lanes of others that are not needed
        any more are free *now*.
        """
        self._sweep(now - QUIET_SECONDS)
        if pod not in self._of:
            name = "/".join(pod)
            self._sparing.tell(name, f"sink {self._sink} takes nothing of pod {name}, which goes by itself: {why}")
            pods = Counter(self._of.values())
            number = self._of[pod] = min(range(MAX_LANES), key=pods.__getitem__)
            if number not in self._lanes:
                self.open(number)
        return self._lanes[self._of[pod]]

    def _sweep(self, since: float) -> None:
        """Let pods go with all others again that have nothing left, and to whose lane, unless others share it, nothing
        was refused after the time *since*.
        """
        pods = Counter(self._of.values())
        self._of = {
            pod: number
            for pod, number in self._of.items()
            if self._counts.waits(pod) or (pods[number] == 1 and self._lanes[number].refused_at > since)
        }

    @property
    def lanes(self) -> list[Lane]:
        """All that there are."""
        return list(self._lanes.values())

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return sum(each.held for each in self._lanes.values())

    @property
    def unsaved(self) -> int:
        """Bytes in memory of what is not on disk besides."""
        return sum(each.unsaved for each in self._lanes.values())

    def troubles(self) -> list[str]:
        """Return, in words, what pods wait for: those of some lanes, and how many others do."""
        pods: dict[int, list[str]] = {}
        for pod, number in sorted(self._of.items()):
            pods.setdefault(number, []).append("/".join(pod))
        waiting = [(pods[number], why) for number in pods if (why := self._lanes[number].troubles())]
        found = [f"pod {_some(names)}: {'; '.join(why)}" for names, why in waiting[:TOLD]]
        if more := sum(len(names) for names, _ in waiting[TOLD:]):
            found.append(f"{more} more pods wait by themselves")
        return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - TOLD} others" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more
