"""Which service accounts have pods on which node, from the cluster's state (``source``), kept up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Set
from pathlib import Path

from nodeagent.errors import IdentityError
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.mesh.entries import SpiffeId
from nodeagent.mesh.local import finished
from nodeagent.resources.objects import Pod
from nodeagent.resources.source import AnyChange, Change, DirectorySource


class Pods:
    """The cluster's pods by node; finished pods have no identity any more."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._pods: dict[tuple[str, str], Pod] = {}

    def apply(self, changes: Iterable[AnyChange]) -> None:
        """Take up what changed."""
        for change in changes:
            if isinstance(change, Change) and change.kind == "Pod":
                key = (change.namespace, change.name)
                if isinstance(change.object, Pod) and not finished(change.object):
                    self._pods[key] = change.object
                else:
                    self._pods.pop(key, None)

    async def read(self, source: Path) -> AsyncIterator[list[AnyChange]]:
        """Read the folder *source* and return its further changes, for :meth:`follow`. Raises ConfigError, KernelError."""
        changes = DirectorySource(source).changes()
        self.apply(await anext(changes))
        return changes

    async def follow(self, changes: AsyncIterator[list[AnyChange]]) -> None:
        """Keep up with *changes* for ever."""
        async for batch in changes:
            self.apply(batch)

    def identities_on(self, node: str) -> Set[SpiffeId]:
        """Return the identities of the pods that run on *node*."""
        found = set()
        for pod in self._pods.values():
            if pod.node == node:
                try:
                    found.add(spiffe_id(self._trust_domain, pod.namespace, pod.service_account))
                except IdentityError:
                    continue  # a name that no SPIFFE ID can hold
        return found

    def node_of(self, namespace: str, name: str, uid: str) -> str:
        """Return the node of a running pod; empty: there is no such pod."""
        pod = self._pods.get((namespace, name))
        return pod.node if pod is not None and pod.uid == uid else ""
