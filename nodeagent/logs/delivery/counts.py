"""What became of the records that one sink was offered, by pod."""

from __future__ import annotations

from collections import Counter
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

    @property
    def settled(self) -> int:
        """How many of those offered are neither in memory nor in the buffer."""
        return self.delivered + self.dead_lettered + self.dropped.total()


class SinkCounts:
    """The numbers of all pods at one sink."""

    def __init__(self) -> None:
        self.pods: dict[PodName, PodCounts] = {}

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

    def forget(self, pod: PodName) -> None:
        """Count *pod*, which is gone, among the others: the totals stay."""
        gone = self.pods.get(pod)
        if gone is None or pod == OTHERS:
            return
        del self.pods[pod]
        others = self.pods.setdefault(OTHERS, PodCounts())
        others.offered += gone.offered
        others.delivered += gone.delivered
        others.retried += gone.retried
        others.dead_lettered += gone.dead_lettered
        others.dropped.update(gone.dropped)

    def total(self) -> PodCounts:
        """Return the sum over all pods."""
        result = PodCounts()
        for each in self.pods.values():
            result.offered += each.offered
            result.delivered += each.delivered
            result.retried += each.retried
            result.dead_lettered += each.dead_lettered
            result.dropped.update(each.dropped)
        return result
