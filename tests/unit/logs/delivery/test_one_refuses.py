"""A sink that refuses one tenant's records, or whole requests, while it takes others': these get through, memory
stays within its bound, and nothing is given up that is no record's own fault.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import pytest

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Payload, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

BOUNDS = LaneBounds(window=1 << 18, request=1 << 16)
TEXT = "x" * 4000


def blocks_a(texts: list[bytes]) -> Outcome:
    return Taken([row for row, each in enumerate(texts) if each.startswith(b"a")], why="429 index a is blocked")


class Scene:
    def __init__(self, folder: Path, sink: ScriptedSink, buffered: bool) -> None:
        self.clock = TestClock()
        self.letters = folder / "scripted.jsonl"
        disk = DiskBuffer(folder / "buffer", 1 << 30, 1 << 16)
        spill = Spill("scripted", disk, "block", BOUNDS.window // 4, self.clock) if buffered else None
        self.lane = Lane(sink, DeadLetters(folder, "scripted"), BOUNDS, self.clock, lambda low, _high: low, spill)
        self.lane.open()
        self.most = 0
        self._offered = 0

    def offer(self, texts: Sequence[str], pod: str) -> None:
        self.lane.offer(records(texts, 10_000 * self._offered, origin(pod)), Receipt(1, lambda: None))
        self._offered += 1

    async def offer_all(self, tenants: Iterator[str], count: int) -> None:
        """As files are read: while there is room."""
        for number in range(count):
            await until(self.lane.room, "room")
            tenant = next(tenants)
            self.offer([f"{tenant} {number} {TEXT}"], tenant)
            self.most = max(self.most, self.lane.held)
            await asyncio.sleep(0)

    def refused(self) -> list[str]:
        if not self.letters.exists():
            return []
        return [json.loads(each)["record"]["log"] for each in self.letters.read_text().splitlines()]


async def a_moment(scene: Scene) -> None:
    """Return seconds later, or when nothing is left to wait for."""
    start = scene.clock.now()
    await until(lambda: scene.clock.now() > start + 5 or not scene.lane.held)


def run(folder: Path, sink: ScriptedSink, buffered: bool, tenants: Iterator[str], count: int) -> Scene:
    async def test() -> Scene:
        scene = Scene(folder, sink, buffered)
        task = asyncio.create_task(scene.lane.run())
        try:
            await scene.offer_all(tenants, count)
            while scene.lane.held or scene.lane.buffered_bytes:
                # Others are known to be taken as long as there are others.
                scene.offer(["b goes on"], "b")
                await a_moment(scene)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await scene.lane.close(0)
        return scene

    return asyncio.run(asyncio.wait_for(test(), 100))


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("share", ["ab", "aaaaaaab", "abbbbbbb"])
def test_a_tenant_whose_index_is_blocked_holds_nobody_back(tmp_path: Path, share: str, buffered: bool) -> None:
    sink = ScriptedSink(blocks_a)
    scene = run(tmp_path, sink, buffered, chain.from_iterable(repeat(share)), 320)
    assert sum(each != b"b goes on" for each in sink.taken) == 320 * share.count("b") // len(share)
    assert len(scene.refused()) == 320 * share.count("a") // len(share)
    # two windows, and what the disk has not taken yet, which it takes as fast as this machine lets it
    assert scene.most <= 4 * BOUNDS.window


def test_what_is_on_disk_behind_a_whole_window_of_a_blocked_index_is_fed(tmp_path: Path) -> None:
    sink = ScriptedSink(blocks_a)
    scene = run(tmp_path, sink, True, chain(repeat("a", 100), repeat("b")), 300)
    assert sum(each != b"b goes on" for each in sink.taken) == 200 and len(scene.refused()) == 100


def test_a_sink_that_asks_for_everything_again_loses_nothing(tmp_path: Path) -> None:
    """However long, and though it took some at first."""

    async def test() -> None:
        sink = ScriptedSink(blocks_a)
        scene = Scene(tmp_path, sink, buffered=True)
        task = asyncio.create_task(scene.lane.run())
        scene.offer(["a", "b"], "a")
        await until(lambda: sink.taken == [b"b"])
        sink.answer = lambda texts: Taken(range(len(texts)), why="429")
        await scene.offer_all(chain.from_iterable(repeat("ab")), 200)
        start = scene.clock.now()
        await until(lambda: scene.clock.now() > start + 7200)
        assert scene.refused() == []
        sink.answer = lambda _texts: Taken()
        await until(lambda: len(sink.taken) == 202)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_a_tenant_that_was_given_up_is_taken_again_as_soon_as_it_can_be(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink(blocks_a)
        scene = Scene(tmp_path, sink, buffered=False)
        task = asyncio.create_task(scene.lane.run())
        await scene.offer_all(chain.from_iterable(repeat("ab")), 400)
        await until(scene.refused)
        sink.answer = lambda _texts: Taken()
        await until(lambda: not scene.lane.held)
        before = len(scene.refused())
        sink.answer = blocks_a
        scene.offer(["a again"], "a")
        await until(lambda: sink.requests.count([b"a again"]) > 2)
        assert len(scene.refused()) == before, "it has its time again"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_whole_requests_that_are_refused_for_no_record_s_fault_lose_none(tmp_path: Path) -> None:
    """As a proxy does whose client's certificate has ended."""

    async def test() -> None:
        sink = ScriptedSink(lambda _texts: Indivisible("400: no certificate"))
        scene = Scene(tmp_path, sink, buffered=False)
        task = asyncio.create_task(scene.lane.run())
        scene.offer([f"a {each}" for each in range(20)], "a")
        scene.offer(["b"], "b")
        start = scene.clock.now()
        await until(lambda: scene.clock.now() > start + 3600)
        assert scene.refused() == [] and scene.lane.troubles() == ["400: no certificate"]
        sink.answer = lambda _texts: Taken()
        await until(lambda: len(sink.taken) == 21)
        assert scene.lane.troubles() == [] and not scene.lane.held
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_a_record_that_is_refused_alone_does_not_stop_a_sink_that_wants_order(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink(lambda texts: Indivisible("400") if b"bad" in texts else Taken(), ordered=True)
        scene = Scene(tmp_path, sink, buffered=False)
        task = asyncio.create_task(scene.lane.run())
        scene.offer(["bad", "good"], "a")
        await until(lambda: not scene.lane.held)
        assert scene.refused() == ["bad"] and sink.taken == [b"good"]
        assert sink.requests.count([b"bad"]) > 3, "nothing told that it was at fault itself"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_record_that_is_refused_alone_is_a_letter_once_others_are_taken(tmp_path: Path, in_flight: int) -> None:
    async def test() -> None:
        sink = ScriptedSink(lambda texts: Indivisible("400") if b"bad" in texts else Taken())
        scene = Scene(tmp_path, sink, buffered=False)
        bounds = LaneBounds(in_flight=in_flight)
        lane = scene.lane = Lane(sink, DeadLetters(tmp_path, "scripted"), bounds, scene.clock, lambda low, _high: low)
        task = asyncio.create_task(lane.run())
        scene.offer(["bad"], "a")
        await until(lambda: lane.trouble)
        assert scene.refused() == []
        scene.offer(["good"], "b")
        await until(lambda: not lane.held)
        assert scene.refused() == ["bad"] and sink.taken == [b"good"] and lane.trouble == ""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


@pytest.mark.parametrize("ordered", [False, True])
def test_many_records_that_are_refused_alone_hold_no_other_pod_back(tmp_path: Path, ordered: bool) -> None:
    async def test() -> None:
        sink = ScriptedSink(lambda texts: Indivisible("400") if b"bad" in texts else Taken(), ordered)
        scene = Scene(tmp_path, sink, buffered=False)
        task = asyncio.create_task(scene.lane.run())
        scene.offer(["bad"] * 40, "a")
        await until(lambda: scene.lane.trouble)
        start = scene.clock.now()
        scene.offer(["good"], "b")
        await until(lambda: sink.taken == [b"good"])
        assert scene.clock.now() - start < 60, "a pause or two"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_what_cannot_be_encoded_is_a_letter_at_once_and_others_do_not_wait(tmp_path: Path) -> None:
    class Choosy(ScriptedSink):
        def encode(self, batch: Sequence[LogRecords]) -> Payload:
            if any(b"bad" in each.texts for each in batch):
                raise OverflowError("int too big to convert")
            return super().encode(batch)

    async def test() -> None:
        scene = Scene(tmp_path, Choosy(ordered=True), buffered=False)
        task = asyncio.create_task(scene.lane.run())
        start = scene.clock.now()
        scene.offer(["bad", "bad", "good", "bad"], "a")
        await until(lambda: not scene.lane.held)
        assert scene.refused() == ["bad"] * 3 and scene.lane.trouble == ""
        assert scene.clock.now() == start, "nobody waits: another try would be in vain"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_one_pod_whose_records_are_refused_costs_others_few_requests(tmp_path: Path) -> None:
    def answer(texts: list[bytes]) -> Outcome:
        bad = sum(each.startswith(b"bad") for each in texts)
        if bad == len(texts):
            return Taken(refused=dict.fromkeys(range(bad), "too new"))
        return Indivisible("400: too new") if bad else Taken()

    async def test() -> None:
        sink = ScriptedSink(lambda _texts: Untaken("down"))
        scene = Scene(tmp_path, sink, buffered=False)
        task = asyncio.create_task(scene.lane.run())
        for each in range(40):
            for pod in ("good-1", "bad", "good-2"):
                scene.offer([f"{pod} {each}"], pod)
        sink.answer = answer
        await until(lambda: not scene.lane.held)
        assert len(sink.taken) == 80 and len(scene.refused()) == 40
        assert len(sink.requests) < 12, "not one a record"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))


def test_who_reads_is_told_once_the_disk_has_taken_what_filled_the_memory(tmp_path: Path) -> None:
    """Without that files would be read a window at each of the tail's looks, while the sink is away."""

    async def test() -> None:
        scene = Scene(tmp_path, ScriptedSink(lambda _texts: Untaken("away")), buffered=True)
        assert scene.lane.spill
        told = 0

        def on_room() -> None:
            nonlocal told
            told += 1

        scene.lane.on_room = on_room
        task = asyncio.create_task(scene.lane.run())
        scene.offer([f"a {TEXT}"], "a")
        await until(lambda: scene.lane.spill and scene.lane.spill.active)
        for _ in range(3):
            before = told
            while scene.lane.room():
                scene.offer([f"a {TEXT}"], "a")
            await until(lambda before=before: told > before, "it is told")  # type: ignore[misc]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)

    asyncio.run(asyncio.wait_for(test(), 100))
