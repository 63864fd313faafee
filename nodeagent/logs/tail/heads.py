"""Files by how their contents begin, so that of thousands few are compared with one that nobody knows; pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import chain, takewhile
from typing import Final

from isal import isal_zlib

from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import ENOUGH

_AS_IT_IS: Final = 512
"""So much of a content's beginning is kept; of what follows checksums are."""
_CHECKED: Final = range(2 * _AS_IT_IS, ENOUGH + 1, _AS_IT_IS)
"""Up to where, each time from the first byte on."""


def head_of(data: bytes) -> bytes:
    """Return what stands for *data*, with which a content begins, and of which :data:`ENOUGH` bytes count. Where one
    content is another's beginning, so is its head of the other's.
    """
    checksums = [isal_zlib.crc32(data[:end]).to_bytes(4, "big") for end in _CHECKED if end <= len(data)]
    return b"".join([data[:_AS_IT_IS], *checksums])


class Heads:
    """Files by the heads of their contents. Which begin alike is found by some searches, however many there are."""

    __slots__ = ("_files", "_of", "_sorted", "serial", "unknown")

    def __init__(self) -> None:
        self.unknown: dict[OpenFile, None] = {}
        """Whose head is not known, or was another content's."""
        self.serial = 0
        """How often it was told of a file that it holds what it did."""
        self._of: dict[OpenFile, tuple[bytes, int]] = {}
        self._files: dict[bytes, dict[OpenFile, int]] = {}
        """With the serial number of when that was told last, the lowest first."""
        self._sorted: list[bytes] = []

    def put(self, file: OpenFile, head: bytes, known: int) -> None:
        """*file* holds a content with *head*, of which so many bytes are *known*."""
        self.drop(file)
        self._of[file] = head, known
        if head not in self._files:
            self._files[head] = {}
            insort(self._sorted, head)
        self.sure(file)

    def sure(self, file: OpenFile) -> None:
        """*file* still holds what it did."""
        row = self._files[self._of[file][0]]
        row.pop(file, None)
        self.serial += 1
        row[file] = self.serial

    def drop(self, file: OpenFile) -> None:
        """*file* is closed, or has another content."""
        self.unknown.pop(file, None)
        head, _ = self._of.pop(file, (None, 0))
        if head is None:
            return
        row = self._files[head]
        del row[file]
        if not row:
            del self._files[head]
            del self._sorted[bisect_left(self._sorted, head)]

    def known(self, file: OpenFile) -> int:
        """Return of how many bytes of the content of *file* its head is; :data:`ENOUGH`: of all that count."""
        return self._of[file][1]

    def alike(self, head: bytes) -> list[OpenFile]:
        """Return the files whose content may be the beginning of one with *head*, or begin with that."""
        return list(chain.from_iterable(self._files[each] for each in self._alike(head)))

    def unsure(self, head: bytes, since: int) -> list[OpenFile]:
        """Return those of them of which it was not told that they hold what they did since the *serial* was that."""
        found: list[OpenFile] = []
        for each in self._alike(head):
            rest = takewhile(lambda told: told[1] <= since, self._files[each].items())
            found += [file for file, _ in rest]
        return found

    def _alike(self, head: bytes) -> Iterator[bytes]:
        at = bisect_left(self._sorted, head)
        for other in range(at, len(self._sorted)):
            if not self._sorted[other].startswith(head):
                break
            yield self._sorted[other]
        # What *head* begins with is sorted before it, and begins what stands between the two, too.
        while at:
            before = self._sorted[at - 1]
            head = _shared(before, head)
            if before == head:
                yield before
            at = at - 1 if before == head else bisect_right(self._sorted, head)


def _shared(one: bytes, other: bytes) -> bytes:
    """Return with what both begin."""
    end = next((at for at, (mine, yours) in enumerate(zip(one, other, strict=False)) if mine != yours), None)
    return min(one, other, key=len) if end is None else one[:end]
