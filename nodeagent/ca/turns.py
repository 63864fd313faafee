"""Turns at something scarce that whoever reaches the port can ask for: sources take them one after the
other, so that one that floods waits for itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nodeagent.ca.refusal import Refusal


class SourceTurns:
    """At most *at_once* turns at the same time, *each* of one source; *waiting* of one source may wait."""

    def __init__(self, at_once: int, each: int, waiting: int) -> None:
        self._free = at_once
        self._each = each
        self._most = waiting
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By source, whose turn is next first; no source without anybody who waits."""

    @asynccontextmanager
    async def of(self, source: str) -> AsyncIterator[None]:
        """Within, *source* has a turn. Raises Refusal where too many of it wait already."""
        await self._take(source)
        try:
            yield
        finally:
            self._give_back(source)

    async def _take(self, source: str) -> None:
        if self._free and self._held[source] < self._each and source not in self._waiting:
            self._free -= 1
            self._held[source] += 1
            return
        queue = self._waiting.setdefault(source, deque())
        if len(queue) >= self._most:
            raise Refusal("RESOURCE_EXHAUSTED", f"{self._most} requests of this address wait already: ask again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(source)
            raise

    def _give_back(self, source: str) -> None:
        self._free += 1
        self._held[source] -= 1
        if not self._held[source]:
            del self._held[source]
        while self._free and (following := self._next()) is not None:
            self._free -= 1
            self._held[following] += 1

    def _next(self) -> str | None:
        """Give the next turn; return whose it is, None: nobody waits who may have one."""
        for source, queue in list(self._waiting.items()):
            while queue and queue[0].done():  # cancelled while it waited
                queue.popleft()
            if queue and self._held[source] >= self._each:
                continue
            self._waiting.pop(source)
            if queue:
                queue.popleft().set_result(None)
                if queue:
                    self._waiting[source] = queue
                return source
        return None
