"""Whose an entry of the journal is: a service's pod, the node, or nobody's; and that each is accounted for."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.logs import streams
from nodeagent.logs.collector import Intake
from nodeagent.logs.journal_streams import unit_of
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import EVERY_STREAM, Reading, SourceFacts
from nodeagent.messages import LogFileOpened
from nodeagent.vocabulary import PodUid
from nodeagent.wire import FileDescriptor
from tests.unit.logs.journal_files import Entry, written
from tests.waiting import until

JOURNAL = SourceFacts(
    "journal//j/system.journal", "journal", PodUid(""), "", "", "", "/j/system.journal",
    reading=Reading(parser="journal", sinks=("node",)),
)  # fmt: skip
LEGACY = SourceFacts(
    "output/u/service", "output", PodUid("u"), "machines", "legacy", "service", "", {"app": "legacy"},
    reading=Reading(sinks=("team",)), unit="legacy.service",
)  # fmt: skip
ENTRIES: tuple[Entry, ...] = (
    {"MESSAGE": b"from the kernel", "_TRANSPORT": b"kernel"},
    {"MESSAGE": b"hello", "_SYSTEMD_UNIT": b"legacy.service"},
    {"MESSAGE": b"again", "_SYSTEMD_UNIT": b"legacy.service"},
    {"MESSAGE": b"of the kubelet", "_SYSTEMD_UNIT": b"kubelet.service"},
    {"MESSAGE": b"Stopped.", "UNIT": b"legacy.service", "_SYSTEMD_UNIT": b"init.scope"},
    {"MESSAGE": b'","_SYSTEMD_UNIT":"legacy.service', "_SYSTEMD_UNIT": b"liar.service"},
    {"MESSAGE": b"about another", "UNIT": b"legacy.service", "_SYSTEMD_UNIT": b"liar.service"},
)


class Collecting:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        sinks = [{"name": name, "file": {"path": str(folder / f"{name}.jsonl")}} for name in ("node", "team")]
        given = {"stateDirectory": str(folder / "state"), "sinks": sinks, **settings}
        self.intake = Intake(LogSettings.model_validate({"node": {"journal": {}}, **given}), "node1")

    def add(self, path: Path) -> None:
        found = path.stat()
        descriptor = FileDescriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.intake.add(LogFileOpened(JOURNAL.key, path.name, found.st_dev, found.st_ino, 0, descriptor))

    def records(self, sink: str) -> list[dict[str, Any]]:
        path = self.folder / f"{sink}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def said(self, sink: str) -> list[str]:
        return [each["MESSAGE"] for each in self.records(sink)]

    def settled(self) -> bool:
        """Say whether all that the journal holds is settled."""
        rows = self.intake.rows()
        return bool(rows) and all(row["settled"] == row["read"] > 0 and not row["lagBytes"] for row in rows)

    def dropped(self) -> Counter[str]:
        return sum((each.counts.dropped for each in self.intake.streams.sources.values()), Counter())


@asynccontextmanager
async def collecting(folder: Path, **settings: Any) -> AsyncIterator[Collecting]:
    made = Collecting(folder, **settings)
    tasks: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[object, object, None]) -> None:
        tasks.add(asyncio.create_task(work))

    made.intake.begin(start)
    try:
        yield made
    finally:
        await made.intake.end(5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_each_entry_goes_by_whose_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "system.journal", ENTRIES)

    async def scenario() -> None:
        async with collecting(tmp_path) as node:
            node.intake.source(JOURNAL)
            node.intake.source(LEGACY)
            node.add(path)
            await until(node.settled, "all is settled")
            assert node.said("team") == ["hello", "again", "Stopped."]
            others = [each["MESSAGE"].decode() for each in ENTRIES]
            assert node.said("node") == [each for each in others if each not in node.said("team")]
            hello = node.records("team")[0]
            assert hello["@timestamp"] == "2026-01-01T00:00:00.000002Z"
            pod = hello["kubernetes"]
            told = (pod["namespace_name"], pod["pod_name"], pod["container_name"], pod["labels"], pod["host"])
            assert told == ("machines", "legacy", "service", {"app": "legacy"}, "node1")
            kernel = node.records("node")[0]
            assert (kernel["kubernetes"], kernel["log_file"]) == ({"host": "node1"}, "/j/system.journal")
            assert not node.dropped()

    asyncio.run(scenario())


def test_other_units_than_those_that_are_wanted_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "system.journal", ENTRIES)

    async def scenario() -> None:
        async with collecting(tmp_path, node={"journal": {"units": ["kube*"]}}) as node:
            node.intake.source(JOURNAL)
            node.intake.source(LEGACY)
            node.add(path)
            await until(node.settled, "all is settled")
            assert node.said("node") == ["of the kubelet"]
            assert node.said("team") == ["hello", "again", "Stopped."]
            assert node.dropped() == {"excluded": 3}

    asyncio.run(scenario())


def test_what_the_agent_itself_prints_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "system.journal", [{"MESSAGE": b"mine", "_SYSTEMD_UNIT": b"nodeagent.service"}, *ENTRIES])
    monkeypatch.setattr(streams, "own_unit", lambda: "nodeagent.service")
    sinks = [{"name": name, "stdout": {}} for name in ("node", "team")]

    async def scenario() -> None:
        async with collecting(tmp_path, sinks=sinks) as node:
            node.intake.source(JOURNAL)
            node.add(path)
            await until(node.settled, "all is settled")
            assert node.dropped() == {"excluded": 1}

    asyncio.run(scenario())


def test_a_service_is_followed_as_it_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "system.journal", ENTRIES)

    async def scenario() -> None:
        async with collecting(tmp_path) as node:
            node.intake.source(JOURNAL)
            node.intake.source(replace(LEGACY, reading=replace(LEGACY.reading, without=EVERY_STREAM)))
            node.add(path)
            await until(node.settled, "all is settled")
            assert node.dropped() == {"excluded": 3}
            node.intake.source(LEGACY)
            written(path, [{"MESSAGE": b"it is wanted", "_SYSTEMD_UNIT": b"legacy.service"}], 100)
            await until(lambda: node.said("team") == ["it is wanted"], "what comes then is delivered")
            anew = replace(LEGACY, key="output/v/service", uid=PodUid("v"), pod="anew")
            node.intake.source(anew)
            node.intake.source_gone(LEGACY.key, left_out=False)
            node.intake.forget()
            written(path, [{"MESSAGE": b"anew", "_SYSTEMD_UNIT": b"legacy.service"}], 200)
            await until(lambda: node.said("team")[-1] == "anew", "the pod that it is now has it")
            assert node.records("team")[-1]["kubernetes"]["pod_name"] == "anew"
            node.intake.source_gone(anew.key, left_out=False)
            node.intake.forget()
            written(path, [{"MESSAGE": b"last", "_SYSTEMD_UNIT": b"legacy.service"}], 300)
            await until(lambda: node.said("node")[-1] == "last", "it is in no mesh any more")

    asyncio.run(scenario())


def test_an_entry_that_is_not_whole_is_counted_as_one_that_was_not_parsed(tmp_path: Path) -> None:
    long = b"x" * 2_000_000
    path = written(tmp_path / "system.journal", [{"MESSAGE": long, "_SYSTEMD_UNIT": b"legacy.service"}, *ENTRIES])

    async def scenario() -> None:
        async with collecting(tmp_path) as node:
            node.intake.source(JOURNAL)
            node.intake.source(LEGACY)
            node.add(path)
            await until(node.settled, "all is settled")
            assert node.intake.streams.sources[LEGACY.key].counts.unparsed == 1
            assert "cut" in node.records("team")[0]["__INCOMPLETE"]
            assert len(node.said("team")) == 4

    asyncio.run(scenario())


def test_a_line_in_pieces_is_its_writers(tmp_path: Path) -> None:
    entries = [{"MESSAGE": b"y" * 5000, "_SYSTEMD_UNIT": b"legacy.service"}, {"MESSAGE": b"a"}]

    async def scenario() -> None:
        async with collecting(tmp_path, limits={"lineBytes": 1024}) as node:
            node.intake.source(JOURNAL)
            node.intake.source(LEGACY)
            node.add(written(tmp_path / "system.journal", entries))
            await until(node.settled, "all is settled")
            assert sum(str(each).count("y" * 100) > 0 for each in node.records("team")) >= 4
            assert node.said("node") == ["a"]

    asyncio.run(scenario())


def test_a_units_name_is_read_as_it_is() -> None:
    assert unit_of(rb'{"_SYSTEMD_UNIT":"a\\x2db.service"}') == "a\\x2db.service"
    assert unit_of(rb'{"MESSAGE":"\",\"_SYSTEMD_UNIT\":\"x","PRIORITY":"6"}') == ""
