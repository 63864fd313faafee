"""Whether a file that nobody knows is a copy of what was read already: compressed, or made before the
original was truncated.

Two ways to know. A generation that has no file any more left marks: checksums of all up to an offset.
A file that is there is compared byte by byte, since it is read further while its copy is looked at.
A copy is believed where nothing is lost if that was wrong, or where no accident makes it look so: its
name goes on where the original's ends, or enough is alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from isal import isal_zlib

from nodeagent.logs.tail.coverage import Mark
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import ENOUGH, Generation

STEP: Final = 256 << 10
"""Bytes compared in one step."""


class Comparison:
    """One unknown file against all that it may be a copy of; a step at a time."""

    __slots__ = ("_at", "_checksum", "_refuted", "_targets", "complete", "file", "head", "matches", "rivals", "serial")

    def __init__(
        self, file: OpenFile, head: bytes, generations: Iterable[Generation], rivals: Iterable[OpenFile]
    ) -> None:
        """*generations* are compared by their marks, *rivals* byte by byte."""
        self.file = file
        self.head = head
        """Of its content, by which was looked for what it may be a copy of."""
        self.serial = 0
        """The files' heads' :attr:`~nodeagent.logs.tail.heads.Heads.serial` when it was compared last."""
        self.rivals = list(rivals)
        """Those that it agrees with so far."""
        self.matches: list[tuple[Mark, Generation]] = []
        """Up to where it agrees with which generation, the nearest first."""
        self.complete = False
        """Whether it was compared up to its end as it is now."""
        self._at = 0
        self._checksum = 0
        self._refuted: set[Generation] = set()
        """They begin alike, and differ further on."""
        self._targets = sorted(_targets(generations), key=lambda target: -target[0].offset)

    @property
    def pointless(self) -> bool:
        """Whether it can be no copy of anything any more."""
        return not self._targets and not self.rivals and not self.matches

    @property
    def at(self) -> int:
        """Up to where it was compared."""
        return self._at

    def step(self) -> bool:
        """Compare the next stretch; return whether another step may tell more now. Raise as reading does."""
        if not self._targets and self.rivals:
            # Where all have a hole, all are alike.
            self._at = min(each.data_from(self._at) for each in (self.file, *self.rivals))
        stop = self._at + STEP
        while True:
            more = self._compare_to(min(self._targets[-1][0].offset, stop) if self._targets else stop)
            if not more or self._at >= stop:
                return more

    def _compare_to(self, stop: int) -> bool:
        """Compare up to *stop*; return whether going on may tell more now."""
        length = stop - self._at
        piece = self.file.read(self._at, length)
        self.complete = len(piece) < length
        if piece:
            self.rivals = [each for each in self.rivals if each.read(self._at, len(piece)) == piece]
            self._checksum = isal_zlib.crc32(piece, self._checksum)
            self._at += len(piece)
        while self._targets and (self._targets[-1][0].offset <= self._at or self._targets[-1][1] in self._refuted):
            mark, generation = self._targets.pop()
            if generation in self._refuted:
                continue
            if mark.checksum == self._checksum:
                self.matches.append((mark, generation))
            else:
                self._refuted.add(generation)
                self.matches = [each for each in self.matches if each[1] is not generation]
        if not self._targets and not self.rivals and not self.file.compressed:
            return False
        return not self.complete

    def agreeing(self) -> list[Generation]:
        """Return the generations that agree with the file up to any of their marks."""
        return [generation for _, generation in self.matches]

    def original(self) -> Generation | None:
        """Return the generation that this file holds, as far as marks tell; None: none of them."""
        found = [each for each in reversed(self.matches) if self._believed(*each)]
        if not found:
            return None
        named = [generation for mark, generation in found if self.file.name.startswith(generation.name)]
        return named[0] if named else found[0][1]

    def _believed(self, mark: Mark, generation: Generation) -> bool:
        """Say whether agreement up to *mark* is enough to call this file that generation's twin."""
        reached = generation.reached.offset
        ends_there = self.complete and self._at <= reached
        if mark.offset < reached and not ends_there:
            return False  # they differ between the mark and what was read of the other
        alike = mark.offset >= ENOUGH or self.file.name.startswith(generation.name)
        return alike or (self.complete and self._at == mark.offset)


def _targets(generations: Iterable[Generation]) -> Iterator[tuple[Mark, Generation]]:
    for each in generations:
        if each.begin or each.hollow:
            continue  # a hole has no checksum
        for mark in {*each.marks, each.read}:
            if mark.offset:
                yield mark, each
