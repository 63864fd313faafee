"""Which pods take mTLS, by their nodes' leases: what ends them, and what must not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.kube.node_status import NodeStatuses, NodeStatusMarks
from nodeagent.parts import Parts
from nodeagent.resources.changes import EnrolledChange
from nodeagent.vocabulary import PodUid
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.kube.api_scene import play, told
from tests.waiting import until


class Reader:
    """What node1 reads, at a time that is told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.statuses = NodeStatuses("node1", lambda: self.now)
        self.renewals = 0

    def hears(self, node: str, *uids: str, renewed: bool = True, seconds: Any = 40) -> list[str]:
        """*node* says that *uids* are enrolled."""
        self.renewals += renewed
        status = {"renewTime": f"t{self.renewals}", "leaseDurationSeconds": seconds, "enrolled": list(uids)}
        return told([*self.statuses.put(node, {"status": status})])


def test_a_node_that_is_not_renewed_says_nothing_any_more_until_it_is() -> None:
    reader = Reader()
    assert reader.hears("node2", "a", "b") == ["+a", "+b"]
    assert reader.hears("node3", "c") == ["+c"]
    heard: list[str] = []
    for _ in range(5):
        reader.now += 10
        heard += reader.hears("node3", "c")
    assert heard == ["-a", "-b"]
    assert reader.hears("node2", "a") == ["+a"]


def test_where_nothing_is_heard_no_lease_ends() -> None:
    """Input: the API server is away for an hour, then one node is heard first. Verdict: the other's
    lease begins anew, and ends only when it is silent while others are heard.
    """
    reader = Reader()
    reader.hears("node2", "a")
    reader.hears("node3", "c")
    reader.now += 3600
    assert reader.hears("node3", "c") == []
    heard: list[str] = []
    for _ in range(5):
        reader.now += 10
        heard += reader.hears("node3", "c")
    assert heard == ["-a"]


def test_the_object_as_it_was_is_no_renewal() -> None:
    reader = Reader()
    reader.hears("node2", "a")
    for _ in range(4):
        reader.now += 10
        assert reader.hears("node3", "c") in ([], ["+c"])
    reader.now += 5
    assert reader.hears("node3", "c") == ["-a"]
    status = {"renewTime": "t1", "leaseDurationSeconds": 40, "enrolled": ["a"]}
    assert reader.statuses.put("node2", {"status": status}) == []


def test_of_a_pod_each_node_says_its_own_and_takes_back_its_own() -> None:
    """Whose word counts, says the pod's node: ``ClusterState.is_enrolled``."""
    statuses = NodeStatuses("node1", lambda: 1000.0)
    pod = PodUid("a")
    said = {"status": {"renewTime": "t", "leaseDurationSeconds": 40, "enrolled": ["a"]}}
    assert statuses.put("node2", said) == [EnrolledChange(pod, True, "node2")]
    assert statuses.put("node3", said) == [EnrolledChange(pod, True, "node3")]
    assert statuses.gone("node3") == [EnrolledChange(pod, False, "node3")]


@pytest.mark.parametrize(
    "status",
    [None, [], "x", {"enrolled": "a"}, {"enrolled": [1, None, "../x", ""], "leaseDurationSeconds": "long"}],
)
def test_what_is_no_status_says_nothing(status: Any) -> None:
    assert NodeStatuses("node1").put("node2", {"status": status}) == []


def test_with_many_nodes_each_renews_less_often() -> None:
    reader = Reader()
    assert reader.statuses.renew_seconds == 10
    for number in range(300):
        reader.hears(f"n{number}")
    assert reader.statuses.renew_seconds == 30


class Node:
    """What node1 tells."""

    def __init__(self, client: KubeClient, here: frozenset[PodUid] = frozenset()) -> None:
        self.statuses = NodeStatuses("node1")
        self.heard: list[EnrolledChange] = []
        self.marks = NodeStatusMarks(client, "node1", self.statuses, self.heard.extend, here=lambda: here)


def enrolled(api: FakeKubeApi) -> list[str]:
    """Return what the object of node1 says."""
    found: list[str] = []
    for each in api.of("NodeStatus"):
        found += each["status"]["enrolled"]
    return found


def test_what_a_node_says_is_one_object_that_ends_with_the_node(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "uid": "n-1"}})
        node = Node(client)
        parts = Parts()
        async with node.marks.run(parts):
            for name in "abc":
                node.marks.publish(PodUid(name), True)
            node.marks.publish(PodUid("b"), False)
            await until(lambda: enrolled(api) == ["a", "c"])
            assert told([*node.heard]) == ["+a", "+b", "+c", "-b"], "it knows at once what it says itself"
            (document,) = api.of("NodeStatus")
            (owner,) = document["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"]) == ("Node", "n-1")
            writes = sum(method == "PATCH" for method, _ in api.requests)
            assert writes <= 2, "changes that come together are one request"
            node.marks.publish(PodUid("a"), False)
            parts.stop()
        assert enrolled(api) == ["c"], "what was said last is told on the way out"

    play(tmp_path, scene)


def test_a_node_that_begins_again_takes_back_only_pods_that_are_gone(tmp_path: Path) -> None:
    """Input: an earlier agent said that a and b are enrolled, and b is gone. Verdict: the successor
    says a from its first word on, though it has not enrolled it yet.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        node = Node(client, frozenset({PodUid("a")}))
        node.statuses.put("node1", {"status": {"enrolled": ["a", "b"], "renewTime": "t"}})
        parts = Parts()
        async with node.marks.run(parts):
            await until(lambda: enrolled(api) == ["a"])
            node.marks.publish(PodUid("c"), True)
            await until(lambda: enrolled(api) == ["a", "c"])
            parts.stop()

    play(tmp_path, scene)


def test_what_cannot_be_told_is_named_and_told_later(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.forbidden.add("nodestatuses")
        node = Node(client)
        parts = Parts()
        async with node.marks.run(parts):
            node.marks.publish(PodUid("a"), True)
            (words,) = await until(node.marks.missing)
            assert "resources: [nodestatuses], verbs: [create, patch]" in words
            api.forbidden.clear()
            await until(lambda: enrolled(api) == ["a"])
            await until(lambda: not node.marks.missing())
            api.forbidden.add("nodestatuses")
            node.marks.publish(PodUid("c"), True)
            assert "resources: [nodestatuses]" in (await until(node.marks.missing))[0]
            parts.stop()

    play(tmp_path, scene)


def test_an_agent_that_has_resigned_says_nothing_more(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        node = Node(client)
        parts = Parts()
        async with node.marks.run(parts):
            node.marks.publish(PodUid("a"), True)
            await until(lambda: enrolled(api) == ["a"])
            node.marks.resign()
            node.marks.publish(PodUid("a"), False)
            parts.stop()
            await asyncio.sleep(0)
        assert enrolled(api) == ["a"]

    play(tmp_path, scene)


def registered(api: FakeKubeApi, uid: str) -> None:
    api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "uid": uid}})


def owner(api: FakeKubeApi) -> str:
    """Return the uid of the Node that the object of node1 ends with; empty: it names none, or is not there."""
    for each in api.of("NodeStatus"):
        for found in each["metadata"].get("ownerReferences", ()):
            return str(found["uid"])
    return ""


def test_a_node_that_is_registered_anew_keeps_its_marks(tmp_path: Path) -> None:
    """Input: the Node is deleted and made again, as by a kubelet that is restarted; the garbage collector takes the
    object away that names the first one's uid. Verdict: it is written at once, with the second one's. While there is
    no Node, nothing is.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        registered(api, "first")
        node = Node(client)
        parts = Parts()
        async with node.marks.run(parts):
            node.marks.publish(PodUid("a"), True)
            await until(lambda: owner(api) == "first")
            registered(api, "second")
            api.remove("NodeStatus", "", "node1")
            node.statuses.gone("node1")
            await until(lambda: owner(api) == "second")
            assert enrolled(api) == ["a"]

            api.remove("Node", "", "node1")
            api.remove("NodeStatus", "", "node1")
            asked = len(api.requests)
            node.statuses.gone("node1")
            await until(lambda: len(api.requests) > asked)
            node.marks.publish(PodUid("b"), True)
            await until(lambda: len(api.requests) > asked + 1)
            assert not api.of("NodeStatus"), "it would outlive its Node"
            registered(api, "third")
            node.marks.publish(PodUid("c"), True)
            await until(lambda: owner(api) == "third")
            assert enrolled(api) == ["a", "b", "c"]
            parts.stop()

    play(tmp_path, scene)


def test_an_agent_that_begins_before_its_node_is_registered_names_it_later(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        node = Node(client)
        parts = Parts()
        async with node.marks.run(parts):
            node.marks.publish(PodUid("a"), True)
            await until(lambda: enrolled(api) == ["a"])
            registered(api, "first")
            node.marks.publish(PodUid("b"), True)
            await until(lambda: owner(api) == "first")
            parts.stop()

    play(tmp_path, scene)
