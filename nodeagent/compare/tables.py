"""The JSON object of a comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from nodeagent.compare.goals import MEGABYTE
from nodeagent.compare.result import ComparisonResult, RunResult

_COLOURS = {"aim": "green", "must": "yellow", "missed": "red", None: "default"}


def figures(summary: ComparisonResult) -> Table:
    """Return the table of what each mode did under each workload: rates, latencies, CPU, memory."""
    table = Table(title="median of the rounds", title_style="bold")
    for name in ("workload", "load", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("requests/s", "Gbit/s", "p50 µs", "p90 µs", "p99 µs", "CPU µs/req", "memory MB", "lowest … highest"):
        table.add_column(name, justify="right", no_wrap=True)
    before: tuple[str, str] | None = None
    for run in summary["runs"]:
        group = _group(run)
        if before not in (None, group):
            table.add_section()
        table.add_row(*(("", "") if before == group else group), *_row(run))
        before = group
    return table


def _group(run: RunResult) -> tuple[str, str]:
    load = f"{run['rate']:,}/s" if run["rate"] else f"{run['connections']} conn."
    return run["workload"], load


def _row(run: RunResult) -> Iterator[str]:
    yield f"{run['mode']} ({run['variant']})" if run["variant"] else run["mode"]
    yield f"{run['requests_per_second']:,.0f}" if run["requests_per_second"] else ""
    yield f"{run['bits_per_second'] / 1e9:.2f}" if run["bits_per_second"] else ""
    for name in ("p50", "p90", "p99"):
        yield f"{run['latency_us'][name]:,.0f}" if name in run["latency_us"] else ""
    yield (
        f"{run['cpu_us_per_request']:.1f}" if run["cpu_us_per_request"] is not None and run["mode"] != "direct" else ""
    )
    yield f"{run['memory_bytes'] / MEGABYTE:,.0f}" if run["memory_bytes"] else ""
    scale, digits = (1e9, 2) if run["bits_per_second"] else (1, 0)
    yield f"{run['lowest'] / scale:,.{digits}f} … {run['highest'] / scale:,.{digits}f}"


def goals(summary: ComparisonResult) -> Table:
    """Return the table of ratios, with what must be reached where something must."""
    table = Table(title="ratios, round by round; the median", title_style="bold")
    for name in ("figure", "must", "aim", "measured", "lowest … highest", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right", no_wrap=True)
    for name, ratio in summary["ratios"].items():
        sign = "≥" if ratio["better"] == "more" else "≤"
        unit = ratio["unit"]
        must, aim = (
            f"{sign} {limit:.3g} {unit}" if limit is not None else "" for limit in (ratio["must"], ratio["aim"])
        )
        spread = f"{ratio['lowest']:.3g} … {ratio['highest']:.3g}" if ratio["lowest"] != ratio["highest"] else ""
        verdict = "reached" if ratio["aim"] is None and ratio["reached"] == "aim" else ratio["reached"] or ""
        verdict += "" if ratio["steady"] else " (unsteady)"
        table.add_row(
            name,
            must,
            aim,
            f"{ratio['value']:.3g} {unit}",
            spread,
            f"[{_COLOURS[ratio['reached']]}]{verdict.strip()}[/]",
        )
    return table


def scale(summary: ComparisonResult) -> Table:
    """Return the table of nodes full of pods that do nothing."""
    table = Table(title="pods that do nothing, one node", title_style="bold")
    for name in ("pods", "mode", "memory MB", "idle CPU, % of a core", "ready s"):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    rows = sorted(summary["scale"], key=lambda row: row["pods"])
    before = rows[0]["pods"] if rows else 0
    for row in rows:
        if row["pods"] != before:
            table.add_section()
        before = row["pods"]
        cells = (
            str(row["pods"]),
            row["mode"],
            f"{row['memory_bytes'] / MEGABYTE:,.0f}",
            f"{row['idle_cpu_percent']:.2f}",
            f"{row['ready_seconds']:.1f}",
        )
        table.add_row(*cells)
    return table


def switches(summary: ComparisonResult) -> Table:
    """Return the table of what each setting of the usual switches changes, as a ratio to its first setting."""
    table = Table(title="switches", title_style="bold")
    for name in ("switch", "setting", "mode", "figure", "value", "× of the first"):
        table.add_column(name, justify="right" if name in ("value", "× of the first") else "left", no_wrap=True)
    for row in summary["switches"]:
        value = f"{row['value']:,.2f} {row['unit']}" if row["value"] < 100 else f"{row['value']:,.0f} {row['unit']}"
        table.add_row(row["switch"], row["setting"], row["mode"], row["figure"], value, f"{row['against_default']:.2f}")
    return table


def logs(summary: ComparisonResult) -> Table:
    """Return the table of what brings logs somewhere."""
    table = Table(title="logs; the median", title_style="bold")
    for name in ("load", "shipper", "lines/s", "CPU µs/line", "CPU, % of a core", "memory MB"):
        table.add_column(name, justify="left" if name in ("load", "shipper") else "right", no_wrap=True)
    for row in summary["logs"]:
        table.add_row(
            row["load"],
            row["shipper"],
            f"{row['lines_per_second']:,.0f}",
            f"{row['cpu_us_per_line']:.2f}",
            f"{row['cpu_percent']:.1f}",
            f"{row['memory_bytes'] / MEGABYTE:,.0f}",
        )
    return table


def remarks(summary: ComparisonResult) -> list[str]:
    """Return what belongs below the tables: what is missing, and what went wrong."""
    lines = [f"missing: {each['what']}: {each['why']}" for each in summary["missing"]]
    return lines + [f"note: {note}" for note in summary["notes"]]
