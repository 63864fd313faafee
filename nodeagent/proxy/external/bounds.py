"""What bounds calls to a provider, whatever they are spoken in: how many there are, and how long each may take."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from nodeagent.errors import NodeagentError
from nodeagent.log_lines import SparingLog
from nodeagent.proxy.external.model import Resolve, Way

MAX_ANSWER: Final = 256 << 10
"""Bytes of an answer."""
MAX_CALLS: Final = 1024
"""Calls to one provider under way at once; more are refused at once, so that a slow provider does
not pile requests up.
"""
MAX_CALLS_OF_A_POD: Final = MAX_CALLS // 4
"""Of them for one pod while few are left, so that the others' are not refused for its crowd of clients."""
FEW_LEFT: Final = MAX_CALLS // 4
CONNECT_SECONDS: Final = 5.0
"""For a connection to one endpoint, at most: there may be another that answers."""
MAX_CONNECTIONS: Final = 64
"""Connections to one provider that are kept."""
_Result = TypeVar("_Result")


class CallError(NodeagentError):
    """There is no answer; says why, without anything that the other side said at length."""


class CrowdedError(CallError):
    """Too many calls wait here already. Whoever asks brought that about, so that it never lets a request pass."""


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
        self._log = SparingLog(logging.getLogger("nodeagent.proxy"))

    async def run(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]], asker: str) -> _Result:
        """Return what *call*, made for the pod *asker*, returns, which must do so within *timeout* seconds.

        Raises CallError.
        """
        if self._calls >= MAX_CALLS:
            raise CrowdedError(f"{MAX_CALLS} calls wait for an answer already")
        if self._calls >= MAX_CALLS - FEW_LEFT and self._of[asker] >= MAX_CALLS_OF_A_POD:
            raise CrowdedError(f"{self._calls} calls wait for an answer already, {self._of[asker]} of them this pod's")
        self._calls += 1
        self._of[asker] += 1
        try:
            return await self._watched(timeout, call)
        finally:
            self._calls -= 1
            self._of[asker] -= 1
            if not self._of[asker]:
                del self._of[asker]

    async def _watched(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]]) -> _Result:
        """Run *call*; say when the provider stops and begins to answer."""
        try:
            result = await self._run(timeout, call)
        except CallError as error:
            if not self._failing:
                self._log.tell("fails", f"extension provider {self._provider} does not answer: {error}")
            self._failing = True
            raise
        if self._failing:
            self._failing = False
            self._log.tell("answers", f"extension provider {self._provider} answers again", logging.INFO)
        return result

    async def _run(self, timeout: float, call: Callable[[asyncio.Timeout], Awaitable[_Result]]) -> _Result:
        try:
            async with asyncio.timeout(timeout) as limit:
                return await call(limit)
        except TimeoutError:
            raise CallError(f"no answer within {timeout:g} s") from None


def connecting(limit: asyncio.Timeout) -> asyncio.Timeout:
    """Return the bound of an attempt to connect within *limit*, which leaves time for one to another endpoint."""
    end = limit.when()
    left = CONNECT_SECONDS if end is None else (end - asyncio.get_running_loop().time()) / 2
    return asyncio.timeout(min(left, CONNECT_SECONDS))


def next_way(resolve: Resolve, service: str, port: int, asker: str, tried: Way | None) -> Way:
    """Return the way to the provider, to another endpoint than *tried* where there is one. Raises CallError."""
    way = resolve(service, port, asker)
    if way is not None and way == tried:
        way = resolve(service, port, asker)  # others may have had their turns since: the next is another one
    if way is None:
        raise CallError("no such Service, or it has no ready endpoint")
    return way
