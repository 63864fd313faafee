"""The whole collector is killed at random moments, while applications write and have their files rotated in every way,
and their sink is down, busy, and dies: no line is missing, and no id ever stands for two records.

``NODEAGENT_KILLS`` says how often (default 10, some seconds); ``make log-kills``: a hundred, some minutes. What is
drawn is drawn from a seed that is printed; ``NODEAGENT_SEED`` repeats it, though not to the moment.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodeagent.control import log_collector
from tests.unit.logs.collecting import REFUSED, Node, collecting, number_of
from tests.waiting import DEADLINE, until

KILLS = int(os.environ.get("NODEAGENT_KILLS", "10"))
LIFE = 0.6
"""Seconds of a collector's at most, once it collects."""
REPORT_SECONDS = 0.1


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies soon after its start is replaced at once, too."""
    monkeypatch.setattr(log_collector, "RESPAWN_SECONDS", 0.0)


def drawn() -> random.Random:
    """Return what this run draws from, and print how to repeat it."""
    seed = os.environ.get("NODEAGENT_SEED") or str(random.randrange(1 << 32))
    print(f"NODEAGENT_SEED={seed} NODEAGENT_KILLS={KILLS} repeats this")
    return random.Random(seed)


@asynccontextmanager
async def beside(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Have *works* done, again and again, until the block ends."""

    async def again(work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await work()

    tasks = [asyncio.create_task(again(each)) for each in works]
    try:
        yield
    finally:
        for each in tasks:
            each.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


@asynccontextmanager
async def written(node: Node) -> AsyncIterator[None]:
    """Have the applications write, each in a thread of its own, until the block ends."""
    ended = threading.Event()
    threads = [threading.Thread(target=each.go_on, args=(ended,)) for each in node.applications]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        ended.set()
        for each in threads:
            await asyncio.to_thread(each.join)


async def reported(node: Node) -> None:
    await node.report()
    await asyncio.sleep(REPORT_SECONDS)  # applications tidy up as often


async def judge(node: Node, kills: int) -> None:
    """Once the sink is well and all is written: everything is there, and accounted for."""
    node.sink.down = False
    node.sink.well = True
    deadline = time.monotonic() + DEADLINE
    while missing := node.missing():
        assert time.monotonic() < deadline, f"{len(missing)} lines are missing: {missing[:4]}, … {missing[-1]}"
        await reported(node)

    def settled() -> bool:
        return not node.total("records_waiting") and not node.total("buffered_bytes")

    async with beside(lambda: reported(node)):
        await until(settled, "nothing waits")
    assert node.sink.clashes == []
    lines = {text for each in node.applications for text in each.texts()}
    assert node.arrived() <= lines, "lines that nobody wrote"
    assert {number_of(each) % REFUSED for each in node.letters()} <= {0}
    assert node.total("records_offered_total") > 0
    assert node.unaccounted() == 0
    assert node.total("records_dropped_total") == 0
    assert node.total("bytes_lost_total") == 0
    assert node.total("collector_restarts_total") == kills
    entries = [names for text, names in node.sink.taken.items() if text.startswith("journal ")]
    assert entries
    assert max(map(len, entries)) == 1, "an entry of the journal came under two ids"
    twice = sum(len(names) > 1 for names in node.sink.taken.values())
    print(
        f"{len(lines)} lines, {kills} kills: {twice} came under two ids; "
        f"{node.total('records_returned_total'):.0f} records were under way when a collector died"
    )


@pytest.mark.timeout(3600)
def test_nothing_is_missing_however_often_the_collector_is_killed(tmp_path: Path) -> None:
    chance = drawn()

    async def run() -> None:
        async with collecting(tmp_path, chance) as node:

            async def mood() -> None:
                await asyncio.sleep(chance.uniform(0.2, 1.5))  # as long as the sink keeps its mood
                node.sink.down = not node.sink.down

            async with written(node), beside(mood, lambda: reported(node)):
                for _ in range(KILLS):
                    await node.kill(chance, LIFE)
            await judge(node, KILLS)

    asyncio.run(run())


@pytest.mark.timeout(3600)
def test_nothing_is_missing_where_the_buffer_is_full_and_blocks(tmp_path: Path) -> None:
    chance = drawn()
    bound = 256 << 10

    async def run() -> None:
        async with collecting(tmp_path, chance, buffer=bound) as node:
            node.sink.down = True
            for each in node.applications:
                each.write(6_000)

            async def bounded() -> None:
                assert node.segments() <= bound
                await reported(node)

            async with written(node), beside(bounded):
                for _ in range(max(2, KILLS // 4)):
                    await node.kill(chance, LIFE)
                await until(lambda: any("buffer full" in each for each in node.warnings), "it is full")
                await until(lambda: "blocked" in node.states, "files are read no further")
                await node.kill(chance, 0)
            await judge(node, max(2, KILLS // 4) + 1)

    asyncio.run(run())
