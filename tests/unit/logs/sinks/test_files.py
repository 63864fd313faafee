"""Sinks that write lines, and the file that is renamed when it is large."""

from __future__ import annotations

import asyncio
import json
import os
import select
from contextlib import suppress
from pathlib import Path

import pytest

from nodeagent.logs.delivery import lane as lanes
from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.clock import MonotonicClock
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.records import Receipt
from nodeagent.logs.sinks.files import FileSink, StdoutSink
from nodeagent.logs.sinks.making import make_sink
from nodeagent.logs.sinks.rotating import RotatingFile
from nodeagent.logs.sinks.settings import FileSinkSettings, SinkSettings
from nodeagent.logs.sinks.sink import Taken, Untaken
from tests.unit.logs.made_records import records
from tests.waiting import DEADLINE, until


def test_a_file_has_one_json_object_a_line(tmp_path: Path) -> None:
    sink = make_sink(SinkSettings.model_validate({"name": "x", "file": {"path": str(tmp_path / "out")}}))

    async def test() -> None:
        assert await sink.send(sink.encode([records(["a"]), records([{"b": 1}])])) == Taken()
        await sink.close()

    asyncio.run(test())
    lines = [json.loads(each) for each in (tmp_path / "out").read_text().splitlines()]
    assert [each.get("log") for each in lines] == ["a", None]
    assert lines[1]["b"] == 1 and lines[1]["kubernetes"]["namespace_name"] == "shop"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    sink = FileSink("x", FileSinkSettings(path=tmp_path / "missing" / "out"), 5)
    outcome = asyncio.run(sink.send(sink.encode([records(["a"])])))
    assert isinstance(outcome, Untaken) and str(tmp_path / "missing" / "out") in outcome.why


def test_standard_output_gets_lines_and_its_end_is_told() -> None:
    reading, writing = os.pipe()
    sink = StdoutSink("x", 5, writing)
    try:
        assert asyncio.run(sink.send(sink.encode([records(["a"])]))) == Taken()
        assert json.loads(os.read(reading, 4096))["log"] == "a"
    finally:
        os.close(reading)
    assert isinstance(asyncio.run(sink.send(sink.encode([records(["a"])]))), Untaken)
    os.close(writing)


def test_a_reader_that_hangs_is_told_and_waited_for_and_nothing_comes_twice(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    sink = StdoutSink("x", 0.05, writing)
    lane = Lane(sink, DeadLetters(tmp_path, "x"))
    batch = [records(["x" * 1000]) for _ in range(200)]

    async def test() -> bytearray:
        running = asyncio.create_task(lane.run())
        for each in batch:
            lane.offer(each, Receipt(1, lambda: None))
        await until(lambda: "stopped reading" in lane.trouble, "it is said")
        read = bytearray()

        def all_is_read() -> bool:
            with suppress(BlockingIOError):
                read.extend(os.read(reading, 1 << 16))
            return lane.counts.total().delivered == len(batch) and not readable(reading)

        await until(all_is_read, "all is delivered")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await lane.close(0)
        return read

    assert asyncio.run(test()).count(b"\n") == len(batch)
    os.close(reading)
    os.close(writing)


def test_what_is_written_slowly_does_not_come_from_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SPILL_SECONDS", 0.1)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    clock = MonotonicClock()
    spill = Spill("x", DiskBuffer(tmp_path / "buffer", 1 << 28), "block", 1 << 20, clock)
    lane = Lane(StdoutSink("x", 0.05, writing), DeadLetters(tmp_path, "x"), clock=clock, spill=spill)
    lane.open()

    async def test() -> bytearray:
        running = asyncio.create_task(lane.run())
        for number in range(300):
            lane.offer(records([f"{number} {'x' * 1000}"], start=number * 2000), Receipt(1, lambda: None))
            if number == 150:
                await until(lambda: "stopped reading" in lane.trouble, "it is written too slowly")
        await until(lambda: lane.buffered_bytes, "what follows is on disk")
        read = bytearray()

        def all_is_read() -> bool:
            with suppress(BlockingIOError):
                read.extend(os.read(reading, 1 << 16))
            return lane.counts.total().delivered == 300 and not readable(reading)

        await until(all_is_read, "all is delivered")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await lane.close(0)
        return read

    lines = asyncio.run(test()).splitlines()
    assert [int(json.loads(each)["log"].split()[0]) for each in lines] == list(range(300))
    os.close(reading)
    os.close(writing)


def test_a_sink_that_hangs_does_not_keep_the_collector_from_ending(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    lane = Lane(StdoutSink("x", 60, writing), DeadLetters(tmp_path, "x"))

    async def test() -> None:
        running = asyncio.create_task(lane.run())
        lane.offer(records(["x" * (1 << 18)]), Receipt(1, lambda: None))
        await until(lambda: readable(reading), "it is being written")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.wait_for(lane.close(0.1), DEADLINE)

    asyncio.run(test())
    os.close(reading)
    os.close(writing)


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_files_are_renamed_when_they_are_large(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "f", most=10, keep=2)
    for each in range(5):
        file.append(b"%d" % each * 8)
    file.close()
    assert {each.name: each.read_bytes()[:1] for each in tmp_path.iterdir()} == {"f": b"4", "f.1": b"3", "f.2": b"2"}


def test_none_is_kept_where_none_may_be(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "f", most=10, keep=0)
    for each in range(3):
        file.append(b"%d" % each * 8)
    file.close()
    assert [each.read_bytes()[:1] for each in tmp_path.iterdir()] == [b"2"]


def test_a_file_that_another_renamed_is_made_anew(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "f", most=1000, keep=2)
    file.append(b"a")
    (tmp_path / "f").rename(tmp_path / "elsewhere")
    file.append(b"b")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"b"


def test_nothing_stays_of_a_piece_that_was_not_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RotatingFile(tmp_path / "f", most=1000, keep=2)
    file.append(b"whole\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            file.append(b"half")
    file.append(b"next\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"whole\nnext\n"


def test_no_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "f").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        RotatingFile(tmp_path / "f", most=10, keep=0).append(b"x")
