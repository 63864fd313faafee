"""One rendering of the metrics for all who ask at the same time, and for a second after: who
scrapes often costs no more than who does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from nodeagent.telemetry.formats import FORMATS, Format
from nodeagent.telemetry.http_request import Response
from nodeagent.telemetry.negotiation import Variant

FRESH_SECONDS: Final = 1.0

Render = Callable[[Format], Awaitable[Iterable[bytes]]]
"""Collects everything and returns the exposition in pieces."""


def answer(render: Render) -> Response:
    """Return the answer to a scrape: what *render* returns for the format that the client prefers."""
    return Response(variants=tuple(Variant(each.content_type, each.quality, partial(render, each)) for each in FORMATS))


class Scrapes:
    """Answers by *render*; others have their turn between two of its pieces."""

    def __init__(self, render: Render, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept = {wanted: _Kept(partial(render, wanted), clock) for wanted in FORMATS}

    async def get(self, wanted: Format) -> tuple[bytes, ...]:
        """Return the text in the format *wanted*, in pieces, at most FRESH_SECONDS old. Raises what
        *render* raises.
        """
        return await self._kept[wanted].get()


class _Kept:
    """What is kept of one format."""

    def __init__(self, render: Callable[[], Awaitable[Iterable[bytes]]], clock: Callable[[], float]) -> None:
        self._render = render
        self._clock = clock
        self._rendering: asyncio.Task[tuple[bytes, ...]] | None = None
        self._last: tuple[bytes, ...] = ()
        self._until = 0.0

    async def get(self) -> tuple[bytes, ...]:
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
            self._last = tuple(pieces)
            self._until = self._clock() + FRESH_SECONDS
            asyncio.get_running_loop().call_later(2 * FRESH_SECONDS, self._forget, self._last)
            return self._last
        finally:
            self._rendering = None

    def _forget(self, pieces: tuple[bytes, ...]) -> None:
        """Text of megabytes is kept no longer than it is of use."""
        if self._last is pieces:
            self._last = ()
