"""``nodeagent compare``: no mesh, the node agent, and per-pod sidecars, on the same workload, in one run."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nodeagent.cli.types import Seconds
from nodeagent.compare import summary, tables
from nodeagent.compare.estimate import estimate, read, usage
from nodeagent.compare.estimate import tables as tables_of
from nodeagent.compare.labs import MODES, WAIT_SECONDS
from nodeagent.compare.load import CompareError, Workload
from nodeagent.compare.modes import CallPath
from nodeagent.compare.result import ComparisonResult
from nodeagent.compare.run import ComparisonPlan, Results, run
from nodeagent.errors import NodeagentError, unread
from nodeagent.lab.interruption import interruptible

_MAIN: Final = ("direct", "nodeagent", "nodeagent-kernel", "sidecar", "envoy")
_WORKLOADS: Final[tuple[Workload, ...]] = ("http", "http-authz", "tcp", "tcp-churn", "chain5", "cross-node", "bulk")
_HTTP2: Final[tuple[Workload, ...]] = ("h2", "h2-many", "h2-cross-node", "h2-bulk", "grpc", "grpc-stream")
PROFILES: Final = {
    "full": ComparisonPlan(
        MODES, _WORKLOADS, rounds=3, seconds=2, rates=(500, 2000, 5000), scale=(1, 10, 50, 100), switches=True
    ),
    "quick": ComparisonPlan(_MAIN, ("http", "tcp"), rounds=2, seconds=2),
    "bench": ComparisonPlan(
        MODES,
        (*_WORKLOADS, "cross-node-churn", "bulk-cross-node", *_HTTP2),
        rounds=5,
        seconds=2,
        scale=(2, 100),
        variants=True,
        logs=True,
    ),
    "logs": ComparisonPlan((), (), rounds=3, seconds=2, logs=True),
}
_TELL_SECONDS: Final = 10.0
"""Between two lines of progress, where nothing is drawn."""
_KNOWN: Final = tuple(workload for workload in get_args(Workload) if workload != "manifest")


def _names(allowed: Sequence[str]) -> Callable[[click.Context, click.Parameter, str | None], tuple[str, ...] | None]:
    def check(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
        if text is None:
            return None
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not names or not set(names) <= set(allowed):
            raise click.BadParameter(f"{text!r}: allowed: some of {', '.join(allowed)}, separated by commas")
        return tuple(name for name in allowed if name in names)

    return check


def _numbers(least: int, most: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    def check(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        if text is None or text == "none":
            return None if text is None else ()
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and least <= int(part) <= most for part in parts):
            raise click.BadParameter(f"{text!r}: allowed: none, or numbers from {least} to {most}, separated by commas")
        return tuple(sorted({int(part) for part in parts}))

    return check


@click.command()
@click.option(
    "--quick", "profile", flag_value="quick", help="The five main modes, http and tcp only, in less than 3 minutes."
)
@click.option(
    "--bench",
    "profile",
    flag_value="bench",
    help="What this project holds itself to: five rounds, and the modes' variants.",
)
@click.option(
    "--logs",
    "profile",
    flag_value="logs",
    help="Only the node's logs: how fast, beside rsyslog, syslog-ng and otelcol, and what they do to the proxy.",
)
@click.option("--modes", callback=_names(MODES), metavar="A,B,…", help=f"Some of: {', '.join(MODES)}.")
@click.option("--workloads", callback=_names(_KNOWN), metavar="A,B,…", help=f"Some of: {', '.join(_KNOWN)}.")
@click.option("--rounds", type=click.IntRange(1, 600), help="How often all figures are measured in turn.")
@click.option("--seconds", type=click.IntRange(1, 600), help="Of load for each figure and round.")
@click.option(
    "--wait",
    type=Seconds(min=1),
    metavar="SECONDS",
    help=f"How long a mode may take to come up: {WAIT_SECONDS:g}, or more on a slow machine.",
)
@click.option(
    "--rates", callback=_numbers(1, 200_000), metavar="N,N,…", help="Requests/s of the open loop; none leaves it out."
)
@click.option(
    "--scale",
    callback=_numbers(1, 250),
    metavar="N,N,…",
    help="Numbers of idle pods to measure memory and CPU with; none leaves it out.",
)
@click.option(
    "--switches/--no-switches", default=None, help="Measure what buffer size, pooling and native sidecars change."
)
@click.option(
    "--manifest",
    "files",
    multiple=True,
    metavar="FILE|DIR",
    help="Compare on your own YAML instead; takes --from and --url.",
)
@click.option(
    "--from", "source", metavar="[NAMESPACE/]POD", help="With --manifest: the pod that asks (deploy/NAME: its first)."
)
@click.option("--url", metavar="URL", help="With --manifest: what it asks, such as http://web.shop:8080/.")
@click.option(
    "--estimate",
    "estimated",
    multiple=True,
    metavar="FILE",
    help="Measure nothing: what sidecars take in a cluster, by its pods (YAML or JSON).",
)
@click.option(
    "--top",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --estimate: the output of kubectl top pods -A --containers.",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 100_000),
    help="With --estimate: on how many nodes the pods run, where they do not say.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The JSON of an earlier run, to set its ratios beside these.",
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write an HTML page with charts, and the JSON, into DIR.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the JSON into FILE."
)
@click.option(
    "-o", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print."
)
def compare(
    profile: str | None,
    estimated: tuple[str, ...],
    top: Path | None,
    nodes: int | None,
    against: Path | None,
    report: Path | None,
    output: Path | None,
    form: str,
    **asked: Any,
) -> int:
    """Measure no mesh, the node agent and per-pod sidecars side by side on the same workload; takes
    root.

    Round by round, every mode in turn: compare the ratios of one run, not the figures of two
    machines. Without options every mode, in less than 25 minutes. With --estimate nothing is
    measured, and nobody need be root.
    """
    measured = (profile, against, report, output, *asked.values())
    if estimated and any(value not in (None, ()) for value in measured):
        raise click.UsageError("--estimate measures nothing: it takes --top, --nodes and -o")
    if not estimated and (top or nodes):
        raise click.UsageError("--top and --nodes go with --estimate")
    if estimated:
        return _estimate(estimated, top, nodes, form)
    plan = _plan(profile or "full", **asked)
    before = _earlier(against)
    _make_places(output, report)
    results = Results()
    failed = _carry_out(plan, results)
    told = summary.summarize(results, plan, before)
    if form == "json":
        click.echo(json.dumps(told, indent=1))
    else:
        _show(told)
    _write(told, output, report)
    if form != "json":
        for place in (output, report):
            if place:
                click.echo(f"written to {place}")
    return int(failed)


def _plan(profile: str, files: tuple[str, ...], source: str | None, url: str | None, **asked: Any) -> ComparisonPlan:
    """Return the plan of *profile* with what was *asked* otherwise. Raises UsageError."""
    base = PROFILES[profile]
    values = {name: getattr(base, name) if value is None else value for name, value in asked.items()}
    if bool(files) != bool(source) or bool(files) != bool(url):
        raise click.UsageError("--manifest, --from and --url go together")
    without = [name for name in ("workloads", "rates", "scale", "switches") if asked.get(name) is not None]
    if files and without:
        raise click.UsageError(f"--{', --'.join(without)}: not with --manifest, which is the only workload")
    if not files:
        return ComparisonPlan(**values, variants=base.variants, logs=base.logs)
    assert source is not None
    assert url is not None
    if not url.startswith("http://"):
        raise click.UsageError(f"--url: {url!r}: allowed: http://HOST[:PORT]/PATH")
    first, slash, rest = source.partition("/")
    namespace, pod = ("default", source) if not slash or first in ("deploy", "deployment") else (first, rest)
    unable = ("haproxy", "envoy-hop", "nodeagent-bypass")
    wrong = [mode for mode in asked.get("modes") or () if mode in unable]
    if wrong:
        raise click.UsageError(f"--modes: {', '.join(wrong)}: not with --manifest")
    values |= {
        "workloads": ("manifest",),
        "rates": (),
        "scale": (),
        "switches": False,
        "modes": [mode for mode in values["modes"] if mode not in unable],
    }
    return ComparisonPlan(**values, files=files, target=CallPath(namespace, "", 0, pod, url=url))


def _earlier(path: Path | None) -> ComparisonResult | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeError) as error:
        raise CompareError(f"--against: {unread(path, error)}") from None
    except (ValueError, RecursionError) as error:
        raise CompareError(f"--against: {path}: not a comparison's JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("ratios"), dict):
        raise CompareError(f"--against: {path}: not a comparison's JSON: it has no ratios")
    for name, ratio in found["ratios"].items():
        value = ratio.get("value") if isinstance(ratio, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CompareError(f"--against: {path}: not a comparison's JSON: ratios.{name:.80}.value is no number")
    return cast(ComparisonResult, found)


def _carry_out(plan: ComparisonPlan, results: Results) -> bool:
    """Return whether it ended early; what was measured until then is in *results*."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    started = time.monotonic()
    try:
        with (
            interruptible((signal.SIGINT, signal.SIGTERM)),
            Progress(*columns, console=console, transient=True) as shown,
        ):
            task = shown.add_task("")

            told = started

            def progress(what: str, done: int, total: int) -> None:
                nonlocal told
                shown.update(task, description=what, completed=done, total=total)
                if not console.is_terminal and (now := time.monotonic()) - told >= _TELL_SECONDS:
                    told = now
                    click.echo(f"{now - started:.0f} s: {what}", err=True)

            run(plan, results, progress)
    except KeyboardInterrupt:
        results.notes.append("interrupted: what is here had been measured before")
        return True
    except NodeagentError as error:
        results.notes.append(f"ended early: {error}")
        return True
    except Exception as error:  # noqa: BLE001 - whatever it is, what had been measured is told
        results.notes.append(f"ended early: {type(error).__name__}: {error}: this is a fault of the comparison")
        return True
    click.echo(f"measured in {time.monotonic() - started:.0f} s", err=True)
    return False


def _show(told: ComparisonResult) -> None:
    console = _console()
    for there, table in (
        (told["runs"], tables.figures),
        (told["ratios"], tables.goals),
        (told["scale"], tables.scale),
        (told["switches"], tables.switches),
        (told["logs"], tables.logs),
    ):
        if there:
            console.print(table(told))
    for line in tables.remarks(told):
        console.print(line, highlight=False, markup=False)


def _make_places(output: Path | None, report: Path | None) -> None:
    """Raise CompareError where the results could not be written: before they are measured."""
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("a"):
                """It can be."""
        if report:
            report.mkdir(parents=True, exist_ok=True)
            importlib.import_module("nodeagent.compare.page")
    except ImportError as error:
        raise CompareError(f"--report: {error}: it takes what pip install 'nodeagent[compare]' brings") from None
    except OSError as error:
        raise CompareError(f"the results could not be written: {error}") from None


def _write(told: ComparisonResult, output: Path | None, report: Path | None) -> None:
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(told, indent=1) + "\n")
        if report:
            from nodeagent.compare import page  # it draws: matplotlib is slow to import

            page.write(told, report)
    except OSError as error:
        raise CompareError(f"the results cannot be written: {error}") from None


def _estimate(files: Sequence[str], top: Path | None, nodes: int | None, form: str) -> int:
    try:
        used = usage(top.read_text(), str(top)) if top else None
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"--top: {unread(str(top), error)}") from None
    found = estimate(read(files), used, nodes=nodes)
    if form == "json":
        click.echo(json.dumps(found.json(), indent=1))
    else:
        _console().print(*tables_of(found))
    return 0


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 150)
