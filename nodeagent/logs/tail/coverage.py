"""How far a generation is settled: stretches are settled in any order, and its position advances over
those that are settled from its beginning on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """How a generation looks up to an offset, by which it is recognized."""

    offset: int
    checksum: int
    """CRC-32 of everything before the offset."""
    tail: bytes
    """Hash of the up to 1 KiB before the offset."""


class _Stretch:
    __slots__ = ("_coverage", "end", "mark", "settled")

    def __init__(self, coverage: Coverage, end: int) -> None:
        self._coverage = coverage
        self.end = end
        self.mark: Mark | None = None
        self.settled = False

    def settle(self) -> None:
        """All its records are settled."""
        self.settled = True
        self._coverage.advance()


class Coverage:
    """What of one generation is under way. Its position is always the end of a stretch, so that reading again
    from there repeats whole records.
    """

    __slots__ = ("_advanced", "_open", "_taking", "_unmarked", "mark", "read", "settled")

    def __init__(self, mark: Mark, advanced: Callable[[], None]) -> None:
        """*mark*: where reading begins; *advanced* is called when the position has changed."""
        self.settled = mark.offset
        """All before it is settled."""
        self.mark = mark
        """The last place that is settled and can be recognized: what a restart goes on from."""
        self.read = mark
        """Up to where the taker was given it."""
        self._advanced = advanced
        self._open: list[_Stretch] = []  # few, and a deque takes as much as seventy
        self._taking = False
        self._unmarked: list[_Stretch] = []

    def stretch(self, end: int) -> Callable[[], None]:
        """Begin a stretch that goes up to *end*, which no earlier one goes beyond; return what is to be called
        once all its records are settled (as :class:`~nodeagent.logs.records.Receipt` wants it).
        """
        begun = _Stretch(self, end)
        self._open.append(begun)
        if self._taking:
            self._unmarked.append(begun)
        elif end == self.read.offset:
            begun.mark = self.read
        return begun.settle

    @property
    def under_way(self) -> bool:
        """Whether a stretch is not settled yet."""
        return bool(self._open)

    def begin_chunk(self) -> None:
        """A chunk is about to be taken: stretches that begin now end within it, or before it."""
        self._taking = True

    def ends(self) -> list[int]:
        """Return the ends of the stretches that began since :meth:`begin_chunk`."""
        return [each.end for each in self._unmarked]

    def end_chunk(self, marks: dict[int, Mark], read: Mark) -> None:
        """The chunk is taken, up to *read*; *marks*: how the generation looks at the ends of those stretches.
        One that is not among them becomes no position.
        """
        self._taking = False
        self.read = read
        for each in self._unmarked:
            each.mark = marks.get(each.end)
        self._unmarked.clear()
        self.advance()

    def pass_over(self, mark: Mark) -> None:
        """Go on at *mark*: nothing is to be delivered of what stands before it and was not read."""
        begun = _Stretch(self, mark.offset)
        begun.mark = mark
        begun.settled = True
        self._open.append(begun)
        self.read = mark
        self.advance()

    def advance(self) -> None:
        """Go on to the end of what is settled from the position on."""
        if self._taking:
            return  # marks come first
        before = self.mark
        while self._open and self._open[0].settled:
            done = self._open.pop(0)
            self.settled = max(self.settled, done.end)
            if done.mark is not None and done.mark.offset > self.mark.offset:
                self.mark = done.mark
        if self.mark is not before:
            self._advanced()
