"""One rendering of the metrics for all who ask at the same time, and for a second after: who
scrapes often costs no more than who does not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from nodeagent.memory import give_back
from nodeagent.telemetry.formats import FORMATS, Format
from nodeagent.telemetry.http_request import Response
from nodeagent.telemetry.negotiation import Variant

FRESH_SECONDS: Final = 1.0

Render = Callable[[Format], Awaitable[Iterable[bytes]]]
"""Collects everything and returns the exposition in pieces."""


def answer(render: Render) -> Response:
    """Return the answer to a scrape: what *render* returns for the first format that the client takes."""
    return Response(variants=tuple(Variant(each.content_type, partial(render, each)) for each in FORMATS))


class Scrapes:
    """Answers by *render*; others have their turn between two of its pieces.

    Of all formats there is one text at a time: at the bound on series it has hundreds of megabytes.
    Who wants another format waits until the next rendering is due, at most FRESH_SECONDS, and
    control renders no more often for clients that want several than for those that want one.
    """

    def __init__(
        self,
        render: Render,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._render = render
        self._clock = clock
        self._sleep = sleep
        self._renderings: dict[Format, asyncio.Task[tuple[bytes, ...]]] = {}
        self._turn = asyncio.Lock()
        self._format: Format | None = None
        self._last: tuple[bytes, ...] = ()
        """Is in :attr:`_format`."""
        self._until = -math.inf

    async def get(self, wanted: Format) -> tuple[bytes, ...]:
        """Return the text in the format *wanted*, in pieces, at most FRESH_SECONDS old. Raises what
        *render* raises.
        """
        if self._last and self._format is wanted and self._clock() < self._until:
            return self._last
        if wanted not in self._renderings:
            self._renderings[wanted] = asyncio.get_running_loop().create_task(self._made(wanted))
        # Who goes away takes nothing from those who wait with him.
        return await asyncio.shield(self._renderings[wanted])

    async def _made(self, wanted: Format) -> tuple[bytes, ...]:
        try:
            async with self._turn:
                while (wait := self._until - self._clock()) > 0:
                    await self._sleep(wait)
                self._last = ()
                pieces = []
                for piece in await self._render(wanted):
                    pieces.append(piece)
                    await asyncio.sleep(0)
                self._format = wanted
                self._last = tuple(pieces)
                self._until = self._clock() + FRESH_SECONDS
                asyncio.get_running_loop().call_later(2 * FRESH_SECONDS, self._forget, self._until)
                return self._last
        finally:
            del self._renderings[wanted]

    def _forget(self, until: float) -> None:
        """Text of megabytes is kept no longer than it is of use: drop the one that was so *until*.

        Its pieces lay between others; without giving back, 0.4 to 12 MB of them stayed in the heap.
        """
        if self._until == until:
            self._last = ()
            give_back()
