"""The cluster's state from Kubernetes' API, with what the container runtime says of this node.

Theory of operation
-------------------

One watch a kind (``watch.py``) tells what objects there are; the runtime (``places/cri.py``) which
sandboxes run here. A pod of this node is both, put together by its uid: what it is comes from the
API, where it runs from the runtime, and its addresses too while the API does not know them yet.

    API server ──▶ Watch ──▶ _Kind ──┐
    API server ──▶ Watch ──▶ _Kind ──┼──▶ pending, by key ──▶ changes()
    runtime    ──▶ sandboxes ────────┘

``pending`` holds what has not been told yet, the last state of each object, so it is never larger
than the cluster. The first batch waits until every kind was listed and the runtime has answered: a
node that knew half of its policies, or no place of its pods, would open or release what it must not.

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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from nodeagent.errors import ResourceError, shown, translated
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import KubeClient
from nodeagent.kube.events import Trouble
from nodeagent.kube.kinds import FOLLOWED, NODE_STATUSES, NODES, PODS, WatchedKind
from nodeagent.kube.lean import UNWRITTEN, Lean, rewritten, trim
from nodeagent.kube.node_status import NodeStatuses
from nodeagent.kube.taint import is_tainted
from nodeagent.kube.watch import LOOK_SECONDS, Sleep, Watch, newer
from nodeagent.mesh.local import finished
from nodeagent.parts import Parts
from nodeagent.places.place import Places
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange, Refused
from nodeagent.resources.objects import KubernetesObject, NamespaceObject, PodObject, ServiceObject, UnreadPolicy
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import Address, ObjectKey, PodUid

if TYPE_CHECKING:
    from nodeagent.protocols.pods_pb2 import Pod

WHERE: Final = "Kubernetes API"
"""Where a policy stands, in words."""
FOREIGN: Final = "API group"
"""Stands as a kind for policies of the network that others define and enforce."""
MIRROR: Final = "kubernetes.io/config.mirror"
"""Annotation of a static pod's mirror: the uid by which the kubelet and the runtime know the pod."""
TOMBSTONES: Final = 1024
"""Of objects that are gone their last versions are kept, so that what comes late raises none again."""
FIRST_LOOK_SECONDS: Final = 1.0
SOON_SECONDS: Final = 2.0
"""Until it is looked again for API groups that a server may not have discovered yet."""
_DENIED: Final = (401, 403)
log = logging.getLogger("nodeagent.kube")
Name = tuple[str, str]
"""Namespace and name."""


class Sandboxed(Protocol):
    """What the runtime says of a pod."""

    @property
    def namespace(self) -> str:
        """The pod's."""

    @property
    def name(self) -> str:
        """The pod's."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its own addresses."""


class Sandboxes(Places, Protocol):
    """Who follows this node's container runtime: ``CriPlaces``."""

    def sandbox(self, uid: PodUid) -> Sandboxed | None:
        """Return the sandbox of the pod *uid*."""

    def all(self) -> Mapping[PodUid, Sandboxed]:
        """Return all of them."""

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


@dataclass(slots=True)
class HeldObject:
    """An object of the cluster as it is known."""

    change: Change | None
    """As it was last right, or what stands in for it; None: it never was right, and nothing does."""
    version: str
    error: str = ""
    """What is wrong with it now."""
    uid: str = ""
    """Of an object that is wrong."""
    document: bytes = b""
    """Of a policy, the last one that was right if there was one, as JSON."""
    told: bool = False


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
        self.sleep = sleep
        self.lean = Lean()
        self._kept = kept
        self._kinds = {each.kind: _Kind(self, each) for each in kinds}
        self._pending: dict[ObjectKey, Change] = {}
        self._marks: dict[tuple[PodUid, str], EnrolledChange] = {}
        """By pod, and the node that says it."""
        self._wake = asyncio.Event()
        self._parts: Parts | None = None
        self._begun = False
        self._foreign = _Foreign(self)
        self._here: dict[PodUid, set[Name]] = {}
        """This node's pods, by the uid that the runtime knows them by: whoever makes pods can have one
        claim another's, by the annotation of mirrors.
        """

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
        """Return the pods that are wrong and never were right, and those that run here and that
        nobody knows.
        """
        pods = self._kinds.get(PODS.kind)
        wrong = [f"Pod {'/'.join(name)}" for name in pods.never_right()] if pods is not None else []
        running = self.sandboxes.all() if self.sandboxes is not None else {}
        unknown = [uid for uid, box in running.items() if (box.namespace, box.name) not in self._here.get(uid, ())]
        return wrong + [
            f"{running[uid].namespace}/{running[uid].name} (uid {uid}), which runs here" for uid in sorted(unknown)
        ]

    def here(self) -> frozenset[PodUid]:
        """Return the uids of this node's pods."""
        known = (_pod(held.change) for _, held in self._held_here())
        return frozenset(pod.uid for pod in known if pod is not None)

    def missing(self) -> list[str]:
        """Return, in words, what may not be read of the cluster."""
        return [kind.wrong for kind in self._kinds.values() if kind.wrong and kind.status in _DENIED]

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
        for kind in self._kinds.values():
            kind.state = ""
            watch = Watch(self.client, kind.kind, kind, sleep=self.sleep)
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
                kind.put(document)
            elif document.get("kind") == FOREIGN:
                self._foreign.restore(document)

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
        if changes and self._kept is not None:
            self._kept.changed(changes, self.held)
        return [*changes, *marks]

    def held(self) -> list[HeldObject]:
        """Return all objects that are known."""
        found = self._foreign.held()
        for kind in self._kinds.values():
            found += kind.objects.values()
        return found

    async def _follow_sandboxes(self) -> None:
        assert self.sandboxes is not None
        while True:
            differ = await self.sandboxes.changed()
            for uid, held in self._held_here():
                if uid in differ and held.change is not None:
                    self.tell(held, held.change)
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
            self._forget(runtime_uid(before), (before.namespace, before.name))
        if pod is not None and pod.node == self.node:
            self._here.setdefault(runtime_uid(pod), set()).add((pod.namespace, pod.name))
        self._expect()

    def _forget(self, uid: PodUid, name: Name) -> None:
        names = self._here.get(uid, set())
        names.discard(name)
        if not names:
            self._here.pop(uid, None)

    def _held_here(self) -> Iterator[tuple[PodUid, HeldObject]]:
        """Yield this node's pods with the uid that the runtime knows each by."""
        pods = self._kinds[PODS.kind].objects
        for uid, names in self._here.items():
            held = (pods.get(name) for name in names)
            yield from ((uid, each) for each in held if each is not None)

    def _expect(self) -> None:
        if self.sandboxes is None:
            return
        waiting = []
        for uid, held in self._held_here():
            pod = _pod(held.change)
            coming = pod is not None and pod.phase == "Pending" and not pod.terminating
            if coming and self.sandboxes.sandbox(uid) is None:
                waiting.append(uid)
        self.sandboxes.expect(frozenset(waiting))

    def _placed(self, pod: PodObject) -> PodObject:
        """Return *pod* with the addresses that the runtime says of the pod of its name, while the API knows
        none. One that names another's sandbox gets none: the younger owns an address, so it would take the
        other's, which would be captured no more.
        """
        if self.sandboxes is None or pod.node != self.node or pod.addresses or pod.host_network:
            return pod
        sandbox = self.sandboxes.sandbox(runtime_uid(pod))
        if sandbox is None or (sandbox.namespace, sandbox.name) != (pod.namespace, pod.name):
            return pod
        return replace(pod, addresses=sandbox.addresses)


def runtime_uid(pod: PodObject) -> PodUid:
    """Return the uid by which the container runtime knows *pod*."""
    return PodUid(pod.annotations.get(MIRROR, pod.uid))


class _Kind:
    """The objects of one kind; a :class:`Sink` of its watch."""

    def __init__(self, source: KubernetesSource, kind: WatchedKind) -> None:
        self.kind = kind
        self.objects: dict[Name, HeldObject] = {}
        self.state = ""
        """``listed``, ``absent``, or nothing yet."""
        self.restored = False
        self.wrong = ""
        self.status = 0
        self._source = source
        self._seen: set[Name] | None = None
        self._late: dict[Name, str] = {}

    def begin(self) -> None:
        """A listing begins."""
        self._seen = set()
        self._late.clear()

    def put(self, document: KubeObject) -> None:
        """Take *document*, unless something later of it is known."""
        name, version = _identity(document)
        held = self._to_read(name, version)
        if held is not None:
            self._read(name, held, document)
            self._source.wake()

    def put_pod(self, pod: Pod) -> None:
        """Take *pod*, unless something later of it is known."""
        from nodeagent.kube import pod_messages

        found = pod_messages.ordinary(pod, self._source.node, self._source.lean)
        if found is None:
            self.put(pod_messages.document(pod))
            return
        name = (found.namespace, found.name)
        held = self._to_read(name, pod.metadata.resourceVersion)
        if held is not None:
            self._good(name, held, None if finished(found) else found)
            self._source.wake()

    def _to_read(self, name: Name, version: str) -> HeldObject | None:
        """Return what is to hold the object *name* as it is at *version*, None where something later
        of it is known.
        """
        if self._seen is not None:
            self._seen.add(name)
        held = self.objects.get(name)
        known = held.version if held is not None else self._late.get(name, "")
        if self._seen is None and known and not newer(version, known):
            return None
        self._late.pop(name, None)
        if held is None:
            held = self.objects[name] = HeldObject(None, version)
        held.version = version
        return held

    def gone(self, document: KubeObject) -> None:
        """Forget *document*, unless something later of it is known."""
        name, version = _identity(document)
        held = self.objects.get(name)
        if held is None or not newer(version, held.version):
            return
        self._late[name] = version
        if len(self._late) > TOMBSTONES:
            del self._late[next(iter(self._late))]
        self._drop(name)

    def listed(self) -> None:
        """Forget what the listing did not bring."""
        for name in self.objects.keys() - (self._seen or set()):
            self._drop(name)
        self._seen = None
        self.state = "listed"
        self._source.wake()

    def absent(self) -> None:
        """There is nothing of the kind."""
        self._seen = set()
        self.listed()
        self.state = "absent"

    def failed(self, why: str, status: int) -> None:
        """Note *why* the kind cannot be followed."""
        if why:
            log.error("%s; what is known stays in force", why)
        elif self.wrong:
            log.info("%s are followed again", self.kind.plural)
        self.wrong = why
        self.status = status
        if self.kind is NODE_STATUSES:
            self._source.statuses.resumed()
        self._source.wake()

    def refused(self) -> list[Refused]:
        """Return the wrong objects."""
        return [
            Refused(self.kind.kind, *name, WHERE, held.error, not _stands_in(held.change))
            for name, held in sorted(self.objects.items())
            if held.error
        ]

    def troubles(self) -> list[Trouble]:
        """Return the wrong objects, for who tells people."""
        return [
            Trouble(self.kind.api_version, self.kind.kind, *name, held.uid, "PolicyRefused", held.error)
            for name, held in sorted(self.objects.items())
            if held.error
        ]

    def never_right(self) -> list[Name]:
        """Return the names of objects that never were right."""
        return sorted(name for name, held in self.objects.items() if held.change is None)

    def _read(self, name: Name, held: HeldObject, document: KubeObject) -> None:
        document.setdefault("kind", self.kind.kind)  # a list says it once for all its items
        document.setdefault("apiVersion", self.kind.api_version)
        if self.kind is NODES and name[1] == self._source.node:
            self._source.tainted = is_tainted(document)
        if self.kind is NODE_STATUSES:
            self._source.mark(self._source.statuses.put(name[1], document))
            return
        try:
            with translated(ResourceError, "the object cannot be read"):
                found = self._parsed(document)
        except ResourceError as error:
            self._complain(name, held, document, str(error))
            return
        if isinstance(found, Policy):
            held.document = _policy_document(document)
        self._good(name, held, found)

    def _good(self, name: Name, held: HeldObject, found: KubernetesObject | Policy | None) -> None:
        """Know *found*, which is right."""
        if held.error:
            log.info("%s %s: good again", self.kind.kind, "/".join(name))
        held.error = ""
        self._know(name, held, Change(self.kind.kind, *name, found, WHERE if isinstance(found, Policy) else ""))

    def _parsed(self, document: KubeObject) -> KubernetesObject | Policy | None:
        if self.kind.kind in security.KINDS:
            return security.parse(_without_server_fields(document))
        if self.kind is PODS and not self._is_here(document):
            trim(document)
        found = objects.parse(document)
        if isinstance(found, PodObject):
            if UNWRITTEN in document:
                found = rewritten(found, document[UNWRITTEN])
            here = found.node == self._source.node
            return None if finished(found) and not here else self._source.lean.pod(found, full=here)
        if isinstance(found, ServiceObject):
            return self._source.lean.annotated(found)
        return self._source.lean.annotated(found) if isinstance(found, NamespaceObject) else found

    def _is_here(self, document: KubeObject) -> bool:
        spec = document.get("spec")
        return isinstance(spec, dict) and spec.get("nodeName") == self._source.node

    def _know(self, name: Name, held: HeldObject, change: Change) -> None:
        before = held.change
        held.change = change
        if change == before:
            return
        if self.kind is PODS:
            self._source.moved(_pod(change), _pod(before))
        if change.object is not None or before is not None:
            self._source.tell(held, change)

    def _complain(self, name: Name, held: HeldObject, document: KubeObject, error: str) -> None:
        """Keep what was good; where nothing was, what closes what the object is for."""
        first = held.error != error
        held.error = error
        metadata = document.get("metadata")
        held.uid = str(metadata.get("uid") or "") if isinstance(metadata, dict) else ""
        outcome = "the last good one stays"
        if _stands_in(held.change):
            held.document = _policy_document(document) if self.kind.kind in security.KINDS else b""
            instead = self._instead(name, document, error)
            outcome = "left out" if instead is None else "what stands in for it closes what it selects"
            if instead is not None:
                self._know(name, held, Change(self.kind.kind, *name, instead, WHERE))
        if first:
            log.error("%s %s: %s (%s)", self.kind.kind, "/".join(name), error, outcome)

    def _instead(self, name: Name, document: KubeObject, error: str) -> Policy | UnreadPolicy | None:
        if objects.is_network_policy(self.kind.kind):
            return UnreadPolicy()
        return security.stand_in((self.kind.kind, *name), document, error)

    def _drop(self, name: Name) -> None:
        held = self.objects.pop(name)
        if self.kind is NODE_STATUSES:
            self._source.mark(self._source.statuses.gone(name[1]))
        elif held.change is not None and held.change.object is not None:
            if self.kind is PODS:
                self._source.moved(None, _pod(held.change))
            self._source.tell(held, Change(self.kind.kind, *name, None))
        self._source.wake()


class _Foreign:
    """Whether others' policies for the network may be in the cluster: by the API groups that it has.

    A server that starts has not discovered all of them (kubernetes/kubernetes#89145), so one is gone
    when two looks have not found it.
    """

    def __init__(self, source: KubernetesSource) -> None:
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
                groups = (await self._source.client.get("/apis")).get("groups")
                self._take({str(each.get("name")) for each in groups or () if isinstance(each, dict)})
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


def _identity(document: KubeObject) -> tuple[Name, str]:
    """Return the name and version of *document*; empty texts where it says none."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return ("", shown(document)), ""
    texts = [metadata.get(field) or "" for field in ("namespace", "name", "resourceVersion")]
    namespace, name, version = (each if isinstance(each, str) else shown(each) for each in texts)
    return (namespace, name), version


def _pod(change: Change | None) -> PodObject | None:
    return change.object if change is not None and isinstance(change.object, PodObject) else None


def _stands_in(change: Change | None) -> bool:
    """Say whether no good object is known."""
    if change is None or isinstance(change.object, UnreadPolicy):
        return True
    return isinstance(change.object, Policy) and bool(change.object.refused)


def _without_server_fields(document: KubeObject) -> KubeObject:
    return {name: value for name, value in document.items() if name != "status"}


def _policy_document(document: KubeObject) -> bytes:
    """Return what is kept of a policy's *document*."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
    return orjson.dumps({**_without_server_fields(document), "metadata": metadata})
