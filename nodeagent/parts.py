"""A process's parts: each runs for as long as the process does, and one that fails is started again
alone.

Nothing that a part was given may end its process: the successor would be given the same. A part
that fails is named in the log and in readiness, and begins anew after a growing, jittered pause;
all others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from nodeagent.errors import shown

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
STEADY_SECONDS: Final = 10.0
"""A part that has run for so long since it failed, and did something, is well again."""
LOOP: Final = 5
"""So many failures, never steady between two, do not pass by themselves."""
Part = Callable[[], Coroutine[object, object, None]]
log = logging.getLogger("nodeagent.parts")


@dataclass(frozen=True, slots=True)
class _Kept:
    name: str
    part: Part
    vital: bool
    steady_seconds: float
    """Having run for so long since it failed, it is well again."""


@dataclass(slots=True)
class _Failure:
    kept: _Kept
    words: str
    count: int
    resumed: float = float("inf")
    """When the part was started again, by the loop's clock."""


class Parts:
    """Named coroutines. *sleep* and *uniform* are injected for tests."""

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._sleep = sleep
        self._uniform = uniform
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[str, _Failure] = {}

    def start(self, name: str, part: Part, *, vital: bool = False, idle_seconds: float = 0.0) -> asyncio.Task[None]:
        """Run *part* on the running loop, and run it again whenever it raises; one that returns has
        done its work. Return its task, which may be cancelled alone. *vital*: without it the process does
        not what it is there for. *idle_seconds*: so long it does nothing at first, which is no sign that it is well.
        """
        kept = _Kept(name, part, vital, STEADY_SECONDS + idle_seconds)
        task = asyncio.get_running_loop().create_task(self._keep(kept), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def failing(self) -> list[str]:
        """Return, in words, the parts that failed and have not run steadily since."""
        now = asyncio.get_running_loop().time()
        self._failures = {
            name: failure
            for name, failure in self._failures.items()
            if now - failure.resumed < failure.kept.steady_seconds
        }
        return [_said(failure) for _, failure in sorted(self._failures.items())]

    def looping(self) -> list[str]:
        """Return, in the same words, those of them that are vital and fail again and again."""
        self.failing()
        found = sorted(self._failures.items())
        return [_said(failure) for _, failure in found if failure.kept.vital and failure.count >= LOOP]

    def stop(self) -> None:
        """Cancel every part."""
        for task in self._tasks:
            task.cancel()

    async def _keep(self, kept: _Kept) -> None:
        try:
            while not await self._done(kept):
                pass
        finally:
            self._failures.pop(kept.name, None)

    async def _done(self, kept: _Kept) -> bool:
        """Run a part once; say whether it has done its work. If it has not, its pause is over."""
        try:
            await kept.part()
        except Exception as error:  # noqa: BLE001 - whatever it is, all other parts go on
            await self._sleep(self._failed(kept, error))
            self._failures[kept.name].resumed = asyncio.get_running_loop().time()
            return False
        return True

    def _failed(self, kept: _Kept, error: Exception) -> float:
        """Note that a part failed; return the seconds to wait before it is started again."""
        self.failing()  # what ran steadily until now starts to count anew
        before = self._failures.get(kept.name)
        words = f"{type(error).__name__}: {shown(str(error))}"
        failure = self._failures[kept.name] = _Failure(kept, words, before.count + 1 if before else 1)
        pause = min(FIRST_PAUSE * 2.0 ** min(failure.count - 1, 16), LONGEST_PAUSE) * self._uniform(0.8, 1.2)
        log.error(
            "%s failed (%s) and is started again in %.1f s; everything else goes on",
            kept.name,
            failure.words,
            pause,
            exc_info=error,
        )
        return pause


def _said(failure: _Failure) -> str:
    return f"{failure.kept.name} failed {failure.count} times: {failure.words}"
