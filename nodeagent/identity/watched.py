"""A value that several wait for: who waits gets the newest, and none is kept for those who are slow."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class WatchedValue(Generic[T]):
    """A value, not there at first; for one event loop."""

    __slots__ = ("_changed", "value")

    def __init__(self) -> None:
        self.value: T | None = None
        self._changed = asyncio.Event()

    def set(self, value: T | None) -> None:
        """Replace the value; an equal one is no change."""
        if value != self.value:
            self.value = value
            # Each change has an event of its own, so that one who comes to wait later does not take
            # it for his.
            self._changed.set()
            self._changed = asyncio.Event()

    async def other_than(self, seen: T | None) -> T:
        """Wait for a value that is not *seen* and return it."""
        while self.value is None or self.value == seen:
            await self._changed.wait()
        return self.value
