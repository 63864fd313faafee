"""The objects of one kind as a cluster's source knows them: what comes late, twice or wrong changes
nothing that is good.

A wrong object keeps what was good of it; where nothing was, what closes what it is for stands in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from nodeagent.errors import ResourceError, shown, translated
from nodeagent.kube import shallow
from nodeagent.kube.access import KubeObject
from nodeagent.kube.events import Trouble
from nodeagent.kube.kinds import NODE_STATUSES, NODES, PODS, WatchedKind
from nodeagent.kube.lean import UNWRITTEN, Lean, rewritten, trim
from nodeagent.kube.node_status import NodeStatuses
from nodeagent.kube.outages import Outages
from nodeagent.kube.taint import is_tainted
from nodeagent.kube.watch import newer
from nodeagent.mesh.local import finished
from nodeagent.resources import objects, security
from nodeagent.resources.changes import Change, EnrolledChange, Refused
from nodeagent.resources.objects import KubernetesObject, NamespaceObject, PodObject, ServiceObject, UnreadPolicy
from nodeagent.resources.security import Policy

if TYPE_CHECKING:
    from nodeagent.protocols.pods_pb2 import Pod

WHERE: Final = "Kubernetes API"
"""Where a policy stands, in words."""
TOMBSTONES: Final = 1024
"""Of objects that are gone their last versions are kept, so that what comes late raises none again."""
log = logging.getLogger("nodeagent.kube")
Name = tuple[str, str]
"""Namespace and name."""


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


class Whole(Protocol):
    """What follows all kinds: ``KubernetesSource``."""

    node: str
    tainted: bool
    """The node has the taint of ``taint.py``."""
    statuses: NodeStatuses
    lean: Lean
    outages: Outages

    def tell(self, held: HeldObject | None, change: Change) -> None:
        """Have *change*, of what is *held*, in the next batch."""

    def mark(self, changes: Iterable[EnrolledChange]) -> None:
        """Have *changes* in the next batch."""

    def moved(self, pod: PodObject | None, before: PodObject | None) -> None:
        """*pod* of this node came, or *before* went."""

    def wake(self) -> None:
        """There may be something to tell."""


class KindObjects:
    """The objects of one kind; a :class:`Sink` of its watch."""

    def __init__(self, source: Whole, kind: WatchedKind) -> None:
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
            with self._alone(name, held):
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
            with self._alone(name, held):
                self._good(name, held, None if _is_nowhere(found) else found)
            self._source.wake()

    @contextmanager
    def _alone(self, name: Name, held: HeldObject) -> Iterator[None]:
        """An object that nobody foresaw ends no watch: it is wrong, as one of which nothing can be seen."""
        try:
            yield
        except Exception as error:
            words = f"the object cannot be taken in: {type(error).__name__}: {shown(str(error))}"
            log.debug("%s %s: %s", self.kind.kind, "/".join(name), words, exc_info=error)
            seen = {"kind": self.kind.kind, "metadata": {"namespace": name[0], "name": name[1]}}
            self._complain(name, held, seen, words)

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
            self._source.outages.failed(self.kind.plural, why, status)
        elif self.wrong:
            self._source.outages.ended(self.kind.plural)
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
                found = self.parsed(document)
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

    def parsed(self, document: KubeObject) -> KubernetesObject | Policy | None:
        """Return what is read and kept of *document*. Raises ResourceError."""
        if self.kind.kind in security.KINDS:
            return security.parse(_without_server_fields(document))
        if self.kind is PODS and not self._is_here(document):
            trim(document)
        found = objects.parse(document)
        if isinstance(found, PodObject):
            if UNWRITTEN in document:
                found = rewritten(found, document[UNWRITTEN])
            here = found.node == self._source.node
            return None if _is_nowhere(found) and not here else self._source.lean.pod(found, full=here)
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
            self._source.moved(pod_of(change), pod_of(before))
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
        if self.kind is NODES and name[1] == self._source.node:
            self._source.tainted = False
        if self.kind is NODE_STATUSES:
            self._source.mark(self._source.statuses.gone(name[1]))
        elif held.change is not None and held.change.object is not None:
            if self.kind is PODS:
                self._source.moved(None, pod_of(held.change))
            self._source.tell(held, Change(self.kind.kind, *name, None))
        self._source.wake()


def _identity(document: KubeObject) -> tuple[Name, str]:
    """Return the name and version of *document*; empty texts where it says none."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return ("", shown(document)), ""
    texts = [metadata.get(field) or "" for field in ("namespace", "name", "resourceVersion")]
    namespace, name, version = (each if isinstance(each, str) else shown(each) for each in texts)
    return (namespace, name), version


def pod_of(change: Change | None) -> PodObject | None:
    return change.object if change is not None and isinstance(change.object, PodObject) else None


def _is_nowhere(pod: PodObject) -> bool:
    """Say whether *pod* runs nowhere, any more or yet: nobody reaches it."""
    return finished(pod) or not pod.node


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
    return shallow.dumps({**_without_server_fields(document), "metadata": metadata})
