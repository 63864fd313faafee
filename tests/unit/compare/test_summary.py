"""From samples to medians, ratios and verdicts."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nodeagent.cli.compare import PROFILES
from nodeagent.compare import measure, summary, tables
from nodeagent.compare.goals import COMPARISONS, Goal
from nodeagent.compare.hops import EnvoyHop
from nodeagent.compare.labs import MODES
from nodeagent.compare.load import PERCENTILES, Sample, Workload
from nodeagent.compare.meshes import EnvoySidecars, NodeAgent
from nodeagent.compare.micro import Micro
from nodeagent.compare.modes import Direct, Log, Mode
from nodeagent.compare.run import Cell, ComparisonPlan, Results, all_cells
from nodeagent.compare.scale import Scale
from nodeagent.compare.switches import Switched

LAB: Any = None
ENVOY, AGENT, TWO, DIRECT = EnvoySidecars(LAB), NodeAgent(LAB), NodeAgent(LAB, "2 workers"), Direct(LAB)
PLAN = ComparisonPlan(MODES, ("http",), 3, 2)
SAME_NODE = "agent / Envoy sidecars: same node, 32 connections, requests/s"


def requests(*rates: int, p50: int = 100, errors: int = 0) -> list[Sample]:
    percentiles = tuple((key, p50 * (1 if key <= 50 else 2 if key <= 90 else 3)) for key in PERCENTILES)
    return [
        Sample(rate * 2, 2.0, errors, percentiles, cpu_seconds=rate * 2 * 20e-6, all_cpu_seconds=rate * 2 * 30e-6)
        for rate in rates
    ]


def stream(bits: float) -> list[Sample]:
    return [Sample(0, 2, 0, (), bits)]


def results(samples: dict[tuple[Mode, Workload, int], list[Sample]]) -> Results:
    return Results({Cell(*key): value for key, value in samples.items()})


def test_a_figure_is_the_median_of_its_rounds() -> None:
    (run,) = summary.summarize(results({(ENVOY, "http", 32): requests(100, 900, 300)}), PLAN)["runs"]
    assert (run["requests_per_second"], run["lowest"], run["highest"], run["rounds"]) == (
        300,
        100,
        900,
        [100, 900, 300],
    )
    assert run["latency_us"] == {"p50": 100, "p90": 200, "p99": 300, "p99.9": 300}
    assert run["latency_rounds_us"]["p99"] == [300, 300, 300]
    assert (run["cpu_us_per_request"], run["all_cpu_us_per_request"]) == (20, 30)
    assert (run["mode"], run["load"], run["rate"], run["pods"], run["errors"]) == ("envoy", "closed", None, 2, 0)
    assert [key for key, _ in run["percentiles"]] == list(PERCENTILES)


def test_ratios_compare_two_ways_of_the_same_work() -> None:
    told = summary.summarize(
        results(
            {
                (ENVOY, "http", 32): requests(1000, p50=900),
                (AGENT, "http", 32): requests(2500, p50=300),
                (TWO, "http", 32): requests(5000),
                (ENVOY, "cross-node", 32): requests(1000),
                (AGENT, "bulk", 1): stream(9e9),
                (ENVOY, "bulk", 1): stream(3e9),
            }
        ),
        PLAN,
    )
    assert {name: (ratio["value"], ratio["reached"]) for name, ratio in told["ratios"].items()} == {
        SAME_NODE: (2.5, "must"),
        "agent / Envoy sidecars: same node, 32 connections, p99": (pytest.approx(1 / 3, abs=1e-4), "aim"),
        "agent / Envoy sidecars: TCP stream, one node, bits/s": (3, "aim"),
    }


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that became three times as fast after the first round changes no ratio."""
    both = results({(ENVOY, "http", 32): requests(100, 300, 310), (AGENT, "http", 32): requests(200, 600, 930)})
    ratio = summary.summarize(both, PLAN)["ratios"][SAME_NODE]
    assert (ratio["value"], ratio["lowest"], ratio["highest"], ratio["reached"], ratio["steady"]) == (
        2,
        2,
        3,
        "missed",
        False,
    )
    both.samples[Cell(AGENT, "http", 32)].pop()  # interrupted
    ratio = summary.summarize(both, PLAN)["ratios"][SAME_NODE]
    assert (ratio["highest"], ratio["steady"]) == (2, True)


def test_an_open_loop_is_told_and_no_closed_one() -> None:
    samples = {Cell(ENVOY, "http", 32, 500): requests(499), Cell(AGENT, "http", 32, 500): requests(500)}
    told = summary.summarize(Results(samples), PLAN)
    assert [(run["load"], run["rate"]) for run in told["runs"]] == [("open", 500)] * 2
    assert told["ratios"] == {}


def test_an_earlier_run_is_set_beside_it() -> None:
    now = results({(ENVOY, "http", 32): requests(100), (AGENT, "http", 32): requests(300)})
    near, far = {"ratios": {SAME_NODE: {"value": 2.6}}}, {"ratios": {SAME_NODE: {"value": 2.5}}}
    assert summary.summarize(now, PLAN, near)["notes"] == []
    told = summary.summarize(now, PLAN, far)
    assert told["ratios"][SAME_NODE]["before"] == 2.5
    assert told["notes"] == [f"two runs do not agree within 15%: {SAME_NODE}: 3 now, 2.5 before"]


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
        (Goal("told only", None, None, False), 99, None),
    ],
)
def test_verdicts(goal: Goal, value: float, verdict: str | None) -> None:
    assert goal.verdict(value) == verdict


def test_the_seeds_claims_stand_beside_what_was_measured() -> None:
    found = results(
        {
            (DIRECT, "http", 1): requests(10, p50=100),
            (ENVOY, "http", 1): requests(10, p50=300),
            (DIRECT, "chain5", 1): requests(10, p50=500),
            (ENVOY, "chain5", 1): requests(10, p50=2000),
        }
    )
    found.scale = [Scale("nodeagent", 100, 60 << 20, 0.5, 1), Scale("envoy", 100, 6000 << 20, 20, 40)]
    hop, chain, many = summary.summarize(found, PLAN)["claims"]
    assert hop["measured"] == {"envoy": "0.200 ms"}
    assert chain["measured"] == {"direct": "0.50 ms (1.00 × direct)", "envoy": "2.00 ms (4.00 × direct)"}
    assert many["measured"]["envoy"] == "6,000 MB, 0.200 cores while nothing happens"


def test_the_object_is_json_and_the_tables_show_everything() -> None:
    found = results(
        {(ENVOY, "http", 1): requests(10), (AGENT, "http", 1): requests(30), (AGENT, "bulk", 1): stream(12.34e9)}
    )
    found.memory = {(ENVOY, "http"): 140 << 20, (AGENT, "http"): 60 << 20}
    found.scale = [Scale("nodeagent", 100, 131 << 20, 0.1, 2.5), Scale("envoy", 100, 131 * 60 << 20, 20, 40)]
    found.switches = [Switched("pooling", "off", "envoy", "http", "requests/s", 1234, "/s", 0.5)]
    found.work = {ENVOY: (["checked this"], [])}
    found.micro = Micro(0.5, 0.001, 55, 2)
    found.notes, found.missing = ["something went wrong"], [{"what": "sidecar", "why": "it did not come up"}]
    told = summary.summarize(found, PLAN)
    assert json.loads(json.dumps(told)) == json.loads(json.dumps(told | {"runs": json.loads(json.dumps(told["runs"]))}))
    assert [run["memory_bytes"] for run in told["runs"]] == [140 << 20, 60 << 20, None]
    assert told["ratios"]["agent / Envoy sidecars: memory, 100 pods"]["reached"] == "aim"
    assert told["work"]["envoy"]["checked"] == ["checked this"]
    shown = io.StringIO()
    Console(file=shown, width=200).print(
        tables.figures(told), tables.goals(told), tables.scale(told), tables.switches(told), *tables.remarks(told)
    )
    for text in (
        "envoy",
        "12.34",
        "131 MB",
        "missed",
        "reached",
        "7,860",
        "1,234 /s",
        "note: something went wrong",
        "missing: sidecar: it did not come up",
    ):
        assert text in shown.getvalue()


def test_nothing_measured_is_still_an_answer() -> None:
    told = summary.summarize(Results(notes=["ended early"]), PLAN)
    assert (told["runs"], told["ratios"], told["claims"]) == ([], {}, [])
    assert tables.remarks(told) == ["note: ended early"]


@pytest.mark.parametrize("profile", [name for name, plan in PROFILES.items() if plan.modes])
def test_profiles_ask_for_what_there_is(profile: str) -> None:
    plan = PROFILES[profile]
    assert set(plan.modes) <= set(MODES)
    modes: list[Mode] = [
        Direct(LAB, workloads=plan.workloads),
        NodeAgent(LAB, workloads=plan.workloads),
        NodeAgent(LAB, "2 workers", ("http",), (32,)),
    ]
    cells = all_cells(plan, modes)
    assert len(set(cells)) == len(cells)
    assert {cell.workload for cell in cells} == set(plan.workloads)
    assert {cell.rate for cell in cells} == {None, *plan.rates}
    assert [cell.connections for cell in cells if cell.mode is modes[2]] == [32]


def test_the_bench_measures_what_every_ratio_needs() -> None:
    plan = PROFILES["bench"]
    for _, *ways, _ in COMPARISONS:
        for mode, variant, workload, _ in ways:  # type: ignore[misc]  # both are ways
            assert mode in plan.modes
            assert workload in plan.workloads
            assert plan.variants or not variant


def test_a_log_is_counted_and_takes_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.compare.modes._LOG_SECONDS", 0.1)
    path = tmp_path / "access.log"
    log = Log(path)
    assert log.drain() == 0
    with path.open("ab", buffering=0) as writer:
        writer.write(b"one\n" + b"x" * (1 << 20) + b"\n")
        assert log.drain() == 2
        assert path.stat().st_blocks * 512 < 1 << 16
        writer.write(b"three\n")
        assert log.drain() == 3
    assert EnvoyHop(LAB, logs=[log]).verify({"http": 3, "tcp": 9})[1] == []
    assert EnvoyHop(LAB, logs=[log]).verify({"http": 4})[1] == ["the access log has 3 lines for 4 requests"]


def test_what_the_kernel_counts() -> None:
    assert measure.memory([os.getpid()]) > 1 << 20
    assert measure.memory([1 << 22]) == 0
    assert measure.cpu_seconds([os.getpid(), 1 << 22]) > 0
    assert 0 <= measure.busy_cores(0.1) <= (os.cpu_count() or 1) * 1.5


def test_what_is_written_while_a_log_is_counted_is_counted_too(tmp_path: Path) -> None:
    lines = 20_000
    path = tmp_path / "access.log"
    log = Log(path)

    def write() -> None:
        with path.open("ab", buffering=0) as writer:
            for number in range(lines):
                writer.write(b"%d\n" % number)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            log.drain()
        writing.result()
    assert log.drain() == lines
