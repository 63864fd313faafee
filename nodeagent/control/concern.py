"""What control is made of: concerns, each of which runs for itself, follows the snapshot, says what
keeps it from being ready, and tells about itself at the admin port.

A concern is given what it needs when it is made, and knows nobody who knows it. The composition
(:mod:`nodeagent.control.main`) decides in which order they start, are told of a change, and stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from nodeagent.errors import ControlError
from nodeagent.mesh.entries import Entry
from nodeagent.mesh.local import AskingPod, LocalPod
from nodeagent.parts import Parts
from nodeagent.places.place import Place
from nodeagent.resources.objects import PodObject
from nodeagent.telemetry.http_request import Handler, Routes
from nodeagent.vocabulary import Address, PodUid, SpiffeId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the source says now, as far as control acts on it."""

    captured: Mapping[PodUid, LocalPod]
    """This node's pods whose traffic shall be captured."""
    asking: Mapping[PodUid, AskingPod]
    """This node's pods that ask for their own certificate."""
    entries: Mapping[str, Entry]
    """What the workers have, by key."""
    left_alone: Mapping[PodUid, Place] = field(default_factory=dict)
    """Where this node's pods run that are not in the mesh and have a network of their own."""
    awaited: Mapping[PodUid, SpiffeId] = field(default_factory=dict)
    """The identities of pods that were scheduled here, do not run yet, and shall be captured."""
    objects: Mapping[PodUid, PodObject] = field(default_factory=dict)
    """This node's pods as the source has them, those too that have ended."""
    here: frozenset[PodUid] = frozenset()
    """This node's pods that have not ended, whether they run or not."""
    unplaced: tuple[Address, ...] = ()
    """The addresses of pods that run here, and of which it is not known where: what protects them stays."""
    unread: tuple[str, ...] = ()
    """What may hold pods that are not known, in words; none: all pods are known."""

    def identities(self) -> set[SpiffeId]:
        """Return the identities of this node's pods, of those too that will run here soon: their
        certificates are there when they do.
        """
        captured = {pod.identity for pod in self.captured.values()}
        asking = {pod.identity for pod in self.asking.values()}
        return captured | asking | set(self.awaited.values())


class Concern(Protocol):
    """One of control's concerns."""

    def run(self, parts: Parts) -> AbstractAsyncContextManager[None]:
        """Be at work while the block runs: entering it starts what runs beside everything else, as
        supervised *parts*; leaving it gives back what others must not find any more. *parts* have
        been stopped by then.

        A control that fails is not stopped: the block is not left, and a successor goes on.
        """

    def changed(self, snapshot: Snapshot) -> None:
        """Bring what is there already to *snapshot*, which may forbid it; nothing here may wait.

        Told to every concern before the first hears :meth:`grown`, and told again after a failure.
        """

    def grown(self, snapshot: Snapshot) -> None:
        """Bring in what is new in *snapshot*; nothing here may wait."""

    def missing(self) -> list[str]:
        """Return, in words, what keeps it from being ready."""

    def routes(self) -> Routes:
        """Return what it tells at the admin port."""


class Resigning(Protocol):
    """One that writes what another daemon of the node would write too: maps, pins, marks, files."""

    def resign(self) -> None:
        """Another daemon takes the node over: write nothing of it any more, for good. What this
        daemon's workers need goes on: they hear of every change until their connections have ended.
        """


def merged(routes: Iterable[Routes]) -> Routes:
    """Return all *routes* as one. Raises ControlError where two answer for one path."""
    found: dict[tuple[str, str], Handler] = {}
    for each in routes:
        for route, handler in each.items():
            if route in found:
                raise ControlError(f"two concerns answer {' '.join(route)}: each path of the admin port is one's alone")
            found[route] = handler
    return found
