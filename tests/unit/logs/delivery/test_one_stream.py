"""A sink that takes nothing of a request in which one pod's records are over a limit: all others get theirs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from nodeagent.logs.delivery.answers import CROWDED_BESIDE, PATIENCE
from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.side_lanes import MAX_LANES, QUIET_SECONDS, TOLD
from nodeagent.logs.delivery.spill import FULL, Spill
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.http_client import HttpAnswer
from nodeagent.logs.sinks.loki import outcome
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink, TestClock
from tests.unit.logs.made_records import origin, records
from tests.waiting import until

OTHERS = [f"pod-{each}" for each in range(6)]
BAD = origin("bad")
BOUNDS = LaneBounds(window=64 << 10, request=8 << 10)
AMPLE = 1 << 30
SMALL = 1 << 18
"""Bytes of a buffer."""
TO_BE_WRITTEN = BOUNDS.window
"""What the disk has not taken yet is held besides."""


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


class Files:
    """What pods write, and what of it is settled."""

    def __init__(self, pods: Sequence[str] = (*OTHERS, "bad")) -> None:
        self.written: dict[str, int] = dict.fromkeys(pods, 0)
        self.unsettled: dict[str, dict[int, int]] = {each: {} for each in self.written}
        """Entries by the number of their first record, in order: how many records they have."""

    def write(self, pod: str, count: int) -> int:
        first = self.written[pod]
        self.written[pod] += count
        self.unsettled[pod][first] = count
        return first

    def settle(self, pod: str, first: int) -> None:
        del self.unsettled[pod][first]


class Scene:
    def __init__(
        self, folder: Path, most: int, full: Literal["block", "dropOldest"] = "block", files: Files | None = None
    ) -> None:
        self.limited = Limited()
        self.sink = ScriptedSink(self.limited, ordered=True)
        self.clock = clock = TestClock()
        spill = None
        if most:
            disk = DiskBuffer(folder / "buffer", most, 1 << 16)
            spill = Spill("s", disk, full, BOUNDS.window // 4, clock)
        letters = DeadLetters(folder, "s")
        self.lane = Lane(self.sink, letters, BOUNDS, clock, lambda low, _high: low, spill=spill)
        self.lane.open()
        self.files = files or Files()
        self.held = 0
        self.on_disk = 0
        for pod, entries in self.files.unsettled.items():
            for first in entries:
                self._read(pod, first)

    def offer(self, pod: str, count: int = 5, size: int = 0) -> None:
        self._read(pod, self.files.write(pod, count), size)

    def _read(self, pod: str, first: int, size: int = 0) -> None:
        """As a file is read, on from what is settled of it."""
        filling = random.Random(first).randbytes(size // 2).hex()  # hardly compressed
        texts = [f"{pod} {each} {each}{filling}" for each in range(first, first + self.files.unsettled[pod][first])]
        receipt = Receipt(1, partial(self.files.settle, pod, first))
        self.lane.offer(records(texts, 100 * first, origin(pod)), receipt)
        self.held = max(self.held, self.lane.held_of_all)
        self.on_disk = max(self.on_disk, self.lane.buffered_bytes)

    def has_room(self, pod: str) -> bool:
        return self.lane.room(("shop", pod))

    def delivered(self, pod: str) -> list[int]:
        return [int(each.split()[1]) for each in self.sink.taken if each.split()[0] == pod.encode()]

    def has_all(self, pods: Sequence[str]) -> bool:
        return all(len(self.delivered(each)) == self.files.written[each] for each in pods)

    async def fill(self, pods: Sequence[str], rounds: int, size: int = 0) -> None:
        """As files are read: whose sink has no room is passed by."""
        for number in range(rounds):
            for pod in pods:
                if pod != "bad":
                    await until(lambda pod=pod: self.has_room(pod), f"room for {pod}")  # type: ignore[misc]
                if self.has_room(pod):
                    self.offer(pod, size=size)
            if number % 4 == 0:
                await asyncio.sleep(0)

    def all_in_order(self) -> None:
        for pod in self.files.written:
            assert self.delivered(pod) == list(range(self.files.written[pod])), "in order"
        total = self.lane.counts.total()
        assert total.delivered == total.offered and self.lane.held_of_all == 0
        assert not any(self.files.unsettled.values())


def run(
    folder: Path,
    test: Callable[[Scene], Awaitable[None]],
    most: int = 0,
    full: Literal["block", "dropOldest"] = "block",
    files: Files | None = None,
) -> list[bytes]:
    async def whole() -> list[bytes]:
        scene = Scene(folder, most, full, files)
        task = asyncio.create_task(scene.lane.run())
        try:
            await test(scene)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await scene.lane.close(0)
        return scene.sink.taken

    return asyncio.run(asyncio.wait_for(whole(), 240))


@pytest.mark.parametrize("most", [0, AMPLE])
def test_one_stream_over_a_limit_stops_no_other(tmp_path: Path, most: int) -> None:
    async def test(scene: Scene) -> None:
        scene.offer("bad")
        for _ in range(20):
            await scene.fill(OTHERS, 1)
            await until(lambda: scene.has_all(OTHERS))
        assert scene.delivered("bad") == []
        scene.offer("bad")
        assert any("shop/bad: 429" in each for each in scene.lane.troubles())
        scene.limited.over.clear()
        await until(lambda: len(scene.delivered("bad")) == 10)
        scene.all_in_order()
        assert scene.lane.troubles() == []

    run(tmp_path, test, most)


@pytest.mark.parametrize("most", [0, AMPLE])
def test_a_stream_over_a_limit_loses_nothing_and_takes_no_memory(tmp_path: Path, most: int) -> None:
    """More than the memory has: with a buffer it waits there, without one in its file."""

    async def test(scene: Scene) -> None:
        scene.offer("bad")
        await until(
            lambda: scene.has_room("bad") and not scene.lane.held and scene.lane.held_of_all, "it goes by itself"
        )
        await scene.fill([*OTHERS, *["bad"] * 12], 8)
        await until(lambda: scene.has_all(OTHERS))
        if most:
            await until(lambda: scene.lane.buffered_bytes and scene.lane.held_of_all < BOUNDS.window // 4, "on disk")
        assert scene.delivered("bad") == []
        assert scene.held < 2 * BOUNDS.window + TO_BE_WRITTEN
        scene.limited.over.clear()
        await until(lambda: scene.has_all(["bad"]))
        await until(lambda: scene.lane.held_of_all == 0)
        scene.all_in_order()

    run(tmp_path, test, most)


def test_without_a_disk_what_fills_the_memory_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        while scene.lane.room():
            scene.offer("bad")
        pods = scene.lane.counts.pods
        while not pods[("shop", "bad")].dead_lettered:
            await scene.fill(OTHERS, 1)
        assert pods[("shop", "bad")].retried > CROWDED_BESIDE
        await until(lambda: scene.has_all(OTHERS))
        scene.limited.over.clear()
        await until(lambda: scene.lane.held_of_all == 0)
        bad = pods[("shop", "bad")]
        assert bad.offered == bad.delivered + bad.dead_lettered and bad.delivered
        assert scene.delivered("bad") == sorted(scene.delivered("bad"))

    run(tmp_path, test)


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
        await until(lambda: scene.has_all(OTHERS) and len(asked) > PATIENCE)
        assert asked[PATIENCE] - asked[0] < 120, "all wait for as long as they do where nothing is asked for"
        while len(alone) < PATIENCE + 3:
            await scene.fill(OTHERS, 1)
        assert all(later - earlier >= 120 for earlier, later in pairwise(alone[-3:]))
        scene.limited.over.clear()
        await until(lambda: scene.has_all([*OTHERS, "bad"]))
        scene.all_in_order()

    run(tmp_path, test)


@pytest.mark.parametrize("most", [0, AMPLE])
def test_of_a_sink_that_takes_nothing_of_anybody_nothing_is_given_up(tmp_path: Path, most: int) -> None:
    """Each stream is over its limit, and all are waited for."""

    async def test(scene: Scene) -> None:
        scene.limited.over |= set(OTHERS)
        for _ in range(20):
            for pod in (*OTHERS, "bad"):
                if scene.has_room(pod):
                    scene.offer(pod)
        asked = scene.limited.asked
        await until(lambda: scene.limited.asked > asked + 300)
        scene.limited.over.clear()
        await until(lambda: scene.has_all([*OTHERS, "bad"]) and not scene.lane.held_of_all)
        scene.all_in_order()

    run(tmp_path, test, most)


def test_at_the_bound_of_the_buffer_its_files_alone_are_read_no_further(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        scene.offer("bad")
        await until(lambda: scene.lane._sides.lanes, "it goes by itself")
        while not any("share of the buffer is full" in each for each in scene.lane.troubles()):
            await scene.fill([*OTHERS, "bad", "bad", "bad"], 1, size=1000)
            await asyncio.sleep(0)
        assert not scene.has_room("bad")
        before = scene.files.written["bad"]
        await scene.fill([*OTHERS, "bad"], 10, size=1000)
        await until(lambda: scene.has_all(OTHERS))
        assert scene.files.written["bad"] == before and scene.on_disk <= SMALL
        told = asyncio.Event()
        scene.lane.on_room = told.set
        scene.limited.over.clear()
        await until(lambda: scene.has_all(["bad"]) and not scene.lane.held_of_all)
        assert told.is_set(), "who reads is told"
        scene.all_in_order()

    run(tmp_path, test, SMALL)


def test_at_the_bound_of_the_buffer_its_oldest_alone_are_dropped_and_counted(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        scene.offer("bad")
        await until(lambda: scene.lane._sides.lanes, "it goes by itself")
        pods = scene.lane.counts.pods
        while pods[("shop", "bad")].dropped[FULL] < 100:
            await scene.fill([*OTHERS, *["bad"] * 12], 1, size=1000)
        assert scene.on_disk <= SMALL
        scene.limited.over.clear()
        await until(lambda: not scene.lane.held_of_all and not scene.lane.buffered_bytes)
        assert scene.has_all(OTHERS)
        bad = pods[("shop", "bad")]
        assert bad.offered == bad.delivered + bad.dropped[FULL] and not bad.dead_lettered
        assert scene.lane.counts.total().dropped.total() == bad.dropped[FULL]
        found = scene.delivered("bad")
        assert found == sorted(found) and found[-1] == scene.files.written["bad"] - 1

    run(tmp_path, test, SMALL, "dropOldest")


def test_what_is_on_disk_when_a_stream_is_found_goes_by_itself_too(tmp_path: Path) -> None:
    """A sink that was away, and limits one of those that all wrote meanwhile."""

    async def test(scene: Scene) -> None:
        assert scene.lane.spill
        scene.sink.answer = lambda _texts: Untaken("down")
        await scene.fill([*OTHERS, "bad", "bad"], 15, size=1000)
        await until(lambda: scene.lane.spill and scene.lane.spill.active)
        scene.sink.answer = scene.limited
        await until(lambda: scene.has_all(OTHERS), "the others pass it by")
        assert scene.delivered("bad") == []
        await scene.fill([*OTHERS, "bad"], 3, size=1000)
        scene.limited.over.clear()
        await until(lambda: scene.has_all(["bad"]) and not scene.lane.held_of_all)
        scene.all_in_order()

    run(tmp_path, test, AMPLE)


def test_however_many_are_limited_the_others_go_on(tmp_path: Path) -> None:
    """More than may go by themselves, and more than the memory has of what all of them are asked for again."""
    limited = [f"limited-{each}" for each in range(MAX_LANES + 36)]

    async def test(scene: Scene) -> None:
        scene.limited.over = set(limited)
        scene.sink.answer = lambda _texts: Untaken("down")
        await scene.fill([*limited, *OTHERS], 2, size=1000)
        scene.sink.answer = scene.limited
        await until(lambda: scene.has_all(OTHERS), "the others pass them by")
        await until(lambda: len(scene.lane.troubles()) == TOLD + 1, "it is told of some, and how many there are")
        assert scene.lane.troubles()[-1].endswith("more pods wait by themselves")
        await scene.fill(OTHERS, 3)
        await until(lambda: scene.has_all(OTHERS))
        assert not any(map(scene.delivered, limited))
        scene.limited.over.clear()
        await until(lambda: scene.has_all(limited) and not scene.lane.held_of_all)
        scene.all_in_order()

    run(tmp_path, test, AMPLE, files=Files([*limited, *OTHERS]))


def test_where_limited_pods_have_all_of_the_buffer_the_others_go_to_the_sink_as_they_are(tmp_path: Path) -> None:
    files = Files()

    async def had_by_an_earlier_process() -> None:
        side = DiskBuffer(tmp_path / "buffer", SMALL, 1 << 16).side(0)
        side.open()
        while side.bytes < SMALL * 2 // 3:
            number = files.written["bad"]
            files.written["bad"] += 1
            await side.append([records([f"bad {number} {random.Random(number).randbytes(1000).hex()}"], number, BAD)])
        await side.close()

    async def test(scene: Scene) -> None:
        scene.sink.answer = lambda _texts: Untaken("down")
        await scene.fill(OTHERS, 2)
        down = len(scene.sink.requests)
        await until(lambda: len(scene.sink.requests) > down + 20)
        scene.sink.answer = scene.limited
        await until(lambda: scene.has_all(OTHERS))
        assert not scene.delivered("bad")
        scene.limited.over.clear()
        await until(lambda: scene.has_all(["bad"]) and not scene.lane.held_of_all)
        scene.all_in_order()

    asyncio.run(had_by_an_earlier_process())
    run(tmp_path, test, SMALL, files=files)


def test_what_waits_on_disk_is_not_written_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appended = 0
    append = DiskBuffer.append

    async def counted(buffer: DiskBuffer, batch: Sequence[LogRecords]) -> None:
        nonlocal appended
        await append(buffer, batch)
        appended += 1

    async def test(scene: Scene) -> None:
        scene.offer("bad", 1)
        await until(lambda: appended)
        asked = scene.limited.asked
        await until(lambda: scene.limited.asked > asked + 20)
        assert appended == 1

    monkeypatch.setattr(DiskBuffer, "append", counted)
    run(tmp_path, test, AMPLE)


def test_who_was_limited_goes_with_the_others_again(tmp_path: Path) -> None:
    """Once another one begins to go by itself, if that is long ago."""

    async def test(scene: Scene) -> None:
        for pod in ("bad", *OTHERS[:2]):
            scene.limited.over = {pod}
            scene.offer(pod)
            await until(lambda pod=pod: any(pod in each for each in scene.lane.troubles()), "it goes by itself")  # type: ignore[misc]
            scene.limited.over.clear()
            await until(lambda pod=pod: scene.has_all([pod]))  # type: ignore[misc]
            scene.clock.seconds += QUIET_SECONDS if pod == "bad" else 0
        alone = {pod for pod in scene.files.written if scene.lane._sides.of(("shop", pod))}
        assert alone == set(OTHERS[:2])
        await scene.fill([*OTHERS, "bad"], 3)
        await until(lambda: not scene.lane.held_of_all)
        scene.all_in_order()

    run(tmp_path, test, AMPLE)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_limited_or_down_and_whenever_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, killed: bool
) -> None:
    """Each record comes, in its pod's order; what a process takes twice it had not known as taken."""
    if killed:
        monkeypatch.setattr(DiskBuffer, "save", lambda _buffer: None)  # it had no time to write down what was taken
    rng = random.Random(seed)
    files = Files()
    taken: list[bytes] = []

    async def part(scene: Scene) -> None:
        for _ in range(20):
            scene.limited.over = {each for each in files.written if rng.random() < 0.3}
            scene.sink.answer = (lambda _texts: Untaken("down")) if rng.random() < 0.2 else scene.limited
            for pod in files.written:
                for _ in range(rng.randint(0, 4)):
                    if scene.has_room(pod):
                        scene.offer(pod, rng.randint(1, 5), rng.choice([0, 300]))
            asked = len(scene.sink.requests)
            await until(lambda asked=asked: len(scene.sink.requests) > asked or not scene.lane.held_of_all)  # type: ignore[misc]
            scene.sink.answer = scene.limited
        assert scene.held < 2 * BOUNDS.window + TO_BE_WRITTEN

    async def last(scene: Scene) -> None:
        scene.limited.over.clear()
        await until(lambda: not scene.lane.held_of_all and not scene.lane.buffered_bytes, "all is delivered")
        total = scene.lane.counts.total()
        assert total.offered == total.delivered

    for test in (part, part, last):
        taken += run(tmp_path, test, AMPLE, files=files)
    assert not any(files.unsettled.values())
    for pod, written in files.written.items():
        found = [int(each.split()[1]) for each in taken if each.split()[0] == pod.encode()]
        assert list(dict.fromkeys(found)) == list(range(written)), "in order, and none is missing"


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

    run(tmp_path, test, AMPLE)
