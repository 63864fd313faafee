"""Enrolment with a kernel, workers and certificates of the test's own: who is captured, how each is,
and what others hear of it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import cast

import pytest

from nodeagent.control.enrolment import Enrolment
from nodeagent.control.enrolment_neighbours import Effects
from nodeagent.errors import ResourceError
from nodeagent.mesh.entries import DeclaredProbe
from nodeagent.mesh.protection import MAX_PORTS
from nodeagent.parts import Parts
from nodeagent.policy.model import MtlsMode
from nodeagent.redirect.pod import ListenerId
from nodeagent.telemetry.metrics import ENROLLED_PODS, FAULTY_PODS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import Address, PodUid
from tests.unit.control.scene import (
    Certificates,
    Plane,
    Supervisor,
    Workers,
    certificate,
    identity,
    play,
    snapshot,
    workload,
)
from tests.waiting import until


class Stage:
    def __init__(self) -> None:
        self.plane = Plane()
        self.workers = Workers()
        self.certificates = Certificates()
        self.supervisor = Supervisor()
        self.published: dict[str, bool] = {}
        self.untellable: set[str] = set()
        self.repaired: list[str] = []
        self.inherited: dict[PodUid, dict[ListenerId, socket.socket]] = {}
        effects = Effects(self._publish, self.supervisor.keep, self.supervisor.drop, self.repaired.append)
        self.enrolment = Enrolment(
            self.plane,
            self.workers,
            self.certificates,
            effects,
            "policy",
            inherited=self.inherited,
            check_seconds=0.0,
        )

    def _publish(self, uid: PodUid, enrolled: bool) -> None:
        if uid in self.untellable:
            raise ResourceError("the folder is full")
        self.published[uid] = enrolled

    def bring(self, *pods: str) -> None:
        now = snapshot(pods, entries=[workload(uid) for uid in pods])
        self.enrolment.changed(now)
        self.enrolment.grown(now)

    def states(self) -> dict[object, object]:
        return {row["uid"]: row["state"] for row in self.enrolment.rows()}


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.plane.close()


def test_a_pod_is_captured_before_its_certificate_is_there(stage: Stage) -> None:
    """Verdict: its listeners go to workers and supervisor at once; other nodes hear of it with the certificate."""
    stage.bring("a")
    assert stage.states() == {"a": "pending"}
    assert stage.workers.pods.keys() == {"a"}
    assert stage.supervisor.kept.keys() == {"a/inbound/4/0", "a/netns"}
    assert stage.published == {}
    assert stage.enrolment.missing() == [f"pod default/a: pending: no certificate for {identity('a')} yet"]
    assert stage.enrolment.warnings() == []
    stage.certificates.good.add(identity("a"))
    stage.enrolment.certified(certificate("other"))
    assert stage.states() == {"a": "pending"}
    stage.enrolment.certified(certificate("a"))
    assert stage.states() == {"a": "enrolled"}
    assert stage.published == {"a": True}
    assert stage.enrolment.missing() == []


def test_a_pod_that_is_gone_is_released_before_another_is_captured(stage: Stage) -> None:
    stage.bring("a")
    stage.bring("b")
    assert stage.workers.told == [("enrol", "a"), ("release", "a"), ("enrol", "b")]
    assert stage.plane.captured.keys() == {"b"}
    assert stage.supervisor.dropped == ["a"]
    assert stage.published == {"a": False}


def test_other_words_of_a_pods_faults_are_told_and_leave_the_kernel_alone(stage: Stage) -> None:
    """Verdict: the pod is not enrolled anew, whose listeners would be looked for again; its row has the new words."""
    stage.certificates.good.add(identity("a"))
    stage.bring("a")
    enrolled = stage.plane.captured["a"]
    for faults in (("Service x: metadata.annotations[nodeagent.io/dataplam]: it has no effect",), ()):
        now = snapshot(["a"], entries=[workload("a")])
        pod = replace(now.captured[PodUid("a")], faults=faults)
        stage.enrolment.changed(replace(now, captured={PodUid("a"): pod}))
        assert [row["faults"] for row in stage.enrolment.rows()] == [list(faults)]
    assert stage.plane.captured["a"] is enrolled


def test_a_pod_that_cannot_be_captured_keeps_no_other_from_it(stage: Stage) -> None:
    stage.plane.refused = {"a"}
    stage.certificates.good = {identity("a"), identity("b")}
    stage.bring("a", "b")
    assert stage.states() == {"a": "failed", "b": "enrolled"}
    assert stage.enrolment.warnings() == ["pod default/a: failed: port 15001 is taken"]
    stage.plane.refused.clear()
    stage.enrolment.check()
    assert stage.states() == {"a": "enrolled", "b": "enrolled"}


def test_one_pod_that_cannot_be_captured_stops_no_rollout_and_two_do(stage: Stage) -> None:
    """Verdict: whether the node or the pod is at fault cannot be told of one, alone on the node or beside others."""
    failed = [f"pod default/{name}: failed: port 15001 is taken" for name in "ab"]
    stage.certificates.good = {identity("c")}
    for names in ("a", "ac"):
        stage.plane.refused = {"a"}
        stage.bring(*names)
        assert (stage.enrolment.missing(), stage.enrolment.warnings()) == ([], failed[:1])
        assert stage.enrolment.uncaptured() == []
    stage.plane.refused = {"a", "b"}
    stage.bring("a", "b", "c")
    assert (stage.enrolment.missing(), stage.enrolment.warnings()) == (failed, [])
    assert stage.enrolment.uncaptured() == [], "one is captured"
    stage.bring("a", "b")
    assert stage.enrolment.uncaptured() == stage.enrolment.missing() == failed


def test_one_pod_in_its_own_way_stops_no_rollout(stage: Stage) -> None:
    """Verdict: it is warned of; alone on the node too."""
    stage.plane.own_doing = {"a"}
    stage.bring("a")
    assert stage.enrolment.missing() == []
    words = ["pod default/a: failed: port 15006 is taken by a process in the pod"]
    assert stage.enrolment.warnings() == words
    stage.certificates.good = {identity("b")}
    stage.bring("a", "b")
    assert (stage.enrolment.missing(), stage.enrolment.warnings()) == ([], words)


def test_a_node_that_captures_no_pod_at_all_is_told_from_one_where_pods_are_in_their_own_way(stage: Stage) -> None:
    assert stage.enrolment.uncaptured() == [], "nobody is to be captured"
    stage.plane.own_doing = {"a"}
    stage.bring("a")
    assert stage.enrolment.uncaptured() == []
    stage.plane.refused = {"b", "c"}
    stage.bring("a", "b", "c")
    failed = ["pod default/b: failed: port 15001 is taken", "pod default/c: failed: port 15001 is taken"]
    assert stage.enrolment.uncaptured() == failed
    stage.plane.refused = {"b"}
    stage.enrolment.check()
    assert stage.states() == {"a": "failed", "b": "failed", "c": "pending"}
    assert stage.enrolment.uncaptured() == [], "it is captured, whatever the authority does"


def test_an_identity_that_the_authority_refuses_stops_no_rollout_and_all_do(stage: Stage) -> None:
    stage.bring("a", "b")
    assert len(stage.enrolment.missing()) == 2
    stage.certificates.good = {identity("b")}
    stage.enrolment.check()
    refused = [f"pod default/a: pending: no certificate for {identity('a')} yet"]
    assert (stage.enrolment.missing(), stage.enrolment.warnings()) == ([], refused)
    stage.certificates.awaited = {identity("a")}
    stage.enrolment.check()
    assert stage.enrolment.missing() == refused, "it is being asked for: that does not take long"
    assert stage.enrolment.warnings() == []


@pytest.mark.parametrize("mode", ["PERMISSIVE", "STRICT"])
def test_a_pod_with_more_ports_than_the_kernel_tells_apart_is_named(
    stage: Stage, caplog: pytest.LogCaptureFixture, mode: MtlsMode
) -> None:
    """Verdict: it is captured, and refused as a whole where no daemon looks; its row and the log say so. With as
    many ports as there is room for, nothing is said.
    """
    other: MtlsMode = "STRICT" if mode == "PERMISSIVE" else "PERMISSIVE"
    stage.certificates.good = {identity("a")}
    for count in (MAX_PORTS, MAX_PORTS + 1, MAX_PORTS):
        caplog.clear()
        ports = tuple((port, other) for port in range(1, count + 1))
        pod = replace(workload("a"), mtls=mode, port_mtls=ports)
        now = snapshot(["a"], entries=[pod])
        stage.enrolment.changed(now)
        stage.enrolment.grown(now)
        (row,) = stage.enrolment.rows()
        said = [f"mTLS modes and probes of {count} ports are to be told apart"] if count > MAX_PORTS else []
        assert [str(words).split(",")[0] for words in cast("list[str]", row["faults"])] == said
        assert row["state"] == "enrolled"
        assert row["when_dead"] == ("refuse" if said or mode == "STRICT" else "pass")
        assert all(words in caplog.text for words in said) and bool(caplog.text) == bool(said)


def test_probes_at_more_ports_than_are_looked_at_are_named(stage: Stage) -> None:
    stage.certificates.good = {identity("a")}
    probes = tuple(DeclaredProbe("tcp", port) for port in range(1, MAX_PORTS + 3))
    stage.enrolment.grown(snapshot(["a"], entries=[replace(workload("a"), probes=probes)]))
    (row,) = stage.enrolment.rows()
    assert row["faults"] == [
        "TCP probes at 66 ports, 64 are looked at: at the others one succeeds though nobody listens; declare fewer"
    ]


def test_programs_of_others_are_told_when_that_changes(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.plane.foreign = ["/sys/fs/cgroup: cil_sock4_connect: in the way"]
    for _ in range(3):
        stage.enrolment.check()
    stage.plane.foreign.append("another")
    stage.enrolment.check()
    assert [record.message for record in caplog.records] == stage.plane.foreign


def test_a_pod_that_is_described_otherwise_is_captured_anew_and_an_unchanged_one_is_left_alone(stage: Stage) -> None:
    stage.certificates.good = {identity("a")}
    stage.bring("a")
    before = stage.plane.captured["a"]
    stage.bring("a")
    assert stage.plane.captured["a"] is before
    strict = replace(workload("a"), mtls="STRICT")
    stage.enrolment.changed(snapshot(["a"], entries=[strict]))
    assert stage.plane.captured["a"].protection.dead
    assert stage.workers.told == [("enrol", "a")], "its listeners are those that the workers have"


def test_a_moment_without_descriptors_leaves_no_pod_without_a_worker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: no listener can be handed on while pods are captured; then they can. Verdict: the pods say so, and
    workers have their listeners from the next check on.
    """
    room = False

    def keep(files: Mapping[str, int]) -> None:
        if not room:
            raise OSError(errno.EMFILE, "Too many open files")

    stage.enrolment._effects = replace(stage.enrolment._effects, keep=keep)
    stage.bring("a", "b")
    assert stage.states() == {"a": "faulty", "b": "faulty"}
    assert "Too many open files" in str(stage.enrolment.rows()[0]["faults"])
    assert stage.workers.pods == {}
    room = True
    stage.enrolment.check()
    assert stage.workers.pods.keys() == {"a", "b"}
    assert "faulty" not in stage.states().values()


def test_listeners_of_an_earlier_control_are_used_on(stage: Stage) -> None:
    with socket.socket() as listener:
        stage.inherited[PodUid("a")] = {("inbound", 4, 0): listener}
        stage.bring("a")
        assert stage.plane.held["a"].fds["inbound", 4, 0] is listener
        assert stage.inherited == {}, "nobody closes them as leftovers"


def test_what_is_wrong_is_repaired_and_counted_and_what_cannot_be_is_said(stage: Stage) -> None:
    stage.certificates.good = {identity("a")}
    stage.bring("a")
    stage.plane.wrong = {"a": ["listener: gone"], "node": ["link: detached"]}
    stage.enrolment.check()
    assert stage.repaired == ["link", "listener"]
    assert stage.states() == {"a": "enrolled"}
    stage.plane.wrong = {"a": ["listener: gone"]}
    stage.plane.broken = {"a": ["map: full"]}
    stage.enrolment.check()
    assert stage.enrolment.missing() == ["pod default/a: faulty: map: full"], "no pod is as it should be"
    store = Store()
    stage.bring("a", "b")
    stage.enrolment.collect(store)
    text = b"".join(store.exposition()).decode()
    assert f"{ENROLLED_PODS.name} 1.0\n" in text, "a change tries again what was faulty"
    assert f"{FAULTY_PODS.name} 1.0\n" in text


def test_who_is_no_suspect_is_not_looked_at_closely_and_all_are_where_there_is_no_glance(stage: Stage) -> None:
    """A pod whose certificate is awaited is judged all the same."""
    stage.bring("a", "b")
    stage.plane.trusted = {"a"}
    stage.plane.wrong = {"a": ["listener: gone"], "b": ["listener: gone"]}
    stage.certificates.good = {identity("a"), identity("b")}
    stage.enrolment.check()
    assert stage.plane.wrong == {"a": ["listener: gone"]}
    assert stage.states() == {"a": "enrolled", "b": "enrolled"}
    stage.plane.blind = True
    stage.enrolment.check()
    assert stage.plane.wrong == {}


def test_a_mark_that_cannot_be_told_is_told_at_the_next_check(stage: Stage) -> None:
    stage.certificates.good = {identity("a")}
    stage.untellable = {"a"}
    stage.bring("a")
    assert stage.published == {}
    stage.untellable.clear()
    stage.enrolment.check()
    assert stage.published == {"a": True}


def test_when_a_certificate_ends_its_pods_say_so(stage: Stage) -> None:
    stage.certificates.good = {identity("a")}
    stage.bring("a")
    stage.certificates.good.clear()
    stage.enrolment.ended(identity("a"))
    assert stage.states() == {"a": "pending"}


def test_what_is_left_in_the_kernel_is_spared_for_pods_that_could_not_be_captured(stage: Stage) -> None:
    stage.plane.refused = {"a"}
    now = snapshot(["a", "b"], entries=[workload("a"), workload("b")])
    pods = {
        uid: replace(pod, addresses=(Address(f"10.0.0.{number}"),))
        for number, (uid, pod) in enumerate(now.captured.items())
    }
    now = replace(now, captured=pods, unplaced=(Address("10.0.0.9"),))
    stage.enrolment.grown(now)
    stage.enrolment.prune()
    assert stage.plane.pruned == [("10.0.0.9", "10.0.0.0")]


def test_a_place_that_leads_to_another_pods_network_is_none(stage: Stage) -> None:
    """As by the number of a process that has ended. Verdict: nothing is captured there, what protected the pod stays,
    and it is said; where the place leads to its own network again, it is captured.
    """
    now = snapshot(["a"], entries=[workload("a")])
    own = now.captured[PodUid("a")]

    def bring(network: tuple[int, int]) -> None:
        pod = replace(own, addresses=(Address("10.0.0.1"),), place=replace(own.place, network=network))
        changed = replace(now, captured={PodUid("a"): pod})
        stage.enrolment.changed(changed)
        stage.enrolment.grown(changed)

    bring((4, 2))
    stage.enrolment.prune()
    assert (stage.plane.captured, stage.plane.pruned) == ({}, [("10.0.0.1",)])
    assert "another network namespace" in stage.enrolment.warnings()[0]
    bring(stage.plane.file)
    assert set(stage.plane.captured) == {"a"}


def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole() -> None:
        stage = Stage()
        try:
            await scene(stage)
        finally:
            stage.plane.close()

    play(whole)


def test_pods_that_go_while_all_are_compared_are_compared_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: while the first of three is compared, the last two go, one of them comes again. Verdict: others have a
    turn between two pods; a pod that is gone is not asked for, which would be told as a fault, and is captured once.
    """
    monkeypatch.setattr("nodeagent.steps.SLICE_SECONDS", 0.0)

    async def scene(stage: Stage) -> None:
        asked: list[str] = []
        stage.bring("a", "b", "c")

        def verify(uid: str) -> list[str]:
            if uid != "node" and not asked:
                asyncio.get_running_loop().call_soon(stage.bring, "a")
                asyncio.get_running_loop().call_soon(stage.bring, "a", "c")
            assert uid == "node" or uid in stage.plane.captured
            asked.extend([uid] if uid != "node" else [])
            return []

        monkeypatch.setattr(stage.plane, "verify", verify)
        parts = Parts(sleep=lambda _: asyncio.sleep(0))
        async with stage.enrolment.run(parts):
            await until(lambda: len(asked) > 3)
            assert asked[:3] == ["a", "a", "c"], "the first look ends with what was there all the time"
            assert parts.failing() == []
            parts.stop()

    run(scene)


def test_it_compares_for_ever_and_on_leaving_tells_the_other_nodes() -> None:
    async def scene(stage: Stage) -> None:
        parts = Parts(sleep=lambda _: asyncio.sleep(0))
        stage.certificates.good = {identity("a")}
        stage.bring("a")
        async with stage.enrolment.run(parts):
            stage.plane.wrong = {"a": ["listener: gone"]}
            await until(lambda: stage.repaired)
            parts.stop()
            assert stage.published == {"a": True}
        assert stage.published == {"a": False}
        assert stage.plane.captured.keys() == {"a"}, "pins stay for the next daemon"

    run(scene)
