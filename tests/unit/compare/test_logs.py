"""Shippers of logs: what they read, who counts, and what is made of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.compare import goals, summary
from nodeagent.compare.load import CompareError, Sample
from nodeagent.compare.logs import agent, lines, run, shippers
from nodeagent.compare.logs.beside import ProxyBesideLogs
from nodeagent.compare.logs.measure import Bench, LogSample
from nodeagent.compare.logs.micro import line_costs
from nodeagent.compare.logs.run import LogCell, measure_logs
from nodeagent.compare.logs.shippers import AGENT, Shipper, ShipperTask
from nodeagent.compare.logs.sink_process import SinkProcess
from nodeagent.compare.run import ComparisonPlan, Results
from nodeagent.logs.process.framing import cri
from nodeagent.logs.records import Chunk
from nodeagent.logs.sources import SourceFacts
from nodeagent.logs.tail.interfaces import TailSettings
from nodeagent.messages import LogFileOpened
from tests.waiting import DEADLINE, eventually

NOBODY = Shipper("nobody", lambda task: ["sh", "-c", "echo sorry; exit 3"])


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    started = SinkProcess(max(os.sched_getaffinity(0)))
    try:
        yield started
    finally:
        started.close()


def ask(sink: SinkProcess, target: str, body: Any, **headers: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=60)
    try:
        connection.request("POST", target, body, headers)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_lines_are_205_bytes_of_json_that_differ() -> None:
    made = [lines.line(number, "plain") for number in range(0, 3_000_000, 9973)]
    assert {len(each) for each in made} == {lines.LINE_BYTES}
    assert len({json.loads(each)["zqseq"] for each in made}) == len(made)
    assert all(each.count(lines.MARKER) == 1 for each in made)


def test_lines_of_a_runtime_are_of_its_format(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    lines.write(path, 20_001, "cri")
    found = cri(Chunk(b"f", 0, path.read_bytes()), b"")
    assert (len(found), found.malformed) == (20_001, 0)
    assert found.streams.count(b"stderr") == 2001
    assert found.texts[7] + b"\n" == lines.line(7, "plain")


def test_the_sink_counts_and_answers_as_asked(sink: SinkProcess) -> None:
    body = b"".join(lines.line(number, "plain") for number in range(10))
    assert json.loads(ask(sink, "/_bulk", body)) == {"took": 1, "errors": False, "items": []}
    answer = json.loads(ask(sink, "/_bulk?filter_path=errors,items.*.status", body))
    assert answer == {"errors": False, "items": [{"create": {"status": 201}}] * 10}
    assert ask(sink, "/v1/logs", body, **{"Content-Type": "application/x-protobuf"}) == b""
    ask(sink, "/_bulk", iter([body[:100], body[100:]]))
    counted = sink.counted()
    assert (counted["lines"], counted["requests"]) == (40, 4)
    assert counted["last"] >= counted["first"] > 0
    sink.reset()
    assert sink.counted()["lines"] == 0


@pytest.mark.parametrize("kind", ["plain", "cri"])
def test_the_agents_own_collector_delivers_every_line(sink: SinkProcess, tmp_path: Path, kind: lines.LineKind) -> None:
    lines.write(tmp_path / "0.log", 2000, kind)
    lines.write(tmp_path / "1.log", 1000, kind)
    folder = tmp_path / "own"
    folder.mkdir()
    command = AGENT.command(ShipperTask(f"{tmp_path}/*.log", folder, sink.port, kind == "cri"))
    process = subprocess.Popen(command)
    try:
        eventually(lambda: sink.counted()["lines"] == 3000, "all lines counted")
        assert int((folder / shippers.IDLE).read_text()) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert sink.counted()["lines"] == 3000


def test_what_a_shipper_that_ends_has_said_is_told(sink: SinkProcess, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    lines.write(tmp_path / "0.log", 10, "plain")
    with pytest.raises(CompareError, match="nobody ended with 3: sorry"):
        Bench(sink, core, core).catch_up(NOBODY, tmp_path / "0.log", "plain", 10, DEADLINE)


def test_a_shipper_that_is_not_there_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(task: ShipperTask) -> list[str]:
        raise CompareError("it is not there")

    sample = LogSample(1000.0, 2.0, 50.0, 1)
    monkeypatch.setattr(run, "LINES", 10)
    monkeypatch.setattr(run, "SHIPPERS", (AGENT, Shipper("rsyslog", absent)))
    monkeypatch.setattr(run, "LOADS", {"plain": ("nodeagent", "rsyslog")})
    monkeypatch.setattr(
        LogCell, "measure", lambda cell, bench, *rest: sample if cell.shipper is AGENT else cell.shipper.command(bench)
    )
    found: dict[LogCell, list[LogSample]] = {}
    missing: list[Any] = []
    measure_logs(2, 1.0, found, missing, lambda what, done, total: None)
    assert found == {LogCell(AGENT, "plain"): [sample, sample]}
    assert missing == [{"what": "logs, plain: rsyslog", "why": "it is not there"}]


def test_ratios_are_of_the_same_round() -> None:
    cells = {(cell.shipper.name, cell.load): cell for cell in run.all_log_cells()}
    results = Results()
    results.logs = {
        cells["nodeagent", "plain"]: [LogSample(600_000, 2, 100, 30 << 20), LogSample(300_000, 2, 100, 20 << 20)],
        cells["rsyslog", "plain"]: [LogSample(50_000, 20, 100, 1), LogSample(50_000, 20, 100, 1)],
        cells["nodeagent", "cri"]: [LogSample(300_000, 2.6, 100, 10 << 20)],
        cells["nodeagent", "steady"]: [LogSample(10_000, 1, 2.0, 10 << 20)],
        cells["rsyslog", "steady"]: [LogSample(10_000, 10, 40.0, 10 << 20)],
        cells["nodeagent", "busy"]: [LogSample(10_000, 10, 40.0, 10 << 20, 2 << 20)],
        cells["nodeagent", "files"]: [LogSample(10_000, 10, 40.0, 10 << 20, 6 << 20)],
    }
    quiet = Sample(1000, 1.0, 0, ((99.0, 500.0),))
    results.beside_logs = [
        ProxyBesideLogs(
            "nodeagent", replace(quiet, percentiles=((99.0, 550.0),)), quiet, LogSample(200_000, 2, 100, 30 << 20)
        ),
        ProxyBesideLogs(
            "rsyslog", replace(quiet, percentiles=((99.0, 2500.0),)), quiet, LogSample(50_000, 20, 100, 30 << 20)
        ),
    ]
    told = {goal.name: (values, goal.verdict(values[0])) for goal, values in goals.compared(results)}
    assert told == {
        "logs / rsyslog: plain JSON, lines/s": ([12, 6], "aim"),
        "logs / rsyslog: plain JSON, CPU a line": ([0.1, 0.1], None),
        "logs / rsyslog: 10,000 lines/s over 20 files, CPU": ([0.05], "aim"),
        "logs: a runtime's format, CPU a line": ([2.6], "missed"),
        "logs: memory's growth, ten minutes' lines with a sink that answers 429": ([2], "must"),
        "logs: memory's growth, 5,000 files came and went": ([6], "missed"),
        "agent: 2,000 requests/s, p99, under full log load / without": ([1.1], "must"),
        "logs: delivered while the proxy was measured": ([200], None),
        "agent: 2,000 requests/s, p99, under full log load of rsyslog / without": ([5], None),
        "logs: delivered by rsyslog while the proxy was measured": ([50], None),
        "logs: memory above a daemon without, at most": ([30], "must"),
    }
    rows = summary.summarize(results, ComparisonPlan((), (), 2, 1, logs=True))["logs"]
    assert rows[0] == {
        "shipper": "nodeagent",
        "load": "plain",
        "lines_per_second": 450_000,
        "cpu_us_per_line": 2,
        "cpu_percent": 100,
        "memory_bytes": 30 << 20,
        "memory_growth_bytes": 0,
        "rounds": [600_000, 300_000],
    }
    assert [(each["shipper"], each["lines_per_second"]) for each in rows if each["load"] == "beside"] == [
        ("nodeagent", 200_000),
        ("rsyslog", 50_000),
    ]


@pytest.mark.parametrize("refusing", [True, False])
def test_memory_is_measured_while_a_sink_takes_nothing(sink: SinkProcess, tmp_path: Path, refusing: bool) -> None:
    core = min(os.sched_getaffinity(0))
    count = 60_000  # more than a lane holds in memory
    lines.write(tmp_path / "0.log", count, "plain")
    sample = Bench(sink, core, core).outage(AGENT, tmp_path / "0.log", count, DEADLINE, refusing=refusing)
    assert sample.memory_bytes > 0
    assert sink.counted()["lines"] == 0


def test_memory_is_measured_as_files_come_and_go(sink: SinkProcess) -> None:
    core = min(os.sched_getaffinity(0))
    sample = Bench(sink, core, core).come_and_go(AGENT, 50, 2 * DEADLINE)
    assert sample.memory_bytes > 0
    assert sink.counted()["lines"] == 50 * 20


class ReadNames:
    """Stands for an Intake: the names of what was handed over and is not gone."""

    def __init__(self, *told: object) -> None:
        self.names: list[str] = []
        self.tail = SimpleNamespace(settings=TailSettings(), closed=list)

    def begin(self, start: object) -> None: ...

    def source(self, source: SourceFacts) -> None: ...

    def source_gone(self, key: str, *, left_out: bool) -> None:
        self.names.remove(key.rpartition("/")[2])

    def add(self, opened: LogFileOpened) -> None:
        os.close(opened.file)
        self.names.append(opened.name)

    def counted(self) -> None: ...

    def forget(self) -> None: ...

    async def end(self, seconds: float) -> None: ...


def test_every_file_is_handed_over_once_whenever_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: behind each of the first looks at the folder a file comes. Verdict: the next one has it read. Of
    thousands of files some came between the first look and the second.
    """
    looks = 0
    files, own = tmp_path / "files", tmp_path / "own"
    files.mkdir()
    own.mkdir()

    def look(pattern: str) -> list[str]:
        nonlocal looks
        found = glob(pattern)
        if looks < 4:
            (files / f"{looks}.log").touch()
        if looks == 5:
            (files / "1.log").unlink()
        if looks == 7:
            signal.raise_signal(signal.SIGTERM)
        looks += 1
        return found

    intake = ReadNames()
    monkeypatch.setattr(agent, "glob", look)
    monkeypatch.setattr(agent, "Intake", lambda *told: intake)
    monkeypatch.setattr(agent, "_LOOK_SECONDS", 0.0)
    asyncio.run(agent.collect(f"{files}/*.log", own, 9, cri=False, forget=1.0))
    assert sorted(intake.names) == ["0.log", "2.log", "3.log"]


def test_a_figure_is_measured_beside_a_shipper_at_full_load(sink: SinkProcess, tmp_path: Path) -> None:
    """A file that was read too soon is no load."""
    core = min(os.sched_getaffinity(0))
    sample = Sample(1000, 1.0, 0, ((99.0, 500.0),))
    count = 1_000_000  # seconds, however late this process has its turn
    lines.write(tmp_path / "plain", count, "plain")

    def measure() -> Sample:
        seen = sink.counted()["lines"]
        eventually(lambda: sink.counted()["lines"] > seen, "lines come")
        return sample

    under, logs = Bench(sink, core, core).at_full_load(AGENT, tmp_path / "plain", count, measure)
    assert under == sample
    assert logs.lines_per_second > 0
    with pytest.raises(CompareError, match="the file is too short"):
        Bench(sink, core, core).at_full_load(AGENT, tmp_path / "plain", 1, lambda: sample)


def test_a_figure_beside_a_collector_that_does_nothing_is_none(
    sink: SinkProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    lines.write(tmp_path / "plain", 10, "plain")
    monkeypatch.setattr(sink, "counted", lambda: {"lines": 1})
    with pytest.raises(CompareError, match="no line was delivered while the other figure was measured"):
        Bench(sink, core, core).at_full_load(AGENT, tmp_path / "plain", 10, lambda: Sample(1000, 1.0, 0, ()))


def test_what_a_line_costs_is_told_by_kind() -> None:
    costs = list(line_costs(turns=1))
    assert [cost.kind for cost in costs] == [
        "plain: JSON",
        "plain: text",
        "cri: JSON",
        "cri: text",
        "cri: JSON and text",
    ]
    assert all(cost.process > 0 and cost.encode > 0 for cost in costs)
