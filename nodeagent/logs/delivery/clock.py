"""The time that delivery goes by: injected, so that tests pass ten minutes in no time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class DeliveryClock(Protocol):
    """Tells seconds, and waits."""

    def now(self) -> float:
        """Return monotonic seconds."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return when *event* is set, or *seconds* have passed (None: never)."""


class MonotonicClock:
    """The machine's."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return when *event* is set, or *seconds* have passed (None: never)."""
        if seconds is None:
            await event.wait()
            return
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
