"""The startup taint: taken away when the agent is ready, whenever it was put, and nothing else with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.kube.source import KubernetesSource
from nodeagent.kube.taint import LONGEST_PAUSE, LOOK_SECONDS, SELDOM_SECONDS, TAINT, StartupTaint, untaint
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.kube.api_scene import following, play, soon
from tests.waiting import quiet, until


def node(*keys: str) -> dict[str, Any]:
    taints = [{"key": key, "effect": "NoSchedule"} for key in keys]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "spec": {"taints": taints}}


def keys(api: FakeKubeApi) -> list[str]:
    return [taint["key"] for taint in api.of("Node")[0]["spec"]["taints"]]


def test_it_is_taken_away_when_nothing_is_missing_and_again_when_it_is_put_later(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(node("other", TAINT))
        source = KubernetesSource(client, "node1", sleep=soon)
        await following(source)
        missing = ["a pod is not captured"]
        taint = StartupTaint(client, "node1", lambda: source.tainted, lambda: missing, sleep=soon)
        keeping = asyncio.ensure_future(taint.keep())
        await quiet()
        assert keys(api) == ["other", TAINT]
        missing.clear()
        await until(lambda: keys(api) == ["other"])
        await until(lambda: not source.tainted)
        api.put(node(TAINT, "other", "third"))
        await until(lambda: keys(api) == ["other", "third"])
        keeping.cancel()
        source.close()

    play(tmp_path, scene)


def test_a_taint_that_somebody_else_took_away_is_not_told_as_taken_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Input: what is known of the Node is old. Verdict: nothing is said, and the server is asked ever more seldom."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(node("other"))
        keeping = asyncio.ensure_future(StartupTaint(client, "node1", lambda: True, list, sleep=sleep).keep())
        await until(lambda: len(pauses) > 8)
        keeping.cancel()

    caplog.set_level("INFO")
    play(tmp_path, scene)
    assert "is taken away" not in caplog.text
    assert pauses[:8] == [LOOK_SECONDS, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_node_that_is_gone_has_no_taint(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(node(TAINT))
        source = KubernetesSource(client, "node1", sleep=soon)
        await following(source)
        assert source.tainted
        api.remove("Node", "", "node1")
        await following(source)
        assert not source.tainted
        source.close()

    play(tmp_path, scene)


def test_it_is_looked_for_seldom_while_it_is_not_there(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        tainted = iter([True, False])
        taint = StartupTaint(client, "node1", lambda: next(tainted, False), lambda: ["a pod"], sleep=sleep)
        keeping = asyncio.ensure_future(taint.keep())
        await until(lambda: len(pauses) > 3)
        keeping.cancel()

    play(tmp_path, scene)
    assert pauses[:4] == [LOOK_SECONDS, LOOK_SECONDS, SELDOM_SECONDS, SELDOM_SECONDS]


def test_what_stands_in_the_way_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(node(TAINT))
        api.forbidden.add("nodes")
        keeping = asyncio.ensure_future(StartupTaint(client, "node1", lambda: True, list, sleep=soon).keep())
        await until(lambda: len(api.requests) > 3)
        api.forbidden.clear()
        await until(lambda: not keys(api))
        keeping.cancel()

    play(tmp_path, scene)
    assert caplog.text.count("no pod comes here") == 1
    assert "resources: [nodes], verbs: [patch]" in caplog.text


def test_a_node_without_it_is_left_alone(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(node("other"))
        assert await untaint(client, "node1") is False
        assert await untaint(client, "node2") is False
        assert all(method == "GET" for method, _ in api.requests)

    play(tmp_path, scene)
