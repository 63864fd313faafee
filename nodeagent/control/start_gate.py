"""No container is made before its pod is captured, or known to be left alone, where the runtime asks first.

The runtime is answered in a thread of its own (:class:`Doorman`), from what control showed it last
(:class:`Known`): while control's loop stands still, what is known is answered at once, and what is not
is decided in time. What has no answer in time would lose the runtime, which then asks about nobody.

The runtime waits for each answer, with whatever else it has to make and start too, so nobody may be
waited for for long: half of what it has patience for (one second, if it is not told otherwise), and
while pods are waited for in vain, half as long for each next one. It is one thing to wait for a
capture, which takes moments and is always waited for so long, and another to wait for an authority,
which may be slow: who waits in vain for a certificate takes no patience from those that are not
captured yet.

Who is waited for in vain: a pod that is known to belong into the mesh is refused its container, since
its first packets would go by whatever protects it and others; the kubelet tries again some ten seconds
later. One of which nobody has heard yet, or that cannot be captured for a reason that is told, starts:
an agent that stands still keeps no pod outside the mesh from starting. Both are counted, and named in
the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from nodeagent.apart import apart
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
"""Which part of the time in which the runtime wants its answer a container waits at most; the rest is for who
has no processor just then.
"""
LEAST_SECONDS: Final = 0.2
"""For so long a capture is waited for, however many were in vain, if the runtime lets it."""
MOST_SECONDS: Final = 10.0
"""For so long it waits at most, whatever the runtime says."""
REMEMBERED: Final = 256
"""Sandboxes that are not waited for again, or have been."""
log = logging.getLogger("nodeagent.enrolment")


@dataclass(frozen=True, slots=True)
class Known:
    """What control knows at one moment."""

    placed: frozenset[str] = frozenset()
    """Sandboxes that are captured or left alone."""
    settled: frozenset[str] = frozenset()
    """Those of them for which nothing is awaited any more."""
    members: frozenset[PodUid] = frozenset()
    """The pods that shall be captured, and for all that is known can be."""


@dataclass(slots=True)
class _Patience:
    """Part of the longest wait that each next one is."""

    least_seconds: float
    share: float = 1.0

    def seconds(self, longest: float) -> float:
        return max(self.share * longest, min(self.least_seconds, longest))


class Doorman:
    """Answers the runtime. All of it runs in one thread, but for :meth:`show` and :meth:`counted`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """*tell* has control log who was waited for in vain, and show what it knows once more: whoever writes to a
        log may have to wait.
        """
        self._tell = tell
        self._known = Known()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._for_capture = _Patience(LEAST_SECONDS)
        self._for_certificate = _Patience(0.0)
        self._given_up: deque[str] = deque(maxlen=REMEMBERED)
        self._awaited: deque[str] = deque(maxlen=REMEMBERED)
        self._counted = dict.fromkeys(("known", "awaited", "refused", "unknown"), 0)

    def show(self, known: Known) -> None:
        """Have what waits see *known*. Whichever thread looks sees all of it, or all of what was before."""
        self._known = known
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._news.set)

    def counted(self) -> dict[str, int]:
        """Return how many containers were made or refused, by outcome."""
        return self._counted.copy()

    async def keep(self, plugin: Plugin) -> None:
        """Have *plugin* ask, for ever."""
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        try:
            await plugin.keep()
        finally:
            self._loop = None

    async def may_create(self, start: Start) -> str:
        """Return when the container may be made, or why it may not."""
        if self._is_placed(start.sandbox):
            return ""
        if start.sandbox in self._given_up and start.uid not in self._known.members:
            return ""
        longest = _longest(start)
        if await self._until(self._is_placed, start.sandbox, self._for_capture.seconds(longest)):
            self._for_capture.share = 1.0
            self._awaited.append(start.sandbox)
            return ""
        self._for_capture.share /= 2
        if start.uid not in self._known.members:
            self._given_up.append(start.sandbox)
            self._tell(f"pod {start.pod} starts, and is not captured yet, its first packets may go by")
            return ""
        self._counted["refused"] += 1
        self._tell(f"pod {start.pod} is refused its container: it is in the mesh, and not captured yet")
        return (
            "nodeagent: the pod is in the mesh and not captured yet, its first packets would go by its policies. The "
            "kubelet tries again; if it goes on, see 'nodeagent get pods' and the log of the node's agent"
        )

    async def may_start(self, start: Start) -> None:
        """Return when the container may start."""
        if not self._is_settled(start.sandbox):
            outcome = "awaited" if await self._waited(start) else "unknown"
        else:
            outcome = "awaited" if start.sandbox in self._awaited else "known"
            self._for_capture.share = self._for_certificate.share = 1.0
        with suppress(ValueError):
            self._awaited.remove(start.sandbox)
        self._counted[outcome] += 1

    async def _waited(self, start: Start) -> bool:
        """Wait until the pod is settled; return whether it is."""
        if start.sandbox in self._given_up:
            return False
        longest = _longest(start)
        clock = asyncio.get_running_loop().time
        began = clock()
        for patience, is_there in (self._for_capture, self._is_placed), (self._for_certificate, self._is_settled):
            left = began + longest - clock()
            if not await self._until(is_there, start.sandbox, min(patience.seconds(longest), left)):
                patience.share /= 2
                self._given_up.append(start.sandbox)
                self._tell(f"pod {start.pod} starts, and is not {self._lack(start)} after {clock() - began:.2f} s")
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
            return is_there(sandbox)  # who has had no processor hears of both at once
        return True

    def _lack(self, start: Start) -> str:
        return "certified yet" if self._is_placed(start.sandbox) else "captured yet, its first packets may go by,"

    def _is_placed(self, sandbox: str) -> bool:
        return sandbox in self._known.placed

    def _is_settled(self, sandbox: str) -> bool:
        return sandbox in self._known.settled


def _longest(start: Start) -> float:
    return min(PATIENCE * start.seconds, MOST_SECONDS)


class StartGate:
    """A concern, that hears of a snapshot after enrolment does, and an observer of certificates: the plugin
    at the runtime's *socket*, that tells *made* of new sandboxes. *faults* says why a pod cannot be captured.
    """

    def __init__(
        self,
        socket: Path,
        made: Callable[[Listed, SandboxReport], None],
        faults: Callable[[PodUid], list[str]] = lambda _: [],
    ) -> None:
        self._made = made
        self._faults = faults
        self._doorman = Doorman(self._in_vain)
        self._plugin = Plugin(socket, Waits(self._told, self._doorman.may_create, self._doorman.may_start))
        self._is_settled: Callable[[PodUid], bool] = lambda _: False
        self._snapshot = Snapshot({}, {}, {})
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: asyncio.Task[None] | None = None

    def settled_by(self, is_settled: Callable[[PodUid], bool]) -> None:
        """*is_settled* says of a pod that shall be captured whether nothing is awaited for that any more."""
        self._is_settled = is_settled

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Have the runtime ask."""
        self._loop = asyncio.get_running_loop()
        self._asked = parts.start("the runtime's plugin", self._keep)
        yield

    async def _keep(self) -> None:
        await apart("nri", partial(self._doorman.keep, self._plugin))

    def resign(self) -> None:
        """The successor's plugin is asked."""
        if self._asked is not None:
            self._asked.cancel()

    def changed(self, snapshot: Snapshot) -> None:
        """Nobody who waits is let through by what goes."""

    def grown(self, snapshot: Snapshot) -> None:
        """Let through who has been captured, or is left alone."""
        self._snapshot = snapshot
        self._show()

    def certified(self, certificate: Certificate) -> None:
        """Let through who waited for *certificate*."""
        self._show()

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
        for outcome, count in self._doorman.counted().items():
            store.set(CONTAINER_STARTS, (outcome,), count)

    def _show(self) -> None:
        """Show the doorman what is known."""
        snapshot = self._snapshot
        captured = {uid: pod.place.sandbox for uid, pod in snapshot.captured.items()}
        left_alone = frozenset(place.sandbox for place in snapshot.left_alone.values())
        settled = left_alone.union(sandbox for uid, sandbox in captured.items() if self._is_settled(uid))
        possible = (uid for uid in snapshot.awaited if not self._faults(uid))
        self._doorman.show(Known(left_alone.union(captured.values()), settled, frozenset((*captured, *possible))))

    def _told(self, listed: Listed, report: SandboxReport) -> None:
        """In the doorman's thread: control acts on it when it can."""
        self._here(partial(self._made, listed, report))

    def _in_vain(self, words: str) -> None:
        """In the doorman's thread: somebody was waited for in vain."""

        def heard() -> None:
            log.warning("%s", words)
            self._show()

        self._here(heard)

    def _here(self, work: Callable[[], None]) -> None:
        """Have *work* done by control's loop, whichever thread says so."""
        assert self._loop is not None  # the thread was begun by it
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(work)
