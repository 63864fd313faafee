"""Which service accounts have pods on which node, from the cluster's state (``source``), kept up to
date.

The rules are those of Istio's node authorizer (``security/pkg/server/ca/node_auth.go``). Of pods, a
node may make only mirrors of its static ones (admission plugin NodeRestriction), in any namespace:
so no mirror gives its node an identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final

from nodeagent.errors import IdentityError
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.mesh.local import finished
from nodeagent.resources.changes import AnyChange, Change
from nodeagent.resources.objects import PodObject
from nodeagent.resources.source import Source
from nodeagent.vocabulary import SpiffeId

MIRROR: Final = "kubernetes.io/config.mirror"
"""The annotation by which a kubelet marks the mirror of a static pod (k8s.io/api/core/v1: MirrorPodAnnotationKey)."""


class Pods:
    """The cluster's pods by node; finished pods have no identity any more."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._pods: dict[tuple[str, str], PodObject] = {}

    def apply(self, changes: Iterable[AnyChange]) -> None:
        """Take up what changed."""
        for change in changes:
            if isinstance(change, Change) and change.kind == "Pod":
                key = (change.namespace, change.name)
                if isinstance(change.object, PodObject) and not finished(change.object):
                    self._pods[key] = change.object
                else:
                    self._pods.pop(key, None)

    async def follow(self, source: Source) -> None:
        """Keep up with *source* for ever. Raises ConfigError, KernelError."""
        while True:
            self.apply(await source.changes())

    def identities_on(self, node: str) -> Set[SpiffeId]:
        """Return the identities of the pods that run on *node*: of those that the cluster gave an account."""
        found = set()
        for pod in self._pods.values():
            if pod.node == node and accountable(pod):
                try:
                    found.add(spiffe_id(self._trust_domain, pod.namespace, pod.service_account))
                except IdentityError:
                    continue  # a name that no SPIFFE ID can hold
        return found

    async def runs(self, identity: SpiffeId, node: str) -> bool:
        """Say whether a pod with *identity* runs on *node*."""
        return identity in self.identities_on(node)

    def live(self, namespace: str, name: str, uid: str) -> PodObject | None:
        """Return the pod if it is there, has not ended, and has an account that the cluster gave it."""
        pod = self._pods.get((namespace, name))
        return pod if pod is not None and pod.uid == uid and accountable(pod) else None


def accountable(pod: PodObject) -> bool:
    """Say whether *pod* names its account itself and is no mirror of a static pod, by annotation or
    by owner (KEP-1314).
    """
    return (
        bool(pod.service_account)
        and MIRROR not in pod.annotations
        and all(owner.kind != "Node" for owner in pod.owners)
    )
