"""The pods of this node: which of them are captured, left alone or awaited, and why; kept up to
date pod by pod.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nodeagent.errors import IdentityError
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.istio import SYSTEM_NAMESPACES
from nodeagent.mesh.cluster_state import ClusterState
from nodeagent.mesh.local import AskingPod, LocalPod, asking_pod, bypass, finished, local_pod, reserved_ports
from nodeagent.mesh.membership import Membership, MembershipRules, membership
from nodeagent.mesh.rules import scrapes, service_account
from nodeagent.mesh.selection import NamespacedName
from nodeagent.places.place import Place, Places
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import Address, PodUid, SpiffeId

GOOD_AGAIN: Final = "its labels and annotations are good again"
TOLD_FAULTS: Final = 50
"""So many lines a batch of changes is worth in the log: one annotation of a tenant may be of all pods."""
log = logging.getLogger("nodeagent.mesh")


@dataclass(frozen=True, slots=True)
class NodePod:
    """A pod of this node that has not ended."""

    uid: PodUid
    pod: str
    namespace: str
    addresses: tuple[Address, ...]
    membership: Membership
    identity: SpiffeId | None
    """None: its service account makes none."""
    place: Place | None
    """Where it runs; None: not known yet, or any more."""
    terminating: bool
    local: LocalPod | None
    """How it is enrolled; None: it is not to be, or cannot be yet."""
    asking: AskingPod | None
    """What it asks for; None: nothing."""
    faults: tuple[str, ...]
    """Labels and annotations that are wrong and have no effect."""

    @property
    def state(self) -> str:
        """Return the verdict, or ``awaited``."""
        return "awaited" if self.awaited else self.membership.verdict

    @property
    def awaited(self) -> bool:
        """It will be captured as soon as it runs."""
        return self.membership.verdict == "captured" and self.local is None and not self.terminating


class NodePods:
    """The pods of *node*, told apart by *rules*; Istio's own ones count in *root_namespace* and in
    the cluster's own namespaces alone: elsewhere anybody can give a pod such a name.
    """

    def __init__(
        self,
        node: str,
        trust_domain: str,
        places: Places | None,
        state: ClusterState,
        rules: MembershipRules,
        root_namespace: str,
    ) -> None:
        self._node = node
        self._trust_domain = trust_domain
        self._places = places
        self._state = state
        self._rules = rules
        self._istio_namespaces = frozenset((root_namespace, *SYSTEM_NAMESPACES))
        self._pods: dict[NamespacedName, NodePod] = {}
        self._objects: dict[NamespacedName, PodObject] = {}
        self._istio: dict[NamespacedName, str] = {}
        self._istio_here = ""
        self._untold: dict[str, list[NamespacedName]] = {}
        """Whose faults are to be logged, by their words."""

    def __iter__(self) -> Iterator[NodePod]:
        return iter(self._pods.values())

    def concerned(self, touched: Iterable[NamespacedName]) -> set[NamespacedName]:
        """Return the pods of this node whose verdict may be another for it that those *touched*
        changed: all of them, when Istio's own programs came to the node or left it.
        """
        for key in touched:
            self._note_istio(key)
        here = min(self._istio.values(), default="")
        if here == self._istio_here:
            return set()
        self._istio_here = here
        if here and self._rules.ambient_labels:
            log.error(
                "%s: redirect.ambientLabels is not followed on this node; pods that shall be the agent's here "
                "need nodeagent.io/dataplane: enabled",
                here,
            )
        return set(self._pods) if self._rules.ambient_labels else set()

    def _note_istio(self, key: NamespacedName) -> None:
        self._istio.pop(key, None)
        pod = self._state.pods.get(key)
        if pod is None or pod.node != self._node or not pod.istio_part or finished(pod):
            return
        if pod.namespace in self._istio_namespaces:
            self._istio[key] = f"{pod.istio_part} runs on this node (Pod {pod.namespace}/{pod.name})"

    def note(self, key: NamespacedName) -> None:
        """Decide about the pod *key* anew."""
        known = self._pods.get(key)
        pod = self._state.pods.get(key)
        if pod is not None and pod.node == self._node:
            self._objects[key] = pod
        else:
            self._objects.pop(key, None)
        if pod is None or pod.node != self._node or finished(pod) or not self._state.is_current(key, pod):
            self._pods.pop(key, None)
            return
        made = self._made(key, pod)
        self._pods[key] = made
        before = known.faults if known is not None else ()
        for words in made.faults or ((GOOD_AGAIN,) if before else ()):
            if words not in before:
                self._untold.setdefault(words, []).append(key)

    def tell(self) -> None:
        """Log what has become wrong with pods since the last time: once what several have in common, such as a
        Service's annotation, and so much of it as people read.
        """
        for words, keys in islice(self._untold.items(), TOLD_FAULTS):
            others = f" and {len(keys) - 1} more" if keys[1:] else ""
            log.warning("Pod %s/%s%s: %s", *keys[0], others, words)
        if (more := len(self._untold) - TOLD_FAULTS) > 0:
            log.warning("%d more faults of pods: see nodeagent get pods", more)
        self._untold.clear()

    def _made(self, key: NamespacedName, pod: PodObject) -> NodePod:
        faults: list[str] = []
        self._state.key_faults(pod, faults)
        bypass(pod.annotations, faults)
        scrapes(pod, faults)
        place = self._places.of(pod) if self._places is not None else None
        identity = self._identity(pod, faults)
        asking = asking_pod(pod, place, identity, faults) if identity is not None else None
        decided = membership(pod, self._state.namespaces.get(pod.namespace), self._rules, self._istio_here, faults)
        if decided.verdict == "captured" and identity is None:
            decided = Membership("undecided", f"{decided.why}, but its service account makes no identity")
        addresses = self._state.owned(key, pod)
        local = None
        if decided.verdict == "captured":
            faults += reserved_ports(pod)
        if decided.verdict == "captured" and identity is not None:
            local = local_pod(pod, place, addresses, identity, faults)
        return NodePod(
            uid=pod.uid,
            pod=pod.name,
            namespace=pod.namespace,
            addresses=pod.addresses,
            membership=decided,
            identity=identity,
            place=place,
            terminating=pod.terminating,
            local=local,
            asking=asking,
            faults=tuple(faults),
        )

    def _identity(self, pod: PodObject, faults: list[str]) -> SpiffeId | None:
        try:
            return spiffe_id(self._trust_domain, pod.namespace, service_account(pod))
        except IdentityError as error:
            faults.append(f"spec.serviceAccountName: {error}")
            return None

    # -- what control acts on --

    def captured(self) -> dict[PodUid, LocalPod]:
        """Return the pods that shall be enrolled."""
        return {each.uid: each.local for each in self if each.local is not None}

    def asking(self) -> dict[PodUid, AskingPod]:
        """Return the pods that ask for their own certificate."""
        return {each.uid: each.asking for each in self if each.asking is not None}

    def left_alone(self) -> dict[PodUid, Place]:
        """Return where the pods outside the mesh run that have a network of their own."""
        return {
            each.uid: each.place
            for each in self
            if each.membership.verdict == "left alone" and each.place is not None and each.place.netns
        }

    def objects(self) -> dict[PodUid, PodObject]:
        """Return all pods as the source has them, those too that have ended."""
        return {pod.uid: pod for pod in self._objects.values()}

    def here(self) -> frozenset[PodUid]:
        """Return the pods that have not ended."""
        return frozenset(each.uid for each in self)

    def unplaced(self) -> tuple[Address, ...]:
        """Return the addresses of pods that are not known to be outside of the mesh, and cannot be
        entered: their sandbox cannot be read now.
        """
        found: list[Address] = []
        for key, each in self._pods.items():
            if each.place is None and each.membership.verdict != "left alone":
                found += self._state.owned(key, self._state.pods[key])
        return tuple(found)

    def awaited(self) -> dict[PodUid, SpiffeId]:
        """Return whose identities will be needed as soon as their pods run."""
        return {each.uid: each.identity for each in self if each.awaited and each.identity is not None}
