"""The key sets that this node's RequestAuthentications name: fetched, and entries of the snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from nodeagent.control.concern import Snapshot
from nodeagent.control.jwks import wanted_by
from nodeagent.mesh.entries import Delta
from nodeagent.parts import Parts
from nodeagent.policy.model import Jwks, RequestAuthentication
from nodeagent.telemetry.http_request import Routes


class Fetches(Protocol):
    """Keeps key sets fresh: ``KeySets``."""

    def wanted(self, timeouts: Mapping[str, float]) -> tuple[str, ...]:
        """Keep those of exactly these URIs, each fetched within so many seconds."""

    def failing(self) -> list[str]:
        """Return, in words, whose keeping fails for what nobody foresaw."""

    async def close(self) -> None:
        """End every fetch."""


class TakesEntries(Protocol):
    """Who has the snapshot's entries: ``Workers``."""

    def apply(self, delta: Delta) -> None:
        """Take a change of the snapshot."""


class NodeKeySets:
    """A concern."""

    def __init__(self, fetches: Fetches, workers: TakesEntries) -> None:
        self._fetches = fetches
        self._workers = workers

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Each key set has a part of its own, which begins when it is wanted."""
        yield
        await self._fetches.close()

    def changed(self, snapshot: Snapshot) -> None:
        """Have the key sets that RequestAuthentications name, and no others."""
        entries = list(snapshot.entries.values())
        wanted = wanted_by(entry for entry in entries if isinstance(entry, RequestAuthentication))
        gone = tuple(entry.key for entry in entries if isinstance(entry, Jwks) and entry.uri not in wanted)
        if gone:
            self._workers.apply(Delta(removals=gone))
        self._fetches.wanted(wanted)

    def grown(self, snapshot: Snapshot) -> None:
        """Everything was asked for when the snapshot changed."""

    def missing(self) -> list[str]:
        """Say whose keeping fails for what nobody foresaw; a server that does not answer is the policy's fault."""
        return self._fetches.failing()

    def routes(self) -> Routes:
        """No page tells of them: what cannot be fetched is in the log."""
        return {}
