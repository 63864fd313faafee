"""A coroutine on an event loop of its own, in a thread of its own: it goes on while the process's loop
stands still. The two tell each other what they have to by ``call_soon_threadsafe`` and by replacing one
frozen object with another, and lock nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread


async def apart(name: str, main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run *main* in a thread called *name*; return when it has ended, and raise what it raised. Who cancels this has it
    cancelled there, and hears of that when it has ended.
    """
    here = asyncio.get_running_loop()
    ended: asyncio.Future[None] = here.create_future()
    there = asyncio.new_event_loop()
    task = there.create_task(main(), name=name)
    Thread(target=_run, args=(there, task, here, ended), name=name, daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # its loop is closed
            there.call_soon_threadsafe(task.cancel)
        await ended
        raise


def _run(
    there: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    here: asyncio.AbstractEventLoop,
    ended: asyncio.Future[None],
) -> None:
    """Be the thread."""
    error: BaseException | None = None
    try:
        there.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseException as raised:  # noqa: BLE001 - it is raised where it can be handled
        error = raised
    finally:
        with suppress(RuntimeError):
            there.run_until_complete(there.shutdown_asyncgens())
        there.close()
    with suppress(RuntimeError):  # nobody waits any more: that loop is closed
        here.call_soon_threadsafe(_end, ended, error)


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
