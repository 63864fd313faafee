"""Work that may hang for ever (a pipe that nobody reads, a file system that is gone, a silent name server), beside the
event loop. Nobody waits for it at the end: such a thread ends with the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class OwnThread:
    """A thread in which work is done in order."""

    def __init__(self, name: str) -> None:
        """It begins with the first work; *name* is for those who look at the process."""
        self._name = name
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: Thread | None = None

    def do(
        self, work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> asyncio.Future[_Result]:
        """Have *work* done, and return what it returns or raises. Who waits may be cancelled; the work goes on."""
        if self._thread is None:
            self._thread = Thread(target=self._keep_working, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_Result] = loop.create_future()
        result.add_done_callback(_hear)

        def done() -> None:
            tell: Callable[[], None]
            try:
                tell = partial(_tell, result, work(*arguments, **named))
            except Exception as error:  # noqa: BLE001 - it is whoever waits who handles it
                tell = partial(_fail, result, error)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        self._work.put(done)
        return result

    def _keep_working(self) -> None:
        while True:
            self._work.get()()


def _tell(result: asyncio.Future[_Result], value: _Result) -> None:
    if not result.done():
        result.set_result(value)


def _fail(result: asyncio.Future[_Result], error: Exception) -> None:
    if not result.done():
        result.set_exception(error)


def _hear(result: asyncio.Future[_Result]) -> None:
    """Nobody may be left who hears of an error."""
    if not result.cancelled():
        result.exception()
