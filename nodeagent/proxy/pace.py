"""Long work beside the pods' traffic: done in slices, with the event loop's other work in between."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

SLICE_SECONDS: Final = 0.002


class Pace:
    """``await pace.keep()`` between two steps of a long task gives way when the slice is used up."""

    def __init__(self) -> None:
        self._since = perf_counter()

    async def keep(self) -> None:
        if perf_counter() - self._since > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._since = perf_counter()
