"""Keeps what the kernel decides alone equal to the snapshot, and has the kernel believe it for as long
as that is so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from nodeagent.control.concern import Snapshot
from nodeagent.errors import KernelError, translated
from nodeagent.mesh.entries import Entry
from nodeagent.parts import Parts
from nodeagent.redirect import heartbeat
from nodeagent.redirect.plane import Statistics
from nodeagent.redirect.probed import LOOK_SECONDS
from nodeagent.steps import Steps, in_turns
from nodeagent.telemetry.http_request import Routes
from nodeagent.telemetry.metrics import KERNEL_EVENTS, MAP_CAPACITY, MAP_ENTRIES
from nodeagent.telemetry.store import Store

COUNT_SECONDS: Final = 60.0
"""How often is counted where nobody scrapes: what is gone is forgotten as it was counted a last time."""
log = logging.getLogger("nodeagent.control")


class Decisions(Protocol):
    """What the kernel decides alone: ``KernelPaths``."""

    def update(self, entries: Iterable[Entry]) -> None:
        """Bring the kernel to *entries*. Raises OSError."""

    def close_refused(self, store: Store) -> int:
        """Close connections that policy refuses now. Raises OSError."""

    def knows_all(self) -> bool:
        """Say whether the pods are those of the last update."""

    def collect(self, store: Store) -> None:
        """Count what was carried, and forget who is gone. Raises OSError."""


@dataclass(frozen=True, slots=True)
class KernelSide:
    """The kernel's side, which must hear from control."""

    loaded: Callable[[], Awaitable[None]]
    """Waits until what counts HTTP is loaded. Raises KernelError."""
    confirm: Callable[[], None]
    """What was decided goes on to hold."""
    probed: Callable[[], Awaitable[None]]
    """Waits until a pod has probed ports."""
    look: Callable[[], Steps[None]]
    """Looks which probed ports have a listener."""
    statistics: Callable[[], Statistics]
    """Returns how full the maps are and what the programs counted. Raises OSError."""


class Current(Protocol):
    """The snapshot as it is now: ``SourceReader``."""

    batches: int
    """Of changes that were taken in."""

    @property
    def generation(self) -> int:
        """Of the snapshot."""

    def entries(self) -> Iterable[Entry]:
        """Return the snapshot's entries."""


class KernelUpkeep:
    """A concern."""

    def __init__(
        self,
        decisions: Decisions,
        kernel: KernelSide,
        current: Current,
        store: Store,
        *,
        timeout_seconds: float,
        check_seconds: float,
        count_seconds: float = COUNT_SECONDS,
    ) -> None:
        """*timeout_seconds*: how long the kernel decides alone without being confirmed;
        *check_seconds*: how often it is tried again to bring it to the snapshot.
        """
        self._decisions = decisions
        self._kernel = kernel
        self._current = current
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._check_seconds = check_seconds
        self._count_seconds = count_seconds
        self._begun = False
        self._resigned = False
        self._batches = -1
        """Of changes that are in the kernel."""
        self._generation = 0
        """Of the snapshot, in the kernel."""

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Confirm, look at probed ports, mend; HTTP counters are loaded while pods are served already."""
        parts.start("what confirms the kernel path", self._confirm)
        parts.start("the check of the kernel path", self._check)
        parts.start("the look at probed ports", self._look)
        parts.start("what counts the kernel path", self._count)
        parts.start("the loading of the HTTP counters", self._finish_loading)
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """Plan anew, and close what may not go on. Not before the first pods are captured, or what
        an earlier control decided would be lost.
        """
        if self._begun:
            self.update()

    def grown(self, snapshot: Snapshot) -> None:
        """Plan for pods that were captured since."""
        if not self._begun or not self._decisions.knows_all():
            self.update()

    def resign(self) -> None:
        """What the kernel decides is another daemon's to write and to confirm."""
        self._resigned = True

    def missing(self) -> list[str]:
        """While it is behind, connections go to the proxy: that is no fault."""
        return []

    def routes(self) -> Routes:
        """Its rows are the pods' and the flows'."""
        return {}

    def behind(self, generation: int) -> list[str]:
        """Return the kernel, in words, if *generation* of the snapshot is not in force there."""
        return ["the kernel's maps"] if self._generation < generation else []

    def collect(self, store: Store) -> None:
        """Set the metrics of maps and programs. Raises OSError."""
        statistics = self._kernel.statistics()
        for name, (used, possible) in statistics.maps.items():
            store.set(MAP_ENTRIES, (name,), used)
            store.set(MAP_CAPACITY, (name,), possible)
        for name, value in statistics.counters.items():
            store.set(KERNEL_EVENTS, (name,), value)

    def update(self) -> None:
        """Bring what the kernel decides alone to the snapshot and the pods; a fault there leaves
        connections to the proxy, and is tried again.
        """
        if self._resigned:
            return
        self._begun = True
        self._batches = -1
        try:
            with translated(KernelError, "the maps cannot be written"):
                self._decisions.update(self._current.entries())
                self._decisions.close_refused(self._store)
            self._batches = self._current.batches
            self._generation = self._current.generation
        except KernelError as error:
            log.error("the kernel path cannot be brought up to date: %s", error)

    def _is_behind(self) -> bool:
        return self._batches != self._current.batches

    async def _finish_loading(self) -> None:
        try:
            await self._kernel.loaded()
        except KernelError as error:
            log.error("HTTP is not counted on the kernel path: %s", error)
        self.update()

    async def _confirm(self) -> None:
        """Have the kernel use what it decides alone for as long as this control keeps that up to date."""
        while not self._resigned:
            if not self._is_behind():
                self._kernel.confirm()
            await asyncio.sleep(self._timeout_seconds / heartbeat.PER_TIMEOUT)

    async def _check(self) -> None:
        while not self._resigned:
            await asyncio.sleep(self._check_seconds)
            if self._is_behind():
                self.update()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(self._count_seconds)
            if self._resigned:
                return
            self._decisions.collect(self._store)

    async def _look(self) -> None:
        while True:
            await self._kernel.probed()
            await asyncio.sleep(LOOK_SECONDS)
            if self._resigned:
                return
            await in_turns(self._kernel.look())
