"""Long work in steps, so that whoever else has an event loop need not wait for its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import closing
from typing import Final, TypeVar

SLICE_SECONDS: Final = 0.005
"""After which others have a turn."""
_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]
"""What is done from one value to the next is a step; the result is what it returns."""


def drained(steps: Steps[_Result]) -> _Result:
    """Do all *steps* at once, and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: _Result = end.value
            return found


async def in_turns(steps: Steps[_Result]) -> _Result:
    """Do all *steps*, with a turn for everything else on the running loop after each SLICE_SECONDS; return
    what they return. Who cancels it has them closed.
    """
    with closing(steps):
        until = time.perf_counter() + SLICE_SECONDS
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: _Result = end.value
                return found
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + SLICE_SECONDS
