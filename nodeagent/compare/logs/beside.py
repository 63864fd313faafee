"""What logs at full load do to the proxy of the same node: its latency with the agent's own collector reading as fast
as it can, with another shipper in its place, and with neither, in turn.

The agent with all its processes, or the agent and the shipper, have one core; who asks, who answers and who counts the
lines have another, so that of what is compared only the shipper's own part differs. The sink has what client and
server leave, for on a node it is another machine. Requests come at a fixed rate: a closed loop would ask
less of a proxy that is slow, and takes all there is of both cores itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from nodeagent.compare import manifests, measure
from nodeagent.compare.load import CompareError, Sample
from nodeagent.compare.logs import lines
from nodeagent.compare.logs.measure import Bench, LogSample
from nodeagent.compare.logs.shippers import AGENT, SHIPPERS, Shipper
from nodeagent.compare.logs.sink_process import SinkProcess
from nodeagent.lab import Lab, cgroup
from nodeagent.lab.processes import inside

BESIDE_LAB: Final = "compare-logs"
RATE: Final = 2000
"""Requests a second."""
CONNECTIONS: Final = 32
PAIRS: Final = 3
"""A round: of such short measurements many are needed."""
LINES: Final = 3_000_000
"""That are there to be read for as long as a figure is measured."""
_NODE: Final = "node1"
_PORT: Final = 9200
"""Of the sink, in the node's own network."""
_PATIENCE_SECONDS: Final = 60.0
_STILL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class ProxyBesideLogs:
    """One measurement with a shipper at full load, and the one without that belongs to it."""

    shipper: str
    under: Sample
    without: Sample
    logs: LogSample
    """What it did meanwhile: one that gets no processor disturbs nobody."""


@contextmanager
def logged_node(wait: float, count: int = LINES) -> Iterator[LoggedNode]:
    """Yield a node in a lab of its own, with so many lines to read. Raises CompareError and LabError."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise CompareError("two cores are needed: one for agent and shipper, one for who asks, answers and counts")
    with TemporaryDirectory(prefix="nodeagent-logs-") as name:
        folder = Path(name)
        lines.write(folder / "plain", count, "plain")
        log = folder / "node.log"
        log.touch()
        agent = {"logs": _settings(log)}
        with Lab.up(
            text=manifests.workload(manifests.PLAIN), name=BESIDE_LAB, mode="nodeagent", agent=agent, wait_seconds=wait
        ) as lab:
            sink = SinkProcess(cores[-1], netns=lab.netns(_NODE), port=_PORT, leftover=True)
            before = os.sched_getaffinity(0)
            try:
                os.sched_setaffinity(0, {cores[-1]})  # and so the client's, which are this one's children
                yield LoggedNode(lab, folder, log, Bench(sink, cores[0], cores[-1]), count)
            finally:
                os.sched_setaffinity(0, before)
                sink.close()


def _settings(log: Path) -> Mapping[str, object]:
    search = {"urls": [f"http://127.0.0.1:{_PORT}"], "index": "app-logs", "gzip": False}
    return {
        "containers": "none",
        "node": {"files": [{"path": str(log)}]},
        "sinks": [{"name": "search", "elasticsearch": search}],
        "stopSeconds": 0.1,
    }


class LoggedNode:
    """A node whose agent reads *log*; what shippers read is in *folder*."""

    def __init__(self, lab: Lab, folder: Path, log: Path, bench: Bench, count: int) -> None:
        self.lab = lab
        self._folder = folder
        self._log = log
        self._bench = bench
        self._count = count
        self._contents = 0

    def counted(self) -> int:
        """Return how many lines the sink has counted since the last shipper began."""
        lines: int = self._bench.sink.counted()["lines"]
        return lines

    def compare(
        self, turns: int, measure: Callable[[], Sample], found: list[ProxyBesideLogs], other: Shipper | None = None
    ) -> None:
        """Have *measure* called so many *turns* with neither, with the agent's collector at full load, and with the
        *other* shipper (None: rsyslog), each first in its turn, into *found*. Raises CompareError and OSError.
        """
        self._separate()
        beside = [AGENT, other or next(each for each in SHIPPERS if each.name == "rsyslog")]
        order: list[Shipper | None] = [None, *beside]
        for turn in range(turns):
            at = turn % len(order)
            without: Sample | None = None
            loaded: list[tuple[Shipper, Sample, LogSample]] = []
            for shipper in (*order[at:], *order[:at]):
                self._bench.sink.reset()
                if shipper is None:
                    without = measure()
                elif shipper is AGENT:
                    loaded.append((shipper, *self._under_own(measure)))
                else:
                    loaded.append((shipper, *self._under(shipper, measure)))
            assert without is not None
            found += [ProxyBesideLogs(each.name, under, without, logs) for each, under, logs in loaded]

    def _separate(self) -> None:
        """Give the node's agent its core, and all else of the lab the other. Agents of other nodes go: they have the
        same settings, and would read the same file.
        """
        for node in self.lab.nodes:
            if node != _NODE:
                self.lab.agent(node).stop()
        agent = self.lab.agent(_NODE).processes()
        _keep_to(self._bench.shipper_core, agent)
        _keep_to(self._bench.other_core, [pid for pid in cgroup.processes(self.lab.group) if pid not in agent])

    def _under_own(self, measured: Callable[[], Sample]) -> tuple[Sample, LogSample]:
        """Measure while the agent's collector reads."""
        collector = self._collector()
        self._fill()
        try:
            return self._bench.while_it_reads(
                AGENT.name,
                self._count,
                measured,
                cpu=lambda: measure.cpu_seconds([collector]),
                memory=lambda: measure.memory([collector]),
            )
        finally:
            self._empty()

    def _under(self, shipper: Shipper, measured: Callable[[], Sample]) -> tuple[Sample, LogSample]:
        """Measure while *shipper* reads, in the node's network."""
        netns = self.lab.netns(_NODE)
        there = replace(shipper, command=lambda task: inside(netns, shipper.command(task)))
        return self._bench.at_full_load(there, self._folder / "plain", self._count, measured)

    def _collector(self) -> int:
        folder = str(self.lab.layout.node(_NODE) / "logs")
        for pid in self.lab.agent(_NODE).processes():
            for each in Path(f"/proc/{pid}/fd").glob("*"):
                with suppress(OSError):
                    if os.readlink(each) == folder:
                        return pid
        raise CompareError(f"no process of the agent has {folder} open: its collector of logs has not begun")

    def _fill(self) -> None:
        """Put another file in the log's place. It begins with a line of its own: it would be known as a copy else."""
        self._contents += 1
        filled = self._folder / "filled"
        with filled.open("wb") as out, (self._folder / "plain").open("rb") as plain:
            out.write(lines.line(self._count + self._contents, "plain"))
            out.flush()
            left = os.fstat(plain.fileno()).st_size
            while left:
                left -= os.sendfile(out.fileno(), plain.fileno(), None, left)
            os.fsync(out.fileno())  # what the disk has still to write would be written while it is measured
        filled.rename(self._log)

    def _empty(self) -> None:
        """Leave nothing to be read, and wait until nothing comes any more. Raises CompareError."""
        os.truncate(self._log, 0)
        end = time.monotonic() + _PATIENCE_SECONDS
        came = -1
        while (now := self.counted()) != came:
            if time.monotonic() > end:
                raise CompareError(f"lines came for {_PATIENCE_SECONDS:g} s after their file was emptied")
            came = now
            time.sleep(_STILL_SECONDS)


def _keep_to(core: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(OSError):  # it has ended
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), {core})
