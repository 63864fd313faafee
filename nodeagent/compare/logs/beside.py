"""What the logs' collector at full load does to the rest of the agent: the same figure with it and without, in turn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.compare.labs import Missing
from nodeagent.compare.load import Sample
from nodeagent.compare.logs import lines
from nodeagent.compare.logs.measure import Bench, LogSample, SinkProcess
from nodeagent.errors import NodeagentError

LINES: Final = 3_000_000
"""That are read for as long as a figure is measured."""


@dataclass(frozen=True, slots=True)
class ProxyBesideLogs:
    """One round."""

    under: Sample
    """With the collector at full load."""
    without: Sample
    logs: LogSample
    """What the collector did meanwhile: one that gets no processor disturbs nobody."""


def measure_beside(
    rounds: int, measure: Callable[[], Sample], found: list[ProxyBesideLogs], missing: list[Missing]
) -> None:
    """Have *measure* called so many *rounds* with the collector at full load on any core, and without, into *found*;
    what fails goes to *missing*.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="nodeagent-logs-") as name:
            path = Path(name) / "plain"
            lines.write(path, LINES, "plain")
            last = max(os.sched_getaffinity(0))
            sink = SinkProcess(last)
            try:
                for _ in range(rounds):
                    without = measure()
                    under, logs = Bench(sink, None, last).at_full_load(path, LINES, measure)
                    found.append(ProxyBesideLogs(under, without, logs))
            finally:
                sink.close()
    except (NodeagentError, OSError) as error:
        missing.append({"what": "nodeagent, under full log load", "why": str(error)})
