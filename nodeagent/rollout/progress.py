"""What is told to a person who waits, and how long is waited for a state of the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from nodeagent.errors import ControlError
from nodeagent.kube.access import ApiError

LOOK_SECONDS: Final = 0.5
Say = Callable[[str], None]
"""Prints one line for people."""
Look = Callable[[], Awaitable[str]]
"""Returns what is still waited for, in words; empty: nothing."""


async def waited(look: Look, say: Say, seconds: float, what: str) -> None:
    """Look until *look* names nothing any more, telling each change of what it names.

    An API server that does not answer is waited for as well. Raises ControlError after *seconds*,
    with what is still missing of *what*.
    """
    end = time.monotonic() + seconds
    said = ""
    while True:
        try:
            missing = await look()
        except ApiError as error:
            missing = str(error)
            if error.status in (401, 403):
                raise
        if not missing:
            return
        if time.monotonic() >= end:
            raise ControlError(f"{what}: not after {seconds:g} s: {missing}")
        if missing != said:
            say(f"  {what}: {missing}")
            said = missing
        await asyncio.sleep(LOOK_SECONDS)
