"""The cluster's state from Kubernetes' API, with what the container runtime says of this node.

Theory of operation
-------------------

One watch a kind (``watch.py``) tells what objects there are; the runtime (``places/cri.py``) which
sandboxes run here. A pod of this node is both, put together by its uid: what it is comes from the
API, where it runs from the runtime, and its addresses too while the API does not know them yet.

    API server ──▶ Watch ──▶ kind ───┐
    API server ──▶ Watch ──▶ kind ───┼──▶ pending, by key ──▶ changes()
    runtime    ──▶ sandboxes ────────┘

``pending`` holds what has not been told yet, the last state of each object, so it is never larger
than the cluster. The first batch waits until every kind was listed and the runtime has answered: a
node that knew half of its policies, or no place of its pods, would open or release what it must not.

The end of a pod is its sandbox's, not its object's: that may be gone, or its phase say that all has
ended, while what it ran runs on (a forced deletion, a kubelet that is cut off). As long as the runtime
has the sandbox, or has not told whether, such a pod is told as one that runs and is on its way out.
What the API knows no more is told under a name that no object has (``name@uid``), as another pod may
have the name by now.

API server away. What was known stays. A start takes the snapshot on disk (``snapshot.py``) for each
kind that cannot be listed, so no kind is half old and half new; without a snapshot it waits. Nothing
is known then of a pod that came meanwhile: the runtime names it, without a service account, so it
has no identity; it is told by ``unread_pods``, and ``redirect.unknownPods`` says what it may do.

Missing rights. A kind that may not be listed is treated as an API server that is away, and named in
``missing`` with the RBAC rule that it takes. So a right that was taken away opens nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from nodeagent.errors import ResourceError
from nodeagent.kube.access import KubeObject
from nodeagent.kube.client import KubeClient
from nodeagent.kube.discovery import Discovery
from nodeagent.kube.events import Trouble
from nodeagent.kube.foreign import FOREIGN, ForeignPolicies
from nodeagent.kube.kind_objects import HeldObject, KindObjects, Name, pod_of
from nodeagent.kube.kinds import FOLLOWED, NODE_STATUS, PODS, WatchedKind
from nodeagent.kube.lean import MIRROR, Lean
from nodeagent.kube.node_status import NodeStatuses
from nodeagent.kube.outages import Outages
from nodeagent.kube.watch import DENIED, Sleep, Watch
from nodeagent.mesh.local import finished
from nodeagent.parts import Parts
from nodeagent.places.place import Places
from nodeagent.resources import security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange, Refused
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import Address, ObjectKey, PodUid

FIRST_LOOK_SECONDS: Final = 1.0
_LEAVING: Final = "@"
log = logging.getLogger("nodeagent.kube")


class NamedSandbox(Protocol):
    """Whose sandbox it is, as the runtime's list has it."""

    @property
    def namespace(self) -> str:
        """The pod's."""

    @property
    def name(self) -> str:
        """The pod's."""


class Sandboxed(NamedSandbox, Protocol):
    """What the runtime says of a pod."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its own addresses."""


class Sandboxes(Places, Protocol):
    """Who follows this node's container runtime: ``CriPlaces``."""

    def sandbox(self, uid: PodUid) -> Sandboxed | None:
        """Return the sandbox of the pod *uid*."""

    def all(self) -> Mapping[PodUid, Sandboxed]:
        """Return all of them."""

    def untold(self) -> Mapping[PodUid, NamedSandbox]:
        """Return those that are or may be there, and of which is not known where."""

    def known(self) -> bool:
        """Say whether the runtime has ever answered."""

    def expect(self, uids: Collection[PodUid]) -> None:
        """Look often while one of *uids*, pods that are to come, has no sandbox."""

    async def changed(self) -> frozenset[PodUid]:
        """Wait until sandboxes came, went or are others; return of which pods. The first call does
        not wait.
        """

    def close(self) -> None:
        """Stop following."""


class Keeping(Protocol):
    """What outlives the process: ``SnapshotFile``."""

    def restore(self) -> Sequence[KubeObject]:
        """Return the documents that were kept last; none, where nothing good is there."""

    def changed(self, changes: Iterable[Change], documents: Callable[[], Sequence[HeldObject]]) -> None:
        """Take note of *changes*; *documents* returns all that is to be kept by now."""


class KubernetesSource:
    """A source (``resources/source.py``) of *kinds* as *node* sees them. *sandboxes*: None: nothing
    runs here that matters.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        sandboxes: Sandboxes | None = None,
        kept: Keeping | None = None,
        *,
        kinds: Sequence[WatchedKind] = FOLLOWED,
        statuses: NodeStatuses | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.node = node
        self.tainted = False
        """The node has the taint of ``taint.py``."""
        self.sandboxes = sandboxes
        self.statuses = statuses or NodeStatuses(node)
        self.client = client
        self.discovery = Discovery(client)
        self.sleep = sleep
        self.lean = Lean()
        self.outages = Outages()
        self._kept = kept
        self._kinds = {each.kind: KindObjects(self, each) for each in kinds}
        self._pending: dict[ObjectKey, Change] = {}
        self._marks: dict[tuple[PodUid, str], EnrolledChange] = {}
        """By pod, and the node that says it."""
        self._wake = asyncio.Event()
        self._parts: Parts | None = None
        self._begun = False
        self._foreign = ForeignPolicies(self)
        self._here: dict[PodUid, set[Name]] = {}
        """This node's pods, by the uid that the runtime knows them by: whoever makes pods can have one
        claim another's, by the annotation of mirrors.
        """
        self._leaving: dict[PodUid, PodObject] = {}
        """This node's pods that the API knows no more, by the uid of their sandbox, which is still there."""

    async def changes(self) -> list[AnyChange]:
        """Return the next batch of changes; the first, perhaps empty, is everything that is there."""
        try:
            if self._parts is None:
                self._start()
            while True:
                self._wake.clear()
                if self._complete() and (self._pending or self._marks or not self._begun):
                    self._begun = True
                    return self._batch()
                await self._news()
        except BaseException:
            self.close()
            raise

    async def _news(self) -> None:
        """Wait until there may be something to tell; at first no longer than a second, for a runtime
        that answers at last, and that there is nothing, wakes nobody.
        """
        try:
            async with asyncio.timeout(None if self._begun else FIRST_LOOK_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return

    def refused(self) -> tuple[Refused, ...]:
        """Return the policies that are wrong."""
        found: list[Refused] = []
        for kind in self._kinds.values():
            if kind.kind.kind in security.KINDS:
                found += kind.refused()
        return tuple(found)

    def troubles(self) -> list[Trouble]:
        """Return the policies that are wrong, for who tells people."""
        found: list[Trouble] = []
        for kind in self._kinds.values():
            if kind.kind.kind in security.KINDS:
                found += kind.troubles()
        return found

    def unread_pods(self) -> list[str]:
        """Return the pods that are wrong and never were right, those that run here and that nobody knows, and
        those of whose sandbox the runtime does not tell.
        """
        return [*self._wrong(), *self._unknown(), *self._untold()]

    def _wrong(self) -> list[str]:
        pods = self._kinds.get(PODS.kind)
        return [f"Pod {'/'.join(name)}" for name in pods.never_right()] if pods is not None else []

    def _unknown(self) -> list[str]:
        running = self.sandboxes.all() if self.sandboxes is not None else {}
        unknown = [
            uid
            for uid, box in running.items()
            if uid not in self._leaving and (box.namespace, box.name) not in self._here.get(uid, ())
        ]
        return [f"{running[uid].namespace}/{running[uid].name} (uid {uid}), which runs here" for uid in sorted(unknown)]

    def _untold(self) -> list[str]:
        untold = self.sandboxes.untold() if self.sandboxes is not None else {}
        return [f"the sandbox of {each.namespace}/{each.name} (uid {uid})" for uid, each in sorted(untold.items())]

    def here(self) -> frozenset[PodUid]:
        """Return the uids of this node's pods."""
        known = (pod_of(held.change) for _, held in self._held_here())
        return frozenset(pod.uid for pod in (*known, *self._leaving.values()) if pod is not None)

    def missing(self) -> list[str]:
        """Return, in words, what may not be read of the cluster."""
        return [kind.wrong for kind in self._kinds.values() if kind.wrong and kind.status in DENIED]

    def warnings(self) -> list[str]:
        """Return, in words, how long the API server has been away, and which pods run here that nobody knows, or
        may do so.
        """
        unread = [
            f"neither the API server nor what was kept knows {each}" for each in (*self._wrong(), *self._unknown())
        ]
        untold = [f"the container runtime does not tell where {each} is" for each in self._untold()]
        return [*self.outages.warnings(), *unread, *untold]

    def close(self) -> None:
        """Stop following; idempotent."""
        if self._parts is not None:
            self._parts.stop()
            self._parts = None
        self._begun = False

    # -- what follows --

    def _start(self) -> None:
        self._parts = Parts(sleep=self.sleep)
        if self._kept is not None and not any(kind.objects for kind in self._kinds.values()):
            self._restore(self._kept.restore())
        appears = self.discovery.appears if PODS.kind in self._kinds else None
        for kind in self._kinds.values():
            kind.state = ""
            watch = Watch(self.client, kind.kind, kind, appears=appears, sleep=self.sleep)
            self._parts.start(f"the watch of {kind.kind.plural}", watch.run)
        if PODS.kind in self._kinds:
            self._parts.start("the look for other policies", self._foreign.run)
        if self.sandboxes is not None:
            self._parts.start("the reader of the container runtime", self._follow_sandboxes)

    def _restore(self, documents: Sequence[KubeObject]) -> None:
        for document in documents:
            kind = self._kinds.get(str(document.get("kind")))
            if kind is not None:
                kind.restored = True
                if kind.kind is not PODS or not self._restored_leaving(kind, document):
                    kind.put(document)
            elif document.get("kind") == FOREIGN:
                self._foreign.restore(document)

    def _restored_leaving(self, kind: KindObjects, document: KubeObject) -> bool:
        """Take *document* where it is one that the API knew no more; say whether it is."""
        metadata = document["metadata"]
        name, mark, _ = metadata["name"].partition(_LEAVING)
        if not mark:
            return False
        try:
            found = kind.parsed({**document, "metadata": {**metadata, "name": name}})
        except ResourceError as error:
            log.error("Pod %s: %s; it is not known any more", metadata["name"], error)
            return True
        if isinstance(found, PodObject):
            self._leave(found)
        return True

    def _complete(self) -> bool:
        """Say whether a batch can be told; the first one when all kinds are known, if by the
        snapshot, and what runs here.
        """
        if self._begun:
            return True
        restored = any(kind.restored for kind in self._kinds.values())
        known = [bool(kind.state) or (restored and bool(kind.wrong)) for kind in self._kinds.values()]
        foreign = PODS.kind not in self._kinds or self._foreign.known or (restored and self._foreign.failed)
        return all(known) and foreign and (self.sandboxes is None or self.sandboxes.known())

    def _batch(self) -> list[AnyChange]:
        changes = list(self._pending.values())
        self._pending.clear()
        marks = list(self._marks.values())
        self._marks.clear()
        if (changes or marks) and self._kept is not None:
            self._kept.changed(changes, self.held)
        return [*changes, *marks]

    def held(self) -> list[HeldObject]:
        """Return all objects that are known."""
        found = self._foreign.held()
        for node, document in self.statuses.documents():
            found.append(HeldObject(Change(NODE_STATUS, "", node, None), "", document=document))
        for kind in self._kinds.values():
            found += kind.objects.values()
        for pod in self._leaving.values():
            found.append(HeldObject(Change(PODS.kind, pod.namespace, _leaving_name(pod), pod), ""))
        return found

    async def _follow_sandboxes(self) -> None:
        assert self.sandboxes is not None
        while True:
            differ = await self.sandboxes.changed()
            for uid, held in self._held_here():
                if uid in differ and held.change is not None:
                    self.tell(held, held.change)
            for uid, pod in list(self._leaving.items()):
                if self._held_by(pod) is None:
                    self._left(uid)
                elif uid in differ:
                    self._tell_leaving(pod)
            self._expect()
            self.wake()

    # -- what the kinds tell --

    def tell(self, held: HeldObject | None, change: Change) -> None:
        """Have *change*, of what is *held*, in the next batch."""
        key = (change.kind, change.namespace, change.name)
        found = change.object
        if isinstance(found, PodObject) and (placed := self._placed(found)) is not found:
            change = replace(change, object=placed)
        if held is not None and not held.told and found is None:
            self._pending.pop(key, None)
            return
        if held is not None:
            held.told = True
        self._pending[key] = change

    def mark(self, changes: Iterable[EnrolledChange]) -> None:
        """Have *changes* in the next batch."""
        for change in changes:
            self._marks[change.uid, change.node] = change
            self.wake()

    def wake(self) -> None:
        """There may be something to tell."""
        self._wake.set()

    def moved(self, pod: PodObject | None, before: PodObject | None) -> None:
        """*pod* of this node came, or *before* went."""
        if before is not None and before.node == self.node:
            for uid in runtime_uids(before):
                self._forget(uid, (before.namespace, before.name))
            if pod is None or (pod.uid, pod.node) != (before.uid, before.node):
                self._leave(before)
        if pod is not None and pod.node == self.node:
            for uid in runtime_uids(pod):
                self._here.setdefault(uid, set()).add((pod.namespace, pod.name))
                known = self._leaving.get(uid)
                if known is not None and _name(known) == _name(pod):
                    self._left(uid)
        self._expect()

    def _leave(self, pod: PodObject) -> None:
        """The API knows *pod* no more: it is told on while its sandbox is here, or may be."""
        if self.sandboxes is None or pod.host_network:
            return
        uid = self._held_by(pod) if self.sandboxes.known() else runtime_uids(pod)[-1]
        if uid is None:
            return
        log.info("Pod %s/%s (uid %s) is gone, and its sandbox is not: it stays as it is", *_name(pod), uid)
        if uid in self._leaving:
            self._left(uid)
        self._leaving[uid] = replace(pod, terminating=True, ready=False)
        self._tell_leaving(self._leaving[uid])

    def _left(self, uid: PodUid) -> None:
        """The sandbox of a pod that the API knows no more is gone, or another pod's."""
        pod = self._leaving.pop(uid)
        self.tell(None, Change(PODS.kind, pod.namespace, _leaving_name(pod), None))

    def _tell_leaving(self, pod: PodObject) -> None:
        self.tell(None, Change(PODS.kind, pod.namespace, _leaving_name(pod), pod))

    def _forget(self, uid: PodUid, name: Name) -> None:
        names = self._here.get(uid, set())
        names.discard(name)
        if not names:
            self._here.pop(uid, None)

    def _held_here(self) -> Iterator[tuple[PodUid, HeldObject]]:
        """Yield this node's pods with the uids by which the runtime may know each."""
        pods = self._kinds[PODS.kind].objects
        for uid, names in self._here.items():
            held = (pods.get(name) for name in names)
            yield from ((uid, each) for each in held if each is not None)

    def _expect(self) -> None:
        if self.sandboxes is None:
            return
        waiting = []
        for uid, held in self._held_here():
            pod = pod_of(held.change)
            coming = pod is not None and pod.phase == "Pending" and not pod.terminating
            if coming and self._sandbox(pod) is None:
                waiting.append(uid)
        self.sandboxes.expect(frozenset(waiting))

    def _sandbox(self, pod: PodObject | None) -> Sandboxed | None:
        """Return the sandbox of *pod*."""
        uid = self._sandbox_uid(pod) if pod is not None else None
        return self.sandboxes.sandbox(uid) if uid is not None and self.sandboxes is not None else None

    def _sandbox_uid(self, pod: PodObject) -> PodUid | None:
        """Return the uid of *pod*'s sandbox, which has its name: the annotation of mirrors can name any."""
        if self.sandboxes is None:
            return None
        for uid in runtime_uids(pod):
            found = self.sandboxes.sandbox(uid)
            if found is not None and (found.namespace, found.name) == _name(pod):
                return uid
        return None

    def _held_by(self, pod: PodObject) -> PodUid | None:
        """Return the uid of the sandbox that *pod* has, or may have: the runtime has it, and does not tell of it."""
        assert self.sandboxes is not None
        untold = self.sandboxes.untold()
        maybe = (uid for uid in runtime_uids(pod) if uid in untold and _name(untold[uid]) == _name(pod))
        return self._sandbox_uid(pod) or next(maybe, None)

    def _placed(self, pod: PodObject) -> PodObject:
        """Return *pod* of this node with the addresses that its sandbox has: the API knows them later, and
        knows what a status says. One that names another's sandbox gets none of it. While there is a
        sandbox it has not ended, whatever its phase says.
        """
        if self.sandboxes is None or pod.node != self.node or pod.host_network:
            return pod
        sandbox = self._sandbox(pod)
        if sandbox is None:
            return pod
        both = tuple(address for address in pod.addresses if address in sandbox.addresses)
        addresses = both or sandbox.addresses or pod.addresses
        if finished(pod):
            pod = replace(pod, phase="Running", terminating=True, ready=False)
        return pod if addresses == pod.addresses else replace(pod, addresses=addresses)


def _name(pod: PodObject | NamedSandbox) -> Name:
    return pod.namespace, pod.name


def _leaving_name(pod: PodObject) -> str:
    """Return the name under which *pod* is told that the API knows no more: no object has such a one."""
    return f"{pod.name}{_LEAVING}{pod.uid}"


def runtime_uids(pod: PodObject) -> tuple[PodUid, ...]:
    """Return the uids by which the container runtime may know *pod*: its own, and for a mirror that of its
    static pod. Whoever makes pods can make one look like a mirror, so it stands under both.
    """
    mirrored = pod.annotations.get(MIRROR)
    return (pod.uid,) if mirrored is None else (pod.uid, PodUid(mirrored))
