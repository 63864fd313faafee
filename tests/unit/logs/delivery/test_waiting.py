"""What waits is cut into pieces that fit a request, however little its lines say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.waiting import Entry, Rest, cost, cut
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.sink import Payload
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 3000), st.booleans())
def test_an_entry_is_cut_into_what_fits(sizes: list[int], most: int, backwards: bool) -> None:
    made = records(["x" * each for each in sizes])
    settled: list[int] = []
    whole = Entry(made, lambda: settled.append(1), 5.0, cost(made), len(made))

    def settle(entry: Entry, rows: int) -> None:
        entry.left -= rows
        if not entry.left:
            entry.settled()

    parts = cut(whole, most, settle)
    assert [text for each in parts for text in each.records.texts] == made.texts
    assert [offset for each in parts for offset in each.records.offsets] == made.offsets
    assert sum(each.cost for each in parts) == cost(made)
    for each in parts:
        assert each.cost == cost(each.records) and each.since == 5.0
        assert each.cost <= most or len(each.records) == 1
    for each in parts[::-1] if backwards else parts:
        assert not settled
        settle(each, len(each.records))
    assert settled == [1]


class _Costly(ScriptedSink):
    """Knows what its requests cost."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[int] = []

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        self.costs.append(sum(map(cost, batch)))
        return super().encode(batch)


@pytest.mark.parametrize("labels", [3, 40])
def test_lines_of_a_byte_make_no_large_requests(tmp_path: Path, labels: int) -> None:
    """A megabyte of memory that is full of them was half a gigabyte in one request."""

    async def test() -> None:
        sink = _Costly()
        lane = Lane(sink, DeadLetters(tmp_path, "s"), LaneBounds(), TestClock())
        task = asyncio.create_task(lane.run())
        done: list[int] = []
        source = origin(namespace="n" * 100 * labels)
        lane.offer(records(["a"] * 20_000, source=source), Receipt(1, lambda: done.append(1)))
        await until(lambda: done)
        assert max(sink.costs) <= 2 * LaneBounds().request
        assert sink.taken == [b"a"] * 20_000
        assert lane.held == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_what_could_not_be_put_on_disk_fits_a_request_too(tmp_path: Path) -> None:
    async def test() -> None:
        sink = _Costly()
        bounds = LaneBounds(window=64 << 10, request=4 << 10)
        lane = Lane(sink, DeadLetters(tmp_path, "s"), bounds, TestClock())
        done: list[int] = []
        made = records(["a"] * 300)
        whole = Entry(made, lambda: done.append(1), 1000.0, cost(made), len(made))
        lane.held += whole.cost
        for at in range(0, 300, 3):  # as they come back of requests of which the sink took some
            rows = records(["a"] * 3, start=100 * at)
            lane.give_back(Rest(whole, rows))
        task = asyncio.create_task(lane.run())
        await until(lambda: done)
        assert max(sink.costs) <= 2 * bounds.request
        assert lane.held == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(test(), 60))
