"""A cluster for tests of what follows one: the API server in memory, and a runtime that says what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent.kube.client import KubeClient
from nodeagent.places.place import Place
from nodeagent.resources.changes import AnyChange, EnrolledChange
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import Address, PodUid
from tests.fakes.kube_api import FakeKubeApi
from tests.waiting import DEADLINE

Document = dict[str, Any]


@dataclass(frozen=True)
class Box:
    """A sandbox."""

    namespace: str
    name: str
    place: Place
    addresses: tuple[Address, ...]


class Runtime:
    """``CriPlaces`` as the source sees it."""

    def __init__(self, *, known: bool = True) -> None:
        self.boxes: dict[PodUid, Box] = {}
        self.expected: frozenset[PodUid] = frozenset()
        self.answers = known
        self.unanswered: dict[PodUid, Box] = {}
        self._changed: set[PodUid] = set()
        self._wake = asyncio.Event()
        self._begun = False

    def put(self, name: str, *addresses: str, netns: str = "/run/netns/a") -> None:
        """Have a sandbox of the pod *name*."""
        uid = PodUid(f"uid-{name}")
        self.boxes[uid] = Box("default", name, Place(netns, ""), tuple(Address(each) for each in addresses))
        self.answers = True
        self._changed.add(uid)
        self._wake.set()

    def hide(self, name: str) -> None:
        """Have nothing told of the sandbox of the pod *name*."""
        self.unanswered[PodUid(f"uid-{name}")] = Box("default", name, Place("", ""), ())

    def reveal(self, name: str) -> None:
        """Have it told: it is where ``put`` says, or gone."""
        uid = PodUid(f"uid-{name}")
        del self.unanswered[uid]
        self._changed.add(uid)
        self._wake.set()

    def remove(self, name: str) -> None:
        uid = PodUid(f"uid-{name}")
        del self.boxes[uid]
        self._changed.add(uid)
        self._wake.set()

    def of(self, pod: PodObject) -> Place | None:
        found = self.boxes.get(pod.uid)
        return found.place if found is not None else None

    def sandbox(self, uid: PodUid) -> Box | None:
        return self.boxes.get(uid)

    def all(self) -> dict[PodUid, Box]:
        return self.boxes

    def untold(self) -> dict[PodUid, Box]:
        return self.unanswered

    def known(self) -> bool:
        return self.answers

    def expect(self, uids: Collection[PodUid]) -> None:
        self.expected = frozenset(uids)

    async def changed(self) -> frozenset[PodUid]:
        if self._begun:
            await self._wake.wait()
        self._begun = True
        self._wake.clear()
        found = frozenset(self._changed)
        self._changed.clear()
        return found

    def close(self) -> None:
        """It stays."""


def pod(name: str, node: str = "node1", **status: Any) -> Document:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    spec = {"nodeName": node, "serviceAccountName": "web", "containers": [{"name": "web"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def peer_authentication(mode: str, name: str = "all") -> Document:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
        "spec": {"mtls": {"mode": mode}},
        "status": {"conditions": []},
    }


def told(changes: list[AnyChange]) -> list[str]:
    """Return *changes* in short: what came (+) or went (-)."""
    words = []
    for change in changes:
        if isinstance(change, EnrolledChange):
            words.append(f"{'+' if change.enrolled else '-'}{change.uid}")
        else:
            words.append(f"{'-' if change.object is None else '+'}{change.kind}/{change.name}")
    return sorted(words)


def play(folder: Path, scene: Callable[[FakeKubeApi, KubeClient], Awaitable[None]]) -> None:
    """Run *scene* with an API server that listens."""

    async def main() -> None:
        api = FakeKubeApi(folder)
        client = KubeClient(await api.start())
        try:
            await asyncio.wait_for(scene(api, client), DEADLINE)
        finally:
            await api.stop()

    asyncio.run(main())


async def soon(_: float) -> None:
    """Let no time pass that is waited for."""
    await asyncio.sleep(0.02)  # the turn of whoever else is there


async def following(source: Any) -> list[str]:
    """Return the next batch of *source*, in short."""
    return told(await asyncio.wait_for(source.changes(), DEADLINE))
