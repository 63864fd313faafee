"""Whatever a sink answers, and whenever the process is replaced: each record is taken or a dead letter, the
numbers say so, and where the sink wants order there is order.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.sink import Indivisible, Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

BOUNDS = LaneBounds(window=1 << 15, request=1 << 13)
ENTRIES = 120
"""Of one to five records each, by three pods."""


class Files:
    """What is read, and what of it is settled: the side of the tail."""

    def __init__(self) -> None:
        self.entries: list[list[str]] = []
        self.settled: set[int] = set()

    def more(self, rng: random.Random) -> int:
        number = len(self.entries)
        self.entries.append([f"{number}.{row}" for row in range(rng.randint(1, 5))])
        return number

    def offer(self, lane: Lane, number: int) -> None:
        receipt = Receipt(1, lambda: self.settled.add(number))
        lane.offer(records(self.entries[number], 1000 * number, origin(f"web-{number % 3}")), receipt)


def moody(rng: random.Random, calm: list[bool], ordered: bool) -> ScriptedSink:
    """A sink that answers anything until it is *calm*; texts that end with ``.4`` it never takes."""

    def answer(texts: list[bytes]) -> Outcome:
        bad = {row: "400" for row, each in enumerate(texts) if each.endswith(b".4")}
        drawn = 1.0 if calm else rng.random()
        if drawn < 0.3:
            return Untaken("down", rng.choice([None, 20.0]))
        if drawn < 0.4:
            return Indivisible("413", too_large=rng.random() < 0.2)
        if drawn < 0.6:
            # A sink that wants order takes up to somewhere; another one here and there.
            first = rng.randint(0, len(texts)) if sink.ordered else 0
            again = [row for row in range(first, len(texts)) if row not in bad and (sink.ordered or rng.random() < 0.5)]
            return Taken(again, bad, why="429")
        return Taken(refused=bad)

    sink = ScriptedSink(answer, ordered)
    return sink


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_no_record_is_lost(tmp_path: Path, seed: int, ordered: bool) -> None:
    rng = random.Random(seed)
    files = Files()
    taken: list[bytes] = []

    async def process(entries: int, last: bool) -> None:
        calm: list[bool] = []
        sink = moody(rng, calm, ordered)
        clock = TestClock()
        spill = Spill("s", DiskBuffer(tmp_path / "buffer", 1 << 30, 1 << 16), "block", BOUNDS.window // 4, clock)
        lane = Lane(sink, DeadLetters(tmp_path, "s"), BOUNDS, clock, rng.uniform, spill)
        lane.open()
        task = asyncio.create_task(lane.run())
        for number in [each for each in range(len(files.entries)) if each not in files.settled]:
            files.offer(lane, number)
        for _ in range(entries):
            await until(lane.room, "room")
            files.offer(lane, files.more(rng))
            await asyncio.sleep(0)
        if last:
            calm.append(True)
            await until(lambda: not spill.active and not lane.held, "all is settled")
            total = lane.counts.total()
            assert total.offered == total.settled and not spill.buffer.pods and not lane.troubles()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lane.close(0)
        taken.extend(sink.taken)

    for part in range(4):
        asyncio.run(asyncio.wait_for(process(ENTRIES // 4, part == 3), 100))

    letters = {json.loads(each)["record"]["log"] for each in (tmp_path / "s.jsonl").read_text().splitlines()}
    expected = {each for entry in files.entries for each in entry}
    arrived = {each.decode() for each in taken}
    assert arrived | letters == expected, "one that is refused alone, as too large, is a letter too"
    assert not any(each.endswith(".4") for each in arrived)
    assert files.settled == set(range(ENTRIES))


@pytest.mark.parametrize("seed", range(6))
def test_order_is_kept_whatever_is_answered(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        files = Files()
        calm: list[bool] = []
        sink = moody(rng, calm, ordered=True)
        clock = TestClock()
        spill = Spill("s", DiskBuffer(tmp_path / "buffer", 1 << 30, 1 << 16), "block", BOUNDS.window // 4, clock)
        lane = Lane(sink, DeadLetters(tmp_path, "s"), BOUNDS, clock, rng.uniform, spill)
        lane.open()
        task = asyncio.create_task(lane.run())
        for _ in range(ENTRIES):
            await until(lane.room, "room")
            files.offer(lane, files.more(rng))
            await asyncio.sleep(0)
        calm.append(True)
        await until(lambda: not spill.active and not lane.held, "all is settled")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lane.close(0)
        assert len(sink.taken) == len(set(sink.taken)), "none twice"
        for pod in range(3):
            numbers = [int(each.split(b".")[0]) for each in sink.taken if int(each.split(b".")[0]) % 3 == pod]
            assert numbers == sorted(numbers)

    asyncio.run(asyncio.wait_for(test(), 100))
