"""What a buffer knows of its segments, and of the records that were taken from them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.logs.delivery.counts import PodName
from nodeagent.logs.delivery.segments import MAGIC
from nodeagent.logs.records import LogRecords


@dataclass(slots=True)
class KnownSegment:
    """One, on disk."""

    number: int
    path: Path
    size: int
    unread: Counter[PodName] = field(default_factory=Counter)
    """Records that have not been taken."""
    reached: int = 0
    """Offset up to which all is settled."""
    read_to: int = 0
    """Offset up to which it has been taken."""
    out: deque[Taking] = field(default_factory=deque)
    """What was taken and is not settled, in order."""
    failed: int = 0
    """How often in a row it could not be read."""
    damaged: bool = False
    """Whether what is left of it is kept for whoever looks into it."""
    fixed: bool = False
    """Whether it never can be written anew."""
    failed_anew: int = 0
    """How often in a row it could not be."""

    @property
    def settled(self) -> int:
        """How many of its bytes are of no use any more."""
        under_way = sum(each.size for each in self.out if not each.done)
        unread = self.size - self.read_to if self.unread else 0
        return self.size - len(MAGIC) - under_way - unread

    def move(self, moved: Mapping[int, tuple[int, int]]) -> None:
        """Its frames are elsewhere now: by where each ended, from where to where it is. Others were settled."""

        def until(offset: int) -> int:
            return max((end for old, (_, end) in moved.items() if old <= offset), default=len(MAGIC))

        self.reached = until(self.reached)
        self.read_to = until(self.read_to)
        self.size = max((end for _, end in moved.values()), default=len(MAGIC))
        self.out = deque(each for each in self.out if each.end in moved)
        for each in self.out:
            begin, each.end = moved[each.end]
            each.size = each.end - begin


@dataclass(slots=True)
class Taking:
    """Records that were taken from the buffer, and are to be settled."""

    records: LogRecords
    segment: KnownSegment
    end: int
    size: int
    """Bytes on disk."""
    done: bool = False
