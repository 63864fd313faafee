"""Which API groups the server has: one looks, for all who wait for one.

A kind that the cluster does not have costs no request of its own: each would be a connection of TLS,
and most clusters lack some kind for as long as they live.
"""

from __future__ import annotations

import asyncio

from nodeagent.kube.client import KubeClient
from nodeagent.kube.kinds import WatchedKind


class Discovery:
    """Of the API server that *client* asks."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._groups: frozenset[str] = frozenset()
        self._looked = asyncio.Event()

    async def look(self) -> frozenset[str]:
        """Return the names of the groups, and wake who waits for one of them. Raises ApiError."""
        found = (await self._client.get("/apis")).get("groups")
        listed = found if isinstance(found, list) else ()
        self._groups = frozenset(str(each.get("name")) for each in listed if isinstance(each, dict))
        self._looked.set()
        self._looked = asyncio.Event()
        return self._groups

    async def appears(self, kind: WatchedKind) -> None:
        """Return after a look that found the group of *kind*: the kind may be there."""
        while True:
            await self._looked.wait()
            if kind.group in self._groups:
                return
