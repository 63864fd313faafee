"""What the page says: charts, rows and sentences, from the summary alone. The template only sets them in HTML."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from nodeagent.compare.page import charts
from nodeagent.compare.page.charts import Bar
from nodeagent.compare.page.look import MODES, WORKLOADS, figure, gigabits, microseconds, order, share, size, times
from nodeagent.compare.page.shape import Ratio, Run, ScaleRow, Summary

AGREE: Final = 0.15
"""By how much two runs on one machine may differ in a ratio."""
CLASSIC: Final = "envoy"
STREAMS: Final = ("bulk", "bulk-cross-node", "h2-bulk")


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with the line under it."""

    caption: str
    drawing: Markup


@dataclass(frozen=True, slots=True)
class Headline:
    """A mode against classic sidecars; each cell a ratio, None where one of the two was not measured."""

    mode: str
    requests: float | None
    p50: float | None
    p99: float | None
    cpu: float | None
    memory: float | None


@dataclass(frozen=True, slots=True)
class Rated:
    """A compared figure as a row of the page's table."""

    name: str
    ratio: Ratio
    change: float | None
    """How far it is from what an earlier run said, as a fraction of that."""

    @property
    def doubtful(self) -> bool:
        """Return whether it moved too much within this run or since the earlier one."""
        return not self.ratio.steady or self.disagrees

    @property
    def disagrees(self) -> bool:
        """Say whether an earlier run said something else, by more than AGREE."""
        before = self.ratio.before
        value = self.ratio.value
        return before is not None and abs(value - before) > AGREE * max(before, value)


def find(runs: Iterable[Run], mode: str, workload: str, connections: int) -> Run | None:
    """Return the closed-loop run of *mode*, without a variant, under *workload* with so many
    *connections*; None: it was not measured.
    """
    wanted = (mode, "", workload, "closed", connections)
    return next(
        (run for run in runs if (run.mode, run.variant, run.workload, run.load, run.connections) == wanted), None
    )


def _ends(runs: Iterable[Run], workload: str) -> tuple[int, int]:
    """Return the smallest and the largest number of connections of *workload* in a closed loop; (0, 0) without any."""
    found = [run.connections for run in runs if run.workload == workload and run.load == "closed"]
    return (min(found), max(found)) if found else (0, 0)


def _divide(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _compared(ours: Run | None, theirs: Run | None, latency: str = "") -> float | None:
    """Return the median over the rounds of ours / theirs, of requests/s or of a *latency*; of runs
    without rounds that of their figures.

    The rounds of two runs were measured in turn: a machine that changes from one to the next
    changes no ratio.
    """
    if ours is None or theirs is None:
        return None
    figures = [[run.latency_us.get(latency)] if latency else [run.requests_per_second] for run in (ours, theirs)]
    rounds = [run.latency_rounds_us.get(latency, ()) if latency else run.rounds for run in (ours, theirs)]
    told = rounds if rounds[0] and len(rounds[0]) == len(rounds[1]) else figures
    found = [ratio for mine, other in zip(*told, strict=True) if (ratio := _divide(mine, other)) is not None]
    return statistics.median(found) if found else None


def largest(summary: Summary, mode: str) -> tuple[ScaleRow, ScaleRow] | None:
    """Return what *mode* and classic sidecars take for the largest number of pods at which the
    memory of both was measured.
    """
    both = {(each.mode, each.pods): each for each in summary.scale if each.memory_bytes}
    pods = [pods for name, pods in both if name == mode and (CLASSIC, pods) in both]
    return (both[mode, max(pods)], both[CLASSIC, max(pods)]) if pods else None


def headlines(summary: Summary) -> list[Headline]:
    """Return each mode of this project against classic sidecars, for plain requests on one node."""
    few, many = _ends(summary.runs, "http")
    rows = []
    for mode in ("nodeagent", "nodeagent-kernel", "nodeagent-bypass", "sidecar"):
        ours = find(summary.runs, mode, "http", many)
        theirs = find(summary.runs, CLASSIC, "http", many)
        one = find(summary.runs, mode, "http", few)
        other = find(summary.runs, CLASSIC, "http", few)
        node = largest(summary, mode)
        row = Headline(
            mode,
            _compared(ours, theirs),
            _compared(one, other, "p50"),
            _compared(ours, theirs, "p99"),
            _divide(ours.cpu_us_per_request, theirs.cpu_us_per_request) if ours and theirs else None,
            _divide(node[0].memory_bytes, node[1].memory_bytes) if node else None,
        )
        if any(value is not None for value in (row.requests, row.p50, row.p99, row.cpu, row.memory)):
            rows.append(row)
    return rows


def sentences(summary: Summary) -> list[str]:
    """Return the result in words, for one who reads nothing else."""
    found = []
    row = next((row for row in headlines(summary) if row.mode == "nodeagent"), None)
    parts = []
    if row and row.requests is not None:
        parts.append(f"served {share(row.requests)} the requests per second")
    if row and row.p50 is not None:
        parts.append(f"needed {share(row.p50)} the time for a request on an idle machine")
    if row and row.p99 is not None:
        parts.append(f"answered 99 of 100 requests under load within {share(row.p99)} the time")
    if parts:
        found.append(f"Against classic Envoy sidecars on the same workload, one agent per node {_listed(parts)}.")
    if node := largest(summary, "nodeagent"):
        ours, theirs = (each.memory_bytes or 0 for each in node)
        less = f"1/{theirs / ours:.0f} of" if theirs >= 2 * ours else share(ours / theirs)
        found.append(
            f"For {node[0].pods} pods on a node it took {size(ours)} of memory where sidecars took "
            f"{size(theirs)}: {less} the memory."
        )
    _, many = _ends(summary.runs, "http")
    kernel = find(summary.runs, "nodeagent-kernel", "http", many)
    direct = find(summary.runs, "direct", "http", many)
    if part := _compared(kernel, direct):
        found.append(
            f"Where nothing has to be decided per request, its kernel path ran at {100 * part:.0f} % of the rate "
            "of a direct connection."
        )
    return found


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def doubts(summary: Summary) -> list[str]:
    """Return what a reader must know before the figures: errors, work that was not done, ratios
    that moved, goals missed, parts missing, and what was noted of the whole.
    """
    rows = rated(summary)
    failed: list[str] = []
    for mode, work in summary.work.items():
        failed += [f"{mode}: {each}" for each in work.failed]
    errors = [f"{title(run)}: {run.errors:,}" for run in summary.runs if run.errors]
    found = [f"A check of equal work failed: {each}" for each in failed]
    found += [f"Requests failed: {_listed(errors)}."] if errors else []
    doubtful = [row.name for row in rows if row.doubtful]
    found += [f"Unsteady, or unlike an earlier run: {'; '.join(doubtful)}."] if doubtful else []
    missed = [row.name for row in rows if row.ratio.reached == "missed"]
    asked = sum(row.ratio.reached is not None for row in rows)
    found += [f"{len(missed)} of {asked} goals were missed: {'; '.join(missed)}."] if missed else []
    absent = absences(summary)
    found += [f"Not measured: {'; '.join(what for what, _ in absent)} (see What is missing)."] if absent else []
    found += [f"Noted: {note.rstrip('.')}." for note in summary.notes if note not in failed and not _said(note)]
    return found


def _said(note: str) -> bool:
    """Say whether *note* is among the doubts already, by its figures."""
    return note.endswith("were not sent in time") or note.startswith("two runs do not agree")


def absences(summary: Summary) -> list[tuple[str, str]]:
    """Return what is missing and why: what the comparison says, and the parts of a full one that
    the summary does not hold.
    """
    found = [(each.what, each.why) for each in summary.missing]
    modes = {run.mode for run in summary.runs}
    workloads = {run.workload for run in summary.runs}
    told = {each.what.removeprefix("mode ") for each in summary.missing}
    told |= {name.strip() for name in ",".join(each.what for each in summary.missing).split(",")}
    why = "not in this comparison"
    found += [(f"mode {mode}", why) for mode in MODES if mode not in modes and mode not in told]
    found += [
        (f"workload {workload}", why) for workload in WORKLOADS if workload not in workloads and workload not in told
    ]
    parts = {
        "open-loop latencies": any(run.load == "open" for run in summary.runs),
        "memory and CPU by number of pods": summary.scale,
        "the seed's claims": summary.claims,
        "checks of equal work": summary.work,
        "switches": summary.switches,
        "the environment": summary.environment,
        "goals": summary.ratios,
    }
    return found + [(name, why) for name, there in parts.items() if not there]


def rated(summary: Summary) -> list[Rated]:
    """Return all compared figures of *summary* as rows, in its order."""
    return [
        Rated(name, ratio, ratio.value / ratio.before - 1 if ratio.before else None)
        for name, ratio in summary.ratios.items()
    ]


def title(run: Run) -> str:
    """Return in words which run it is: mode, workload, connections or rate."""
    load = f"{run.rate:,.0f} requests/s asked" if run.load == "open" and run.rate else _connections(run.connections)
    return f"{run.mode}{f' ({run.variant})' if run.variant else ''}, {run.workload}, {load}"


def _connections(count: int) -> str:
    return f"{count} connection" if count == 1 else f"{count} connections"


def _workloads(runs: Iterable[Run]) -> list[str]:
    """Return the workloads of *runs*, known ones first."""
    names = dict.fromkeys(run.workload for run in runs)
    return sorted(names, key=lambda name: list(WORKLOADS).index(name) if name in WORKLOADS else len(WORKLOADS))


def _explained(workload: str) -> str:
    return f"{workload}: {WORKLOADS[workload]}" if workload in WORKLOADS else workload


def curves(summary: Summary) -> list[Chart]:
    """Return latency by percentile for each workload and rate."""
    runs = [run for run in summary.runs if run.percentiles and run.load == "open" and not run.variant]
    found = []
    for workload in _workloads(runs):
        for rate, connections in sorted({(run.rate or 0, run.connections) for run in runs if run.workload == workload}):
            group = [
                run for run in runs if (run.workload, run.rate or 0, run.connections) == (workload, rate, connections)
            ]
            how = f"{rate:,.0f} requests/s over {connections} connections"
            found.append(
                Chart(
                    f"{_explained(workload)}; {how}",
                    charts.latency_curves(group, f"latency by percentile, {workload}, {how}"),
                )
            )
    return found


def under_load(summary: Summary) -> list[Chart]:
    """Return the throughput of each workload at its largest number of connections, then latency by
    rate where there are several rates.
    """
    found = []
    for workload in _workloads(summary.runs):
        _, many = _ends(summary.runs, workload)
        if workload in STREAMS:
            chart = _bars(summary, workload, many, lambda run: run.bits_per_second, gigabits, gigabits)
        elif workload != "chain5":
            chart = _bars(
                summary,
                workload,
                many,
                lambda run: run.requests_per_second,
                lambda value: f"{value:,.0f}/s",
                charts.throughput,
            )
        else:
            continue
        unit = "" if workload in STREAMS else f"; requests/s, {many} connections"
        found += [Chart(f"{_explained(workload)}{unit}", chart)] if chart else []
    return found + list(_by_rate(summary))


def _by_rate(summary: Summary) -> Iterator[Chart]:
    runs = [
        run for run in summary.runs if run.load == "open" and run.rate and run.latency_us.get("p99") and not run.variant
    ]
    for workload in _workloads(runs):
        series: dict[str, list[tuple[float, float]]] = {}
        for run in sorted((run for run in runs if run.workload == workload), key=lambda run: run.rate or 0):
            series.setdefault(run.mode, []).append((run.rate or 0, run.latency_us["p99"]))
        if any(len(points) > 1 for points in series.values()):
            label = f"p99 by rate, {workload}"
            drawing = charts.lines(list(series.items()), label, "requests/s asked", "p99", microseconds)
            yield Chart(f"{_explained(workload)}; latency of the slowest 1 % by rate, open loop", drawing)


def _bars(
    summary: Summary,
    workload: str,
    connections: int,
    of: Callable[[Run], float | None],
    text: Callable[[float], str],
    show: Callable[[float], str],
) -> Markup | None:
    rows = [
        Bar(f"{run.mode} {run.variant}".strip(), run.mode, value, text(value), run.lowest, run.highest)
        for run in sorted(summary.runs, key=lambda run: (order(run.mode), run.variant))
        if (run.workload, run.load, run.connections) == (workload, "closed", connections) and (value := of(run))
    ]
    return charts.bars(rows, f"throughput, {workload}, {connections} connections", show) if rows else None


def latencies(summary: Summary) -> list[Chart]:
    """Return p50 within p99 for each workload, at its smallest and its largest number of connections."""
    found = []
    for workload in _workloads(summary.runs):
        for connections in sorted(set(_ends(summary.runs, workload))):
            rows = _latency_bars(
                [
                    run
                    for run in summary.runs
                    if (run.workload, run.connections) == (workload, connections) and workload != "chain5"
                ]
            )
            if rows:
                label = f"p50 and p99, {workload}, {connections} connections"
                found.append(
                    Chart(
                        f"{_explained(workload)}; {_connections(connections)}",
                        charts.bars(rows, label, microseconds),
                    )
                )
    return found


def _latency_bars(runs: Iterable[Run]) -> list[Bar]:
    rows = []
    for run in sorted(runs, key=lambda run: order(run.mode)):
        p50 = run.latency_us.get("p50")
        p99 = run.latency_us.get("p99")
        if run.load == "closed" and not run.variant and p50 and p99:
            rows.append(Bar(run.mode, run.mode, p99, f"{microseconds(p50)} / {microseconds(p99)}", inner=p50))
    return rows


def chain(summary: Summary) -> list[Chart]:
    """Return the request through five services: p50 and how many times the direct one it is."""
    found = []
    for connections in sorted(set(_ends(summary.runs, "chain5"))):
        runs = [run for run in summary.runs if (run.workload, run.connections) == ("chain5", connections)]
        direct = find(runs, "direct", "chain5", connections)
        base = direct.latency_us.get("p50") if direct else None
        rows = []
        for bar in _latency_bars(runs):
            ratio = _divide(bar.inner, base)
            rows.append(
                Bar(
                    bar.name,
                    bar.mode,
                    bar.value,
                    f"{bar.text}{f' ({times(ratio)} direct)' if ratio else ''}",
                    inner=bar.inner,
                )
            )
        if rows:
            label = f"p50 and p99, one request through five services, {connections} connections"
            found.append(
                Chart(
                    f"{_explained('chain5')}; {_connections(connections)}",
                    charts.bars(rows, label, microseconds),
                )
            )
    return found


def by_pods(summary: Summary) -> list[Chart]:
    """Return memory and idle CPU by the number of pods."""
    found = []
    if any(each.memory_bytes for each in summary.scale):
        found.append(
            Chart(
                "memory that a mode adds to the node (PSS of its processes)",
                charts.scale(summary.scale, lambda each: each.memory_bytes, "memory"),
            )
        )
    if any(each.idle_cpu_percent for each in summary.scale):
        drawing = charts.scale(
            summary.scale,
            lambda each: each.idle_cpu_percent,
            "idle CPU, % of a core",
            lambda value: f"{figure(value)} %",
        )
        found.append(Chart("CPU that a mode takes while no pod does anything", drawing))
    return found


def modes(summary: Summary) -> list[str]:
    """Return every mode that the summary speaks of, in order."""
    named = (
        {run.mode for run in summary.runs}
        | {each.mode for each in summary.scale}
        | {mode.partition(" (")[0] for mode in summary.work}
    )
    return sorted(named, key=lambda mode: (order(mode), mode))


def claim_modes(summary: Summary) -> list[str]:
    """Return the modes with something measured for a claim."""
    measured: set[str] = set().union(*(claim.measured for claim in summary.claims))
    return sorted(measured, key=lambda mode: (order(mode), mode))


def when(date: str) -> str:
    """Return *date*, ISO 8601, to the minute for people."""
    return f"{date[:16].replace('T', ' ')} UTC" if date.endswith(("+00:00", "Z")) else date


def told(value: object) -> str:
    """Return a value of the environment or a round as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:,}"
    return str(value) if isinstance(value, str | int) else json.dumps(value, default=str)
