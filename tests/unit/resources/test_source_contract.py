"""What every source of resources keeps, and its marks: the folder that the agent watches, a
Kubernetes API server, services of the machine beside the folder, and the fake that stands in for them in tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.kube.node_status import NodeStatusMarks
from nodeagent.kube.source import KubernetesSource
from nodeagent.parts import Parts
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.directory import DirectorySource
from nodeagent.resources.marks import DirectoryMarks
from nodeagent.resources.source import Marks, Source
from nodeagent.services.source import ServiceSource
from nodeagent.vocabulary import PodUid
from tests.fakes.kube_api import FakeKubeApi
from tests.fakes.source import MemorySource
from tests.waiting import DEADLINE


class World(Protocol):
    """A source under test, and the hand that changes what is behind it."""

    source: Source
    marks: Marks

    async def open(self) -> None: ...

    async def shut(self) -> None: ...

    def put(self, document: dict[str, Any]) -> None: ...

    def remove(self, kind: str, namespace: str, name: str) -> None: ...


class Still:
    """A world that needs nothing to run."""

    async def open(self) -> None:
        """It is there."""

    async def shut(self) -> None:
        """It stays."""


class Folder(Still):
    def __init__(self, path: Path) -> None:
        self._objects = path / "objects"
        self._objects.mkdir()
        self.source: Source = DirectorySource(path)
        self.marks: Marks = DirectoryMarks(path)

    def put(self, document: dict[str, Any]) -> None:
        metadata = document["metadata"]
        name = f"{document['kind']}.{metadata['namespace']}.{metadata['name']}.json"
        temporary = self._objects / f".{name}"
        temporary.write_text(json.dumps(document))
        temporary.replace(self._objects / name)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        (self._objects / f"{kind}.{namespace}.{name}.json").unlink()


class WithServices(Folder):
    """Where services of the machine are among the pods."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.source = ServiceSource(self.source, self._look)
        self.looked = 0

    async def _look(self) -> None:
        self.looked += 1


class Memory(Still):
    def __init__(self, _: Path) -> None:
        memory = MemorySource()
        self.source: Source = memory
        self.marks: Marks = memory
        self.put = memory.put
        self.remove = memory.remove


class Cluster:
    def __init__(self, path: Path) -> None:
        self._api = FakeKubeApi(path)
        self._parts = Parts()
        self._running = AsyncExitStack()
        self.put = self._api.put
        self.remove = self._api.remove

    async def open(self) -> None:
        client = KubeClient(await self._api.start())
        source = KubernetesSource(client, "node1")
        marks = NodeStatusMarks(client, "node1", source.statuses, source.mark, here=frozenset)
        await self._running.enter_async_context(marks.run(self._parts))
        self.source: Source = source
        self.marks: Marks = marks

    async def shut(self) -> None:
        self._parts.stop()
        await self._running.aclose()
        await self._api.stop()


@pytest.fixture(params=[Folder, WithServices, Memory, Cluster])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    made: Callable[[Path], World] = request.param
    return made(tmp_path)


def pod(name: str, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"nodeName": "node1"},
        "status": status,
    }


def peer_authentication(mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "all", "namespace": "shop"},
        "spec": {"mtls": {"mode": mode}},
    }


def told(changes: list[AnyChange]) -> list[str]:
    words = []
    for change in changes:
        if isinstance(change, EnrolledChange):
            words.append(f"{'+' if change.enrolled else '-'}{change.uid}")
        else:
            assert isinstance(change, Change)
            words.append(f"{'-' if change.object is None else '+'}{change.kind}/{change.name}")
    return sorted(words)


def run(world: World, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def closing() -> None:
        await world.open()
        try:
            await scenario()
        finally:
            world.source.close()
            world.source.close()
            await world.shut()

    asyncio.run(closing())


async def following(world: World) -> list[str]:
    return told(await asyncio.wait_for(world.source.changes(), DEADLINE))


def test_first_everything_then_what_changes(world: World) -> None:
    async def scenario() -> None:
        world.put(pod("web"))
        world.marks.publish(PodUid("uid-web"), True)
        assert await following(world) == ["+Pod/web", "+uid-web"]
        world.put(pod("shop"))
        assert await following(world) == ["+Pod/shop"]
        world.put(pod("shop", phase="Running"))
        assert await following(world) == ["+Pod/shop"]
        world.remove("Pod", "default", "web")
        assert await following(world) == ["-Pod/web"]

    run(world, scenario)


def test_the_first_batch_may_be_empty_and_no_later_one_is(world: World) -> None:
    async def scenario() -> None:
        assert await following(world) == []
        waiting = asyncio.ensure_future(following(world))
        world.put(pod("web"))
        assert await waiting == ["+Pod/web"]

    run(world, scenario)


def test_what_says_nothing_new_is_no_change(world: World) -> None:
    async def scenario() -> None:
        world.put(pod("web"))
        await following(world)
        world.put(pod("web"))
        world.put(pod("shop"))
        assert await following(world) == ["+Pod/shop"]

    run(world, scenario)


def test_a_wrong_policy_is_told_and_takes_no_good_one_away(world: World) -> None:
    async def scenario() -> None:
        world.put(peer_authentication("STRICT"))
        assert await following(world) == ["+PeerAuthentication/all"]
        world.put(peer_authentication("SOMETIMES"))
        world.put(pod("after"))
        assert await following(world) == ["+Pod/after"]
        (refused,) = world.source.refused()
        assert (refused.kind, refused.namespace, refused.name) == ("PeerAuthentication", "shop", "all")
        assert refused.stays
        assert "SOMETIMES" in refused.error
        world.put(peer_authentication("PERMISSIVE"))
        assert await following(world) == ["+PeerAuthentication/all"]
        assert not world.source.refused()

    run(world, scenario)


def test_a_wrong_pod_that_never_was_right_is_unread(world: World) -> None:
    async def scenario() -> None:
        world.put(pod("known"))
        world.put(pod("odd", podIPs="none"))
        assert await following(world) == ["+Pod/known"]
        (unread,) = world.source.unread_pods()
        assert "odd" in unread
        world.put(pod("known", podIPs="none"))
        world.put(pod("odd"))
        assert await following(world) == ["+Pod/odd"]
        assert not world.source.unread_pods()

    run(world, scenario)


def test_after_a_call_that_was_cancelled_comes_what_differs(world: World) -> None:
    async def scenario() -> None:
        world.put(pod("web"))
        await following(world)
        waiting = asyncio.ensure_future(world.source.changes())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        world.put(pod("shop"))
        assert await following(world) == ["+Pod/shop"]

    run(world, scenario)


def test_after_closing_comes_what_differs(world: World) -> None:
    async def scenario() -> None:
        world.put(pod("web"))
        world.put(pod("shop"))
        await following(world)
        world.source.close()
        world.remove("Pod", "default", "web")
        assert await following(world) == ["-Pod/web"]

    run(world, scenario)


def test_a_mark_is_published_and_withdrawn_once(world: World) -> None:
    async def scenario() -> None:
        assert await following(world) == []
        for enrolled, expected in ((True, "+uid"), (False, "-uid")):
            world.marks.publish(PodUid("uid"), enrolled)
            world.marks.publish(PodUid("uid"), enrolled)
            assert await following(world) == [expected]

    run(world, scenario)
