"""How a service of the cluster runs: until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Carry *work* out until SIGTERM or SIGINT, which cancel it. Raises what it raises, of a task group's faults the first."""
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
