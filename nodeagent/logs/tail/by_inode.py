"""What is known of files that are not open: found by a file, whatever number its device has now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from nodeagent.logs.tail.identity import Inode

Value = TypeVar("Value")


class ByInode(Generic[Value]):
    """Values by the files that they are of; a file may have several."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[int, tuple[tuple[Inode, Value], ...]] = {}
        """By the inode's number, which few of them have in common, though thousands are known."""

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[tuple[Inode, Value]]:
        """Yield all as they are now: they may be removed meanwhile."""
        for row in list(self._rows.values()):
            yield from row

    def add(self, inode: Inode, value: Value) -> None:
        """Know *value* of that file, too."""
        self._rows[inode.number] = (*self._rows.get(inode.number, ()), (inode, value))

    def may_be(self, inode: Inode) -> list[Value]:
        """Return what is known of files that :meth:`may be <Inode.may_be>` *inode*."""
        return [value for known, value in self._rows.get(inode.number, ()) if known.may_be(inode)]

    def still(self, inode: Inode) -> list[Value]:
        """Return what is known of files that :meth:`still are <Inode.is_still>` *inode*."""
        return [value for known, value in self._rows.get(inode.number, ()) if known.is_still(inode)]

    def take(self, inode: Inode) -> list[Value]:
        """Return what :meth:`still` does, and forget it."""
        taken = self.still(inode)
        if taken:
            self._keep(inode.number, lambda known, _: not known.is_still(inode))
        return taken

    def remove(self, inode: Inode, value: Value) -> None:
        """Forget *value*, if it is known of that file."""
        self._keep(inode.number, lambda known, each: known != inode or each != value)

    def _keep(self, number: int, wanted: Callable[[Inode, Value], bool]) -> None:
        left = tuple(each for each in self._rows.pop(number, ()) if wanted(*each))
        if left:
            self._rows[number] = left
