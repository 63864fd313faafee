"""A lane whose disk fails at any call: nothing ends, nothing is half written, every record is in one place, and
all of it is delivered once the disk is well again.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs.delivery import buffer
from nodeagent.logs.delivery.buffer import READS
from nodeagent.logs.delivery.segments import SegmentReader
from nodeagent.logs.delivery.spill import DAMAGED, RETRY_SECONDS
from nodeagent.logs.sinks.rotating import RotatingFile
from nodeagent.logs.sinks.sink import Outcome, Taken, Untaken
from tests.unit.logs.delivery.scripted import ScriptedSink
from tests.unit.logs.delivery.test_spill import Scene, down, run, running, up
from tests.waiting import until

CALLS = ("write", "fdatasync", "fsync", "ftruncate", "open", "close", "unlink", "rename", "mkdir")
FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


class FaultyDisk:
    """Lets calls that touch one folder fail, each by chance."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = str(folder)
        self._chance = chance
        self._real = {name: getattr(os, name) for name in CALLS}
        self._io_open = io.open
        self._next: Callable[..., Any] = SegmentReader.next
        self.share = 0.0
        self.only: frozenset[str] = frozenset((*CALLS, "read"))
        self.failed = 0

    def _may_fail(self, name: str) -> None:
        if name in self.only and self._chance.random() < self.share:
            self.failed += 1
            number = self._chance.choice(FAULTS) if name != "read" else errno.EIO
            raise OSError(number, os.strerror(number))

    def _ours(self, what: object) -> bool:
        try:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)  # type: ignore[call-overload]
        except (OSError, TypeError):
            return False
        return str(path).startswith(self._folder)

    @contextmanager
    def patched(self, patch: pytest.MonkeyPatch) -> Iterator[FaultyDisk]:
        for name, real in self._real.items():
            patch.setattr(os, name, self._failing(name, real))
        patch.setattr(io, "open", self._failing("open", self._io_open))
        patch.setattr(SegmentReader, "next", self._reading())
        try:
            yield self
        finally:
            patch.undo()

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *arguments: Any, **named: Any) -> Any:
            if not self._ours(what):
                return real(what, *arguments, **named)
            if name == "write" and len(arguments[0]) > 1 and self._chance.random() < self.share:
                some = real(what, arguments[0][: len(arguments[0]) // 2])  # a disk that fills up takes some of it
                self._may_fail(name)
                return some
            if name == "close":
                real(what)  # close(2): the descriptor is gone whatever it returns
                self._may_fail(name)
                return None
            self._may_fail(name)
            return real(what, *arguments, **named)

        return call

    def _reading(self) -> Callable[[SegmentReader, int], Any]:
        def call(reader: SegmentReader, until: int) -> Any:
            self._may_fail("read")
            return self._next(reader, until)

        return call


def half_the_time(chance: random.Random) -> Callable[[list[bytes]], Outcome]:
    return lambda _texts: Taken() if chance.random() < 0.5 else Untaken("down")


@pytest.mark.parametrize("seed", range(12))
def test_every_record_is_somewhere_and_arrives_once_the_disk_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(buffer, "READS", 1 << 20)  # nothing is given up, however often it cannot be read
    chance = random.Random(seed)
    disk = FaultyDisk(tmp_path, chance)

    async def test() -> None:
        sink = ScriptedSink(half_the_time(chance), ordered=bool(seed % 2))
        async with running(tmp_path, sink, most=1 << 20) as scene:
            sink.answer = down
            disk.share = 1.0
            await offer_what_fits(scene, 60)
            await until(lambda: disk.failed > 0, "the disk has failed")
            for phase in range(10):
                disk.share = chance.choice([0.0, 0.1, 0.3]) if phase < 8 else 0.0
                sink.answer = chance.choice([half_the_time(chance), down, down])
                await offer_what_fits(scene, 60)
                accounted(scene)
            sink.answer = up
            await until(lambda: scene.settled == scene.offered and not scene.buffer.pods, "all is delivered")
            scene.identity()
            assert set(scene.taken()) == set(range(scene.offered))
            scene.clock.seconds += RETRY_SECONDS
            await scene.offer_many(1)
            await until(lambda: scene.lane.troubles() == [], "nothing is complained of any more")

    with disk.patched(monkeypatch):
        run(test)


async def offer_what_fits(scene: Scene, count: int) -> None:
    """As files are read: where there is no room for long, later."""
    for _ in range(count):
        for _ in range(200):
            if scene.lane.room():
                scene.offer([f"{scene.offered:06} {os.urandom(500).hex()}"], f"web-{scene.offered % 3}")
                break
            await asyncio.sleep(0)


def accounted(scene: Scene) -> None:
    """Offered is settled, or in memory, or on disk."""
    total = scene.lane.counts.total()
    assert total.offered == scene.offered
    assert total.delivered + total.dropped.total() + total.dead_lettered <= total.offered
    assert total.dropped.total() == 0


def test_a_full_disk_that_keeps_the_place_from_being_written_loses_nothing_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken from the buffer is sent though it cannot be written down that it was."""
    disk = FaultyDisk(tmp_path, random.Random(1))

    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink) as scene:
            await scene.offer_many(300)
            await until(lambda: scene.settled == 300, "all on disk")
            disk.share = 1.0
            disk.only = frozenset({"rename"})
            sink.answer = up
            await until(lambda: len(sink.taken) == 300, "all of it arrives")
            await until(lambda: not scene.buffer.pods)
            scene.identity()

    with disk.patched(monkeypatch):
        run(test)


def test_a_disk_that_cannot_be_read_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyDisk(tmp_path, random.Random(1))

    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink) as scene:
            await scene.offer_many(300)
            await until(lambda: scene.settled == 300, "all on disk")
            disk.only = frozenset({"read"})
            disk.share = 1.0
            sink.answer = up
            await until(lambda: any("Input/output error" in each for each in scene.lane.troubles()), "it is said")
            disk.share = 0.0
            await until(lambda: len(sink.taken) == 300, "all of it arrives")
            await until(lambda: scene.lane.troubles() == [], "it is well again")
            scene.identity()

    with disk.patched(monkeypatch):
        run(test)


def test_what_the_disk_never_gives_back_is_counted_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk(tmp_path, random.Random(1))

    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink) as scene:
            await scene.offer_many(300)
            await until(lambda: scene.settled == 300, "all on disk")
            disk.only = frozenset({"read"})
            disk.share = 1.0
            before = scene.clock.now()
            sink.answer = up
            await until(lambda: scene.lane.counts.total().dropped[DAMAGED] > 0, "a segment is given up")
            assert scene.clock.now() - before >= (READS - 1) * RETRY_SECONDS
            disk.share = 0.0
            await until(lambda: not scene.buffer.pods, "the others are read")
            scene.identity()
            assert len(sink.taken) + scene.lane.counts.total().dropped[DAMAGED] == 300

    with disk.patched(monkeypatch):
        run(test)


def test_segments_that_somebody_removed_are_counted_and_wedge_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        sink = ScriptedSink(down)
        async with running(tmp_path, sink) as scene:
            await scene.offer_many(300)
            await until(lambda: scene.settled == 300, "all on disk")
            for each in scene.folder.glob("*.segment"):
                each.unlink()
            scene.buffer._leave()
            sink.answer = up
            await until(lambda: not scene.buffer.pods, "nothing waits for what is gone")
            await scene.offer_many(3)
            await until(lambda: scene.lane.held == 0, "what comes after it")
            assert {300, 301, 302} <= set(scene.taken())
            scene.identity()

    run(test)


def test_what_an_earlier_process_left_is_delivered_from_a_disk_that_takes_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultyDisk(tmp_path, random.Random(1))

    async def first() -> None:
        async with running(tmp_path, ScriptedSink(down)) as scene:
            await scene.offer_many(300)
            await until(lambda: scene.settled == 300, "all on disk")

    async def second() -> None:
        sink = ScriptedSink(up)
        async with running(tmp_path, sink) as scene:
            await until(lambda: len(set(sink.taken)) == 300, "all of it arrives")
            await until(lambda: not scene.buffer.pods)
            assert any("written down" in each or "removed" in each for each in scene.lane.troubles()) or disk.failed

    run(first)
    disk.only = frozenset({"write", "unlink", "rename", "mkdir", "ftruncate"})
    disk.share = 1.0
    with disk.patched(monkeypatch):
        run(second)


@pytest.mark.parametrize("seed", range(8))
def test_a_file_of_lines_has_whole_lines_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    disk = FaultyDisk(tmp_path, chance)
    disk.share = 0.4
    written: list[int] = []
    died = 0
    with disk.patched(monkeypatch):
        file = RotatingFile(tmp_path / "out.jsonl", 2000, 50)
        for number in range(200):
            if chance.random() < 0.05:
                # It dies and leaves half a line; another process goes on.
                died += 1
                share, disk.share = disk.share, 0.0
                file.close()
                with open(tmp_path / "out.jsonl", "ab") as torn:
                    torn.write(b'{"n":')
                disk.share = share
                file = RotatingFile(tmp_path / "out.jsonl", 2000, 50)
            try:
                file.append(json.dumps({"n": number, "text": "x" * 40}).encode() + b"\n")
            except OSError:
                continue
            written.append(number)
        disk.share = 0.0
        file.append(b'{"n":200}\n')
        file.close()
    lines = [line for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    whole = [line for line in lines if line.endswith(b"}")]
    found = [json.loads(line)["n"] for line in whole]
    assert len(lines) - len(whole) <= died
    assert set(written) <= set(found)
    assert len(found) == len(set(found))
