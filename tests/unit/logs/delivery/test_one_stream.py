"""A sink that takes nothing of a request in which one pod's records are over a limit: all others get theirs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from nodeagent.logs.delivery.answers import CROWDED_BESIDE, PATIENCE
from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.http_client import HttpAnswer
from nodeagent.logs.sinks.loki import outcome
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

OTHERS = [f"pod-{each}" for each in range(6)]
BOUNDS = LaneBounds(window=64 << 10, request=8 << 10)


class Limited:
    """As Loki does: 429 where one stream is over a limit, though it keeps the others' lines."""

    def __init__(self) -> None:
        self.over = {"bad"}
        self.asked = 0

    def __call__(self, texts: list[bytes]) -> Outcome:
        self.asked += 1
        pods = {each.decode().split()[0] for each in texts}
        return Untaken("429: Maximum active stream limit exceeded", partly=True) if pods & self.over else Taken()


class Shared:
    """A Loki whose limit of the whole tenant other nodes use up, now more and now less: it takes small requests."""

    def __init__(self) -> None:
        self.random = random.Random(7)
        self.most = 7000.0

    def __call__(self, texts: list[bytes]) -> Outcome:
        size = sum(map(len, texts))
        if size <= self.random.uniform(0, self.most):
            return Taken()
        said = b"Ingestion rate limit exceeded for user fake (limit: 7000 bytes/sec) while attempting to ingest"
        return outcome(HttpAnswer(429, said, None), len(texts))


class Scene:
    def __init__(self, folder: Path, buffered: bool) -> None:
        self.limited = Limited()
        self.sink = ScriptedSink(self.limited, ordered=True)
        self.clock = clock = TestClock()
        spill = None
        if buffered:
            disk = DiskBuffer(folder / "buffer", 1 << 30)
            spill = Spill("s", disk, "block", BOUNDS.window // 4, clock)
        letters = DeadLetters(folder, "s")
        self.lane = Lane(self.sink, letters, BOUNDS, clock, lambda low, _high: low, spill=spill)
        if spill:
            spill.open(self.lane.counts)
        self.offered: dict[str, int] = dict.fromkeys([*OTHERS, "bad"], 0)

    def offer(self, pod: str, count: int = 5) -> None:
        first = self.offered[pod]
        self.offered[pod] += count
        texts = [f"{pod} {each}" for each in range(first, first + count)]
        self.lane.offer(records(texts, 100 * first, origin(pod)), Receipt(1, lambda: None))

    def delivered(self, pod: str) -> list[int]:
        return [int(each.split()[1]) for each in self.sink.taken if each.split()[0] == pod.encode()]

    async def fill(self, pods: list[str], rounds: int) -> None:
        for _ in range(rounds):
            for pod in pods:
                await until(self.lane.room)
                self.offer(pod)


def run(folder: Path, test: Callable[[Scene], Awaitable[None]], buffered: bool) -> None:
    async def whole() -> None:
        scene = Scene(folder, buffered)
        task = asyncio.create_task(scene.lane.run())
        try:
            await test(scene)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(whole(), 240))


@pytest.mark.parametrize("buffered", [False, True])
def test_one_stream_over_a_limit_stops_no_other(tmp_path: Path, buffered: bool) -> None:
    async def test(scene: Scene) -> None:
        scene.offer("bad")
        for _ in range(20):
            await scene.fill(OTHERS, 1)
            await until(lambda: all(len(scene.delivered(each)) == scene.offered[each] for each in OTHERS))
        assert scene.delivered("bad") == []
        scene.offer("bad")
        scene.limited.over.clear()
        await until(lambda: len(scene.delivered("bad")) == 10)
        for pod in (*OTHERS, "bad"):
            assert scene.delivered(pod) == list(range(scene.offered[pod])), "in order"
        total = scene.lane.counts.total()
        assert total.delivered == total.offered and scene.lane.held == 0

    run(tmp_path, test, buffered)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_stream_that_fills_the_memory_is_given_up_and_the_others_go_on(tmp_path: Path, buffered: bool) -> None:
    async def test(scene: Scene) -> None:
        await scene.fill([*OTHERS, *["bad"] * 12], 30)
        pods = scene.lane.counts.pods
        await until(lambda: all(len(scene.delivered(each)) == scene.offered[each] for each in OTHERS))
        assert pods[("shop", "bad")].dead_lettered > 0
        assert pods[("shop", "bad")].retried > CROWDED_BESIDE
        for pod in OTHERS:
            assert scene.delivered(pod) == list(range(scene.offered[pod])), "in order"

    run(tmp_path, test, buffered)


@pytest.mark.parametrize("buffered", [False, True])
def test_of_a_sink_that_takes_nothing_of_anybody_nothing_is_given_up(tmp_path: Path, buffered: bool) -> None:
    """A limit of the whole tenant: the same answer, and all is waited for."""

    async def test(scene: Scene) -> None:
        scene.limited.over |= set(OTHERS)
        while scene.lane.room() and sum(scene.offered.values()) < 2000:
            for pod in (*OTHERS, "bad"):
                scene.offer(pod)
        asked = scene.limited.asked
        await until(lambda: scene.limited.asked > asked + 300)
        scene.limited.over.clear()
        await until(lambda: scene.lane.counts.total().settled == sum(scene.offered.values()))
        for pod in (*OTHERS, "bad"):
            assert scene.delivered(pod) == list(range(scene.offered[pod])), "in order"
        assert scene.lane.counts.total().delivered == sum(scene.offered.values())

    run(tmp_path, test, buffered)


def test_what_one_stream_is_to_wait_is_waited_for_its_pod_alone(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        asked: list[float] = []
        alone: list[float] = []

        def answer(texts: list[bytes]) -> Outcome:
            asked.append(scene.clock.seconds)
            if all(each.startswith(b"bad") for each in texts):
                alone.append(scene.clock.seconds)
            outcome = scene.limited(texts)
            return replace(outcome, after=120.0) if isinstance(outcome, Untaken) else outcome

        scene.sink.answer = answer
        for pod in (*OTHERS, "bad"):
            scene.offer(pod)
        await until(lambda: all(scene.delivered(each) for each in OTHERS) and len(asked) > PATIENCE)
        assert asked[PATIENCE] - asked[0] < 120, "all wait for as long as they do where nothing is asked for"
        await until(lambda: len(alone) > PATIENCE + 3)
        assert all(later - earlier >= 120 for earlier, later in pairwise(alone[-3:]))
        await scene.fill(OTHERS, 1)
        scene.limited.over.clear()
        await until(lambda: scene.lane.held == 0)
        assert all(scene.delivered(each) == list(range(scene.offered[each])) for each in scene.offered), "in order"

    run(tmp_path, test, buffered=False)


def test_a_limit_of_the_whole_tenant_makes_no_dead_letters(tmp_path: Path) -> None:
    """What is large is refused and what is small is taken: all is waited for, on disk."""

    async def test(scene: Scene) -> None:
        shared = Shared()
        scene.sink.answer = shared
        seconds = scene.clock.seconds
        offered = 0
        spilt = False
        while scene.clock.seconds < seconds + 600:
            for pod in OTHERS:
                scene.lane.offer(records([f"{pod} {offered}"], 100 * offered, origin(pod)), Receipt(1, lambda: None))
            texts = [f"bad {each:0400}" for each in range(10 * offered, 10 * offered + 10)]
            scene.lane.offer(records(texts, 1000 * offered, origin("bad")), Receipt(1, lambda: None))
            offered += 1
            await scene.clock.wait(asyncio.Event(), 1.0)
            await until(scene.lane.room)
            spilt |= scene.lane.spill is not None and scene.lane.spill.active
        assert scene.lane.counts.total().dead_lettered == 0
        assert spilt, "it goes to disk"
        shared.most = 1e12
        await until(lambda: scene.lane.counts.total().settled == 16 * offered)
        assert scene.lane.counts.total().delivered == 16 * offered
        assert scene.delivered("bad") == list(range(10 * offered)), "in order"

    run(tmp_path, test, buffered=True)
