"""Whom the runtime starts, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.apart import apart
from nodeagent.control import start_gate
from nodeagent.control.concern import Snapshot
from nodeagent.control.start_gate import StartGate
from nodeagent.parts import Parts
from nodeagent.places.nri import Start
from nodeagent.places.place import Place
from nodeagent.telemetry.metrics import CONTAINER_STARTS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid
from tests.fakes.nri import FakeNri, pod
from tests.unit.control.scene import certificate, local_pod
from tests.waiting import DEADLINE, quiet, until

SOON = 0.02


def start(sandbox: str = "s1", seconds: float = DEADLINE) -> Start:
    """Return one about which a runtime asks that is as patient as that."""
    return Start(sandbox, PodUid("a"), "default/web", seconds)


def snapshot(captured: str = "", left_alone: str = "", awaited: str = "") -> Snapshot:
    """Return one with the pod ``a`` in the sandbox *captured*, ``b`` in *left_alone*, and *awaited* to run soon."""
    inside = replace(local_pod("a"), place=Place("/run/netns/a", "", captured))
    outside = {PodUid("b"): Place("/run/netns/b", "", left_alone)} if left_alone else {}
    soon = {PodUid(awaited): inside.identity} if awaited else {}
    return Snapshot({inside.uid: inside} if captured else {}, {}, {}, left_alone=outside, awaited=soon)


class Scene:
    """A gate whose doorman stands in the same loop."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.gate = StartGate(Path("/nowhere"), lambda _, __: None, lambda _: self.faults)
        self.gate._loop = asyncio.get_running_loop()
        self.doorman = self.gate._doorman
        self.doorman._loop = self.gate._loop
        self.gate.settled_by(lambda uid: uid in self.settled)
        self.settled: set[PodUid] = set()

    def bring(self, found: Snapshot) -> None:
        self.gate.changed(found)
        self.gate.grown(found)

    def counted(self) -> dict[str, float]:
        store = Store()
        self.gate.collect(store)
        outcomes = ("known", "awaited", "refused", "unknown")
        found = {outcome: store.value(CONTAINER_STARTS, (outcome,)) for outcome in outcomes}
        return {outcome: count for outcome, count in found.items() if count}


def play(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            await act(Scene())

    asyncio.run(main())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given up."""
    monkeypatch.setattr(start_gate, "MOST_SECONDS", DEADLINE)


async def waits(scene: Scene, sandbox: str = "s1") -> asyncio.Task[None]:
    task = asyncio.create_task(scene.doorman.may_start(start(sandbox)))
    await quiet()
    assert not task.done()
    return task


@pytest.mark.usefixtures("patient")
def test_a_start_waits_until_the_pod_is_captured_and_has_what_it_needs() -> None:
    async def act(scene: Scene) -> None:
        task = await waits(scene)
        scene.bring(snapshot(captured="s0"))
        scene.settled = {PodUid("a")}
        await quiet()
        assert not task.done(), "the pod's former sandbox is captured"
        scene.settled = set()
        scene.bring(snapshot(captured="s1"))
        await quiet()
        assert not task.done(), "its certificate is awaited"
        scene.settled = {PodUid("a")}
        scene.gate.certified(certificate("a"))
        await task
        await scene.doorman.may_start(start())
        assert scene.counted() == {"awaited": 1, "known": 1}

    play(act)


@pytest.mark.usefixtures("patient")
def test_who_is_left_alone_waits_until_that_is_known() -> None:
    async def act(scene: Scene) -> None:
        task = await waits(scene)
        scene.bring(snapshot(left_alone="s1"))
        await task
        assert scene.counted() == {"awaited": 1}

    play(act)


def test_nobody_is_waited_for_for_ever_nor_twice_and_many_in_vain_cost_as_much_as_two(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(scene: Scene) -> None:
        await scene.doorman.may_start(start("s1", SOON))
        await quiet()
        assert caplog.text.count("default/web starts, and is not captured yet") == 1
        await scene.doorman.may_start(start("s1", SOON))
        await quiet()
        assert caplog.text.count("default/web starts") == 1
        for number in range(30):
            await scene.doorman.may_start(start(f"t{number}", SOON))
        assert scene.doorman._for_capture.share < 1 / 2**30
        assert scene.counted() == {"unknown": 32}
        scene.settled = {PodUid("a")}
        scene.bring(snapshot(captured="s1"))
        await scene.doorman.may_start(start("s1"))
        assert scene.doorman._for_capture.share == 1, "it has patience again"

    play(act)


def test_certificates_that_do_not_come_take_no_patience_from_who_is_not_captured_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Input: many start that are captured, and their certificates do not come; then one that is not captured.
    Verdict: each waits shorter than the one before, and that one as long as if it were the first.
    """

    async def act(scene: Scene) -> None:
        for number in range(30):
            scene.bring(snapshot(captured=f"s{number}"))
            await scene.doorman.may_start(start(f"s{number}", SOON))
        await quiet()
        assert caplog.text.count("default/web starts, and is not certified yet") == 30
        assert scene.doorman._for_certificate.share < 1 / 2**29
        assert scene.doorman._for_capture.share == 1
        task = await waits(scene, "late")
        scene.settled = {PodUid("a")}
        scene.bring(snapshot(captured="late"))
        await task
        assert scene.counted() == {"unknown": 30, "awaited": 1}

    play(act)


@pytest.mark.parametrize(
    ("awaited", "captured", "faults", "refused"),
    [
        ("a", "", [], True),
        ("", "s0", [], True),
        ("", "", [], False),
        ("b", "", [], False),
        ("a", "", ["its sandbox: no"], False),
    ],
    ids=["scheduled", "in its former sandbox", "unheard of", "another is scheduled", "it cannot be captured"],
)
def test_a_container_of_a_pod_in_the_mesh_is_refused_before_it_is_made_until_the_pod_is_captured(
    caplog: pytest.LogCaptureFixture, awaited: str, captured: str, faults: list[str], refused: bool
) -> None:
    async def act(scene: Scene) -> None:
        scene.faults = faults
        scene.bring(snapshot(captured=captured, awaited=awaited))
        for _ in range(2):
            said = await scene.doorman.may_create(start("s1", SOON))
            assert bool(said) == refused, said
            await quiet()
            assert ("default/web is refused its container" in caplog.text) == refused
        if refused:
            scene.settled = {PodUid("a")}
            scene.bring(snapshot(captured="s1"))
            assert await scene.doorman.may_create(start("s1", SOON)) == ""
            await scene.doorman.may_start(start("s1", SOON))
            assert scene.counted() == {"refused": 2, "known": 1}
        else:
            await scene.doorman.may_start(start("s1", SOON))
            assert scene.counted() == {"unknown": 1}

    play(act)


def test_who_was_let_go_unheard_of_is_refused_further_containers_once_it_is_known_to_be_in_the_mesh() -> None:
    """Input: the first container of a pod of which nobody has heard, then control hears of it. Verdict: the first is
    made, the next one waits as any member's does.
    """

    async def act(scene: Scene) -> None:
        assert await scene.doorman.may_create(start("s1", SOON)) == ""
        scene.bring(snapshot(awaited="a"))
        assert "in the mesh and not captured yet" in await scene.doorman.may_create(start("s1", SOON))
        scene.bring(snapshot(captured="s1"))
        assert await scene.doorman.may_create(start("s1", SOON)) == ""

    play(act)


@pytest.mark.usefixtures("patient")
def test_a_container_is_made_as_soon_as_the_pod_is_captured_whatever_certificate_is_awaited() -> None:
    async def act(scene: Scene) -> None:
        scene.bring(snapshot(awaited="a"))
        making = asyncio.create_task(scene.doorman.may_create(start()))
        await quiet()
        assert not making.done()
        scene.bring(snapshot(captured="s1"))
        assert await making == ""
        starting = await waits(scene)
        scene.settled = {PodUid("a")}
        scene.gate.certified(certificate("a"))
        await starting
        assert scene.counted() == {"awaited": 1}

    play(act)


def test_while_the_loop_of_control_stands_still_the_runtime_is_answered_and_keeps_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input: control knows one captured pod, one left alone and one that is scheduled; then its loop is held.
    Verdict: containers of the first two are made, of the third not, of one that is unheard of they are. New
    sandboxes are told to control when it goes on.
    """
    monkeypatch.setattr(start_gate, "MOST_SECONDS", SOON)
    runtime = FakeNri(tmp_path / "nri.sock")
    is_held = threading.Event()
    is_over = threading.Event()
    made: list[str] = []
    answers: list[str] = []

    async def asks() -> None:
        async with runtime.running():
            await until(runtime.ready)
            await until(is_held.is_set)
            await runtime.made(pod(sandbox="s9", uid="new"))
            for sandbox, uid in ("s1", "a"), ("s2", "b"), ("s3", "c"), ("s9", "new"):
                answers.append(await runtime.create(pod(sandbox=sandbox, uid=uid), timeout=DEADLINE))
            assert len(runtime.ready()) == len(runtime.plugins) == 1
            assert made == [], "control stands still"
            is_over.set()
            await until(lambda: made)

    async def main() -> None:
        gate = StartGate(runtime.path, lambda listed, _: made.append(listed.id))
        parts = Parts()
        asking = asyncio.create_task(apart("a runtime", asks))
        await until(runtime.path.exists)
        async with asyncio.timeout(DEADLINE), gate.run(parts):
            gate.grown(snapshot(captured="s1", left_alone="s2", awaited="c"))
            await until(runtime.ready)
            is_held.set()
            assert is_over.wait(DEADLINE), answers  # the loop is held until then
            await asking
            parts.stop()

    asyncio.run(main())
    assert [bool(answer) for answer in answers] == [False, False, True, False]
    assert "in the mesh and not captured yet" in answers[2]
    assert made == ["s9"]


@pytest.mark.parametrize(("longest", "waited"), [(1.0, 0.2), (0.1, 0.1)])
def test_a_capture_is_waited_for_however_many_were_in_vain(longest: float, waited: float) -> None:
    patience = start_gate._Patience(start_gate.LEAST_SECONDS, share=1 / 2**30)
    assert patience.seconds(longest) == waited


@pytest.mark.usefixtures("patient")
def test_a_runtime_asks_until_another_daemon_takes_over(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        runtime = FakeNri(tmp_path / "nri.sock")
        told: list[str] = []
        gate = StartGate(runtime.path, lambda listed, _: told.append(listed.id))
        gate.settled_by(lambda _: True)
        parts = Parts()
        async with runtime.running(), gate.run(parts):
            await until(runtime.ready)
            await runtime.made(pod(sandbox="s1"))
            await until(lambda: told == ["s1"])
            starting = asyncio.create_task(runtime.start(pod(sandbox="s1"), timeout=DEADLINE))
            await quiet()
            assert not starting.done()
            gate.grown(snapshot(captured="s1"))
            assert await starting
            starting = asyncio.create_task(runtime.start(pod(sandbox="s2"), timeout=DEADLINE))
            await quiet()
            gate.resign()
            assert await starting, "whoever waited starts"
            await until(lambda: not runtime.ready())
            parts.stop()

    play(act)
