"""What bounds calls to a provider, whatever they are spoken in: how many there are, and how long each may take."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nodeagent.errors import NodeagentError

MAX_ANSWER: Final = 256 << 10
"""Bytes of an answer."""
MAX_CALLS: Final = 1024
"""Calls to one provider under way at once; more are refused at once, so that a slow provider does
not pile requests up.
"""
MAX_CALLS_OF_A_POD: Final = MAX_CALLS // 4
"""Of them for one pod, so that the others' are not refused for its crowd of clients."""
MAX_CONNECTIONS: Final = 64
"""Connections to one provider that are kept."""
_Result = TypeVar("_Result")
log = logging.getLogger("nodeagent.proxy")


class CallError(NodeagentError):
    """There is no answer; says why, without anything that the other side said at length."""


class UnreachedError(CallError):
    """Nobody was asked: another endpoint may answer."""


class CallBounds:
    """The calls of one worker to one provider."""

    def __init__(self, name: str, service: str, port: int) -> None:
        self._provider = f"{name} ({service}:{port})"
        self._calls = 0
        self._of: Counter[str] = Counter()
        """Calls under way, by who asks; nobody is in it without one."""
        self._failing = False

    async def run(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]], asker: str) -> _Result:
        """Return what *call*, made for the pod *asker*, returns, which must do so within *timeout* seconds.

        Raises CallError.
        """
        if self._of[asker] >= MAX_CALLS_OF_A_POD:
            raise CallError(f"{MAX_CALLS_OF_A_POD} calls of this pod wait for an answer already")
        self._of[asker] += 1
        try:
            return await self._watched(timeout, call)
        finally:
            self._of[asker] -= 1
            if not self._of[asker]:
                del self._of[asker]

    async def _watched(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]]) -> _Result:
        """Run *call*; say when the provider stops and begins to answer."""
        try:
            result = await self._run(timeout, call)
        except CallError as error:
            if not self._failing:
                log.warning("extension provider %s does not answer: %s", self._provider, error)
            self._failing = True
            raise
        if self._failing:
            self._failing = False
            log.info("extension provider %s answers again", self._provider)
        return result

    async def _run(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]]) -> _Result:
        if self._calls >= MAX_CALLS:
            raise CallError(f"{MAX_CALLS} calls wait for an answer already")
        self._calls += 1
        try:
            async with asyncio.timeout(timeout) as limit:
                return await call(limit)
        except TimeoutError:
            raise CallError(f"no answer within {timeout:g} s") from None
        finally:
            self._calls -= 1
