"""Files of a log in the order in which they are read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile
from operator import attrgetter

from nodeagent.logs.tail.files import OpenFile

_place = attrgetter("place")


class InOrder:
    """A row of files by their :attr:`~OpenFile.place`, which changes for none that is in it. One that comes or goes
    costs a search, not a look at each of the others.
    """

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: list[OpenFile] = []

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[OpenFile]:
        """Yield all as they are now: they may come and go meanwhile."""
        return iter(tuple(self._files))

    def __contains__(self, file: OpenFile) -> bool:
        return bool(self._files) and self._is_at(self._at(file), file)

    def add(self, file: OpenFile) -> None:
        """Have *file* in it, once."""
        at = self._at(file)
        if not self._is_at(at, file):
            self._files.insert(at, file)

    def discard(self, file: OpenFile) -> None:
        """Have *file* in it no more, if it is."""
        at = self._at(file)
        if self._is_at(at, file):
            del self._files[at]

    def last(self) -> OpenFile:
        """Return the one that is read last, where there is any."""
        return self._files[-1]

    def clear(self) -> None:
        """Have none in it any more."""
        self._files.clear()

    def before(self, file: OpenFile) -> list[OpenFile]:
        """Return those that are read before *file*."""
        return self._files[: self._at(file)]

    def after(self, file: OpenFile) -> list[OpenFile]:
        """Return those that are read after *file*."""
        at = self._at(file)
        return self._files[at + self._is_at(at, file) :]

    def plain(self) -> Iterator[OpenFile]:
        """Yield those that are not compressed, the last one first: compressed ones are read before them."""
        return takewhile(lambda each: not each.compressed, reversed(self._files))

    def _at(self, file: OpenFile) -> int:
        return bisect_left(self._files, file.place, key=_place)

    def _is_at(self, at: int, file: OpenFile) -> bool:
        return at < len(self._files) and self._files[at] is file
