"""What the kernel decides alone is planned in time, and believed only while it is up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from nodeagent.control.kernel_upkeep import KernelSide, KernelUpkeep
from nodeagent.errors import KernelError
from nodeagent.mesh.entries import Entry
from nodeagent.parts import Parts
from nodeagent.redirect.plane import Statistics
from nodeagent.steps import Steps
from nodeagent.telemetry.store import Store
from tests.unit.control.scene import play, snapshot, workload
from tests.waiting import until


class Decisions:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.knows = True
        self.counted = 0
        self.fault: Exception | None = None

    def update(self, entries: Iterable[Entry]) -> None:
        if self.fault is not None:
            raise self.fault
        self.told.append(f"planned {' '.join(entry.key for entry in entries)}")

    def close_refused(self, store: Store) -> int:
        self.told.append("closed")
        return 0

    def knows_all(self) -> bool:
        return self.knows

    def collect(self, store: Store) -> None:
        self.counted += 1


class Current:
    def __init__(self) -> None:
        self.batches = 1
        self.generation = 7

    def entries(self) -> Iterable[Entry]:
        return [workload("a")]


class Stage:
    def __init__(self, check_seconds: float = 0.0) -> None:
        self.decisions = Decisions()
        self.current = Current()
        self.confirmed = 0
        self.looked = 0
        self.loading = asyncio.Event()
        self.load_fault: Exception | None = None
        self.probed = asyncio.Event()
        side = KernelSide(
            self._loaded, self._confirm, self._some, self._look, lambda: Statistics({"lost": 2}, {"pods": (1, 4)})
        )
        self.upkeep = KernelUpkeep(
            self.decisions,
            side,
            self.current,
            Store(),
            timeout_seconds=0.0,
            check_seconds=check_seconds,
            count_seconds=0.0,
        )
        self.parts = Parts()

    def bring(self) -> None:
        now = snapshot(["a"], entries=[workload("a")])
        self.upkeep.changed(now)
        self.upkeep.grown(now)

    async def _some(self) -> None:
        await self.probed.wait()

    async def _loaded(self) -> None:
        await self.loading.wait()
        if self.load_fault is not None:
            raise self.load_fault

    def _confirm(self) -> None:
        self.confirmed += 1

    def _look(self) -> Steps[None]:
        yield
        self.looked += 1


def test_nothing_is_planned_before_the_first_pods_are_captured() -> None:
    """What an earlier control decided would be lost. Later a change is planned, and what policy
    refuses closed, before a new pod is captured, and again only when one was.
    """

    async def scene() -> None:
        stage = Stage()
        stage.upkeep.changed(snapshot())
        assert stage.decisions.told == []
        stage.upkeep.grown(snapshot())
        assert stage.decisions.told == ["planned workload/a", "closed"]
        stage.bring()
        assert len(stage.decisions.told) == 4
        stage.decisions.knows = False
        stage.bring()
        assert len(stage.decisions.told) == 8

    play(scene)


def test_who_enforces_policy_hears_of_a_generation_when_it_is_in_the_maps() -> None:
    async def scene() -> None:
        stage = Stage()
        assert stage.upkeep.behind(7) == ["the kernel's maps"]
        stage.bring()
        assert stage.upkeep.behind(7) == []
        assert stage.upkeep.behind(8) == ["the kernel's maps"]

    play(scene)


def test_it_is_not_confirmed_while_a_change_is_not_in_the_maps(caplog: pytest.LogCaptureFixture) -> None:
    """Input: a batch that did not come to the kernel, for another concern failed, or the maps are
    full. Verdict: no confirmation until the check has made it good.
    """

    async def scene() -> None:
        stage = Stage()
        stage.bring()
        async with stage.upkeep.run(stage.parts):
            await until(lambda: stage.confirmed > 2)
            stage.decisions.fault = OSError(28, "No space left on device")
            stage.current.batches += 1
            before = stage.confirmed
            await until(lambda: "the maps cannot be written" in caplog.text)
            assert stage.confirmed == before
            stage.decisions.fault = None
            await until(lambda: stage.confirmed > before)
            assert stage.parts.failing() == []
            stage.parts.stop()

    play(scene)


@pytest.mark.parametrize("fault", [None, KernelError("no BTF")])
def test_when_the_http_counters_are_loaded_it_plans_with_them(fault: Exception | None) -> None:
    async def scene() -> None:
        stage = Stage(check_seconds=3600)
        stage.bring()
        stage.load_fault = fault
        async with stage.upkeep.run(stage.parts):
            await until(lambda: stage.confirmed)
            assert len(stage.decisions.told) == 2
            stage.loading.set()
            await until(lambda: len(stage.decisions.told) == 4)
            stage.parts.stop()

    play(scene)


def test_maps_and_programs_are_counted() -> None:
    async def scene() -> None:
        store = Store()
        Stage().upkeep.collect(store)
        text = b"".join(store.exposition()).decode()
        for line in ('map="pods"} 1.0\n', 'map="pods"} 4.0\n', '="lost"} 2.0\n'):
            assert line in text

    play(scene)


def test_who_is_gone_is_forgotten_though_nobody_scrapes() -> None:
    async def scene() -> None:
        stage = Stage()
        async with stage.upkeep.run(stage.parts):
            await until(lambda: stage.decisions.counted > 2, "it is counted again and again")
            stage.parts.stop()

    play(scene)
