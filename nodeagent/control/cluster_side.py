"""What control does for a cluster beside following it: it renews the node's status, and keeps what is
known for a start without the API server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nodeagent.control.concern import Snapshot
from nodeagent.kube.node_status import NodeStatusMarks
from nodeagent.kube.snapshot import SnapshotFile
from nodeagent.kube.source import KubernetesSource
from nodeagent.parts import Parts
from nodeagent.places.cri import CriPlaces
from nodeagent.telemetry.http_request import Routes


class ClusterSide:
    """A concern."""

    def __init__(self, source: KubernetesSource, places: CriPlaces, marks: NodeStatusMarks, kept: SnapshotFile) -> None:
        self._source = source
        self._places = places
        self._marks = marks
        self._kept = kept

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Be at work; leaving it tells the other nodes what is left to tell, and writes what is known."""
        parts.start("the snapshot of the cluster", self._kept.keep)
        async with self._marks.run(parts):
            yield
        self._source.close()
        self._places.close()
        await self._kept.write()

    def resign(self) -> None:
        """Write nothing any more; the cluster is followed for the workers that serve on."""
        self._marks.resign()
        self._kept.resign()

    def changed(self, snapshot: Snapshot) -> None:
        """Nothing here depends on it."""

    def grown(self, snapshot: Snapshot) -> None:
        """Nothing here depends on it."""

    def missing(self) -> list[str]:
        """Say what may not be read, or told the other nodes."""
        return [*self._source.missing(), *self._marks.missing()]

    def routes(self) -> Routes:
        """It tells nothing at the admin port."""
        return {}
