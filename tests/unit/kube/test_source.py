"""The cluster's state from an API server that breaks off, forgets, repeats, refuses and is away."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube.client import KubeClient
from nodeagent.kube.foreign import SOON_SECONDS
from nodeagent.kube.kind_objects import KindObjects
from nodeagent.kube.snapshot import SnapshotFile
from nodeagent.kube.source import KubernetesSource
from nodeagent.kube.watch import LOOK_SECONDS
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Workload
from nodeagent.places.place import Place
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import PodObject
from tests.fakes.kube_api import DEEP, FakeKubeApi
from tests.unit.kube.api_scene import Runtime, following, peer_authentication, play, pod, soon, told
from tests.waiting import DEADLINE, quiet, until


def listings(api: FakeKubeApi, plural: str) -> int:
    """Return how often all of *plural* was asked for."""
    return sum(
        f"/{plural}?" in path and ("sendInitialEvents" in path or "watch" not in path) and not path.endswith("limit=1")
        for _, path in api.requests
    )


def test_a_watch_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("a"))
        assert await following(source) == ["+Pod/a"]
        for name in "bcd":
            api.tear()
            api.put(pod(name))
            assert await following(source) == [f"+Pod/{name}"]
        assert listings(api, "pods") == 1
        source.close()

    play(tmp_path, scene)


def test_what_the_server_has_forgotten_is_listed_anew(tmp_path: Path) -> None:
    """Input: while no watch is there, a pod comes and another goes, and the server forgets that they
    did (410). Verdict: both are told, nothing else is.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("stays"))
        api.put(pod("goes"))
        await following(source)
        await api.stop()
        api.put(pod("comes"))
        api.remove("Pod", "default", "goes")
        api.forget()
        await api.start()
        heard = await following(source)
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+Pod/comes", "-Pod/goes"]
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("protobuf", [True, False])
def test_a_server_that_lists_by_pages_only_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protobuf: bool
) -> None:
    """Verdict: so it is if it, or what stands before it, knows JSON alone."""
    monkeypatch.setattr("nodeagent.kube.watch.PAGE", 2)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = False
        api.protobuf = protobuf
        source = KubernetesSource(client, "node1", sleep=soon)
        for name in "abcde":
            api.put(pod(name, node="node1" if name in "ab" else "node2"))
        api.put(peer_authentication("STRICT"))
        assert await following(source) == ["+PeerAuthentication/all", *(f"+Pod/{name}" for name in "abcde")]
        assert sum("continue=" in path for _, path in api.requests) == 2
        assert gc.isenabled(), "the collector rests while pages are read, and no longer"
        api.put(pod("f"))
        assert await following(source) == ["+Pod/f"]
        source.close()

    play(tmp_path, scene)


def annotated(name: str, value: str) -> dict[str, Any]:
    """Return a pod with *value* in an annotation that nobody reads."""
    document = pod(name, node="node2")
    document["metadata"]["annotations"] = {"example.org/a": value}
    return document


@pytest.mark.parametrize("listed", [True, False])
def test_a_pod_that_is_too_large_keeps_no_other_from_being_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, listed: bool
) -> None:
    """Input: a pod of which an event has more bytes than a line may have, before the listing or after it. Verdict:
    it is known, as are those behind it; there is one more listing for it, however often it changes.
    """
    monkeypatch.setattr("nodeagent.kube.client.MAX_LINE", 1 << 16)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        large = annotated("large", "x" * (1 << 18))
        if not listed:
            assert await following(source) == []
        api.put(large)
        api.put(pod("behind"))
        heard = await following(source)
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+Pod/behind", "+Pod/large"]
        before = listings(api, "pods")
        for name in "abc":
            api.put(large)
            api.put(pod(name))
            heard = []
            while f"+Pod/{name}" not in heard:
                heard += await following(source)
        assert listings(api, "pods") <= before + 1
        source.close()

    play(tmp_path, scene)
    assert "an event has more than" in caplog.text


def test_six_bytes_for_one_are_no_event_that_is_too_long(tmp_path: Path) -> None:
    """Go writes ``<`` so: an object of etcd's 1.5 MiB is six times as long in a watch."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == []
        api.put(annotated("large", "x" * (6 * 1536 << 10)))
        assert await following(source) == ["+Pod/large"]
        assert listings(api, "pods") == 1
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("protobuf", [True, False])
def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protobuf: bool
) -> None:
    monkeypatch.setattr("nodeagent.kube.client.MAX_ANSWER", 1 << 16)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = False
        api.protobuf = protobuf
        names = [f"p{number:02}" for number in range(20)]
        for name in names:
            api.put(annotated(name, "x" * 20_000))
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == [f"+Pod/{name}" for name in names]
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("unable", [413, 504, 0])
def test_a_server_that_cannot_give_so_much_at_once_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unable: int
) -> None:
    """Input: one that refuses a large page, or does not answer it in time. Verdict: all is known, and none is told."""
    if not unable:
        monkeypatch.setattr("nodeagent.kube.client.BEGIN_SECONDS", 2.0)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = False
        api.most = 8
        api.unable = unable
        names = [f"p{number:02}" for number in range(20)]
        for name in names:
            api.put(pod(name))
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == [f"+Pod/{name}" for name in names]
        assert source.outages.warnings() == []
        source.close()

    play(tmp_path, scene)


def test_a_server_that_answers_no_page_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Verdict: it is asked for less a few times, and then it is away."""
    monkeypatch.setattr("nodeagent.kube.client.BEGIN_SECONDS", 0.02)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = False
        api.most = 0
        api.unable = 0
        source = KubernetesSource(client, "node1", sleep=soon)
        waiting = asyncio.ensure_future(following(source))
        await until(lambda: "no answer within 0.02 s" in caplog.text)
        monkeypatch.undo()
        api.most = 100
        api.put(pod("web"))
        assert await waiting == ["+Pod/web"]
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_a_policy_that_is_too_deep_keeps_no_other_from_being_known(tmp_path: Path, streams: bool, listed: bool) -> None:
    """Input: lists in lists, deeper than JSON is read, in a policy's field that nobody knows. Verdict: what stands in
    for it is told and kept on disk, and the policy behind it is told.
    """
    deep = peer_authentication("STRICT", "deep")
    deep["spec"]["unknown"] = DEEP

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = streams
        kept = SnapshotFile(tmp_path / "kept", "node1")
        source = KubernetesSource(client, "node1", kept=kept, sleep=soon)
        if not listed:
            assert await following(source) == []
        api.put(deep)
        api.put(peer_authentication("STRICT", "behind"))
        heard = await following(source)
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+PeerAuthentication/behind", "+PeerAuthentication/deep"]
        (refused,) = source.refused()
        assert refused.name == "deep" and not refused.stays
        await kept.write()
        assert len(kept.restore()) == 2
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("depth", [250, 300, 900])
def test_a_wrong_policy_that_is_too_deep_to_be_written_is_kept_without_its_depth(tmp_path: Path, depth: int) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == []
        deep = peer_authentication("STRICT", "deep")
        inner: list[Any] = []
        for _ in range(depth):
            inner = [inner]
        deep["spec"]["unknown"] = inner
        api.put(deep)
        api.put(peer_authentication("STRICT", "behind"))
        heard = await following(source)
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+PeerAuthentication/behind", "+PeerAuthentication/deep"]
        assert listings(api, "peerauthentications") == 1, "the watch went on"
        source.close()

    play(tmp_path, scene)


def test_an_object_that_nobody_foresaw_ends_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict: it is wrong, what stands in for it is told, and what comes after it."""
    good = KindObjects._good

    def surprised(self: KindObjects, name: tuple[str, str], held: Any, found: Any) -> None:
        if name[1] == "strange":
            raise ZeroDivisionError("never seen before")
        good(self, name, held, found)

    monkeypatch.setattr(KindObjects, "_good", surprised)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        for name in ("strange", "next"):
            api.put(peer_authentication("STRICT", name))
            api.put(pod(name))
        assert await following(source) == ["+PeerAuthentication/next", "+PeerAuthentication/strange", "+Pod/next"]
        (refused,) = source.refused()
        assert "ZeroDivisionError: 'never seen before'" in refused.error
        assert source.unread_pods() == ["Pod default/strange"]
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("restored", [True, False])
def test_a_watch_that_says_nothing_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    """Input: a server that says nothing more though the connection is good: it is stuck, or knows only versions before
    the one that is watched from, as after its etcd was restored. Verdict: what changed is known.
    """
    monkeypatch.setattr("nodeagent.kube.watch.SILENT_SECONDS", 0.2)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("stays"))
        api.put(pod("goes"))
        assert await following(source) == ["+Pod/goes", "+Pod/stays"]
        if restored:
            api.restore()
        else:
            api.stick()
        api.put(pod("comes"))
        api.remove("Pod", "default", "goes")
        heard: list[str] = []
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+Pod/comes", "-Pod/goes"]
        assert listings(api, "pods") == (2 if restored else 1), "what is only quiet is not listed again"
        source.close()

    play(tmp_path, scene)


def test_a_watch_that_does_not_end_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: one in which something comes all the time, and nothing of what changes. Verdict: what changed is known."""
    monkeypatch.setattr("nodeagent.kube.watch.WATCH_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("nodeagent.kube.watch.LATE_SECONDS", 0.3)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("stays"))
        assert await following(source) == ["+Pod/stays"]
        api.trickles = True
        api.stick()
        api.put(pod("comes"))
        assert await following(source) == ["+Pod/comes"]
        assert listings(api, "pods") == 1
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("trickles", [True, False])
def test_a_listing_that_says_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trickles: bool
) -> None:
    monkeypatch.setattr("nodeagent.kube.watch.LISTING_SECONDS", 0.05)
    monkeypatch.setattr("nodeagent.kube.watch.WATCH_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("nodeagent.kube.watch.LATE_SECONDS", 0.2)

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.stuck = True
        api.trickles = trickles
        api.put(pod("web"))
        source = KubernetesSource(client, "node1", sleep=soon)
        waiting = asyncio.ensure_future(following(source))
        await until(lambda: "the listing stopped: nothing came for 0.05 s, or it has no end" in caplog.text)
        assert not waiting.done()
        monkeypatch.undo()
        api.stuck = False
        assert await waiting == ["+Pod/web"]
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("streams", [True, False])
def test_endpoints_that_a_selector_names_are_not_asked_for(tmp_path: Path, streams: bool) -> None:
    """Input: slices by Kubernetes' own controller, by another and by nobody in particular, before and after the
    listing, which is a stream or pages. Verdict: those of the first are never told: pods say the same.
    """
    label = "endpointslice.kubernetes.io/managed-by"

    def slice_by(name: str, *managers: str) -> dict[str, Any]:
        metadata = {
            "name": name,
            "namespace": "default",
            "labels": dict.fromkeys([label] if managers else [], *managers),
        }
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv4",
        }

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = streams
        source = KubernetesSource(client, "node1", sleep=soon)
        for number in (1, 2):
            api.put(slice_by(f"own-{number}"))
            api.put(slice_by(f"made-{number}", "endpointslice-controller.k8s.io"))
            api.put(slice_by(f"mirrored-{number}", "endpointslicemirroring-controller.k8s.io"))
            heard: list[str] = []
            while len(heard) < 2:
                heard += await following(source)
            assert sorted(heard) == [f"+EndpointSlice/mirrored-{number}", f"+EndpointSlice/own-{number}"]
        source.close()

    play(tmp_path, scene)


def test_why_pods_may_not_be_listed_is_told_in_words(tmp_path: Path) -> None:
    """Input: a server that lists by pages, and says in protobuf, where that is asked for, that it does not."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.streams = False
        api.forbidden.add("pods")
        source = KubernetesSource(client, "node1", sleep=soon)
        coming = asyncio.ensure_future(source.changes())
        await until(lambda: source.missing() != [])
        assert 'pods is forbidden: User "agent" cannot do that' in source.missing()[0]
        api.forbidden.clear()
        await asyncio.wait_for(coming, DEADLINE)
        assert source.missing() == []
        source.close()

    play(tmp_path, scene)


def test_what_comes_late_or_twice_changes_nothing(tmp_path: Path) -> None:
    """Input: an earlier state of a pod, its removal before it was made anew, and, after it is gone,
    its last state once more. Verdict: none of them is told.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("web", phase="Pending"))
        await following(source)
        first = api.of("Pod")[0]
        api.put(pod("web", phase="Running"))
        assert await following(source) == ["+Pod/web"]
        last = api.of("Pod")[0]
        for what, document in (("MODIFIED", first), ("ADDED", first), ("DELETED", first), ("MODIFIED", last)):
            api.say(what, document)
        api.put(pod("after"))
        assert await following(source) == ["+Pod/after"]
        api.remove("Pod", "default", "web")
        assert await following(source) == ["-Pod/web"]
        api.say("MODIFIED", last)
        api.put(pod("after", phase="Running"))
        assert await following(source) == ["+Pod/after"]
        source.close()

    play(tmp_path, scene)


def test_a_kind_is_followed_once_the_cluster_has_it_and_until_it_has_it_no_more(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.served.discard("peerauthentications")
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == []
        assert source.missing() == []
        api.served.add("peerauthentications")
        api.put(peer_authentication("STRICT"))
        assert await following(source) == ["+PeerAuthentication/all"]
        api.served.discard("peerauthentications")
        api.tear()
        assert await following(source) == ["-PeerAuthentication/all"]
        source.close()

    play(tmp_path, scene)


def test_kinds_that_the_cluster_lacks_are_looked_for_by_one_request_for_all(tmp_path: Path) -> None:
    """Input: a cluster without Istio's kinds. Verdict: however often is looked for what it has, each of them was
    asked for only at first, and is followed when it comes.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        lacking = {"peerauthentications", "authorizationpolicies", "requestauthentications"}
        api.served -= lacking
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == []
        first = api.requests.count(("GET", "/apis"))
        await until(lambda: api.requests.count(("GET", "/apis")) > first + 5)
        asked = [path for _, path in api.requests if "security.istio.io" in path]
        assert len(asked) == 2 * len(lacking), "each version of each once"
        api.served |= lacking
        api.put(peer_authentication("STRICT"))
        assert await following(source) == ["+PeerAuthentication/all"]
        source.close()

    play(tmp_path, scene)


def test_an_answer_of_404_is_believed_only_if_discovery_says_so_too(tmp_path: Path) -> None:
    """Input: a kind that discovery lists, and whose objects are not found, as behind a wrong load
    balancer. Verdict: what is known of it stays.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(peer_authentication("STRICT"))
        await following(source)
        api.misrouted.add("peerauthentications")
        api.tear()
        await until(lambda: sum("peerauthentications?" in path for _, path in api.requests) > 2)
        api.put(pod("after"))
        assert "-PeerAuthentication/all" not in await following(source)
        source.close()

    play(tmp_path, scene)


def test_a_server_that_starts_takes_no_policy_away(tmp_path: Path) -> None:
    """Input: discovery does not list a kind yet, and its objects are answered with 503, then are there.
    Verdict: the first batch waits for them; it is not as if there were no policy.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(peer_authentication("STRICT"))
        api.undiscovered.add("peerauthentications")
        api.starting.add("peerauthentications")
        waiting = asyncio.ensure_future(following(source))
        await until(lambda: sum("peerauthentications?" in path for _, path in api.requests) > 2)
        assert not waiting.done()
        api.starting.clear()
        assert await waiting == ["+PeerAuthentication/all"]
        source.close()

    play(tmp_path, scene)


def test_without_a_right_nothing_is_told_and_the_rule_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Input: the agent may not list AuthorizationPolicies. Verdict: it does not take the node over
    as if there were none, and says which rule it wants; with the right it begins.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.forbidden.add("authorizationpolicies")
        api.put(pod("web"))
        source = KubernetesSource(client, "node1", sleep=soon)
        waiting = asyncio.ensure_future(following(source))
        (words,) = await until(source.missing)
        rule = '{apiGroups: ["security.istio.io"], resources: [authorizationpolicies], verbs: [list, watch]}'
        assert "is forbidden" in words and rule in words
        assert not waiting.done()
        api.forbidden.clear()
        assert await waiting == ["+Pod/web"]
        assert source.missing() == []
        source.close()

    play(tmp_path, scene)
    assert caplog.text.count("is forbidden") == 1, "said once, however often it is tried"


def test_a_right_that_comes_back_is_noticed_though_nothing_changes(tmp_path: Path) -> None:
    """Input: the right is taken away while the agent watches, and given back. Verdict: it is missed, what
    was known stays, and it is missed no more before anything of the kind has changed.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.put(pod("web"))
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == ["+Pod/web"]
        api.forbidden.add("pods")
        api.tear()
        (words,) = await until(source.missing)
        assert "is forbidden" in words
        api.forbidden.clear()
        await until(lambda: not source.missing())
        api.put(pod("later"))
        assert await following(source) == ["+Pod/later"], "and nothing was taken away meanwhile"
        assert listings(api, "pods") == 1
        source.close()

    play(tmp_path, scene)


def test_others_policies_for_the_network_are_policies_that_nobody_reads(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.groups.add("cilium.io")
        source = KubernetesSource(client, "node1", sleep=soon)
        assert await following(source) == ["+API group/cilium.io"]
        api.groups.clear()
        assert await following(source) == ["-API group/cilium.io"]
        source.close()

    play(tmp_path, scene)


def test_an_api_group_that_discovery_leaves_out_once_is_still_there(tmp_path: Path) -> None:
    """Input: a server that starts, and tells of an API group again only at the second look; then the group goes for
    good. Verdict: the first is not told, the second is, and is looked for soon.
    """
    looks = asyncio.Semaphore(0)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds in (SOON_SECONDS, LOOK_SECONDS):
            pauses.append(seconds)
            await looks.acquire()
        await soon(seconds)

    async def looked(times: int) -> None:
        before = len(pauses)
        for number in range(times):
            looks.release()
            await until(lambda number=number: len(pauses) > before + number)  # type: ignore[misc]

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        api.groups.add("cilium.io")
        source = KubernetesSource(client, "node1", sleep=sleep)
        assert await following(source) == ["+API group/cilium.io"]
        await looked(1)
        api.groups.clear()
        await looked(1)
        api.groups.add("cilium.io")
        await looked(1)
        api.put(pod("a"))
        assert await following(source) == ["+Pod/a"]
        api.groups.clear()
        await looked(2)
        assert await following(source) == ["-API group/cilium.io"]
        assert pauses[0] == SOON_SECONDS
        assert pauses[1:] == [LOOK_SECONDS, SOON_SECONDS, LOOK_SECONDS, SOON_SECONDS, LOOK_SECONDS]
        source.close()

    play(tmp_path, scene)


def test_a_pod_is_what_the_api_says_where_the_runtime_says(tmp_path: Path) -> None:
    """The runtime has a pod's address before the API: it is told with it; and told again when it runs elsewhere."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        api.put(pod("web"))
        api.put(pod("other", "node2"))
        assert await following(source) == ["+Pod/other", "+Pod/web"]
        assert runtime.expected == {"uid-web"}
        runtime.put("web", "10.0.0.1")
        (change,) = await source.changes()
        assert isinstance(change, Change) and isinstance(change.object, PodObject)
        assert change.object.addresses == ("10.0.0.1",)
        assert runtime.of(change.object) == Place("/run/netns/a", "")
        assert runtime.expected == frozenset()
        runtime.put("web", "10.0.0.2", netns="/run/netns/b")
        (change,) = await source.changes()
        assert isinstance(change, Change) and isinstance(change.object, PodObject)
        assert change.object.addresses == ("10.0.0.2",)
        source.close()

    play(tmp_path, scene)


def test_a_status_gives_a_pod_of_this_node_no_address_that_its_sandbox_has_not(tmp_path: Path) -> None:
    """Input: a pod that runs here, with the addresses of its sandbox and another's; then with the other's alone.
    Verdict: it has its sandbox's, in the order that the API says.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        runtime.put("web", "fd00::1", "10.0.0.1", "10.1.0.1")
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        said = [["10.0.0.1", "10.0.0.66", "fd00::1"], ["10.0.0.66"]]
        expected = [("10.0.0.1", "fd00::1"), ("fd00::1", "10.0.0.1", "10.1.0.1")]
        for texts, addresses in zip(said, expected, strict=True):
            api.put(pod("web", podIPs=[{"ip": text} for text in texts]))
            (change,) = await source.changes()
            assert isinstance(change, Change)
            assert isinstance(change.object, PodObject)
            assert change.object.addresses == addresses
        source.close()

    play(tmp_path, scene)


def test_nothing_is_told_before_the_runtime_has_answered(tmp_path: Path) -> None:
    """Without it no pod has a place, and an agent that starts again would release them all."""

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime(known=False)
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        api.put(pod("web"))
        waiting = asyncio.ensure_future(following(source))
        await until(lambda: listings(api, "ratelimits"))
        await quiet()
        assert not waiting.done()
        runtime.put("web", "10.0.0.1")
        assert await waiting == ["+Pod/web"]
        source.close()

    play(tmp_path, scene)


def test_a_pod_that_runs_here_and_that_nobody_knows_is_named(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        runtime.put("stranger", "10.0.0.9")
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        await following(source)
        (words,) = source.unread_pods()
        assert "default/stranger" in words
        api.put(pod("stranger"))
        await following(source)
        assert source.unread_pods() == []
        source.close()

    play(tmp_path, scene)


def test_a_pod_that_calls_itself_anothers_mirror_takes_nothing_from_it(tmp_path: Path) -> None:
    """Input: a pod with the annotation of a mirror that names a victim's uid, as whoever makes pods can
    make one; it comes, and goes, before the victim's sandbox does. Verdict: it never has the
    victim's address, by which the victim would be captured no more, and the victim is told where it runs.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        runtime.put("victim", "10.0.0.1")
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        api.put(pod("victim"))
        await following(source)
        thief = pod("thief")
        thief["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "uid-victim"}
        api.put(thief)
        (change,) = await source.changes()
        assert isinstance(change, Change)
        assert isinstance(change.object, PodObject)
        assert (change.name, change.object.addresses) == ("thief", ())
        assert source.here() == {"uid-victim", "uid-thief"}
        runtime.put("victim", "10.0.0.2")
        assert "+Pod/victim" in await following(source)
        api.remove("Pod", "default", "thief")
        assert await following(source) == ["-Pod/thief"]
        runtime.put("victim", "10.0.0.3")
        assert await following(source) == ["+Pod/victim"]
        assert source.unread_pods() == []
        source.close()

    play(tmp_path, scene)


def test_a_pod_that_calls_itself_the_mirror_of_nothing_is_known_where_it_runs(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        strange = pod("strange")
        strange["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "anything"}
        api.put(strange)
        await following(source)
        assert runtime.expected == {"uid-strange", "anything"}
        runtime.put("strange", "10.0.0.1")
        (change,) = await source.changes()
        assert isinstance(change, Change)
        assert isinstance(change.object, PodObject)
        assert change.object.addresses == ("10.0.0.1",)
        assert (source.unread_pods(), runtime.expected) == ([], frozenset())
        runtime.remove("strange")
        assert await following(source) == ["+Pod/strange"]
        api.remove("Pod", "default", "strange")
        assert await following(source) == ["-Pod/strange"]
        assert source.here() == frozenset()
        source.close()

    play(tmp_path, scene)


def strict(api: FakeKubeApi) -> None:
    api.put(peer_authentication("STRICT") | {"metadata": {"name": "all", "namespace": "default"}})


@pytest.mark.parametrize("end", ["deleted", "Failed", "Succeeded", "made anew elsewhere"])
def test_a_pod_is_captured_as_long_as_its_sandbox_is_here(tmp_path: Path, end: str) -> None:
    """Input: a STRICT pod whose object goes by force, becomes another pod's, or says that all has ended, while its
    sandbox runs. Verdict: it stays captured and STRICT, is nobody's endpoint, and is let go with its sandbox.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        mesh = Mesh("node1", "cluster.local", runtime)
        strict(api)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        api.put(pod("web", **ready))
        runtime.put("web", "10.0.0.1")
        mesh.apply(await source.changes())
        if end == "deleted":
            api.remove("Pod", "default", "web")
        elif end == "made anew elsewhere":
            again = pod("web", "node2", podIPs=[{"ip": "10.0.9.9"}], **ready)
            again["metadata"]["uid"] = "uid-again"
            api.put(again)
        else:
            api.put(pod("web", **(ready | {"phase": end})))
        mesh.apply(await source.changes())
        entry = next(each for each in mesh.entries().upserts if each.key == "workload/uid-web")
        assert isinstance(entry, Workload)
        assert (entry.mtls, entry.ready, entry.addresses) == ("STRICT", False, ("10.0.0.1",))
        assert [each.uid for each in mesh.local_pods()] == ["uid-web"]
        assert (source.here(), source.unread_pods()) == ({"uid-web"}, [])
        runtime.remove("web")
        mesh.apply(await source.changes())
        assert mesh.local_pods() == ()
        assert not any(each.key == "workload/uid-web" for each in mesh.entries().upserts)
        assert source._leaving == {}
        source.close()

    play(tmp_path, scene)


def test_a_pod_that_the_api_knows_again_is_not_told_twice(tmp_path: Path) -> None:
    """Input: a pod of this node goes by force, its successor of the same name comes here too while its sandbox runs,
    and the server that forgot the first one knows it again.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        runtime = Runtime()
        source = KubernetesSource(client, "node1", runtime, sleep=soon)
        api.put(pod("web"))
        runtime.put("web", "10.0.0.1")
        await following(source)
        again = pod("web")
        again["metadata"]["uid"] = "uid-again"
        api.put(again)
        assert await following(source) == ["+Pod/web", "+Pod/web@uid-web"]
        assert source.here() == {"uid-web", "uid-again"}
        api.put(pod("web"))
        assert await following(source) == ["+Pod/web", "-Pod/web@uid-web"]
        assert source.here() == {"uid-web"}
        source.close()

    play(tmp_path, scene)


def test_a_pod_that_went_while_no_agent_looked_is_captured_while_its_sandbox_is_here(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        kept = SnapshotFile(tmp_path, "node1")
        first = Runtime()
        source = KubernetesSource(client, "node1", first, kept, sleep=soon)
        for name in ("stays", "ends"):
            api.put(pod(name))
            first.put(name, "10.0.0.1")
        await following(source)
        await kept.write()
        source.close()
        for name in ("stays", "ends"):
            api.remove("Pod", "default", name)
        second = Runtime(known=False)
        source = KubernetesSource(client, "node1", second, kept, sleep=soon)
        waiting = asyncio.ensure_future(source.changes())
        await until(lambda: len(source._leaving) == 2)
        second.put("stays", "10.0.0.1")
        found = await waiting
        assert "+Pod/stays@uid-stays" in told(found)
        assert source.here() == {"uid-stays"}
        source.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("goes", ["before the start", "later"])
def test_a_pod_of_whose_sandbox_the_runtime_does_not_tell_is_not_let_go(tmp_path: Path, goes: str, there: bool) -> None:
    """Input: a pod's object goes by force while the runtime does not say what is left of its sandbox. Verdict: the pod
    stays, with what protects it, and is named; once it is told, it is where it was, or let go.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        kept = SnapshotFile(tmp_path, "node1")
        runtime = Runtime()
        source = KubernetesSource(client, "node1", runtime, kept, sleep=soon)
        api.put(pod("web"))
        api.put(pod("other"))
        runtime.put("web", "10.0.0.1")
        await following(source)
        await kept.write()
        source.close()
        runtime = Runtime()
        runtime.hide("web")
        mesh = Mesh("node1", "cluster.local", runtime)
        strict(api)
        if goes == "before the start":
            api.remove("Pod", "default", "web")
        source = KubernetesSource(client, "node1", runtime, kept, sleep=soon)
        mesh.apply(await source.changes())
        if goes == "later":
            api.remove("Pod", "default", "web")
            mesh.apply(await source.changes())
        runtime.put("other", "10.0.0.2")
        mesh.apply(await source.changes())
        assert mesh.node_pods.here() == source.here() == {"uid-web", "uid-other"}
        assert source.unread_pods() == ["the sandbox of default/web (uid uid-web)"]
        assert any("does not tell where the sandbox of default/web" in each for each in source.warnings())
        if there:
            runtime.put("web", "10.0.0.1")
        runtime.reveal("web")
        mesh.apply(await source.changes())
        assert source.unread_pods() == []
        assert source.here() == ({"uid-web", "uid-other"} if there else {"uid-other"})
        assert {each.uid for each in mesh.local_pods()} == source.here()
        source.close()

    play(tmp_path, scene)


def test_of_pods_on_other_nodes_little_is_kept(tmp_path: Path) -> None:
    document = pod("far", "node2")
    document["metadata"]["annotations"] = {"nodeagent.io/path": "proxy", "example.org/long": "x" * 1000}
    document["spec"]["containers"][0] |= {
        "ports": [{"name": "http", "containerPort": 80}],
        "readinessProbe": {"tcpSocket": {"port": 80}},
    }

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(document)
        (change,) = await source.changes()
        assert isinstance(change, Change) and isinstance(change.object, PodObject)
        assert dict(change.object.annotations) == {"nodeagent.io/path": "proxy"}
        assert [(each.ports[0].name, each.probes) for each in change.object.containers] == [("http", ())]
        api.put(pod("far", "node2", phase="Succeeded"))
        assert await following(source) == ["-Pod/far"]
        source.close()

    play(tmp_path, scene)


def test_a_pod_is_known_once_it_has_a_node(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        source = KubernetesSource(client, "node1", sleep=soon)
        api.put(pod("waits", ""))
        api.put(pod("far", "node2"))
        assert await following(source) == ["+Pod/far"]
        assert source.unread_pods() == []
        api.put(pod("waits", "node2"))
        assert await following(source) == ["+Pod/waits"]
        source.close()

    play(tmp_path, scene)


# -- the snapshot --


async def known(api: FakeKubeApi, client: KubeClient, folder: Path) -> None:
    """Have a snapshot in *folder* of a pod and a policy of which the last version is wrong."""
    kept = SnapshotFile(folder, "node1")
    source = KubernetesSource(client, "node1", kept=kept, sleep=soon)
    api.put(pod("web"))
    api.put(peer_authentication("STRICT"))
    await following(source)
    api.put(peer_authentication("SOMETIMES"))
    await until(source.refused)
    await kept.write()
    source.close()


def test_while_the_api_server_is_away_the_snapshot_is_served(tmp_path: Path) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        await known(api, client, tmp_path / "kept")
        assert (tmp_path / "kept" / "cluster.snapshot").stat().st_mode & 0o777 == 0o600
        await api.stop()
        source = KubernetesSource(client, "node1", kept=SnapshotFile(tmp_path / "kept", "node1"), sleep=soon)
        assert await following(source) == ["+PeerAuthentication/all", "+Pod/web"]
        api.put(pod("new"))
        api.remove("Pod", "default", "web")
        await api.start()
        heard = await following(source)
        while len(heard) < 2:
            heard += await following(source)
        assert sorted(heard) == ["+Pod/new", "-Pod/web"]
        (refused,) = await until(source.refused)
        assert refused.stays and "SOMETIMES" in refused.error, "it does not displace the one that was kept"
        source.close()

    play(tmp_path, scene)


def test_what_other_nodes_said_is_in_the_snapshot(tmp_path: Path) -> None:
    """Input: another node takes mTLS for a pod. Verdict: an agent that starts while the API server is away
    knows it, and does not send that pod plaintext.
    """

    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        kept = SnapshotFile(tmp_path / "kept", "node1")
        source = KubernetesSource(client, "node1", kept=kept, sleep=soon)
        api.put(pod("web"))
        await following(source)
        status = {"enrolled": ["uid-far"], "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00Z"}
        api.put({"kind": "NodeStatus", "metadata": {"name": "node2"}, "status": status})
        assert await following(source) == ["+uid-far"]
        await kept.write()
        source.close()
        await api.stop()
        again = KubernetesSource(client, "node1", kept=SnapshotFile(tmp_path / "kept", "node1"), sleep=soon)
        assert await following(again) == ["+Pod/web", "+uid-far"]
        again.close()

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-20], "sha256"),
        (lambda content: content.replace(b'"version":1', b'"version":99'), "version"),
        (lambda content: b"\x00" + content, "ignored"),
        (lambda content: b"", "ignored"),
        (lambda content: b"[]\n[]", "version"),
    ],
)
def test_a_snapshot_that_is_not_good_is_named_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, words: str
) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        await known(api, client, tmp_path)
        path = tmp_path / "cluster.snapshot"
        assert callable(damage)
        path.write_bytes(damage(path.read_bytes()))
        with caplog.at_level(logging.ERROR):
            assert SnapshotFile(tmp_path, "node1").restore() == []
        assert str(path) in caplog.text and words in caplog.text

    play(tmp_path, scene)


def test_another_nodes_snapshot_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(api: FakeKubeApi, client: KubeClient) -> None:
        await known(api, client, tmp_path)
        assert SnapshotFile(tmp_path, "node2").restore() == []
        assert "this node is node2" in caplog.text

    play(tmp_path, scene)
