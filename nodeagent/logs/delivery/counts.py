"""What became of the records that one sink was offered, by pod."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nodeagent.logs.records import LogOrigin

PodName: TypeAlias = tuple[str, str]
"""Namespace and name; both empty: the node itself."""
MAX_PODS: Final = 2000
"""Pods with numbers of their own; those that come later are counted as OTHERS."""
OTHERS: Final[PodName] = ("", "others")


@dataclass(slots=True)
class PodCounts:
    """Records of one pod, since the process started."""

    offered: int = 0
    """From files, or found in the buffer at the start."""
    delivered: int = 0
    retried: int = 0
    """How often one was sent again."""
    dead_lettered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason."""

    def add(self, other: PodCounts) -> None:
        """Add the numbers of *other*."""
        self.offered += other.offered
        self.delivered += other.delivered
        self.retried += other.retried
        self.dead_lettered += other.dead_lettered
        self.dropped.update(other.dropped)

    @property
    def settled(self) -> int:
        """How many of those offered are neither in memory nor in the buffer."""
        return self.delivered + self.dead_lettered + self.dropped.total()


class SinkCounts:
    """The numbers of all pods at one sink."""

    def __init__(self) -> None:
        self.pods: dict[PodName, PodCounts] = {}
        self._gone = PodCounts()
        """Of pods that were forgotten: the totals stay."""

    def of(self, origin: LogOrigin) -> PodCounts:
        """Return the counts of the pod of *origin*."""
        return self.named((origin.namespace, origin.pod))

    def named(self, pod: PodName) -> PodCounts:
        """Return the counts of *pod*."""
        found = self.pods.get(pod)
        if found is None:
            if len(self.pods) >= MAX_PODS and pod != OTHERS:
                return self.named(OTHERS)
            found = self.pods[pod] = PodCounts()
        return found

    def waits(self, pod: PodName) -> bool:
        """Whether anything of *pod* is in memory or in the buffer."""
        counts = self.named(pod)
        return counts.offered != counts.settled

    def add(self, other: SinkCounts) -> None:
        """Add the numbers of *other*."""
        for pod, counts in other.pods.items():
            self.named(pod).add(counts)

    def forget(self, living: Set[PodName]) -> None:
        """Have no numbers of their own for pods that are not among *living* and of which nothing waits any more."""
        if self.pods.keys() <= living:
            return
        for pod in [each for each, counts in self.pods.items() if each not in living and each != OTHERS]:
            if self.pods[pod].offered == self.pods[pod].settled:
                self._gone.add(self.pods.pop(pod))

    def total(self) -> PodCounts:
        """Return the sum over all pods, those that were forgotten too."""
        result = PodCounts()
        for each in (self._gone, *self.pods.values()):
            result.add(each)
        return result
