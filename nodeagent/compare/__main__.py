"""``make bench``: measure, print, write the JSON object."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nodeagent.compare import bench, report
from nodeagent.errors import NodeagentError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nodeagent.compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=2, help="of load for each figure and round (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="in which all figures are measured in turn (default 5)")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    for name in ("seconds", "rounds"):
        if not 1 <= getattr(arguments, name) <= 600:
            parser.error(f"--{name}: {getattr(arguments, name)}: allowed: 1 to 600")
    return arguments


def main() -> int:
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results, failed = bench.Results(), False
    started = time.monotonic()
    try:
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True) as shown:
            task = shown.add_task("")
            bench.run(arguments.rounds, arguments.seconds, results, lambda what, done, total: shown.update(task, description=what, completed=done, total=total))
    except KeyboardInterrupt:
        failed = True
        results.notes.append("interrupted: what is here had been measured before")
    except NodeagentError as error:
        failed = True
        results.notes.append(f"ended early: {error}")
    summary = report.summarize(results, arguments.rounds, arguments.seconds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(summary, indent=1) + "\n")
    if summary["runs"]:
        console.print(report.figures(summary), report.goals(summary))
    for line in report.remarks(summary):
        console.print(line, highlight=False)
    console.print(f"{time.monotonic() - started:.0f} s; every number is in {arguments.output}", highlight=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
