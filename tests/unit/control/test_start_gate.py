"""Whom the runtime starts, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

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
    return Start(sandbox, "default/web", seconds)


def snapshot(captured: str = "", left_alone: str = "") -> Snapshot:
    """Return one with a pod in the sandbox *captured*, another in *left_alone*."""
    inside = replace(local_pod("a"), place=Place("/run/netns/a", "", captured))
    outside = {PodUid("b"): Place("/run/netns/b", "", left_alone)} if left_alone else {}
    return Snapshot({inside.uid: inside} if captured else {}, {}, {}, left_alone=outside)


class Scene:
    def __init__(self) -> None:
        self.gate = StartGate(Path("/nowhere"), lambda _, __: None)
        self.gate.settled_by(lambda uid: uid in self.settled)
        self.settled: set[PodUid] = set()

    def bring(self, found: Snapshot) -> None:
        self.gate.changed(found)
        self.gate.grown(found)

    def counted(self) -> dict[str, float]:
        store = Store()
        self.gate.collect(store)
        found = {outcome: store.value(CONTAINER_STARTS, (outcome,)) for outcome in ("known", "awaited", "unknown")}
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
    task = asyncio.create_task(scene.gate.may_start(start(sandbox)))
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
        await scene.gate.may_start(start())
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
        await scene.gate.may_start(start("s1", SOON))
        assert caplog.text.count("default/web starts, and is not captured yet") == 1
        await scene.gate.may_start(start("s1", SOON))
        assert caplog.text.count("default/web starts") == 1
        for number in range(30):
            await scene.gate.may_start(start(f"t{number}", SOON))
        assert scene.gate._for_capture.share < 1 / 2**30
        assert scene.counted() == {"unknown": 32}
        scene.settled = {PodUid("a")}
        scene.bring(snapshot(captured="s1"))
        await scene.gate.may_start(start("s1"))
        assert scene.gate._for_capture.share == 1, "it has patience again"

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
            await scene.gate.may_start(start(f"s{number}", SOON))
        assert caplog.text.count("default/web starts, and is not certified yet") == 30
        assert scene.gate._for_certificate.share < 1 / 2**29
        assert scene.gate._for_capture.share == 1
        task = await waits(scene, "late")
        scene.settled = {PodUid("a")}
        scene.bring(snapshot(captured="late"))
        await task
        assert scene.counted() == {"unknown": 30, "awaited": 1}

    play(act)


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
