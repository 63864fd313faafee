"""Follows the source: each batch of changes becomes the snapshot's next generation, and every concern
is brought to it.

A large mesh takes seconds to compile: meanwhile everything else has its turns, and what was in force
stays so. From the first word that workers hear of a batch to the last concern's there are none.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Final, Protocol

from nodeagent.control.concern import Concern, Snapshot
from nodeagent.control.in_force import Behind, InForce
from nodeagent.errors import shown
from nodeagent.memory import uncollected
from nodeagent.mesh.compile import MANY, Mesh
from nodeagent.mesh.entries import Delta, Entry
from nodeagent.parts import Parts
from nodeagent.resources.changes import AnyChange, Refused
from nodeagent.resources.source import Source
from nodeagent.steps import Steps, in_turns
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.metrics import POLICY_TROUBLES
from nodeagent.telemetry.store import Store

WARNINGS: Final = 20
"""So many policies are named by readiness."""
log = logging.getLogger("nodeagent.control")


class TakesSnapshot(Protocol):
    """Who has the snapshot's entries and counts its generations: ``Workers``."""

    generation: int

    def steps(self, delta: Delta) -> Steps[None]:
        """Take a change of the snapshot, as its next generation, in the last of many steps."""

    def snapshot(self) -> Mapping[str, Entry]:
        """Return the entries, by key."""


class SourceReader:
    """A concern, that tells all others."""

    def __init__(self, source: Source, mesh: Mesh, workers: TakesSnapshot) -> None:
        self._source = source
        self._mesh = mesh
        self._workers = workers
        self._in_force = InForce()
        self._concerns: tuple[Concern, ...] = ()
        self._enforcing: tuple[Behind, ...] = ()
        self._settled = asyncio.Event()
        """No batch is half taken in."""
        self._settled.set()
        self._unread: tuple[str, ...] = ()
        """What may have held unknown pods when the last batch was told: one that was read since is in no batch yet."""
        self.batches = 0
        """Of changes that were taken in."""

    @property
    def generation(self) -> int:
        """Of the snapshot."""
        return self._workers.generation

    def entries(self) -> Iterable[Entry]:
        """Return the snapshot's entries."""
        return self._workers.snapshot().values()

    async def read(self) -> None:
        """Wait for the source's next batch of changes, and take it into the snapshot; the first one
        is everything. Raises ConfigError, KernelError: the source cannot be read.
        """
        changes = await self._source.changes()
        self._unread = tuple(self._source.unread_pods())
        await self._apply(changes)

    def begin(self, concerns: Iterable[Concern], enforcing: Iterable[Behind]) -> None:
        """Take the node over: bring *concerns* to what was read, and to every change from now on.
        *enforcing* say who of those that enforce policies is behind.

        What fails for what the source says, and not for one pod alone, fails for a successor too:
        pods stay as they are, and it is tried again.
        """
        self._concerns = tuple(concerns)
        self._enforcing = tuple(enforcing)
        try:
            self._reconcile()
        except Exception as error:
            log.error(
                "the node cannot be brought to what the source says: %s; it is tried again",
                shown(str(error)),
                exc_info=error,
            )

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Follow the source."""
        parts.start("the reader of the source", self._follow, vital=True)
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """It is where changes come from."""

    def grown(self, snapshot: Snapshot) -> None:
        """It is where changes come from."""

    def missing(self) -> list[str]:
        """Say what of the snapshot could not be made, and which policy of the whole mesh is not seen."""
        stays = [f"{whose} stays as it was: {why}" for whose, why in sorted(self._mesh.faults.items())]
        return stays + self._mesh.left_open()

    def warnings(self) -> list[str]:
        """Say which documents have no effect as they stand, and which policies ask somebody who cannot answer."""
        found = self._troubles()
        more = len(found) - WARNINGS
        return [*found[:WARNINGS], f"and {more} more: see nodeagent get policies"] if more > 0 else found

    def collect(self, store: Store) -> None:
        """Set the metric of these."""
        store.set(POLICY_TROUBLES, (), len(self._troubles()))

    def _troubles(self) -> list[str]:
        refused = [_in_words(each) for each in self._source.refused() if not each.ignored]
        return [*refused, *self._mesh.unanswered(self._workers.snapshot().get)]

    def routes(self) -> Routes:
        """``nodeagent get policies``."""
        return {("GET", "/policies"): self._policies}

    async def _policies(self, query: Mapping[str, str]) -> Response:
        """A row for each policy, which says whether it is in force everywhere, and for each document
        that was refused.
        """
        while not self._settled.is_set():  # the next batch may have begun before this has its turn
            await self._settled.wait()
        rows = self._mesh.policies(self._source.refused(), self._workers.snapshot().get)
        return Response.json(self._in_force.tell(rows, self._behind))

    def _behind(self, generation: int) -> list[str]:
        found: list[str] = []
        for behind in self._enforcing:
            found += behind(generation)
        return found

    async def _apply(self, changes: list[AnyChange]) -> None:
        stays = not self.batches and len(changes) > MANY
        self._settled.clear()
        try:
            with uncollected() if stays else nullcontext():
                delta = await in_turns(self._mesh.steps(changes))
                if stays:
                    gc.freeze()  # or the collector would look through all of it, in one turn
            await in_turns(self._workers.steps(delta))
            self._in_force.bring(changes, self._workers.generation)
        finally:
            self._settled.set()
            self.batches += 1  # until a concern has the change, whatever of another one fails before

    def _snapshot(self) -> Snapshot:
        pods = self._mesh.node_pods
        return Snapshot(
            captured=pods.captured(),
            asking=pods.asking(),
            entries=self._workers.snapshot(),
            left_alone=pods.left_alone(),
            awaited=pods.awaited(),
            objects=pods.objects(),
            here=pods.here(),
            unplaced=pods.unplaced(),
            unread=tuple(dict.fromkeys((*self._unread, *self._source.unread_pods()))),
        )

    def _reconcile(self) -> None:
        """Bring the node to the snapshot: first what is there already, which a change may forbid,
        then what is new.
        """
        snapshot = self._snapshot()
        for concern in self._concerns:
            concern.changed(snapshot)
        for concern in self._concerns:
            concern.grown(snapshot)

    async def _follow(self) -> None:
        """Started again after a failure, it reconciles first: the batch at which it failed is in the snapshot."""
        while True:
            self._reconcile()
            await asyncio.sleep(0)  # a turn for who waits for this, or batch after batch would keep it waiting
            await self.read()


def _in_words(refused: Refused) -> str:
    whose = f"{refused.kind} {refused.namespace}/{refused.name}: " if refused.kind else ""
    return f"{whose}{refused.file}: {refused.error}"
