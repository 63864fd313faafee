"""What reads and delivers, without control: what is wrong with the folder of positions is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.channel import pair
from nodeagent.logs.collector import Collector, Intake
from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.counts import MAX_PODS, OTHERS
from nodeagent.logs.delivery.spill import DAMAGED
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import Reading, SourceFacts
from nodeagent.logs.tail.positions import FILE
from nodeagent.messages import FinishLogs, LogFileOpened, LogRoomWanted, LogSourceTold, StartCollector
from nodeagent.proxy import privilege
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor, encode
from tests.unit.logs.made_records import records
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
    monkeypatch.setattr(privilege, "drop", lambda *_: None)
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
        await asyncio.wait_for(collector.done, 60)
        ours.close()

    asyncio.run(scenario())


def test_files_that_are_read_make_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "drop", lambda *_: None)
    (tmp_path / "state").mkdir()
    sinks = [{"name": "all", "file": {"path": str(tmp_path / "out.jsonl")}}]
    start = StartCollector({"stateDirectory": str(tmp_path / "state"), "sinks": sinks}, "node1", os.getpid())

    async def scenario() -> None:
        ours, theirs = pair()
        collector = Collector(asyncio.get_running_loop(), theirs)
        heard = b""

        def told(what: bytes) -> bool:
            nonlocal heard
            ours.send(encode(LogRoomWanted(SOURCE.uid, 5))[0])
            heard += _received(ours)
            return what in heard

        ours.send(encode(start)[0])
        ours.send(encode(LogSourceTold(SOURCE.key, SOURCE.to_json()))[0])
        for name in ("a.log.1", "a.log"):
            (tmp_path / name).write_text("one\n")
            os.utime(tmp_path / name, (9, 9 if name == "a.log.1" else 10))
            message = opened(tmp_path / name)
            socket.send_fds(ours, [encode(message)[0]], [message.file])
            os.close(message.file)
        old = (tmp_path / "a.log.1").stat()
        words = f'"inode":{old.st_ino},"size":4,"modified":{old.st_mtime_ns}'.encode()
        await until(lambda: told(words), "the rotated one is closed", seconds=60)
        assert heard.count(b"LogFilePutAside") == 1, "the one that is written is not"
        ours.send(encode(FinishLogs(0.1))[0])
        await asyncio.wait_for(collector.done, 60)
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
    out = tmp_path / "out.jsonl"

    async def scenario() -> None:
        async with at_work(tmp_path) as intake:
            intake.source(replace(SOURCE, reading=Reading(sinks=("all", "others"))))
            intake.add(opened(log))
            await until(lambda: [each["state"] for each in intake.rows()] == ["blocked"], "it is open")
            assert intake.warnings() == ["sink others is unknown to the collector; nothing is read that goes there"]
            intake.source(SOURCE)
            await until(lambda: out.exists() and '"log":"one"' in out.read_text(), "all of it is there")
            assert intake.warnings() == []

    asyncio.run(scenario())


def opened(log: Path, key: str = SOURCE.key) -> LogFileOpened:
    """Return the message that hands *log* over."""
    found = log.stat()
    descriptor = FileDescriptor(os.open(log, os.O_RDONLY | os.O_CLOEXEC))
    return LogFileOpened(key, log.name, found.st_dev, found.st_ino, 0, descriptor)


@asynccontextmanager
async def at_work(folder: Path, **more: object) -> AsyncIterator[Intake]:
    """Have an intake deliver into the file ``out.jsonl`` of *folder*."""
    (folder / "state").mkdir(exist_ok=True)
    sinks = [{"name": "all", "file": {"path": str(folder / "out.jsonl")}}]
    given = {"stateDirectory": str(folder / "state"), "sinks": sinks, **more}
    intake = Intake(LogSettings.model_validate(given), "node1")
    tasks: set[asyncio.Task[None]] = set()
    intake.begin(lambda work: tasks.add(asyncio.create_task(work)))  # type: ignore[arg-type]
    try:
        yield intake
    finally:
        await intake.end(5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Output:
    """A container's file, which is written to on and on."""

    def __init__(self, folder: Path, container: str) -> None:
        self.path = folder / f"{container}.log"
        self.path.touch()
        self.facts = SourceFacts(
            f"output/u/{container}", "output", PodUid("u"), "default", "web", container, "",
            reading=Reading(sinks=("all",)),
        )  # fmt: skip

    def say(self, text: str, stream: str = "stdout") -> None:
        with self.path.open("a") as file:
            file.write(f"2026-01-01T00:00:00.0Z {stream} F {text}\n")


def test_what_is_left_out_of_a_pod_that_lives_is_delivered_no_more(tmp_path: Path) -> None:
    app, side = Output(tmp_path, "app"), Output(tmp_path, "side")

    def has(text: str) -> bool:
        return text in (tmp_path / "out.jsonl").read_text()

    async def scenario() -> None:
        async with at_work(tmp_path) as intake:
            intake.tail.settings = replace(intake.tail.settings, rotated_seconds=60.0)
            for each in (app, side):
                intake.source(each.facts)
                intake.add(opened(each.path, each.facts.key))
                each.say("before")
                each.say("before of stderr", "stderr")
            await until(lambda: (tmp_path / "out.jsonl").exists() and has("before of stderr") and has('"side"'))
            intake.source_gone(side.facts.key, left_out=True)
            intake.source(
                replace(
                    app.facts, reading=Reading(sinks=("all",), without=("stderr",), parser_stderr="none", parser="none")
                )
            )
            side.say("side after")
            app.say("stderr after", "stderr")
            app.say('{"after": 1}')
            await until(lambda: has('"log":"{\\"after'), "what is still wanted, as text")
            rows = {each["container"]: each for each in intake.rows()}
            await until(lambda: all(each.settled == each.size for each in intake.tail.status()), "all is settled")
            assert (rows["side"]["state"], "settled" in rows["side"]) == ("left out", False), (
                "its file is there, and nobody gets it"
            )
            assert "is dropped" in rows["side"]["why"] and "why" not in rows["app"]
            assert not has("side after") and not has("stderr after")
            intake.source(side.facts)
            intake.add(opened(side.path, side.facts.key))
            side.say("side again")
            await until(lambda: has("side again"), "it is wanted again")
            assert not has("side after")
            intake.tail.settings = replace(intake.tail.settings, rotated_seconds=0.1)
            intake.source_gone(side.facts.key, left_out=True)
            await until(lambda: [each["container"] for each in intake.rows()] == ["app"], "it is closed")
            intake.forget()
            intake.source(side.facts)
            intake.add(opened(side.path, side.facts.key))
            side.say("side at last")
            await until(lambda: has("side at last"), "it is wanted again")
            assert (tmp_path / "out.jsonl").read_text().count("side again") == 1 and not has("side after")

    asyncio.run(scenario())


def test_what_another_control_does_not_find_is_read_to_its_end_unless_it_is_left_out(tmp_path: Path) -> None:
    app, side, out = Output(tmp_path, "app"), Output(tmp_path, "side"), Output(tmp_path, "out")

    def has(text: str) -> bool:
        return (tmp_path / "out.jsonl").exists() and text in (tmp_path / "out.jsonl").read_text()

    async def scenario() -> None:
        async with at_work(tmp_path) as intake:
            for each in (app, side, out):
                intake.source(each.facts)
                intake.add(opened(each.path, each.facts.key))
                each.say(f"before of {each.facts.container}")
            await until(lambda: all(map(has, ("before of app", "before of side", "before of out"))))
            for each in (app, side, out):
                each.say(f"after of {each.facts.container}")
            side.path.unlink()
            intake.source_gone(out.facts.key, left_out=True)
            intake.all_told([app.facts.key])
            await until(lambda: has("after of app") and has("after of side"), "both are read")
            await until(lambda: all(each.settled == each.size for each in intake.tail.status()), "all is settled")
            assert not has("after of out")

    asyncio.run(scenario())


def test_records_of_a_former_sink_are_told_until_somebody_decides(tmp_path: Path) -> None:
    async def scenario() -> None:
        for sink in ("former", "all"):
            buffer = DiskBuffer(tmp_path / "state" / "buffer" / sink, 1 << 20)
            buffer.open()
            await buffer.append([records(["one", "two"])])
            await buffer.close()
        async with at_work(tmp_path) as intake:
            (warning,) = [each for each in intake.warnings() if "former" in each]
            assert "2 records" in warning and str(tmp_path / "state" / "buffer" / "former") in warning
            rows = {each["name"]: each for each in intake.streams.rows()}
            assert rows["former"]["waiting"] == 2 and rows["former"]["bufferedBytes"] > 0
            out = tmp_path / "out.jsonl"
            await until(lambda: out.exists() and out.read_text().count("\n") == 2, "those of the other are delivered")
        for _ in range(2):
            async with at_work(tmp_path, buffer={"bytes": 0}) as intake:
                assert any("former" in each for each in intake.warnings())
        async with at_work(tmp_path) as intake:
            shutil.rmtree(tmp_path / "state" / "buffer" / "former")
            intake.forget()
            assert not intake.warnings() and [each["name"] for each in intake.streams.rows()] == ["all"]
            (of_former,) = [counts for who, _, _, counts in intake.streams.counts() if "former" in who]
            assert [count for _, labels, count in of_former() if DAMAGED in labels] == [2], "they are dropped"

    asyncio.run(scenario())


class Walked(dict[Any, Any]):
    """Counts how often all of it is gone through."""

    walks = 0

    def values(self) -> Any:
        self.walks += 1
        return super().values()


def test_pods_are_forgotten_without_a_look_at_all_others_for_each(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with at_work(tmp_path) as intake:
            for number in range(500):
                for container in ("app", "side"):
                    key = f"output/{number}/{container}"
                    intake.source(replace(SOURCE, key=key, uid=PodUid(str(number)), pod=f"web-{number}"))
                    intake.source_gone(key, left_out=False)
            intake.streams.sources = walked = Walked(intake.streams.sources)
            intake.forget()
            assert not walked and not intake.streams.pods()
            assert walked.walks < 5

    asyncio.run(scenario())


def test_pods_that_are_gone_leave_their_place_in_the_counts_to_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with at_work(tmp_path) as intake:
            for number in range(MAX_PODS + 10):
                app = replace(SOURCE, key=f"output/{number}/app", uid=PodUid(str(number)), pod=f"web-{number}")
                intake.source(app)
                lane = intake.streams.lanes["all"]
                lane.counts.named(("default", app.pod)).offered += 1
                lane.counts.named(("default", app.pod)).delivered += 1
                intake.source_gone(app.key, left_out=False)
                intake.forget()
            assert lane.counts.total().delivered == MAX_PODS + 10
            assert OTHERS not in lane.counts.pods and len(lane.counts.pods) <= 1

    asyncio.run(scenario())
