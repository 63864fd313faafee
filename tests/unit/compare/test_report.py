"""From samples to medians, ratios and verdicts."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from nodeagent.compare import measure, report
from nodeagent.compare.bench import Cell, Results
from nodeagent.compare.load import Client, Sample, Workload
from nodeagent.compare.modes import EnvoyHop, EnvoyPair, Log, Mode, NodeAgent
from nodeagent.compare.report import Goal
from nodeagent.compare.scale import Scale

CLIENT = Client(None, "nowhere")  # type: ignore[arg-type]
PAIR, AGENT, TWO = EnvoyPair(CLIENT), NodeAgent(CLIENT), NodeAgent(CLIENT, "2 workers")


def requests(*rates: int, p50: int = 100, errors: int = 0) -> list[Sample]:
    return [Sample(rate * 2, 2.0, errors, (p50, 2 * p50, 3 * p50), cpu_seconds=rate * 2 * 20e-6) for rate in rates]


def results(samples: dict[tuple[Mode, Workload, int], list[Sample]]) -> Results:
    return Results({Cell(*key): value for key, value in samples.items()})


def test_a_figure_is_the_median_of_its_rounds() -> None:
    summary = report.summarize(results({(PAIR, "http", 32): requests(100, 900, 300)}), 3, 2)
    (run,) = summary["runs"]
    assert (run["requests_per_second"], run["lowest"], run["highest"]) == (300, 100, 900)
    assert run["latency_us"] == {"p50": 100, "p90": 200, "p99": 300}
    assert run["cpu_us_per_request"] == 20
    assert run["mode"] == "envoy"
    assert run["errors"] == 0


def test_ratios_compare_with_the_pair_on_the_same_way() -> None:
    summary = report.summarize(
        results(
            {
                (PAIR, "http", 32): requests(1000, p50=900),
                (AGENT, "http", 32): requests(2500, p50=300),
                (TWO, "http", 32): requests(5000),
                (PAIR, "cross-node", 32): requests(1000),
                (AGENT, "bulk", 1): [Sample(0, 2, 0, None, 9e9)],
                (PAIR, "bulk", 1): [Sample(0, 2, 0, None, 3e9)],
            }
        ),
        1,
        2,
    )
    found = {name: (ratio["value"], ratio["reached"]) for name, ratio in summary["ratios"].items()}
    assert found == {
        "same node, 32 connections, requests/s": (2.5, "must"),
        "same node, 32 connections, p99": (pytest.approx(1 / 3, abs=1e-4), "aim"),
        "TCP stream, one node, bits/s": (3, "aim"),
    }
    assert "2.00 ×" in "".join(report.remarks(summary))


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that became three times as fast after the first round changes no ratio."""
    both = results({(PAIR, "http", 32): requests(100, 300, 310), (AGENT, "http", 32): requests(200, 600, 930)})
    ratio = report.summarize(both, 3, 2)["ratios"]["same node, 32 connections, requests/s"]
    assert (ratio["value"], ratio["lowest"], ratio["highest"], ratio["reached"]) == (2, 2, 3, "missed")
    both.samples[Cell(AGENT, "http", 32)].pop()  # interrupted
    assert report.summarize(both, 3, 2)["ratios"]["same node, 32 connections, requests/s"]["highest"] == 2


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal("more", 2, 3, True), 1.99, "missed"),
        (Goal("more", 2, 3, True), 2, "must"),
        (Goal("more", 2, 3, True), 3, "aim"),
        (Goal("less", 0.5, 0.4, False), 0.51, "missed"),
        (Goal("less", 0.5, 0.4, False), 0.5, "must"),
        (Goal("less", 0.5, 0.4, False), 0.4, "aim"),
        (Goal("no aim", 100, None, False), 99, "aim"),
    ],
)
def test_verdicts(goal: Goal, value: float, verdict: str) -> None:
    assert goal.verdict(value) == verdict


def test_the_object_is_json_and_the_tables_show_everything() -> None:
    found = results({(PAIR, "http", 1): requests(10), (AGENT, "http", 1): requests(30), (AGENT, "bulk", 1): [Sample(0, 2, 0, None, 12.34e9)]})
    found.memory = {"agent, 2 pods": 60 << 20, "one Envoy": 70 << 20, "100 Envoys": 3000 << 20}
    found.scale = Scale(100, 131 << 20, 0.1, 1.5, 2.5)
    found.notes = ["something went wrong"]
    summary = report.summarize(found, 1, 2)
    assert json.loads(json.dumps(summary)) == summary
    assert [run["memory_bytes"] for run in summary["runs"]] == [140 << 20, 60 << 20, 60 << 20]
    shown = io.StringIO()
    Console(file=shown, width=200).print(report.figures(summary), report.goals(summary), *report.remarks(summary))
    for text in ("envoy", "12.34", "131 MB", "missed", "reached", "100 Envoys: 3,000 MB", "note: something went wrong"):
        assert text in shown.getvalue()


def test_nothing_measured_is_still_an_answer() -> None:
    summary = report.summarize(Results(notes=["ended early"]), 1, 1)
    assert summary["runs"] == []
    assert summary["ratios"] == {}
    assert report.remarks(summary) == ["note: ended early"]


def test_a_log_is_counted_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = Log(path)
    assert log.drain() == 0
    with path.open("ab", buffering=0) as writer:
        writer.write(b"one\ntwo\n")
        assert log.drain() == 2
        assert path.stat().st_size == 0
        writer.write(b"three\n")
        assert log.drain() == 3
    assert EnvoyHop(CLIENT, logs=[log]).verify({"http": 3}) == []
    assert EnvoyHop(CLIENT, logs=[log]).verify({"http": 4}) == ["envoy-hop: access.log has 3 lines for 4 requests"]


def test_memory_of_many_counts_program_text_once() -> None:
    assert measure.Memory(pss=30, private=20, resident=70).times(100) == 100 * 20 + 50


def test_what_the_kernel_counts() -> None:
    own = measure.memory([os.getpid()])
    assert 0 < own.private <= own.pss <= own.resident
    assert measure.memory([1 << 22]) == measure.Memory(0, 0, 0)
    assert measure.cpu_seconds([os.getpid(), 1 << 22]) > 0
    assert 0 <= measure.busy_cores(0.1) <= (os.cpu_count() or 1) * 1.5
