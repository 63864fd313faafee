"""What an earlier control, or an earlier daemon, left of this node's pods: in use until their pods
have been captured anew, and removed when it is nobody's any more.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from nodeagent.control.concern import Snapshot
from nodeagent.control.supervisor_link import Inheritance
from nodeagent.parts import Parts
from nodeagent.redirect.pod import Listeners, open_sockets
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import Family, PodUid

log = logging.getLogger("nodeagent.control")
Made = Callable[[str, Family, int], list[socket.socket]]


class Drops(Protocol):
    """Who keeps descriptors across a death of control: ``SupervisorLink``."""

    def drop(self, owner: str) -> None:
        """Have forgotten what is kept of *owner*."""


class PodSocketMaker:
    """Makes sockets inside pods; also for workers of an earlier control, before this one has
    captured the pods.
    """

    def __init__(self, inherited: Inheritance) -> None:
        self._inherited = inherited
        self._captured: list[Made] = []

    def captured_by(self, made: Made) -> None:
        """Ask *made* from now on for pods of which nothing is inherited."""
        self._captured.append(made)

    def make(self, uid: str, family: Family, count: int) -> list[socket.socket]:
        """Return *count* sockets inside the pod *uid*. Raises KernelError; KeyError: it is not known."""
        network = self._inherited.networks.get(PodUid(uid))
        if network is not None:
            return open_sockets(uid, network, family, count)
        for made in self._captured:
            return made(uid, family, count)
        raise KeyError(uid)


class Leftovers:
    """A concern, the last to hear of a change: by then who is still there has taken over what is its own."""

    def __init__(self, inherited: Inheritance, keeper: Drops, prune: Callable[[], None]) -> None:
        """*prune* removes from the kernel what an earlier daemon left of pods that are gone."""
        self._inherited = inherited
        self._keeper = keeper
        self._prune = prune
        self._pruned = False
        self._told = False

    def resign(self) -> None:
        """What is left is the other daemon's to remove."""
        self._pruned = True

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Nothing of it runs by itself."""
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """What is left may be in use as long as not all pods are captured."""

    def grown(self, snapshot: Snapshot) -> None:
        """Close what was kept of pods that are gone, for it would keep their network alive; those
        that are not have their own now. What protects pods goes when every pod is known: it may be
        for the one that is not.
        """
        while self._inherited.listeners:
            uid, listeners = self._inherited.listeners.popitem()
            Listeners(listeners).close()
            self._keeper.drop(uid)
        while self._inherited.networks:
            os.close(self._inherited.networks.popitem()[1])
        if not snapshot.unread and not self._pruned:
            self._prune()
            self._pruned = True
        elif snapshot.unread and not self._told:
            log.error(
                "what protects pods that were captured before stays: it may be for one that cannot be read (%s)",
                ", ".join(snapshot.unread[:5]),
            )
        self._told = True

    def missing(self) -> list[str]:
        """What is left keeps nobody from being ready."""
        return []

    def routes(self) -> Routes:
        """It tells nothing."""
        return {}
