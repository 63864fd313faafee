"""One rendering of the metrics for all who ask at the same time, and for a second after: who
scrapes often costs no more than who does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

FRESH_SECONDS: Final = 1.0


class Scrapes:
    """Answers by *render*, which collects everything and returns the text in pieces; others have
    their turn between two of them.
    """

    def __init__(
        self, render: Callable[[], Awaitable[Iterable[bytes]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._render, self._clock = render, clock
        self._rendering: asyncio.Task[tuple[bytes, ...]] | None = None
        self._last: tuple[bytes, ...] = ()
        self._until = 0.0

    async def get(self) -> tuple[bytes, ...]:
        """Return the text in pieces, at most FRESH_SECONDS old. Raises what *render* raises."""
        if self._last and self._clock() < self._until:
            return self._last
        if self._rendering is None:
            self._rendering = asyncio.get_running_loop().create_task(self._made())
        # Who goes away takes nothing from those who wait with him.
        return await asyncio.shield(self._rendering)

    async def _made(self) -> tuple[bytes, ...]:
        try:
            pieces = []
            for piece in await self._render():
                pieces.append(piece)
                await asyncio.sleep(0)
            self._last, self._until = tuple(pieces), self._clock() + FRESH_SECONDS
            asyncio.get_running_loop().call_later(2 * FRESH_SECONDS, self._forget, self._last)
            return self._last
        finally:
            self._rendering = None

    def _forget(self, pieces: tuple[bytes, ...]) -> None:
        """Text of megabytes is kept no longer than it is of use."""
        if self._last is pieces:
            self._last = ()
