"""Rounds of shippers under each load, one after the other, so that a machine that slows down slows all of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nodeagent.compare.labs import Missing
from nodeagent.compare.logs import lines
from nodeagent.compare.logs.measure import Bench, LogSample
from nodeagent.compare.logs.shippers import SHIPPERS, Shipper
from nodeagent.compare.logs.sink_process import SinkProcess
from nodeagent.errors import NodeagentError

LogLoad = Literal["plain", "cri", "steady", "down", "busy", "files"]
"""``plain``: a file of JSON lines is caught up with; ``cri``: the same in a runtime's format; ``steady``:
10,000 lines a second over 20 files. For memory: the lines of ``plain``, ten minutes of 1,700 a second, while the
sink is ``down``, or ``busy`` (429); 5,000 ``files`` that come and go.
"""
MEMORY_LOADS: Final[frozenset[LogLoad]] = frozenset({"down", "busy", "files"})
"""Measured once: what grows does so in every round."""
LINES: Final = 1_000_000
"""Of the file that is caught up with: some 205 MB."""
STEADY_RATE: Final = 10_000
STEADY_FILES: Final = 20
STEADY_SECONDS: Final = 5.0
FILES: Final = 5000
MEMORY_SECONDS: Final = 50.0
"""That such a measurement takes at most; with files, each of its steps."""
LOADS: Final[dict[LogLoad, tuple[str, ...]]] = {
    "plain": ("nodeagent", "rsyslog", "syslog-ng", "otelcol"),
    "cri": ("nodeagent",),
    "steady": ("nodeagent", "rsyslog"),
    "down": ("nodeagent",),
    "busy": ("nodeagent",),
    "files": ("nodeagent",),
}
"""Who is measured under each load."""


@dataclass(frozen=True, slots=True)
class LogCell:
    """One figure: a shipper under a load."""

    shipper: Shipper
    load: LogLoad

    def measure(self, bench: Bench, folder: Path, seconds: float) -> LogSample:
        """Put the load on; files that are caught up with are in *folder*. Raises CompareError."""
        match self.load:
            case "plain" | "cri":
                return bench.catch_up(self.shipper, folder / self.load, self.load, LINES, seconds)
            case "steady":
                return bench.steady(self.shipper, STEADY_RATE, STEADY_FILES, STEADY_SECONDS)
            case "files":
                return bench.come_and_go(self.shipper, FILES, MEMORY_SECONDS)
            case "down" | "busy":
                refusing = self.load == "busy"
                return bench.outage(self.shipper, folder / "plain", LINES, MEMORY_SECONDS, refusing=refusing)


def measure_logs(
    rounds: int,
    seconds: float,
    found: dict[LogCell, list[LogSample]],
    missing: list[Missing],
    progress: Callable[[str, int, int], None],
) -> None:
    """Measure every cell so many *rounds*, a catch-up for *seconds* at most, into *found*; what fails goes to
    *missing*, and is not tried again.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        missing.append({"what": "logs", "why": "two cores are needed: one for the shipper, one for who counts"})
        return
    with tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name:
        folder = Path(name)
        progress("logs: writing lines", 0, 1)
        lines.write(folder / "plain", LINES, "plain")
        lines.write(folder / "cri", LINES, "cri")
        sink = SinkProcess(cores[-1])
        try:
            _rounds(Bench(sink, cores[0], cores[-1]), folder, (rounds, seconds), found, missing, progress)
        finally:
            sink.close()


def _rounds(
    bench: Bench,
    folder: Path,
    often: tuple[int, float],
    found: dict[LogCell, list[LogSample]],
    missing: list[Missing],
    progress: Callable[[str, int, int], None],
) -> None:
    rounds, seconds = often
    cells = list(all_log_cells())
    lost: set[LogCell] = set()
    for turn in range(rounds):
        for at, cell in enumerate(cells):
            if cell in lost or (turn and cell.load in MEMORY_LOADS):
                continue
            progress(f"logs, {cell.load}: {cell.shipper.name}", turn * len(cells) + at, rounds * len(cells))
            try:
                sample = cell.measure(bench, folder, seconds)
            except (NodeagentError, OSError) as error:
                lost.add(cell)
                missing.append({"what": f"logs, {cell.load}: {cell.shipper.name}", "why": str(error)})
                continue
            found.setdefault(cell, []).append(sample)


def all_log_cells() -> Iterator[LogCell]:
    """Yield what is measured, what is compared with each other side by side."""
    by_name = {each.name: each for each in SHIPPERS}
    for load, names in LOADS.items():
        for name in names:
            yield LogCell(by_name[name], load)
