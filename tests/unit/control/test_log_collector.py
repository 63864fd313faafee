"""The collector's process as control has it: forked, replaced, taken over, ended; what it is told, and may say."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nodeagent.channel import Packet, decode, pair, receive
from nodeagent.control.log_collector import LogCollector
from nodeagent.control.log_opening import Opened
from nodeagent.control.log_scan import FileId, FoundFile
from nodeagent.logs.sources import SourceFacts, from_json
from nodeagent.messages import (
    TO_COLLECTOR,
    AllLogsTold,
    AskCollector,
    Collecting,
    CollectorCounted,
    CollectorRows,
    FinishLogs,
    Fork,
    LogFileClosed,
    LogFileOpened,
    LogFilePutAside,
    LogSourceGone,
    LogSourceTold,
    Signal,
    StartCollector,
    ToSupervisor,
)
from nodeagent.parts import Parts
from nodeagent.vocabulary import PodUid
from nodeagent.wire import encode
from tests.waiting import until

START = StartCollector({"sinks": []}, "node1", 1)
FACTS = SourceFacts("output/u/app", "output", PodUid("u"), "shop", "cart", "app", "")


class Process:
    """A collector as its channel shows it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def heard(self) -> list[Any]:
        """Return what it was told since the last call; it owns the descriptors."""
        found: list[Any] = []
        while True:
            try:
                packet: Packet = receive(self.end)
            except BlockingIOError:
                return found
            if not packet.payload:
                return found
            found.append(decode(packet, TO_COLLECTOR))

    def say(self, message: object) -> None:
        self.end.send(encode(message)[0])


@dataclass
class FakeSupervisor:
    """Forks nobody, and keeps what it was asked for."""

    forked: list[Process] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)

    def send(self, message: ToSupervisor) -> None:
        if isinstance(message, Fork):
            self.forked.append(Process(socket.socket(fileno=os.dup(message.theirs))))
        if isinstance(message, Signal):
            self.signals.append(message)


@dataclass
class FakeFinder:
    """Finds nothing by itself."""

    forgot: int = 0
    files: list[FileId] = field(default_factory=list)
    aside: list[tuple[FileId, int, int]] = field(default_factory=list)
    settled: bool = True

    def forget(self) -> None:
        self.forgot += 1

    def closed(self, file: FileId) -> None:
        self.files.append(file)

    def put_aside(self, file: FileId, size: int, modified: int) -> None:
        self.aside.append((file, size, modified))

    def keys(self) -> list[str]:
        return ["output/u/app"]

    def excluded(self) -> list[str]:
        return ["output/u/side"]


@dataclass
class Scene:
    collector: LogCollector
    supervisor: FakeSupervisor
    finder: FakeFinder
    counted: list[Any]
    deaths: list[int]

    async def say(self, message: object, until_true: Callable[[], object]) -> None:
        self.supervisor.forked[-1].say(message)
        await until(until_true)


def playing(play: Callable[[Scene], Awaitable[None]], *, adopt: bool = False) -> None:
    """Run *play* with a collector at work."""

    async def run() -> None:
        supervisor = FakeSupervisor()
        counted: list[Any] = []
        deaths: list[int] = []
        collector = LogCollector(
            asyncio.get_running_loop(),
            supervisor,
            START,
            counted.append,
            lambda: deaths.append(1),
            lambda: None,
            stop_seconds=0.01,
        )
        scene = Scene(collector, supervisor, FakeFinder(), counted, deaths)
        if adopt:
            ours, theirs = pair()
            supervisor.forked.append(Process(theirs))
            collector.adopt(41, ours)
        parts = Parts()
        async with collector.run(parts, scene.finder):
            await play(scene)
            parts.stop()
            if collector.pid:
                collector.exited(collector.pid, 0)
            for each in supervisor.forked:
                each.end.close()

    asyncio.run(run())


def test_one_is_started_and_told_first_who_it_is() -> None:
    async def play(scene: Scene) -> None:
        (process,) = scene.supervisor.forked
        assert process.heard() == [START]
        assert scene.finder.forgot == 1
        scene.collector.forked(1, 40)
        assert scene.collector.pid == 40
        assert "does not read yet" in scene.collector.missing()[0]
        await scene.say(Collecting(), lambda: scene.collector.missing() == [])

    playing(play)


def test_a_file_is_handed_over_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text("hello")

    async def play(scene: Scene) -> None:
        (process,) = scene.supervisor.forked
        descriptor = os.open(tmp_path / "0.log", os.O_RDONLY)
        scene.collector.source(FACTS)
        scene.collector.file(FACTS.key, FoundFile("output", "app", "0.log", Opened(descriptor, 1, 2, 5), 0))
        os.close(descriptor)
        _, told, opened = process.heard()
        assert isinstance(told, LogSourceTold)
        assert from_json(told.source) == FACTS
        assert isinstance(opened, LogFileOpened)
        assert (opened.key, opened.name, opened.device, opened.inode) == (FACTS.key, "0.log", 1, 2)
        assert os.pread(opened.file, 10, 0) == b"hello"
        os.close(opened.file)

    playing(play)


def test_one_that_dies_is_replaced_and_everything_is_told_anew() -> None:
    async def play(scene: Scene) -> None:
        scene.collector.forked(1, 40)
        scene.collector.exited(40, -9)
        await until(lambda: len(scene.supervisor.forked) == 2)
        assert scene.supervisor.forked[1].heard() == [START]
        assert scene.finder.forgot == 2
        assert scene.deaths == [1]

    playing(play)


def test_what_one_counted_last_is_heard_though_its_death_is_known_first() -> None:
    async def play(scene: Scene) -> None:
        scene.collector.forked(1, 40)
        (process,) = scene.supervisor.forked
        for number in range(10):
            process.say(CollectorCounted({"number": number}, whole=number == 0))
        process.end.close()
        scene.collector.exited(40, -9)
        assert scene.counted == [{"number": number} for number in range(10)]

    playing(play)


def test_an_earlier_controls_goes_on_and_hears_what_is_gone() -> None:
    async def play(scene: Scene) -> None:
        (process,) = scene.supervisor.forked
        assert scene.collector.pid == 41
        heard: list[Any] = []
        await until(lambda: heard.extend(process.heard()) or len(heard) == 3)
        left_out = LogSourceGone("output/u/side", left_out=True)
        assert heard == [START, left_out, AllLogsTold(("output/u/app",))], "it ends where its first words were others"
        assert scene.finder.forgot == 0
        process.say(CollectorCounted({"since": "the last one"}, whole=False))
        await scene.say(CollectorCounted({"since": "the start"}, whole=True), lambda: scene.counted)
        await scene.say(CollectorCounted({"since": "then"}, whole=False), lambda: len(scene.counted) == 2)
        assert scene.counted == [{"since": "the start"}, {"since": "then"}]

    playing(play, adopt=True)


def test_one_that_an_earlier_control_told_to_finish_has_not_died(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def play(scene: Scene) -> None:
        scene.collector.exited(41, 0)
        await until(lambda: len(scene.supervisor.forked) == 2, "another one goes on")
        assert scene.supervisor.forked[1].heard() == [START]
        assert scene.deaths == []
        assert "died" not in caplog.text and "ended as it was told" in caplog.text

    playing(play, adopt=True)


def test_it_tells_counts_files_and_what_it_closed() -> None:
    async def play(scene: Scene) -> None:
        await scene.say(Collecting(), lambda: scene.collector.missing() == [])
        await scene.say(LogFileClosed(1, 2), lambda: scene.finder.files == [(1, 2)])
        await scene.say(LogFilePutAside(1, 3, 70, 9), lambda: scene.finder.aside == [((1, 3), 70, 9)])
        await scene.say(CollectorCounted({"counts": []}, whole=True), lambda: scene.counted == [{"counts": []}])
        asking = asyncio.create_task(scene.collector.ask())
        (process,) = scene.supervisor.forked
        heard: list[Any] = []
        await until(lambda: heard.extend(process.heard()) or AskCollector(1) in heard)
        process.say(CollectorRows(1, [{"file": "a"}], [], (), more=True))
        process.say(CollectorRows(1, [{"file": "b"}], [{"name": "s"}], ("wrong",), more=False))
        answer = await asking
        assert (answer.files, answer.sinks, answer.warnings) == (
            [{"file": "a"}, {"file": "b"}],
            [{"name": "s"}],
            ["wrong"],
        )

    playing(play)


@pytest.mark.parametrize(
    "packet", [b"not json", b'{"op": "Fork"}', b'{"op": "LogFileClosed", "device": "1", "inode": 2}']
)
def test_one_that_says_what_none_says_is_killed(packet: bytes) -> None:
    async def play(scene: Scene) -> None:
        scene.collector.forked(1, 40)
        scene.supervisor.forked[0].end.send(packet)
        await until(lambda: scene.supervisor.signals)
        assert scene.supervisor.signals[0].pid == 40

    playing(play)


def test_other_settings_take_another_process_as_soon_as_the_first_has_ended() -> None:
    async def play(scene: Scene) -> None:
        (process,) = scene.supervisor.forked
        scene.collector.forked(1, 40)
        other = StartCollector({"sinks": [1]}, "node1", 1)
        scene.collector.restart(other, stop_seconds=30)
        scene.collector.source(FACTS)
        assert process.heard() == [START, FinishLogs(30)]
        scene.collector.exited(40, 0)
        assert scene.supervisor.forked[1].heard() == [other]
        assert (scene.deaths, scene.finder.forgot) == ([], 2)

    playing(play)


def test_one_that_does_not_end_for_other_settings_is_killed() -> None:
    async def play(scene: Scene) -> None:
        scene.collector.forked(1, 40)
        scene.collector.restart(START, stop_seconds=-0.99)
        await until(lambda: scene.supervisor.signals)
        assert scene.supervisor.signals[0].pid == 40

    playing(play)


def test_another_daemon_gets_the_folder_and_nobody_is_started_any_more() -> None:
    async def play(scene: Scene) -> None:
        (process,) = scene.supervisor.forked
        scene.collector.forked(1, 40)
        scene.collector.let_go()
        assert FinishLogs(0.01) in process.heard()
        scene.collector.exited(40, 0)
        assert (scene.deaths, len(scene.supervisor.forked)) == ([], 1)

    playing(play)
