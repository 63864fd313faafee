"""What a person's command reads of a cluster whose API server has a bad day."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.rollout.manifests import ObjectName
from nodeagent.rollout.resources import LISTINGS, ApiError, ClusterObjects
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.kube.api_scene import play, pod


@pytest.mark.parametrize("unable", [413, 504, 0])
def test_a_server_that_cannot_give_so_much_at_once_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unable: int
) -> None:
    if not unable:
        monkeypatch.setattr("nodeagent.kube.client.BEGIN_SECONDS", 2.0)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.most = 8
        api.unable = unable
        names = [f"p{number:02}" for number in range(20)]
        for name in names:
            api.put(pod(name))
        found = await ClusterObjects(client).list("v1", "Pod")
        assert [each["metadata"]["name"] for each in found] == names

    play(tmp_path, scene)


def test_a_list_that_is_forgotten_while_it_is_read_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdict: each object is there once; a server that never remembers is told."""
    monkeypatch.setattr("nodeagent.rollout.resources.PAGE", 2)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        for name in "abcde":
            api.put(pod(name))
        objects = ClusterObjects(client)
        api.forgets = LISTINGS - 1
        assert [each["metadata"]["name"] for each in await objects.list("v1", "Pod")] == list("abcde")
        api.forgets = LISTINGS
        with pytest.raises(ApiError, match="too old"):
            await objects.list("v1", "Pod")

    play(tmp_path, scene)


def test_a_log_that_has_no_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.rollout.resources.REQUEST_SECONDS", 0.1)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        with pytest.raises(ApiError, match=r"the log of Pod default/web: it has no end after 0\.1 s"):
            await ClusterObjects(client).log(ObjectName("v1", "Pod", "default", "web"))

    play(tmp_path, scene)
