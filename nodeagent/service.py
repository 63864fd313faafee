"""How a service of the cluster runs: its parts, until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from nodeagent.parts import Parts


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Carry *work* out until SIGTERM or SIGINT, which cancel it. Raises what it raises."""
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass


async def kept(parts: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run *parts*, by name, until cancelled; one that fails is started again alone."""
    keeper = Parts(asyncio.get_running_loop())
    for name, part in parts.items():
        keeper.start(name, part)
    try:
        await asyncio.Event().wait()
    finally:
        keeper.stop()
