"""Waiting in tests: for a state, with a deadline that only a fault reaches; never for a time to pass.

What cannot be waited for because nothing shows it (that bytes have left as a packet, that nothing
happens) has a name here that says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

DEADLINE = 120.0
"""Seconds that a condition may take on a very busy machine; nothing waits for it to pass."""
LOOK_SECONDS = 0.005
"""Between two looks at a condition."""
PACKET_SECONDS = 0.01
"""In which what was written to a loopback connection has been read at its other end."""
STEADY_SECONDS = 0.1
"""For which a value must stay what it is to count as steady."""


def eventually(
    condition: Callable[[], Found],
    what: str = "the condition",
    seconds: float = DEADLINE,
    pause: float = 4 * LOOK_SECONDS,  # what is looked at in other processes costs more
) -> Found:
    """Return the first true value of *condition*; an assertion in it may fail until the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() > deadline
        try:
            if value := condition():
                return value
        except AssertionError:
            if late:
                raise
        assert not late, f"after {seconds:g} s, still not: {what}"
        time.sleep(pause)


async def until(condition: Callable[[], Found], what: str = "the condition", seconds: float = DEADLINE) -> Found:
    """As :func:`eventually`, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds:g} s, still not: {what}"
        await asyncio.sleep(LOOK_SECONDS)
    return value


async def steady(value: Callable[[], int]) -> int:
    """Wait until *value* is not 0 and does not change any more; return it. For what is held back: bytes
    are taken until every buffer on their way is full.
    """
    last, since = value(), time.monotonic()
    while not last or time.monotonic() - since < STEADY_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


async def packet() -> None:
    """Let what was written become a packet of its own, so that what is written next comes in another read."""
    await asyncio.sleep(PACKET_SECONDS)


async def quiet() -> None:
    """Give time for what must not happen; a pass proves little, a failure proves a fault."""
    await asyncio.sleep(STEADY_SECONDS)
