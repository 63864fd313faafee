"""How far a rollout is, where agents take over from one another and drain for as long as they must."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import pytest

from nodeagent.kube.access import KubeObject
from nodeagent.rollout.manifests import ObjectName
from nodeagent.rollout.resources import ClusterObjects
from nodeagent.rollout.workloads import behind

NAME = ObjectName("apps/v1", "DaemonSet", "nodeagent-system", "nodeagent")


class Cluster(ClusterObjects):
    """Objects as the API server would show them."""

    def __init__(self, status: KubeObject, **lists: list[KubeObject]) -> None:
        self._status = {"observedGeneration": 2, **status}
        self._lists = lists

    async def get(self, name: ObjectName) -> KubeObject | None:
        assert name == NAME
        spec = {"selector": {"matchLabels": {"app": "agent"}}}
        return {"metadata": {"uid": "own", "generation": 2}, "spec": spec, "status": self._status}

    async def list(self, api_version: str, kind: str, *, namespace: str = "", labels: str = "") -> list[KubeObject]:
        assert (namespace, labels) == (NAME.namespace, "app=agent")
        return self._lists[kind]


def pod(name: str, node: str, revision: str, *, ready: bool = True, **metadata: Any) -> KubeObject:
    conditions = [{"type": "Ready", "status": str(ready)}]
    labels = {"controller-revision-hash": revision}
    return {
        "metadata": {"name": name, "labels": labels, **metadata},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": conditions},
    }


def revision(name: str, number: int, owner: str = "own") -> KubeObject:
    labels = {"controller-revision-hash": name}
    return {"metadata": {"labels": labels, "ownerReferences": [{"uid": owner}]}, "revision": number}


LEAVES: dict[str, Any] = {"deletionTimestamp": "2026-01-31T12:00:00Z"}
REVISIONS = [revision("old", 1), revision("new", 10), revision("others", 11, "another")]
# what the controller says while an old agent drains on each node
STATUS = {"desiredNumberScheduled": 2, "updatedNumberScheduled": 0, "numberReady": 2}


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ([pod("a1", "a", "new"), pod("b1", "b", "new")], ""),
        ([pod("a0", "a", "old", **LEAVES), pod("a1", "a", "new"), pod("b0", "b", "old"), pod("b1", "b", "new")], ""),
        (
            [pod("a1", "a", "new"), pod("b0", "b", "old"), pod("b1", "b", "new", ready=False)],
            "1 of 2 ready, 2 of this version; b1: Running, not ready on b",
        ),
        ([pod("a0", "a", "old"), pod("b0", "b", "old")], "0 of 2 ready, 0 of this version"),
        ([pod("a1", "a", "new"), pod("b1", "b", "new", **LEAVES)], "1 of 2 ready, 1 of this version"),
        ([pod("a1", "a", "new"), pod("a2", "a", "new")], "1 of 2 ready, 1 of this version"),
    ],
)
def test_agents_are_rolled_out_when_each_node_has_a_ready_one_of_the_newest_revision(
    pods: list[KubeObject], words: str
) -> None:
    found = Cluster(STATUS, Pod=pods, ControllerRevision=REVISIONS)
    assert asyncio.run(behind(found, NAME)) == words


def test_after_a_rollback_the_revision_before_is_the_newest() -> None:
    back = [revision("old", 12), revision("new", 10)]
    pods = [pod("a0", "a", "old"), pod("b0", "b", "old"), pod("b1", "b", "new", **LEAVES)]
    assert asyncio.run(behind(Cluster(STATUS, Pod=pods, ControllerRevision=back), NAME)) == ""


def test_what_the_controller_has_not_seen_yet_is_not_rolled_out() -> None:
    pods = [pod("a1", "a", "new"), pod("b1", "b", "new")]
    late = Cluster({**STATUS, "observedGeneration": 1}, Pod=pods, ControllerRevision=REVISIONS)
    assert asyncio.run(behind(late, NAME)).startswith("2 of 2 ready")
    unborn = Cluster(STATUS, Pod=pods, ControllerRevision=[])
    assert asyncio.run(behind(unborn, NAME)).startswith("0 of 2 ready")


def test_why_no_pod_can_be_made_is_said() -> None:
    """Of a DaemonSet its controller tells Events."""
    asked: list[str] = []

    class Client:
        async def get(self, path: str) -> KubeObject:
            asked.append(unquote(path))
            older = {"lastTimestamp": "2026-01-31T12:00:00Z", "message": "no account"}
            return {"items": [older, {"lastTimestamp": "2026-01-31T12:05:00Z", "message": "exceeded quota"}]}

    cluster = Cluster(STATUS, Pod=[], ControllerRevision=REVISIONS)
    cluster.client = Client()  # type: ignore[assignment]
    assert asyncio.run(behind(cluster, NAME)).endswith("0 of this version; no pod can be made: exceeded quota")
    assert "involvedObject.name=nodeagent,reason=FailedCreate" in asked[0]
