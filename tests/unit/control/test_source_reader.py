"""The order in which control brings the node to a change: what is there already, which may be
forbidden now, waits for nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nodeagent.control.source_reader import WARNINGS, SourceReader
from nodeagent.errors import ConfigError
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Workload
from nodeagent.parts import Parts
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change, Refused
from nodeagent.resources.seen import SeenMapping
from nodeagent.telemetry.metrics import POLICY_TROUBLES
from nodeagent.telemetry.store import Store
from tests.unit.control.scene import Noted, Workers, play
from tests.waiting import until


class Batches:
    """A source that says what it is given, one batch a time."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[list[AnyChange] | Exception] = asyncio.Queue()
        self.unread: tuple[str, ...] = ()
        self.wrong: list[Refused] = []

    async def changes(self) -> list[AnyChange]:
        batch = await self.waiting.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def refused(self) -> Sequence[Refused]:
        return self.wrong

    def unread_pods(self) -> Sequence[str]:
        return self.unread

    def close(self) -> None:
        """Nothing is watched."""


class Stage:
    def __init__(self, *names: str) -> None:
        self.told: list[str] = []
        self.concerns = [Noted(name, self.told) for name in names]
        self.source = Batches()
        self.workers = Workers()
        mesh = Mesh("n1", "cluster.local", AnnotationPlaces())
        self.reader = SourceReader(self.source, mesh, self.workers)
        self.parts = Parts(sleep=lambda _: asyncio.sleep(0))

    def says(self, *changes: AnyChange) -> None:
        self.source.waiting.put_nowait(list(changes))

    async def midway(self) -> None:
        """Wait until a batch is half taken in; it may be whole a few turns later."""
        while self.reader._settled.is_set():
            await asyncio.sleep(0)

    async def begin(self) -> None:
        self.says()
        await self.reader.read()
        self.reader.begin(self.concerns, enforcing=())


def policy(name: str) -> Change:
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {},
    }
    return Change("AuthorizationPolicy", "shop", name, security.parse(document))


def test_all_hear_what_is_forbidden_before_any_hears_what_is_new() -> None:
    """Verdict: in order, without a turn of the loop in between, at the first batch and at each other."""

    async def scene() -> None:
        stage = Stage("pods", "kernel")
        await stage.begin()
        whole = ["pods changed", "kernel changed", "pods grown", "kernel grown"]
        assert stage.told == whole
        async with stage.reader.run(stage.parts):
            stage.says(policy("a"))
            await until(lambda: stage.reader.batches == 2)
            await until(lambda: len(stage.told) >= 3 * len(whole))
        assert stage.told == 3 * whole  # the part begins with what was read already
        stage.parts.stop()

    play(scene)


def test_a_concern_that_fails_keeps_the_others_from_nothing_for_long() -> None:
    """Input: one fails at a change. Verdict: the reader is named, and begins with that change anew,
    before it waits for another.
    """

    async def scene() -> None:
        stage = Stage("pods", "kernel")
        await stage.begin()
        pods, _ = stage.concerns
        async with stage.reader.run(stage.parts):
            await until(lambda: len(stage.told) == 8)
            pods.fails.add("changed")
            stage.says(policy("a"))
            await until(stage.parts.failing)
            assert "the reader of the source failed" in stage.parts.failing()[0]
            assert len(stage.told) == 8, "nobody hears of what is new before everybody heard what is forbidden"
            assert stage.reader.batches == 2, "the batch is in the snapshot"
            pods.fails.clear()
            await until(lambda: len(stage.told) == 12)
        stage.parts.stop()

    play(scene)


def test_what_cannot_be_brought_about_at_the_start_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A successor would be told the same."""

    async def scene() -> None:
        stage = Stage("pods")
        stage.concerns[0].fails.add("grown")
        await stage.begin()
        stage.concerns[0].fails.clear()
        async with stage.reader.run(stage.parts):
            await until(lambda: "pods grown" in stage.told)
        stage.parts.stop()

    play(scene)
    assert "the node cannot be brought to what the source says: 'pods fails'; it is tried again" in caplog.text


def test_a_source_that_is_not_there_is_no_start() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.source.waiting.put_nowait(ConfigError("source: no such folder"))
        with pytest.raises(ConfigError, match="no such folder"):
            await stage.reader.read()

    play(scene)


def pod(name: str) -> Change:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": name},
        "spec": {"nodeName": "n2", "containers": [{"name": "a"}]},
        "status": {"phase": "Running", "podIP": f"10.0.0.{name}", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    return Change("Pod", "shop", name, objects.parse(document))


def peer_authentication(mode: str) -> Change:
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "all", "namespace": "shop"},
        "spec": {"mtls": {"mode": mode}},
    }
    return Change("PeerAuthentication", "shop", "all", security.parse(document))


def test_while_a_mesh_compiles_others_have_their_turns_and_what_was_in_force_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input: a mode for a hundred pods, and another one while that is compiled. Verdict: there are turns meanwhile, in
    which all pods have one mode, whichever, in the snapshot; the page of policies waits; the last mode stays.
    """
    monkeypatch.setattr("nodeagent.steps.SLICE_SECONDS", 0.0)

    async def scene() -> None:
        stage = Stage("pods")
        stage.says(*(pod(str(number)) for number in range(1, 100)))
        await stage.reader.read()
        stage.reader.begin(stage.concerns, enforcing=())
        modes: list[frozenset[str]] = []

        async def look() -> None:
            while True:
                pods = [each for each in stage.reader.entries() if isinstance(each, Workload)]
                modes.append(frozenset(each.mtls for each in pods))
                await asyncio.sleep(0)

        looking = asyncio.ensure_future(look())
        async with stage.reader.run(stage.parts):
            stage.says(peer_authentication("STRICT"))
            while len(modes) < 50:
                await asyncio.sleep(0)
            assert stage.reader.batches == 1, "it is being compiled"
            stage.says(peer_authentication("DISABLE"))
            page = asyncio.ensure_future(stage.reader.routes()["GET", "/policies"]({}))
            await until(lambda: stage.reader.batches == 3)
            assert b"DISABLE" in bytes((await page).body) or b"STRICT" in bytes((await page).body)  # type: ignore[arg-type]
        looking.cancel()
        stage.parts.stop()
        assert all(len(each) == 1 for each in modes), "never some pods by one and some by the other"
        told = list(dict.fromkeys(modes))
        assert told[0] == {"PERMISSIVE"} and told[-1] <= {"STRICT", "DISABLE"}
        last = [each.mtls for each in stage.reader.entries() if isinstance(each, Workload)]
        assert last == ["DISABLE"] * 99

    play(scene)


def test_the_page_of_policies_is_never_of_half_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: it is asked for while a batch is taken in, and the next one, with a policy, waits already. Verdict: it
    is told of that policy when that batch is taken in, not before; and it does not wait for that.
    """
    monkeypatch.setattr("nodeagent.steps.SLICE_SECONDS", 0.0)

    async def scene() -> None:
        stage = Stage("pods")
        stage.says(*(pod(str(number)) for number in range(1, 100)))
        await stage.reader.read()
        stage.reader.begin(stage.concerns, enforcing=())

        async def asked() -> tuple[bytes, int]:
            page = await stage.reader.routes()["GET", "/policies"]({})
            return bytes(page.body), stage.reader.batches  # type: ignore[arg-type]

        async with stage.reader.run(stage.parts):
            stage.says(peer_authentication("STRICT"))
            await stage.midway()
            stage.says(policy("late"), *(pod(str(number)) for number in range(100, 180)))
            body, batches = await asked()
        stage.parts.stop()
        assert (batches, b"late" in body, b"STRICT" in body) == (2, False, True)

    play(scene)


def test_a_pod_that_is_read_while_a_batch_is_taken_in_was_unread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict: the batch's snapshot says so, for what protects that pod; the next one, which has the pod, does not."""
    monkeypatch.setattr("nodeagent.steps.SLICE_SECONDS", 0.0)

    async def scene() -> None:
        stage = Stage()
        unread: list[tuple[str, ...]] = []
        stage.source.unread = ("shop/100",)
        stage.says(*(pod(str(number)) for number in range(1, 100)))
        reading = asyncio.ensure_future(stage.reader.read())
        await stage.midway()
        stage.source.unread = ()
        stage.says(pod("100"))
        await reading
        unread.append(stage.reader._snapshot().unread)
        await stage.reader.read()
        unread.append(stage.reader._snapshot().unread)
        assert unread == [("shop/100",), ()]

    play(scene)


def test_a_policy_is_in_force_when_all_who_enforce_it_say_so() -> None:
    async def scene() -> None:
        stage = Stage()
        stage.says(policy("a"))
        await stage.reader.read()
        late = ["worker 0 (pid 1)"]
        stage.reader.begin((), enforcing=(lambda _: late, lambda _: []))
        page = stage.reader.routes()["GET", "/policies"]
        assert b"pending: worker 0 (pid 1)" in bytes((await page({})).body)  # type: ignore[arg-type]
        late.clear()
        assert b"pending: worker" not in bytes((await page({})).body)  # type: ignore[arg-type]

    play(scene)


def test_a_policy_of_the_whole_mesh_that_was_not_seen_is_named() -> None:
    async def scene() -> None:
        stage = Stage()
        key = ("AuthorizationPolicy", "istio-system", "x")
        stage.says(Change(*key, security.stand_in(key, SeenMapping(whole=False), "cut off")))
        await stage.reader.read()
        assert [each.split(" closes nothing")[0] for each in stage.reader.missing()] == ["/".join(key)]
        stage.says(Change(*key, None))
        await stage.reader.read()
        assert stage.reader.missing() == []

    play(scene)


def test_what_is_refused_is_a_warning_and_what_is_anothers_is_none() -> None:
    """Input: documents that are wrong or displaced, one that is ignored, and more than anybody reads."""

    async def scene() -> None:
        stage = Stage()
        await stage.begin()
        whose = ("AuthorizationPolicy", "shop", "a")
        twin = Refused(*whose, "/p/b.yaml", "metadata.name: 'a': stands in /p/a.yaml too", False, displaced=True)
        stage.source.wrong = [
            twin,
            Refused("", "", "", "/p/c.yaml", "document 1: no YAML", False),
            Refused(*whose, "/p/d.yaml", "agents read no such kind here", False, ignored=True),
        ]
        assert stage.reader.warnings() == [
            "AuthorizationPolicy shop/a: /p/b.yaml: metadata.name: 'a': stands in /p/a.yaml too",
            "/p/c.yaml: document 1: no YAML",
        ]
        stage.source.wrong = [twin] * (WARNINGS + 3)
        assert stage.reader.warnings()[WARNINGS:] == ["and 3 more: see nodeagent get policies"]
        assert stage.reader.missing() == []
        store = Store()
        stage.reader.collect(store)
        assert store.value(POLICY_TROUBLES) == WARNINGS + 3

    play(scene)
