"""No container starts before its pod is captured, or known to be left alone, where the runtime asks first.

The runtime waits for each answer, with whatever else it has to start too, so nobody may be waited for
for long: half of what it has patience for (one second, if it is not told otherwise), and while pods
are waited for in vain, half as long for each next one. It is one thing to wait for a capture, which
takes moments and is always waited for so long, and another to wait for an authority, which may be
slow: who waits in vain for a certificate takes no patience from those that are not captured yet. What
starts unknown all the same is counted, named in the log, and captured a little later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.control.concern import Snapshot
from nodeagent.identity.certificate import Certificate
from nodeagent.parts import Parts
from nodeagent.places.nri import Plugin, Start, Waits
from nodeagent.places.sandbox import Listed, SandboxReport
from nodeagent.telemetry.http_request import Routes
from nodeagent.telemetry.metrics import CONTAINER_STARTS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid, SpiffeId

PATIENCE: Final = 0.5
"""Which part of the time in which the runtime wants its answer a start waits at most; the rest is for who
has no processor just then.
"""
LEAST_SECONDS: Final = 0.2
"""For so long a capture is waited for, however many were in vain, if the runtime lets it."""
MOST_SECONDS: Final = 10.0
"""For so long it waits at most, whatever the runtime says."""
GIVEN_UP: Final = 256
"""Sandboxes that are not waited for again."""
log = logging.getLogger("nodeagent.enrolment")


@dataclass(slots=True)
class _Patience:
    """Part of the longest wait that each next one is."""

    least_seconds: float
    share: float = 1.0

    def seconds(self, longest: float) -> float:
        return max(self.share * longest, min(self.least_seconds, longest))


class StartGate:
    """A concern, that hears of a snapshot after enrolment does, and an observer of certificates: the plugin
    at the runtime's *socket*, that tells *made* of new sandboxes.
    """

    def __init__(self, socket: Path, made: Callable[[Listed, SandboxReport], None]) -> None:
        self._plugin = Plugin(socket, Waits(made, self.may_start))
        self._is_settled: Callable[[PodUid], bool] = lambda _: False
        self._captured: dict[str, PodUid] = {}
        """By sandbox."""
        self._left_alone: frozenset[str] = frozenset()
        """Sandboxes."""
        self._news = asyncio.Event()
        self._for_capture = _Patience(LEAST_SECONDS)
        self._for_certificate = _Patience(0.0)
        self._given_up: deque[str] = deque(maxlen=GIVEN_UP)
        self._counted: Counter[str] = Counter()
        self._asked: asyncio.Task[None] | None = None

    def settled_by(self, is_settled: Callable[[PodUid], bool]) -> None:
        """*is_settled* says of a pod that shall be captured whether nothing is awaited for that any more."""
        self._is_settled = is_settled

    async def may_start(self, start: Start) -> None:
        """Return when the container may start."""
        outcome = "known"
        if not self._is_known(start.sandbox):
            outcome = "awaited" if await self._waited(start) else "unknown"
        if outcome == "known":
            self._for_capture.share = self._for_certificate.share = 1.0
        self._counted[outcome] += 1

    async def _waited(self, start: Start) -> bool:
        """Wait until the pod is known; return whether it is."""
        if start.sandbox in self._given_up:
            return False
        longest = min(PATIENCE * start.seconds, MOST_SECONDS)
        clock = asyncio.get_running_loop().time
        began = clock()
        for patience, is_there in (self._for_capture, self._is_placed), (self._for_certificate, self._is_known):
            left = began + longest - clock()
            if not await self._until(is_there, start.sandbox, min(patience.seconds(longest), left)):
                patience.share /= 2
                self._given_up.append(start.sandbox)
                log.warning("pod %s starts, and is not %s after %.2f s", start.pod, self._lack(start), clock() - began)
                return False
            patience.share = 1.0
        return True

    async def _until(self, is_there: Callable[[str], bool], sandbox: str, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not is_there(sandbox):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _lack(self, start: Start) -> str:
        return "certified yet" if self._is_placed(start.sandbox) else "captured yet, its first packets may go by,"

    def _is_placed(self, sandbox: str) -> bool:
        return sandbox in self._left_alone or sandbox in self._captured

    def _is_known(self, sandbox: str) -> bool:
        if sandbox in self._left_alone:
            return True
        uid = self._captured.get(sandbox)
        return uid is not None and self._is_settled(uid)

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Have the runtime ask."""
        self._asked = parts.start("the runtime's plugin", self._plugin.keep)
        yield

    def resign(self) -> None:
        """The successor's plugin is asked."""
        if self._asked is not None:
            self._asked.cancel()

    def changed(self, snapshot: Snapshot) -> None:
        """Nobody who waits is let through by what goes."""

    def grown(self, snapshot: Snapshot) -> None:
        """Let through who has been captured, or is left alone."""
        self._captured = {pod.place.sandbox: uid for uid, pod in snapshot.captured.items()}
        self._left_alone = frozenset(place.sandbox for place in snapshot.left_alone.values())
        self._news.set()

    def certified(self, certificate: Certificate) -> None:
        """Let through who waited for *certificate*."""
        self._news.set()

    def ended(self, identity: SpiffeId) -> None:
        """Whoever runs, runs."""

    def missing(self) -> list[str]:
        """A runtime that does not ask keeps nobody from being ready."""
        return []

    def routes(self) -> Routes:
        """It tells nothing of its own."""
        return {}

    def collect(self, store: Store) -> None:
        """Set the metric of what has been asked."""
        for outcome, count in self._counted.items():
            store.set(CONTAINER_STARTS, (outcome,), count)
