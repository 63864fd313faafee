"""Which pods take mTLS, told by their nodes: one object ``NodeStatus`` a node, with a lease.

Theory of operation
-------------------

A node's agent writes the uids of its enrolled pods into the object of the node's name, and renews it
while it lives. Whoever reads it takes an object that is not renewed for its lease as one that says
nothing: the pods of a node whose agent is gone get plaintext again.

Clocks of nodes differ, so no time of another node is compared with one's own: a reader notes when it
last heard a renewal. And where the reader hears nothing at all, nobody's lease can end: the API server
is away, or the reader is. So time passes here only with what comes from the API server, the node's
own renewals among it, and after a silence all leases begin anew.

The object ends with its Node, whose uid it names. A Node that is registered anew has another uid, and the
garbage collector takes an object away that names the one before: who is told that its own is gone asks
for the uid again, and writes nothing while there is no Node, for that would outlive all.

What a node says counts for its own pods (``EnrolledChange.node``): one that was taken over opens and
closes none of another's.

How often a lease is renewed follows the number of nodes, as every renewal goes to every node.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import orjson

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import APPLY, KubeClient
from nodeagent.kube.kinds import NODE_STATUS, NODE_STATUSES
from nodeagent.kube.watch import Sleep
from nodeagent.parts import Parts
from nodeagent.resources.changes import EnrolledChange
from nodeagent.resources.marks import is_mark
from nodeagent.vocabulary import PodUid

RENEW_SECONDS: Final = 10.0
RENEWALS_A_SECOND: Final = 10.0
"""In the whole cluster: with more nodes each renews less often."""
LEASE_RENEWALS: Final = 4
"""Of which a lease is as long: three may be lost."""
LONGEST_LEASE: Final = 3600.0
GATHER_SECONDS: Final = 0.1
"""In which changes become one request."""
FIRST_PAUSE: Final = 0.5
FAREWELL_SECONDS: Final = 1.0
MAX_PODS: Final = 4096
"""Of a node; Kubernetes is made for 110."""
MANAGER: Final = "nodeagent"
log = logging.getLogger("nodeagent.kube")


@dataclass(slots=True)
class _Lease:
    uids: frozenset[PodUid]
    renewed: str
    """As the node wrote it; not a time here."""
    seconds: float
    heard: float
    """When the last renewal came."""
    valid: bool = True


class NodeStatuses:
    """What the nodes say, as *node* reads it; what it says itself it knows at once. *now* is a
    steady clock in seconds.
    """

    def __init__(self, node: str, now: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._now = now
        self._leases: dict[str, _Lease] = {}
        self._last = now()
        self.lost: Callable[[], None] = lambda: None
        """Is called when this node's object is gone, which it did not remove itself."""

    @property
    def renew_seconds(self) -> float:
        """How often a node renews its lease by now."""
        return max(RENEW_SECONDS, len(self._leases) / RENEWALS_A_SECOND)

    def own(self) -> frozenset[PodUid]:
        """Return what this node's object says."""
        lease = self._leases.get(self._node)
        return lease.uids if lease is not None else frozenset()

    def say(self, uids: frozenset[PodUid]) -> list[EnrolledChange]:
        """This node says *uids* from now on; return what that changes."""
        lease = self._leases.setdefault(self._node, _Lease(frozenset(), "", LONGEST_LEASE, self._now()))
        return self._differ(self._node, lease, uids)

    def put(self, node: str, document: KubeObject) -> list[EnrolledChange]:
        """*node* says *document*; return what that changes, for other nodes too whose leases have ended."""
        self._pass()
        uids, renewed, seconds = _read(document)
        lease = self._leases.get(node)
        if lease is None:
            lease = self._leases[node] = _Lease(frozenset(), "", seconds, self._last)
        elif node == self._node:
            return self._ended()
        if renewed != lease.renewed:
            lease.renewed = renewed
            lease.heard = self._last
            lease.valid = True
        lease.seconds = seconds
        return self._differ(node, lease, uids if lease.valid else frozenset()) + self._ended()

    def gone(self, node: str) -> list[EnrolledChange]:
        """The object of *node* is gone; return what that changes."""
        if node == self._node:
            self.lost()
            return []
        if node not in self._leases:
            return []
        return self._differ(node, self._leases.pop(node), frozenset())

    def resumed(self) -> None:
        """Nothing was heard for a while, or will not be: no lease ends for that."""
        self._last = self._now()
        for lease in self._leases.values():
            lease.heard = self._last

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """Yield the names of nodes and, as JSON, what each says by now, for who keeps it for a start
        without the API server: plaintext is what pods get of whom nothing is known.
        """
        kind = {"apiVersion": NODE_STATUSES.api_version, "kind": NODE_STATUS}
        for node, lease in self._leases.items():
            uids = sorted(lease.uids)
            status = {"enrolled": uids, "leaseDurationSeconds": int(lease.seconds), "renewTime": lease.renewed}
            yield node, orjson.dumps({**kind, "metadata": {"name": node}, "status": status})

    def _pass(self) -> None:
        now = self._now()
        if now - self._last > 2 * self.renew_seconds:
            self.resumed()
        self._last = now

    def _ended(self) -> list[EnrolledChange]:
        changes: list[EnrolledChange] = []
        for node, lease in self._leases.items():
            if lease.valid and node != self._node and self._last - lease.heard > lease.seconds:
                log.warning("NodeStatus %s is not renewed: its pods get plaintext until it is", node)
                lease.valid = False
                changes += self._differ(node, lease, frozenset())
        return changes

    def _differ(self, node: str, lease: _Lease, uids: frozenset[PodUid]) -> list[EnrolledChange]:
        before = lease.uids
        lease.uids = uids
        gone = [EnrolledChange(uid, False, node) for uid in sorted(before - uids)]
        return [*(EnrolledChange(uid, True, node) for uid in sorted(uids - before)), *gone]


def _read(document: KubeObject) -> tuple[frozenset[PodUid], str, float]:
    """Return the uids, the time of renewal and the lease's seconds that *document* says; what is
    wrong says nothing.
    """
    status = document.get("status")
    found = status if isinstance(status, dict) else {}
    listed = found.get("enrolled")
    uids = [each for each in listed if isinstance(each, str) and is_mark(each)] if isinstance(listed, list) else []
    seconds = found.get("leaseDurationSeconds")
    if not isinstance(seconds, int) or not 1 <= seconds <= LONGEST_LEASE:
        seconds = int(LEASE_RENEWALS * RENEW_SECONDS)
    return frozenset(PodUid(uid) for uid in uids[:MAX_PODS]), str(found.get("renewTime")), float(seconds)


class NodeStatusMarks:
    """Tells the other nodes by the object of *node* (``resources/source.py: Marks``); at work while
    :meth:`run` is. *changed* hears what this node says at once.
    """

    def __init__(
        self,
        client: KubeClient,
        node: str,
        statuses: NodeStatuses,
        changed: Callable[[Iterable[EnrolledChange]], None],
        *,
        here: Callable[[], frozenset[PodUid]],
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """*here* returns the pods of this node: what an earlier agent said of others is dropped."""
        self._client = client
        self._node = node
        self._statuses = statuses
        self._changed = changed
        self._here = here
        self._sleep = sleep
        self._now = now
        self._uids: set[PodUid] | None = None
        self._news = asyncio.Event()
        self._owner: Mapping[str, object] = {}
        self._bereft = False
        """The object was taken away, with its Node perhaps."""
        self._wrong = ""
        self._said_wrong = ""
        self._resigned = False
        statuses.lost = self._lost

    def publish(self, uid: PodUid, enrolled: bool) -> None:
        """Tell that the pod *uid* takes mTLS, or no more: soon, and again and again until it is told."""
        uids = self._said()
        if (uid in uids) == enrolled:
            return
        if enrolled:
            uids.add(uid)
        else:
            uids.discard(uid)
        self._changed(self._statuses.say(frozenset(uids)))
        self._news.set()

    def resign(self) -> None:
        """Tell nothing from now on: a successor does."""
        self._resigned = True

    def missing(self) -> list[str]:
        """Return, in words, why the other nodes cannot be told: what they heard last ends with its lease."""
        return [self._wrong] if self._wrong else []

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Tell, and renew; what was said last is told on the way out."""
        parts.start("the node's status", self._keep)
        yield
        if self._resigned or not self._news.is_set():
            return
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._write()
        except (ApiError, TimeoutError) as error:
            log.warning("the other nodes do not hear that this one's agent leaves: %s", error)

    def _lost(self) -> None:
        self._owner = {}
        self._bereft = True
        self._news.set()

    def _said(self) -> set[PodUid]:
        """Return what this node says; at first what an earlier agent said of pods that are still here."""
        if self._uids is None:
            self._uids = set(self._statuses.own() & self._here())
        return self._uids

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while not self._resigned:
            await self._sleep(GATHER_SECONDS)
            self._news.clear()
            try:
                await self._write()
                pause = FIRST_PAUSE
                self._wrong = ""
                self._said_wrong = ""
            except ApiError as error:
                self._complain(error)
                self._news.set()
                await self._sleep(pause)
                pause = min(2 * pause, RENEW_SECONDS)
                continue
            try:
                async with asyncio.timeout(self._statuses.renew_seconds):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _complain(self, error: ApiError) -> None:
        words = f"other nodes do not hear which pods take mTLS: {error}"
        if error.status == 404:
            words += "; is the CustomResourceDefinition nodestatuses.nodeagent.io there? See daemonset/base/crds"
        if error.status == 403:
            words += (
                "; the agent's ClusterRole wants the rule "
                '{apiGroups: ["nodeagent.io"], resources: [nodestatuses], verbs: [create, patch]}'
            )
        if self._said_wrong != words:
            log.error("%s", words)
        self._said_wrong = words
        if 400 <= error.status < 500:  # it does not pass by itself
            self._wrong = words

    async def _write(self) -> None:
        """Write the node's object, made where it is not there. Raises ApiError."""
        if not self._owner:
            self._owner = await self._node_object()
            if self._bereft and not self._owner:
                return
            self._bereft = False
        metadata: dict[str, object] = {"name": self._node}
        if self._owner:
            metadata["ownerReferences"] = [self._owner]
        document = {
            "apiVersion": NODE_STATUSES.api_version,
            "kind": NODE_STATUS,
            "metadata": metadata,
            "status": {
                "renewTime": self._now().isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "leaseDurationSeconds": int(LEASE_RENEWALS * self._statuses.renew_seconds),
                "count": len(self._said()),
                "enrolled": sorted(self._said()),
            },
        }
        path = f"{NODE_STATUSES.path(NODE_STATUSES.versions[0])}/{self._node}"
        await self._client.patch(f"{path}?fieldManager={MANAGER}&force=true", document, APPLY)

    async def _node_object(self) -> Mapping[str, object]:
        """Return the reference by which the object ends with its Node; empty: there is none. Raises ApiError."""
        selector = quote(f"metadata.name={self._node}", safe="")
        items = (await self._client.get(f"/api/v1/nodes?fieldSelector={selector}")).get("items")
        node = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
        metadata = node.get("metadata")
        uid = metadata.get("uid") if isinstance(metadata, dict) else None
        if not isinstance(uid, str):
            return {}
        return {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": uid}
