"""The folder of the cluster's state where services of the machine are among the pods: it is read once
it is known where those run, and told anew by what is written there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nodeagent.resources.changes import AnyChange, Refused
from nodeagent.resources.source import Source


class ServiceSource:
    """A source (``resources/source.py``)."""

    def __init__(self, folder: Source, look: Callable[[], Awaitable[None]]) -> None:
        """*look*: find out where services run; a pod is placed as it is told, and not again."""
        self._folder = folder
        self._look = look
        self._looked = False

    async def changes(self) -> list[AnyChange]:
        """As Source says."""
        if not self._looked:
            await self._look()
            self._looked = True
        return await self._folder.changes()

    def refused(self) -> Sequence[Refused]:
        """As Source says."""
        return self._folder.refused()

    def unread_pods(self) -> Sequence[str]:
        """As Source says."""
        return self._folder.unread_pods()

    def close(self) -> None:
        """As Source says."""
        self._folder.close()
