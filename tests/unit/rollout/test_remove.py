"""The agent taken off a cluster: whatever of it is there, and however often it is begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import ControlError
from nodeagent.kube.access import ApiError
from nodeagent.rollout.remove import Removal
from nodeagent.rollout.resources import ClusterObjects
from nodeagent.uninstall import KEPT
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.rollout.test_placement import LABELS, play

Document = dict[str, Any]


def node(name: str, label: str) -> Document:
    metadata = {"name": name, "labels": {label: "x"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": []}}


def namespace(**metadata: str) -> Document:
    named = {"name": "nodeagent-system", "labels": LABELS}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {**named, **metadata}}


def daemon_set() -> Document:
    """Return the agents' as it cleans nodes."""
    template = {"spec": {"initContainers": [{"name": "uninstall"}], "containers": [{"name": "done"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "nodeagent", "namespace": "nodeagent-system", "labels": LABELS},
        "spec": {"selector": {"matchLabels": LABELS}, "template": template},
    }


async def removed(objects: ClusterObjects, said: list[str], *, seconds: float = 1) -> None:
    await Removal(objects, said.append, seconds=seconds).run([], nodes=True, policies=False, volumes=False)


def test_where_nothing_is_there_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        api.put(node("a", "team"))
        await removed(objects, said)

    play(tmp_path, scene)
    assert said == ["nothing of the agent is there"]


def test_a_node_with_marks_is_not_nothing(tmp_path: Path) -> None:
    """Without its DaemonSet nothing can clean it: that is told, and nothing is done."""

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        api.put(node("a", "nodeagent.io/x"))
        with pytest.raises(ControlError, match="is not there, so that nothing can clean the nodes"):
            await removed(objects, [])

    play(tmp_path, scene)


def test_begun_again_while_the_namespace_is_being_removed_it_is_waited_for(tmp_path: Path) -> None:
    """Input: a removal that was broken off while the last of it, the namespace with the DaemonSet, ended."""

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        api.put(namespace(deletionTimestamp="2026-01-01T00:00:00Z"))
        with pytest.raises(ControlError, match="Namespace nodeagent-system: not after 0 s: it is being removed"):
            await removed(objects, [], seconds=0)
        said: list[str] = []

        def say(words: str) -> None:
            said.append(words)
            if "it is being removed" in words:
                api.remove("Namespace", "", "nodeagent-system")

        await Removal(objects, say, seconds=60).run([], nodes=True, policies=False, volumes=False)
        assert said[-1] == "Namespace nodeagent-system: removed, with all that was in it"

    play(tmp_path, scene)


def test_a_node_that_changes_or_goes_meanwhile_is_in_no_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        for name in ("changes", "goes", "stays"):
            api.put(node(name, "nodeagent.io/x"))
        patch = objects.client.patch
        refused: list[str] = []

        async def busy(path: str, *rest: Any) -> Any:
            name = path.rpartition("/")[2]
            if name == "goes":
                api.remove("Node", "", name)
                raise ApiError("not found", 404)
            if name == "changes" and name not in refused:
                refused.append(name)
                raise ApiError("the object has been modified", 409)
            return await patch(path, *rest)

        monkeypatch.setattr(objects.client, "patch", busy)
        await Removal(objects, said.append, seconds=1).run([], nodes=False, policies=False, volumes=False)
        left = {each["metadata"]["name"]: each["metadata"]["labels"]["nodeagent.io/x"] for each in api.of("Node")}
        assert left == {"changes": None, "stays": None}

    play(tmp_path, scene)
    marks = "labels, annotations and taints removed"
    assert said == [f"Node changes: {marks}", f"Node stays: {marks}"]


def test_what_a_node_keeps_is_said_before_the_pod_that_knows_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cleaned(*_: object) -> str:
        return ""

    monkeypatch.setattr("nodeagent.rollout.remove.behind", cleaned)
    said: list[str] = []
    paths = "/var/lib/nodeagent/logs/buffer/all/000000000001.segment"

    async def scene(api: FakeKubeApi, objects: ClusterObjects) -> None:
        api.put(daemon_set())
        for number, printed in enumerate(("", f"2026-01-01 WARNING nodeagent.uninstall: {KEPT}{paths}\nREMOVED\n")):
            spec = {
                "nodeName": f"n{number}",
                "initContainers": [{"name": "uninstall"}],
                "containers": [{"name": "done"}],
            }
            metadata = {"name": f"p{number}", "namespace": "nodeagent-system", "labels": LABELS}
            api.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
            api.logs[f"p{number}", "uninstall"] = printed
        await removed(objects, said)

    play(tmp_path, scene)
    at = said.index("every node that can be reached is clean")
    assert [each for each in said if KEPT in each] == [f"Node n1: {KEPT}{paths}"]
    assert KEPT in said[at + 1], "while the pod is there"
