"""A lane against a sink that answers as told: what is settled when, what comes again, what never does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodeagent.logs.delivery.answers import MAX_BESIDE, UNNAMED, UNWRITABLE
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import steady, until

BOUNDS = LaneBounds()


class Scene:
    def __init__(self, folder: Path, sink: ScriptedSink, bounds: LaneBounds) -> None:
        self.clock = TestClock()
        self.sink = sink
        self.letters = folder / "scripted.jsonl"
        self.lane = Lane(sink, DeadLetters(folder, "scripted"), bounds, self.clock, lambda low, _high: low)
        self.settled: list[str] = []

    def offer(self, texts: Sequence[str], name: str = "", pod: str = "web-1", start: int = 0) -> None:
        receipt = Receipt(1, lambda: self.settled.append(name or texts[0]))
        self.lane.offer(records(texts, start, origin(pod)), receipt)

    def refused(self) -> list[tuple[str, str]]:
        if not self.letters.exists():
            return []
        letters = [json.loads(each) for each in self.letters.read_text().splitlines()]
        return [(each["record"]["log"], each["reason"]) for each in letters]

    def identity(self) -> None:
        """What was offered is settled or held, record for record."""
        total = self.lane.counts.total()
        assert total.offered == total.settled
        assert self.lane.held == 0


@asynccontextmanager
async def running(folder: Path, sink: ScriptedSink, bounds: LaneBounds = BOUNDS) -> AsyncIterator[Scene]:
    scene = Scene(folder, sink, bounds)
    task = asyncio.create_task(scene.lane.run())
    try:
        yield scene
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await scene.lane.close(0)
        assert sink.closed


def run(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_what_is_taken_is_settled_and_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink()) as scene:
            scene.offer(["a", "b"])
            scene.offer(["c"], pod="web-2")
            await until(lambda: len(scene.settled) == 2)
            assert sorted(scene.sink.taken) == [b"a", b"b", b"c"]
            assert scene.lane.counts.pods[("shop", "web-1")].delivered == 2
            assert scene.lane.counts.pods[("shop", "web-2")].delivered == 1
            scene.identity()

    run(test)


def test_no_records_are_settled_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink()) as scene:
            scene.offer([], "nothing")
            assert scene.settled == ["nothing"]

    run(test)


def test_files_share_a_request_and_a_lone_record_does_not_wait(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink()
        sink.gate = asyncio.Event()
        async with running(tmp_path, sink, LaneBounds(in_flight=1)) as scene:
            scene.offer(["a"])
            await until(lambda: sink.requests)
            for each in ("b", "c", "d"):
                scene.offer([each], pod=f"pod-{each}")
            sink.gate.set()
            await until(lambda: len(scene.settled) == 4)
            assert [len(each) for each in sink.requests] == [1, 3]

    run(test)


def test_only_what_is_asked_for_comes_again_and_settles_its_entry(tmp_path: Path) -> None:
    async def test() -> None:
        busy = {b"b"}

        def answer(texts: list[bytes]) -> Outcome:
            return Taken([row for row, each in enumerate(texts) if each in busy], why="429")

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            scene.offer(["a", "b", "c"])
            scene.offer(["d"], pod="web-2")
            await until(lambda: len(scene.sink.requests) > 3)
            assert "d" in scene.settled and "a" not in scene.settled
            busy.clear()
            await until(lambda: len(scene.settled) == 2)
            assert sorted(scene.sink.taken) == [b"a", b"b", b"c", b"d"]
            assert all(each == [b"b"] for each in scene.sink.requests[2:])
            assert scene.lane.counts.total().retried >= 2
            scene.identity()

    run(test)


def test_a_refused_record_is_a_dead_letter_with_the_reason_and_blocks_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(texts: list[bytes]) -> Outcome:
            return Taken(refused={row: "400 mapping" for row, each in enumerate(texts) if each == b"bad"})

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            scene.offer(["a", "bad", "c"])
            await until(lambda: scene.settled == ["a"])
            assert scene.refused() == [("bad", "400 mapping")]
            assert scene.lane.counts.total().dead_lettered == 1
            scene.identity()

    run(test)


def test_letters_that_cannot_be_written_are_counted_as_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "scripted.jsonl").mkdir()
        async with running(tmp_path, ScriptedSink(lambda _texts: Taken(refused={0: "400"}))) as scene:
            scene.offer(["a"])
            await until(lambda: scene.settled == ["a"])
            assert scene.lane.counts.total().dropped == {UNWRITABLE: 1}
            scene.identity()

    run(test)


def test_what_is_refused_without_a_name_is_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink(lambda _texts: Taken(unnamed=2))) as scene:
            scene.offer(["a", "b", "c"])
            await until(lambda: scene.settled == ["a"])
            total = scene.lane.counts.total()
            assert (total.delivered, total.dropped) == (1, {UNNAMED: 2})

    run(test)


def test_a_request_that_is_refused_whole_is_halved_down_to_the_one_record(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(texts: list[bytes]) -> Outcome:
            return Indivisible("400: one of them") if b"bad" in texts else Taken()

        async with running(tmp_path, ScriptedSink(answer, ordered=True)) as scene:
            scene.offer([f"{each}" for each in range(50)] + ["bad"] + [f"{each}" for each in range(50, 101)], "all")
            await until(lambda: scene.settled == ["all"])
            assert scene.refused() == [("bad", "400: one of them")]
            assert scene.sink.taken == [str(each).encode() for each in range(101)], "in order"
            assert len(scene.sink.requests) < 20
            scene.identity()

    run(test)


def test_requests_that_are_too_large_are_made_smaller_from_then_on(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(texts: list[bytes]) -> Outcome:
            return Indivisible("413", too_large=True) if sum(map(len, texts)) > 100_000 else Taken()

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            for each in range(64):
                scene.offer(["x" * 10_000], str(each))
            await until(lambda: len(scene.settled) == 64)
            before = len(scene.sink.requests)
            for each in range(64):
                scene.offer(["x" * 10_000], str(each))
            await until(lambda: len(scene.settled) == 128)
            assert all(sum(map(len, each)) <= 100_000 for each in scene.sink.requests[before:])
            assert scene.refused() == []

    run(test)


@pytest.mark.parametrize("busy", [False, True], ids=["down", "busy"])
def test_ten_minutes_without_a_taker_cost_no_memory_and_few_requests(tmp_path: Path, busy: bool) -> None:
    async def test() -> None:
        sink = ScriptedSink(lambda texts: Taken(again=range(len(texts)), why="429") if busy else Untaken("down"))
        bounds = LaneBounds(window=1 << 20, request=1 << 18)
        async with running(tmp_path, sink, bounds) as scene:
            start = scene.clock.now()
            offered = 0
            while scene.lane.room():
                scene.offer([f"{offered}-{row}-{'x' * 100}" for row in range(100)], str(offered))
                offered += 1
            assert scene.lane.held < bounds.window + (1 << 16)
            while scene.clock.now() < start + 600:
                if scene.lane.room():
                    scene.offer([f"{offered}-{row}-{'x' * 100}" for row in range(100)], str(offered))
                    offered += 1
                await asyncio.sleep(0)
            assert scene.lane.held < (2 if busy else 1) * bounds.window + (1 << 16) and not scene.settled
            assert len(sink.requests) < (1200 if busy else 200)
            sink.answer = lambda _texts: Taken()
            await until(lambda: len(scene.settled) == offered)
            assert len(set(sink.taken)) == offered * 100
            scene.identity()

    run(test)


def test_a_server_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    async def test() -> None:
        times: list[float] = []

        def answer(_texts: list[bytes]) -> Outcome:
            times.append(scene.clock.now())
            return Untaken("429", 120.0) if len(times) == 1 else Taken()

        sink = ScriptedSink(answer)
        async with running(tmp_path, sink) as scene:
            scene.offer(["a"])
            await until(lambda: scene.settled == ["a"])
            assert times[1] - times[0] >= 120

    run(test)


@pytest.mark.parametrize("ordered", [True, False])
def test_order_is_kept_where_the_sink_wants_it(tmp_path: Path, ordered: bool) -> None:
    async def test() -> None:
        tries = 0

        def answer(texts: list[bytes]) -> Outcome:
            nonlocal tries
            tries += 1
            if tries % 3 == 1:
                return Untaken("down")
            return Taken(again=range(len(texts) // 2, len(texts))) if tries % 3 == 2 else Taken()

        sink = ScriptedSink(answer, ordered)
        async with running(tmp_path, sink, LaneBounds(request=1)) as scene:
            for each in range(20):
                scene.offer([f"{each}-{row}" for row in range(3)], str(each))
            await until(lambda: len(scene.settled) == 20)
            expected = [f"{each}-{row}".encode() for each in range(20) for row in range(3)]
            assert sorted(sink.taken) == sorted(expected)
            if ordered:
                assert sink.taken == expected
            scene.identity()

    run(test)


def test_a_record_that_is_asked_for_for_ever_does_not_hold_back_its_file(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(texts: list[bytes]) -> Outcome:
            return Taken([row for row, each in enumerate(texts) if each == b"bad"], why="500 internal")

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            scene.offer(["bad", "a"], "file")
            for number in range(1, 10 * MAX_BESIDE):
                scene.offer([f"other {number}"])
                await until(lambda count=number: len(scene.settled) >= count)
                if "file" in scene.settled:
                    break
            [(record, why)] = scene.refused()
            assert record == "bad" and "500 internal" in why
            assert scene.sink.requests.count([b"bad"]) >= MAX_BESIDE - 2
            await until(lambda: scene.lane.held == 0, "the last of the others is settled")
            scene.identity()

    run(test)


def test_a_large_pod_does_not_keep_small_ones_waiting(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink()
        sink.gate = asyncio.Event()
        async with running(tmp_path, sink, LaneBounds(in_flight=1, request=10_000)) as scene:
            scene.offer(["first"])
            await until(lambda: sink.requests)
            for each in range(50):
                scene.offer(["x" * 3000], f"large {each}", pod="large")
            scene.offer(["small"], pod="small")
            sink.gate.set()
            await until(lambda: len(scene.settled) == 52)
            assert b"small" in sink.requests[1]

    run(test)


def test_what_no_encoder_takes_is_a_dead_letter(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink()
        encode = sink.encode

        def fails(batch: Sequence[object]) -> object:
            payload = encode(batch)  # type: ignore[arg-type]
            if b"bad" in payload.body:
                raise ValueError("surrogates")
            return payload

        sink.encode = fails  # type: ignore[assignment, method-assign]
        async with running(tmp_path, sink) as scene:
            scene.offer(["a", "bad", "c"])
            await until(lambda: scene.settled == ["a"])
            assert sorted(sink.taken) == [b"a", b"c"]
            [(record, why)] = scene.refused()
            assert record == "bad" and "surrogates" in why

    run(test)


def test_a_sink_with_a_bug_is_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        tries = 0

        def answer(_texts: list[bytes]) -> Outcome:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise RuntimeError("bug")
            return Taken()

        async with running(tmp_path, ScriptedSink(answer)) as scene:
            scene.offer(["a"])
            await until(lambda: scene.settled == ["a"])
            assert tries == 3 and scene.lane.trouble == ""

    run(test)


def test_closing_lets_what_waits_be_delivered(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink()
        sink.gate = asyncio.Event()
        async with running(tmp_path, sink, LaneBounds(in_flight=1, request=1)) as scene:
            scene.offer(["a"])
            scene.offer(["b"])
            await until(lambda: sink.requests)
            closing = asyncio.create_task(scene.lane.close(30))
            sink.gate.set()
            await closing
            assert scene.settled == ["a", "b"]
            scene.offer(["c"])
            await steady(lambda: len(sink.requests))
            assert scene.settled == ["a", "b"]

    run(test)


def test_closing_waits_for_no_sink_that_takes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(tmp_path, ScriptedSink(lambda _texts: Untaken("down"))) as scene:
            scene.offer(["a"])
            await until(lambda: scene.lane.trouble)
            scene.offer(["b"])
            await scene.lane.close(30)
            assert scene.settled == [] and scene.lane.troubles() == ["down"]

    run(test)
