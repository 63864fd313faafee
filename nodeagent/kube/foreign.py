"""Policies for the network that another project defines and enforces: nobody reads them here, so where
its API group is in the cluster, any pair of pods counts as one that they may concern.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final, Protocol

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.discovery import Discovery
from nodeagent.kube.kind_objects import HeldObject
from nodeagent.kube.watch import LOOK_SECONDS, Sleep
from nodeagent.resources import objects
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import UnreadPolicy

FOREIGN: Final = "API group"
"""Stands as a kind for policies of the network that others define and enforce."""
SOON_SECONDS: Final = 2.0
"""Until it is looked again for API groups that a server may not have discovered yet."""
log = logging.getLogger("nodeagent.kube")


class TellsChanges(Protocol):
    """Whom they are found for: ``KubernetesSource``."""

    discovery: Discovery
    sleep: Sleep

    def tell(self, held: HeldObject | None, change: Change) -> None:
        """Have *change*, of what is *held*, in the next batch."""

    def wake(self) -> None:
        """There may be something to tell."""


class ForeignPolicies:
    """Whether others' policies for the network may be in the cluster: by the API groups that it has.

    A server that starts has not discovered all of them (kubernetes/kubernetes#89145), so one is gone
    when two looks have not found it.
    """

    def __init__(self, source: TellsChanges) -> None:
        self.known = False
        self.failed = False
        self._source = source
        self._groups: dict[str, HeldObject] = {}
        self._missed: set[str] = set()
        """Not found by the last look, and known."""

    async def run(self) -> None:
        """Look for them, for ever."""
        while True:
            first = not self.known
            try:
                self._take(await self._source.discovery.look())
                self.known = True
                self.failed = False
            except ApiError as error:
                if not self.failed:
                    log.error("other policies for the network: %s", error)
                self.failed = True
            self._source.wake()
            await self._source.sleep(SOON_SECONDS if first or self._missed else LOOK_SECONDS)

    def restore(self, document: KubeObject) -> None:
        """Take what the snapshot says."""
        name = document.get("name")
        if isinstance(name, str):
            self._take({*self._groups, name})

    def held(self) -> list[HeldObject]:
        """Return them."""
        return list(self._groups.values())

    def _take(self, groups: Collection[str]) -> None:
        found = {name for name in groups if name in objects.POLICY_GROUPS}
        missed = self._groups.keys() - found
        found |= missed - self._missed
        self._missed = missed & found
        for name in sorted(found ^ self._groups.keys()):
            change = Change(FOREIGN, "", name, UnreadPolicy() if name in found else None)
            held = self._groups.pop(name, None)
            if name in found:
                held = self._groups[name] = HeldObject(change, "")
            self._source.tell(held, change)
