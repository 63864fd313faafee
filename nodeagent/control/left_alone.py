"""The pods of this node that are outside of the mesh: the kernel knows them, so that
``redirect.unknownPods: deny`` refuses nobody who has been classified; and whom it refused is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from nodeagent.control.concern import Snapshot
from nodeagent.errors import KernelError, translated
from nodeagent.parts import Parts
from nodeagent.places.place import Place
from nodeagent.redirect.left_alone import Denial
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid

log = logging.getLogger("nodeagent.enrolment")
_TOLD_AT_ONCE: Final = 8
"""A pod may make as many network namespaces as it likes."""


@dataclass(frozen=True, slots=True)
class KernelOutside:
    """The kernel's half: ``redirect.left_alone.LeftAlone`` of the data plane."""

    admit: Callable[[Mapping[PodUid, Place]], list[str]]
    """Lets pods connect as they like; returns in words for which that failed."""
    dismiss: Callable[[Collection[PodUid]], None]
    """These are not left alone any more. Raises OSError."""
    known: Callable[[], frozenset[PodUid]]
    denials: Callable[[], list[Denial]]
    """Who was refused. Raises OSError."""
    cgroup_names: Callable[[Collection[int]], dict[int, str]]
    """Returns the cgroups with these numbers."""


class LeftAlonePods:
    """A concern. It hears of a change before enrolment does: a pod that is released is known as left
    alone by then. One that is captured is taken out by the data plane, when it has it.
    """

    def __init__(self, kernel: KernelOutside, *, check_seconds: float) -> None:
        """*check_seconds*: how often it is tried again, and told who was refused."""
        self._kernel = kernel
        self._check_seconds = check_seconds
        self._wanted: Mapping[PodUid, Place] = {}
        self._faults: tuple[str, ...] = ()
        self._told: dict[int, int] = {}

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Try again what failed, and tell who was refused."""
        parts.start("the check of the pods outside of the mesh", self._keep_checking)
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """Let the pods outside of the mesh be."""
        self._wanted = snapshot.left_alone
        self._admit()

    def grown(self, snapshot: Snapshot) -> None:
        """Forget those that are gone; who is to be captured is the data plane's to take out."""
        gone = self._kernel.known() - snapshot.left_alone.keys() - snapshot.captured.keys()
        try:
            with translated(KernelError, "the map left_alone cannot be written"):
                self._kernel.dismiss(gone)
        except KernelError as error:
            log.error("pods that are gone are still known as left alone: %s", error)

    def missing(self) -> list[str]:
        """What is outside of the mesh keeps nobody from being ready."""
        return []

    def routes(self) -> Routes:
        """It tells nothing of its own."""
        return {}

    def _admit(self) -> None:
        faults = tuple(self._kernel.admit(self._wanted))
        for fault in faults:
            if fault not in self._faults:
                log.warning("%s", fault)
        self._faults = faults

    def _tell(self) -> None:
        """Name who was refused since the last look: a known pod was in a hurry, an unknown one stays shut out."""
        denials = self._kernel.denials()
        news = [denial for denial in denials if denial.refused > self._told.get(denial.cookie, 0)]
        unknown = {denial.cgroup for denial in news if denial.uid is None and denial.cookie not in self._told}
        names = self._kernel.cgroup_names(unknown) if unknown else {}
        for denial in news[:_TOLD_AT_ONCE]:
            self._tell_one(denial, names)
        if len(news) > _TOLD_AT_ONCE:
            log.warning("connections of %d more unknown network namespaces were refused", len(news) - _TOLD_AT_ONCE)
        self._told = {denial.cookie: denial.refused for denial in denials}

    def _tell_one(self, denial: Denial, names: Mapping[int, str]) -> None:
        before = self._told.get(denial.cookie, 0)
        if denial.uid is not None:
            log.info(
                "pod %s: %d connections were refused before it was known (redirect.unknownPods: deny)",
                denial.uid,
                denial.refused - before,
            )
        elif not before:
            log.warning(
                "connections of the network namespace with cookie %d are refused (redirect.unknownPods: deny): it is "
                "no pod that is known on this node; the process is in the cgroup %s",
                denial.cookie,
                names.get(denial.cgroup, f"with number {denial.cgroup}, which is gone"),
            )

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(self._check_seconds)
            self._admit()
            try:
                with translated(KernelError, "the map denied cannot be read"):
                    self._tell()
            except KernelError as error:
                log.warning("whom the kernel refused is not known: %s", error)
