"""Events for people: what is told, how often, and what becomes of what cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.kube.events import A_SECOND, BURST, EventTeller, Trouble, of_pods
from nodeagent.kube.source import KubernetesSource
from tests.fakes.kube_api import FakeKubeApi
from tests.unit.kube.api_scene import following, peer_authentication, play, soon
from tests.waiting import until

WEB = Trouble("v1", "Pod", "default", "web", "uid-web", "NotCaptured", "port 15006 is taken")


class People:
    """Who hears what *troubles* says, at a time that is told."""

    def __init__(self, client: KubeClient, *troubles: Trouble) -> None:
        self.troubles = list(troubles)
        self.now = 1000.0
        day = datetime(2026, 1, 31, tzinfo=UTC)
        self.teller = EventTeller(client, "node1", lambda: self.troubles, now=lambda: self.now, today=lambda: day)

    async def look(self, times: int = 1, seconds: float = 5) -> None:
        for _ in range(times):
            self.now += seconds
            await self.teller.look()


def notes(api: FakeKubeApi) -> list[str]:
    return [event["note"] for event in api.of("Event")]


def test_what_lasts_is_told_once_about_the_object(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        people = People(client, WEB)
        await people.look()
        assert not api.of("Event"), "it may pass"
        await people.look(20)
        (event,) = api.of("Event")
        regarding = {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "uid-web"}
        assert event["regarding"] == regarding
        assert (event["type"], event["reason"], event["note"]) == ("Warning", "NotCaptured", WEB.note)
        assert (event["reportingController"], event["reportingInstance"]) == ("nodeagent.io/agent", "node1")
        assert event["eventTime"] == "2026-01-31T00:00:00.000000Z"

    play(tmp_path, scene)


def test_it_is_told_again_when_it_came_back_after_an_hour_and_in_other_words_after_a_minute(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        people = People(client, WEB)
        await people.look(2)
        people.troubles = [replace(WEB, note="other words")]
        await people.look(2)
        assert notes(api) == [WEB.note]
        await people.look(1, 60)
        assert notes(api) == [WEB.note, "other words"]
        await people.look(1, 3600)
        assert len(notes(api)) == 3
        people.troubles = []
        await people.look()
        people.troubles = [WEB]
        await people.look(2)
        assert len(notes(api)) == 4

    play(tmp_path, scene)


def test_how_many_are_told_is_bounded_and_none_is_lost(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        many = [replace(WEB, name=f"web-{number}") for number in range(2 * BURST)]
        people = People(client, *many)
        await people.look(2)
        assert len(notes(api)) == BURST
        await people.look(1, 60)
        assert len(notes(api)) == 2 * BURST

    play(tmp_path, scene)


def test_nobodys_many_faults_keep_anothers_from_being_told(tmp_path: Path) -> None:
    """Input: a namespace, first by its name, in which other pods fail all the time, more than can be told; a pod of
    another one, and a pod of the same that failed before most. Verdict: both are told, in turn.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        flood = [replace(WEB, namespace="a", name=f"job-{number}") for number in range(2 * BURST)]
        people = People(client, *flood)
        await people.look(2)
        people.troubles += [replace(WEB, namespace="z", note="z's"), replace(WEB, namespace="a", note="a's own")]
        for turn in range(40):
            people.troubles += [replace(WEB, namespace="a", name=f"another-{turn}-{at}") for at in range(10)]
            await people.look()
            if turn == 2:
                assert "z's" in notes(api)
        assert "a's own" in notes(api)

    play(tmp_path, scene)


@pytest.mark.parametrize("state", ["forbidden", "away"])
def test_what_cannot_be_told_is_told_later(tmp_path: Path, caplog: pytest.LogCaptureFixture, state: str) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        people = People(client, WEB)
        if state == "forbidden":
            api.forbidden.add("events")
        else:
            await api.stop()
        await people.look(4)
        assert caplog.text.count("Events cannot be told") == 1
        assert ("verbs: [create]" in caplog.text) == (state == "forbidden")
        api.forbidden.clear()
        if state == "away":
            await api.start()
        await people.look()
        assert notes(api) == [WEB.note]

    play(tmp_path, scene)


def test_a_namespace_that_is_going_holds_up_no_other(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.terminating.add("a-going")
        people = People(client, replace(WEB, namespace="a-going"), WEB)
        await people.look(2)
        assert notes(api) == [WEB.note]

    play(tmp_path, scene)


def test_a_namespace_that_takes_none_holds_up_no_other_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Input: a quota that is used up, in the namespace that is first in turn; then it is raised."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.full.add("a-full")
        full = [replace(WEB, namespace="a-full", name=name, note=name) for name in ("one", "two")]
        people = People(client, *full, WEB, replace(WEB, namespace="z", note="z's"))
        await people.look(4)
        assert notes(api) == [WEB.note, "z's"]
        assert caplog.text.count("Events cannot be told") == 1
        assert "in namespace a-full: " in caplog.text and "exceeded quota" in caplog.text
        assert "verbs: [create]" not in caplog.text
        api.full.clear()
        await people.look()
        assert notes(api)[2:] == ["one", "two"]

    play(tmp_path, scene)


def test_how_many_are_refused_is_bounded_and_other_namespaces_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: namespaces that take none, first by name and more than a burst, and one that does; then they are gone."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        tried: list[str] = []
        post = client.post

        async def counted(path: str, document: Any) -> Any:
            tried.append(path)
            return await post(path, document)

        monkeypatch.setattr(client, "post", counted)
        full = [f"a-{number:02}" for number in range(2 * BURST)]
        api.full |= set(full)
        people = People(client, *(replace(WEB, namespace=where) for where in full), replace(WEB, namespace="z"))
        await people.look(1 + 12)
        assert len(tried) <= BURST + 12 * 5 * A_SECOND + 1
        assert notes(api) == [WEB.note]
        assert set(people.teller._wrong) == set(full)
        people.troubles = []
        await people.look()
        assert not people.teller._wrong

    play(tmp_path, scene)


def row(state: str, *faults: str) -> dict[str, Any]:
    return {"namespace": "default", "pod": "web", "uid": "uid-web", "state": state, "faults": list(faults)}


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (row("enrolled"), []),
        (row("failed", "port 15006 is taken"), ["NotCaptured"]),
        (row("faulty", "not captured on IPv6"), ["NotCaptured"]),
        (row("undecided", "spec.serviceAccountName: no"), ["NotCaptured"]),
        (row("left alone", "metadata.labels[nodeagent.io/dataplane]: 'enable'"), ["AnnotationRefused"]),
        (row("pending", "the authority is away"), ["NoCertificate"]),
        (row("enrolled", "metadata.annotations[nodeagent.io/path]: 'fast'"), ["AnnotationRefused"]),
    ],
)
def test_what_is_wrong_with_a_pod_has_a_reason(given: dict[str, Any], reasons: list[str]) -> None:
    assert [each.reason for each in of_pods([given])] == reasons


def test_a_policy_that_is_refused_is_told_about_its_object(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        document = peer_authentication("SOMETIMES")
        document["metadata"]["uid"] = "uid-policy"
        api.put(document)
        source = KubernetesSource(client, "node1", sleep=soon)
        await following(source)
        await until(source.refused)
        troubles: Callable[[], list[Trouble]] = source.troubles
        people = People(client)
        people.troubles = troubles()
        await people.look(2)
        (event,) = api.of("Event")
        assert event["reason"] == "PolicyRefused" and "SOMETIMES" in event["note"]
        assert (event["regarding"]["kind"], event["regarding"]["uid"]) == ("PeerAuthentication", "uid-policy")
        source.close()

    play(tmp_path, scene)
