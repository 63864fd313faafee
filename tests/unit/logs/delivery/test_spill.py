"""A lane with a buffer, against a sink that does not keep pace."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.spill import FULL, RETRY_SECONDS, Spill
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

BOUNDS = LaneBounds(window=1 << 18, request=1 << 16)
MOST = 1 << 30


class Scene:
    def __init__(self, folder: Path, sink: ScriptedSink, most: int, full: Literal["block", "dropOldest"]) -> None:
        self.clock = TestClock()
        self.sink = sink
        self.folder = folder / "buffer"
        self.buffer = DiskBuffer(self.folder, most, 1 << 16)
        self.spill = Spill("scripted", self.buffer, full, BOUNDS.window // 4, self.clock)
        self.lane = Lane(sink, DeadLetters(folder, "scripted"), BOUNDS, self.clock, lambda low, _high: low, self.spill)
        self.lane.open()
        self.settled = 0
        self.offered = 0

    def offer(self, texts: Sequence[str], pod: str = "web-1") -> None:
        def settle() -> None:
            self.settled += 1

        self.lane.offer(records(texts, 1000 * self.offered, origin(pod)), Receipt(1, settle))
        self.offered += 1

    async def offer_many(self, count: int, size: int = 1000) -> None:
        """As files are read: only while there is room."""
        for _ in range(count):
            await until(self.lane.room, "room")
            self.offer([f"{self.offered:06} {os.urandom(size // 2).hex()}"], f"web-{self.offered % 3}")

    def taken(self) -> list[int]:
        return [int(each.split()[0]) for each in self.sink.taken]

    def identity(self) -> None:
        total = self.lane.counts.total()
        assert total.offered == total.settled
        assert not self.buffer.pods and self.lane.held == 0 and self.spill.waiting == 0


@asynccontextmanager
async def running(
    folder: Path, sink: ScriptedSink, most: int = MOST, full: Literal["block", "dropOldest"] = "block"
) -> AsyncIterator[Scene]:
    scene = Scene(folder, sink, most, full)
    task = asyncio.create_task(scene.lane.run())
    try:
        yield scene
    finally:
        assert not task.done(), f"the lane ended: {task.exception()!r}"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 100))  # type: ignore[arg-type]


def down(_texts: list[bytes]) -> Outcome:
    return Untaken("down")


def up(_texts: list[bytes]) -> Outcome:
    return Taken()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_sink_that_is_down_costs_disk_and_all_comes_in_order_later(tmp_path: Path, ordered: bool) -> None:
    async def test() -> None:
        sink = ScriptedSink(down, ordered)
        async with running(tmp_path, sink) as scene:
            await scene.offer_many(800)
            await until(lambda: scene.settled == 800, "all on disk")
            assert scene.lane.held < BOUNDS.window, "what waits to be sent, and no more, is in memory"
            assert scene.buffer.pods.total() == 800
            sink.answer = up
            await until(lambda: len(sink.taken) == 800)
            await until(lambda: not scene.spill.active)
            if ordered:
                for pod in range(3):
                    of_pod = [each for each in scene.taken() if each % 3 == pod]
                    assert of_pod == sorted(of_pod)
            assert sorted(scene.taken()) == list(range(800))
            scene.identity()
            await scene.offer_many(3)
            await until(lambda: len(sink.taken) == 803)
            assert list(scene.folder.glob("*.segment")) == [], "memory is enough again"
            scene.identity()

    run(test)


def test_a_sink_that_keeps_pace_costs_no_disk(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink()) as scene:
            await scene.offer_many(800)
            await until(lambda: scene.settled == 800)
            assert not scene.spill.active and list(scene.folder.iterdir()) == []

    run(test)


def test_one_record_that_is_asked_for_again_is_no_reason_to_go_to_disk(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(texts: list[bytes]) -> Outcome:
            return Taken([row for row, each in enumerate(texts) if each.startswith(b"000000")], why="500")

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            await scene.offer_many(3)
            await until(lambda: scene.clock.now() > 1030)
            await scene.offer_many(3)
            await until(lambda: scene.settled == 5)
            assert not scene.spill.active

    run(test)


def test_the_next_process_goes_on_where_this_one_stopped(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink(down)) as scene:
            await scene.offer_many(500)
            await until(lambda: scene.settled == 500)
        sink = ScriptedSink()
        async with running(tmp_path, sink) as scene:
            assert scene.lane.counts.total().offered == 500
            await until(lambda: len(sink.taken) == 500)
            await until(lambda: not scene.spill.active)
            scene.identity()
            scene.offered = 500
            await scene.offer_many(1)
            await until(lambda: len(sink.taken) == 501)

    run(test)


def test_a_full_buffer_blocks(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink, most=1 << 19) as scene:
            writing = asyncio.create_task(scene.offer_many(2000))
            await until(lambda: scene.spill.trouble == FULL and not scene.lane.room())
            assert scene.offered < 2000 and scene.buffer.bytes <= 1 << 19
            sink.answer = up
            await writing
            await until(lambda: scene.settled == 2000 and not scene.spill.active)
            assert sorted(scene.taken()) == list(range(2000))
            assert scene.spill.trouble == ""
            scene.identity()

    run(test)


def test_a_full_buffer_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink, most=1 << 19, full="dropOldest") as scene:
            await scene.offer_many(2000)
            await until(lambda: scene.settled == 2000)
            assert scene.buffer.bytes <= 1 << 19
            sink.answer = up
            await until(lambda: not scene.spill.active)
            await until(lambda: scene.lane.held == 0)
            total = scene.lane.counts.total()
            assert total.dropped[FULL] > 500 and total.delivered + total.dropped[FULL] == 2000
            assert scene.taken()[-1] == 1999 or 1999 in scene.taken()
            scene.identity()

    run(test)


def test_what_is_under_way_is_no_reason_to_drop_what_is_newer(tmp_path: Path) -> None:
    """A sink that asks for one record of each segment again: the oldest go that are not under way."""

    def answer(texts: list[bytes]) -> Outcome:
        return Taken([row for row, each in enumerate(texts) if int(each.split()[0]) % 25 == 0], why="500")

    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink, most=1 << 19, full="dropOldest") as scene:
            await scene.offer_many(600, 1200)
            sink.answer = answer
            await until(lambda: not scene.buffer.unread and not scene.spill.waiting)
            dropped = scene.lane.counts.total().dropped[FULL]
            sink.answer = down
            await scene.offer_many(200, 1200)
            assert scene.lane.counts.total().dropped[FULL] == dropped
            assert scene.buffer.bytes <= 1 << 19
            sink.answer = up
            await until(lambda: not scene.spill.active and scene.lane.held == 0)
            assert set(range(600, 800)) <= set(scene.taken())
            scene.identity()

    run(test)


def test_a_disk_that_cannot_be_written_blocks_and_the_sink_gets_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        sink = ScriptedSink(down)
        async with running(tmp_path, sink) as scene:
            with monkeypatch.context() as patched:
                patched.setattr(os, "fdatasync", full)
                writing = asyncio.create_task(scene.offer_many(800))
                await until(lambda: scene.clock.now() > 1600 and not scene.lane.room())
                assert scene.settled == 0 and scene.lane.held < 2 * BOUNDS.window
                sink.answer = up
                await writing
                await until(lambda: scene.settled == 800)
            assert sorted(scene.taken()) == list(range(800))
            scene.identity()

    with caplog.at_level(logging.ERROR):
        run(test)
    assert sum("takes no more: No space left" in each.message for each in caplog.records) == 1


def test_a_disk_on_which_no_room_can_be_freed_is_asked_again_after_a_while(tmp_path: Path) -> None:
    async def test() -> None:
        scene = Scene(tmp_path, ScriptedSink(), MOST, "block")
        answers: list[bool | OSError] = [OSError(28, "No space left on device"), True]

        async def reclaim() -> bool:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        scene.buffer.reclaim = reclaim  # type: ignore[method-assign]
        assert not await scene.spill._reclaim()
        assert not await scene.spill._reclaim() and answers == [True], "not at once"
        scene.clock.seconds += RETRY_SECONDS
        assert await scene.spill._reclaim()

    run(test)
