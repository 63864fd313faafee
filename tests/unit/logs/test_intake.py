"""What reads and delivers, without control: what is wrong with the folder of positions is told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.channel import pair
from nodeagent.logs.collector import Collector, Intake
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.logs.tail.positions import FILE
from nodeagent.messages import LogFileOpened, StartCollector
from nodeagent.proxy import privilege
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, encode
from tests.waiting import until

SOURCE = SourceFacts(
    "file/u/v/a.log", "file", PodUid("u"), "default", "web", "", "v/a.log", reading=Reading(sinks=("all",))
)


def test_that_a_pod_wrote_more_than_it_may_is_said_at_its_files(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"{number:0100}\n" for number in range(2000)))
    (tmp_path / "state").mkdir()
    sink = {"name": "all", "file": {"path": str(tmp_path / "out.jsonl")}}
    limits = {"bytesPerSecondPerPod": 10000}
    given = {"stateDirectory": str(tmp_path / "state"), "sinks": [sink], "limits": limits}

    async def scenario() -> None:
        intake = Intake(LogSettings.model_validate(given), "node1")
        tasks: set[asyncio.Task[None]] = set()
        intake.begin(lambda work: tasks.add(asyncio.create_task(work)))  # type: ignore[arg-type]
        try:
            intake.source(SOURCE)
            found = log.stat()
            descriptor = FileDescriptor(os.open(log, os.O_RDONLY | os.O_CLOEXEC))
            intake.add(LogFileOpened(SOURCE.key, log.name, found.st_dev, found.st_ino, 0, descriptor))
            words = "records were dropped, over logs.limits.bytesPerSecondPerPod"
            await until(lambda: [words in each.get("why", "") for each in intake.rows()] == [True], "it is said")
        finally:
            await intake.end(5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_positions_that_cannot_be_written_are_warned_of_until_they_can(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\n")
    (tmp_path / "state" / f"{FILE}.new").mkdir(parents=True)  # in the place of what is renamed to the positions file
    sink = {"name": "all", "file": {"path": str(tmp_path / "out.jsonl")}}
    settings = LogSettings.model_validate({"stateDirectory": str(tmp_path / "state"), "sinks": [sink]})

    async def scenario() -> None:
        intake = Intake(settings, "node1")
        tasks: set[asyncio.Task[None]] = set()

        def start(work: Coroutine[object, object, None]) -> None:
            tasks.add(asyncio.create_task(work))

        intake.begin(start)
        try:
            intake.source(SOURCE)
            found = log.stat()
            descriptor = FileDescriptor(os.open(log, os.O_RDONLY | os.O_CLOEXEC))
            intake.add(LogFileOpened(SOURCE.key, log.name, found.st_dev, found.st_ino, 0, descriptor))
            await until(lambda: any("positions cannot be written" in each for each in intake.warnings()), "a warning")
            out = tmp_path / "out.jsonl"
            await until(lambda: out.exists() and '"log":"one"' in out.read_text(), "reading goes on")
            (tmp_path / "state" / f"{FILE}.new").rmdir()
            with log.open("a") as file:
                file.write("two\n")
            await until(lambda: intake.warnings() == [], "no warning any more")
            assert (tmp_path / "state" / FILE).exists()
        finally:
            await intake.end(5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_another_controls_first_words_end_it_where_they_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privilege, "drop", lambda _: None)
    (tmp_path / "state").mkdir()

    def words(sink: str) -> bytes:
        sinks = [{"name": sink, "file": {"path": str(tmp_path / "out.jsonl")}}]
        told = StartCollector({"stateDirectory": str(tmp_path / "state"), "sinks": sinks}, "node1", 1)
        return encode(told)[0]

    async def scenario() -> None:
        ours, theirs = pair()
        collector = Collector(asyncio.get_running_loop(), theirs)
        ours.send(words("one"))
        ours.send(words("one"))
        await until(lambda: _received(ours), "it collects")
        assert not collector.done.done(), "the same words end nobody"
        ours.send(words("two"))
        await asyncio.wait_for(collector.done, 10)
        ours.close()

    asyncio.run(scenario())


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except BlockingIOError:
        return b""


def test_nothing_is_settled_of_a_source_with_a_sink_that_is_not_known(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\n")
    (tmp_path / "state").mkdir()
    sink = {"name": "others", "file": {"path": str(tmp_path / "out.jsonl")}}
    settings = LogSettings.model_validate({"stateDirectory": str(tmp_path / "state"), "sinks": [sink]})

    async def scenario() -> None:
        intake = Intake(settings, "node1")
        tasks: set[asyncio.Task[None]] = set()
        intake.begin(lambda work: tasks.add(asyncio.create_task(work)))  # type: ignore[arg-type]
        try:
            intake.source(SOURCE)
            intake.add(opened(log))
            await until(lambda: intake.rows(), "it is open")
            assert intake.warnings() == ["sink all is unknown to the collector; nothing is read that goes there"]
            intake.source(replace(SOURCE, reading=Reading(sinks=("others",))))
            out = tmp_path / "out.jsonl"
            await until(lambda: out.exists() and '"log":"one"' in out.read_text(), "all of it is there")
            assert intake.warnings() == []
        finally:
            await intake.end(5)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def opened(log: Path) -> LogFileOpened:
    """Return the message that hands *log* over."""
    found = log.stat()
    descriptor = FileDescriptor(os.open(log, os.O_RDONLY | os.O_CLOEXEC))
    return LogFileOpened(SOURCE.key, log.name, found.st_dev, found.st_ino, 0, descriptor)
