"""What control does for a cluster beside following it: it renews the node's status, keeps what is known
for a start without the API server, takes the node's startup taint away, tells Events, and looks out for
the agent that will take the node over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from nodeagent.control.concern import Snapshot
from nodeagent.kube.client import KubeClient
from nodeagent.kube.events import EventTeller, Row, of_pods
from nodeagent.kube.node_status import NodeStatusMarks
from nodeagent.kube.snapshot import SnapshotFile
from nodeagent.kube.source import KubernetesSource
from nodeagent.kube.successor import is_coming, is_forsaken
from nodeagent.kube.taint import StartupTaint
from nodeagent.parts import Parts
from nodeagent.places.cri import CriPlaces
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import PodUid

FORSAKEN_SECONDS: Final = 5.0
"""So long no other agent is there, before who drains gives its node up: what is told may come in another order."""


class ClusterSide:
    """A concern."""

    def __init__(
        self,
        client: KubeClient,
        source: KubernetesSource,
        places: CriPlaces,
        marks: NodeStatusMarks,
        kept: SnapshotFile,
        own: PodUid,
    ) -> None:
        """*own*: the agent's pod; empty: it is not known, and no successor is."""
        self._client = client
        self._source = source
        self._places = places
        self._marks = marks
        self._kept = kept
        self._own = own
        self._coming = False
        """Another agent is on its way to this node."""
        self._came = False
        """One was."""
        self._forsaken = False
        """No other agent is there, nor can one come while this one's pod is."""
        self._news = asyncio.Event()
        """That changed."""
        self._succession: Callable[[bool], None] | None = None
        self._parts: Parts | None = None

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Be at work; leaving it tells the other nodes what is left to tell, and writes what is known."""
        self._parts = parts
        parts.start("the snapshot of the cluster", self._kept.keep)
        async with self._marks.run(parts):
            yield
        self._source.close()
        self._places.close()
        self._client.close()
        await self._kept.write()

    def told_by(
        self,
        lacking: Callable[[], list[str]],
        pods: Callable[[], Iterable[Row]],
        succession: Callable[[bool], None],
    ) -> None:
        """From now on take the taint away while nothing is *lacking*, tell what is wrong with *pods*, by
        their rows, and tell *succession* whether another agent is on its way.
        """
        assert self._parts is not None
        self._succession = succession
        succession(self._coming)
        taint = StartupTaint(self._client, self._source.node, lambda: self._source.tainted, lacking)
        self._parts.start("the node's startup taint", taint.keep)
        events = EventTeller(self._client, self._source.node, lambda: [*of_pods(pods()), *self._source.troubles()])
        self._parts.start("Events", events.keep)

    def resign(self) -> None:
        """Write nothing any more; the cluster is followed for the workers that serve on."""
        self._marks.resign()
        self._kept.resign()

    async def forsaken(self) -> None:
        """Wait until there has been no other agent for some seconds, nor can one come while this one's pod is there."""
        while True:
            self._news.clear()
            try:
                async with asyncio.timeout(FORSAKEN_SECONDS if self._forsaken else None):
                    await self._news.wait()
            except TimeoutError:
                if self._forsaken and not self._news.is_set():  # news may come in the turn in which time is over
                    return

    def changed(self, snapshot: Snapshot) -> None:
        """Another agent may have been made for this node, or be gone."""
        coming = is_coming(self._own, snapshot.objects)
        self._came = self._came or coming
        forsaken = is_forsaken(self._own, snapshot.objects, came=self._came)
        if forsaken != self._forsaken:
            self._forsaken = forsaken
            self._news.set()
        if coming != self._coming:
            self._coming = coming
            if self._succession is not None:
                self._succession(coming)

    def grown(self, snapshot: Snapshot) -> None:
        """Nothing here depends on it."""

    def missing(self) -> list[str]:
        """Say what may not be read, or told the other nodes, and why no pod's place is known."""
        return [*self._source.missing(), *self._marks.missing(), *self._places.missing()]

    def routes(self) -> Routes:
        """It tells nothing at the admin port."""
        return {}
