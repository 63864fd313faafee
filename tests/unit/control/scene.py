"""Pods, certificates and neighbours for the tests of control's concerns: fakes that note what they are told."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.control.concern import Snapshot
from nodeagent.errors import AwaitedError, IdentityError, KernelError, PodDoingError
from nodeagent.identity.certificate import Certificate
from nodeagent.mesh.entries import Delta, Entry, Workload
from nodeagent.mesh.local import AskingPod, LocalPod
from nodeagent.messages import CertificateIssued, PodCaptured
from nodeagent.parts import Parts
from nodeagent.places.place import Place
from nodeagent.redirect.bypass import Joining
from nodeagent.redirect.netns import PodNetns
from nodeagent.redirect.pod import EnrolledPod, ListenerId, Listeners
from nodeagent.steps import Steps, drained
from nodeagent.telemetry.http_request import Routes
from nodeagent.vocabulary import Address, PodUid, SpiffeId
from tests.waiting import DEADLINE


def identity(name: str) -> SpiffeId:
    return SpiffeId(f"spiffe://cluster.local/ns/default/sa/{name}")


def local_pod(uid: str) -> LocalPod:
    place = Place(f"/run/netns/{uid}", "")
    return LocalPod(PodUid(uid), uid, "default", (), identity(uid), place, frozenset(), frozenset())


def asking_pod(uid: str) -> AskingPod:
    return AskingPod(PodUid(uid), uid, "default", identity(uid), Place(f"/run/netns/{uid}", ""), "")


def workload(uid: str, address: str = "10.0.0.1") -> Workload:
    return Workload(
        uid=PodUid(uid),
        pod=uid,
        namespace="default",
        node="n1",
        addresses=(Address(address),),
        service_account=uid,
        identity=identity(uid),
        workload=uid,
        app=uid,
        version="v1",
        canonical_service=uid,
        canonical_revision="v1",
        ready=True,
        enrolled=True,
    )


def certificate(name: str, serial: str = "01", seconds: float = 3600.0) -> Certificate:
    now = time.time()
    return Certificate(identity(name), b"chain", b"key", b"roots", serial, now, now + seconds)


def snapshot(
    captured: Collection[str] = (),
    asking: Collection[str] = (),
    entries: Collection[Entry] = (),
    unread: tuple[str, ...] = (),
    awaited: Collection[str] = (),
) -> Snapshot:
    return Snapshot(
        captured={PodUid(uid): local_pod(uid) for uid in captured},
        asking={PodUid(uid): asking_pod(uid) for uid in asking},
        entries={entry.key: entry for entry in entries},
        unread=unread,
        awaited={PodUid(uid): identity(uid) for uid in awaited},
    )


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE):
            await scene()

    asyncio.run(run())


@dataclass
class Supervisor:
    """Who keeps descriptors across a death of control."""

    kept: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def keep(self, files: Mapping[str, int]) -> None:
        self.kept |= files

    def drop(self, owner: str) -> None:
        self.dropped.append(owner)


@dataclass
class Workers:
    """What workers were told."""

    told: list[object] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    generation: int = 0
    pods: dict[PodUid, PodCaptured] = field(default_factory=dict)
    certificates: dict[SpiffeId, CertificateIssued] = field(default_factory=dict)
    addresses: Sequence[str] = ()

    def certificate(self, identity: SpiffeId, message: CertificateIssued) -> None:
        self.certificates[identity] = message

    def forget(self, identity: SpiffeId) -> None:
        del self.certificates[identity]

    def enrol(self, pod: PodCaptured, listeners: dict[ListenerId, socket.socket]) -> None:
        self.pods[pod.uid] = pod
        self.told.append(("enrol", pod.uid))

    def release(self, uid: PodUid) -> None:
        self.pods.pop(uid, None)
        self.told.append(("release", uid))

    def node(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses

    def apply(self, delta: Delta) -> None:
        drained(self.steps(delta))

    def steps(self, delta: Delta) -> Steps[None]:
        yield
        self.generation += 1
        for key in delta.removals:
            self.entries.pop(key, None)
        self.entries |= {entry.key: entry for entry in delta.upserts}

    def snapshot(self) -> Mapping[str, Entry]:
        return self.entries


@dataclass
class Certificates:
    """Those of *good* identities."""

    good: set[SpiffeId] = field(default_factory=set)
    awaited: set[SpiffeId] = field(default_factory=set)
    """Of those that are not good: nothing has failed yet."""

    def current(self, identity: SpiffeId) -> Certificate:
        if identity not in self.good:
            kind = AwaitedError if identity in self.awaited else IdentityError
            raise kind(f"no certificate for {identity} yet")
        return certificate(identity.rsplit("/", 1)[1])


@dataclass
class Plane:
    """The kernel: what it captured, and what is wrong with that."""

    joining: Joining = field(default_factory=Joining)
    captured: dict[str, EnrolledPod] = field(default_factory=dict)
    held: dict[str, Listeners] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Pods that cannot be captured."""
    own_doing: set[str] = field(default_factory=set)
    """Pods that keep themselves from it."""
    wrong: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong with each, and can be repaired."""
    broken: dict[str, list[str]] = field(default_factory=dict)
    """What cannot."""
    trusted: set[str] = field(default_factory=set)
    """With which a glance finds nothing wrong."""
    blind: bool = False
    """There is no glance."""
    foreign: list[str] = field(default_factory=list)
    """Programs of somebody else, in words."""
    pruned: list[tuple[str, ...]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    file: tuple[int, int] = (4, 1)
    """Of every pod's network namespace."""

    def pod_netns(self, path: Path, network: tuple[int, int] | None = None) -> PodNetns:
        if network is not None and network != self.file:
            raise KernelError("it is another network namespace by now")
        return PodNetns(path, -1, 1000 + len(path.name), 1)

    def enroll(self, pod: EnrolledPod, listeners: Listeners | None = None) -> Listeners:
        if pod.uid in self.refused:
            raise KernelError("port 15001 is taken")
        if pod.uid in self.own_doing:
            raise PodDoingError("port 15006 is taken by a process in the pod")
        self.captured[pod.uid] = pod
        given = dict(listeners.fds) if listeners is not None else {}
        if not given:
            given["inbound", 4, 0] = socket.socket()
        return self.held.setdefault(pod.uid, Listeners(given))

    def release(self, uid: str) -> None:
        del self.captured[uid]
        self.held.pop(uid).close()

    def forget(self, uid: str) -> None:
        self.captured.pop(uid)
        self.held.pop(uid).close()
        self.forgotten.append(uid)

    def listeners(self, uid: str) -> Listeners:
        return self.held[uid]

    def network(self, uid: str) -> int:
        return 7

    def numbers(self) -> dict[PodUid, int]:
        return {PodUid(uid): number for number, uid in enumerate(self.captured)}

    def suspects(self) -> frozenset[PodUid]:
        if self.blind:
            raise OSError("the maps cannot be read")
        return frozenset(map(PodUid, self.captured)) - self.trusted

    def verify(self, uid: str) -> list[str]:
        return self.wrong.get(uid, []) + self.broken.get(uid, [])

    def repair(self, uid: str) -> list[str]:
        return self.wrong.pop(uid, [])

    def others(self) -> list[str]:
        return list(self.foreign)

    def verify_node(self) -> list[str]:
        return self.verify("node")

    def repair_node(self) -> list[str]:
        return self.repair("node")

    def prune(self, spared: Collection[str] = ()) -> list[str]:
        self.pruned.append(tuple(spared))
        return []

    def close(self) -> None:
        for listeners in self.held.values():
            listeners.close()


class Noted:
    """A concern that notes what it is told, in a list that it shares with others."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.fails: set[str] = set()
        """At what it fails."""

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        self._note("started")
        yield
        self._note("stopped")

    def changed(self, snapshot: Snapshot) -> None:
        self._note(f"changed {' '.join(sorted(snapshot.captured))}".strip())

    def grown(self, snapshot: Snapshot) -> None:
        self._note(f"grown {' '.join(sorted(snapshot.captured))}".strip())

    def missing(self) -> list[str]:
        return []

    def routes(self) -> Routes:
        return {}

    def _note(self, what: str) -> None:
        if what.split()[0] in self.fails:
            raise RuntimeError(f"{self.name} fails")
        self.told.append(f"{self.name} {what}")
