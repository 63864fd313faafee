"""How ``nodeagent ca serve`` and ``nodeagent webhook`` run: long-lived work until a signal ends it,
and parts of it that may fail without the others.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import TypeAlias

from nodeagent.parts import Parts

Work: TypeAlias = Coroutine[object, object, None]
"""What an event loop carries out; it sends nothing in and takes nothing out."""


async def until_signal(work: Work) -> None:
    """Carry *work* out until it ends, or until SIGTERM or SIGINT cancels it: then return as if it had
    ended. Raises what *work* raises.
    """
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass


async def kept(parts: Mapping[str, Callable[[], Work]]) -> None:
    """Run all *parts* side by side until cancelled. One that raises is logged by its name in *parts*
    and started again alone, after a pause that grows with each failure; the others go on.
    """
    keeper = Parts()
    for name, part in parts.items():
        keeper.start(name, part)
    try:
        await asyncio.Event().wait()
    finally:
        keeper.stop()
