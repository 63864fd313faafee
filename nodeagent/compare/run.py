"""One interleaved run: every mode is measured in turn, round after round, so that a machine that
slows down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from nodeagent.compare import calls, labs, load, measure
from nodeagent.compare.labs import LabNeeds, Missing
from nodeagent.compare.load import Client, CompareError, Sample, UnansweredError, Workload
from nodeagent.compare.logs import beside
from nodeagent.compare.logs.beside import BESIDE_LAB, ProxyBesideLogs
from nodeagent.compare.logs.measure import LogSample
from nodeagent.compare.logs.run import LogCell, measure_logs
from nodeagent.compare.meshes import NodeAgent
from nodeagent.compare.micro import Micro, measure_micro
from nodeagent.compare.modes import CallPath, Mode
from nodeagent.compare.scale import SCALE_LAB, Scale, measure_scale
from nodeagent.compare.switches import SWITCH_LAB, Switched, measure_switches
from nodeagent.errors import NodeagentError

_CONNECTIONS: Final[Mapping[Workload, Sequence[int]]] = {
    "bulk": (1,),
    "bulk-cross-node": (1,),
    "http-authz": (32,),
    "h2": (1,),
    "h2-many": (8,),
    "h2-cross-node": (8,),
    "h2-bulk": (1,),
    "grpc": (1,),
    "grpc-stream": (1,),
}
"""Where it is not 1 and 32."""
_OPEN_CONNECTIONS: Final = 32
_OPEN_SECONDS: Final = 4
_WARM_UP_SECONDS: Final = (1, 5, 25)
"""Of each attempt: what has just been set up on a slow or busy machine may take its time to answer at all."""
_LONGER: Final = 5
"""Times as long a round goes on in which nothing was answered: on such a machine that comes later, too."""
_LOGS_SECONDS: Final = 5.0
"""Of a catch-up, at most."""
_WATCH_SECONDS: Final = 2.0
"""How long the machine is watched before anything is measured."""
_QUIET_CORES: Final = 0.15
"""A machine that does more by itself is busy: its figures are noisy."""
Progress = Callable[[str, int, int], None]
"""What is done, how many steps are, of how many."""


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What a comparison measures: *modes* by name, under *workloads*, how often and how long."""

    modes: Sequence[str]
    workloads: Sequence[Workload]
    rounds: int
    seconds: int
    """Of load for each figure and round."""
    rates: Sequence[int] = ()
    """Requests a second of the open loop."""
    scale: Sequence[int] = ()
    """Numbers of pods."""
    switches: bool = False
    variants: bool = False
    """Also the modes' variants, and what single decisions cost."""
    logs: bool = False
    """Also the logs of a node, beside what else brings them somewhere."""
    files: Sequence[str] = ()
    """The user's own YAML, and who asks what there: for the workload ``manifest``."""
    target: CallPath | None = None
    wait: float = labs.WAIT_SECONDS
    """Seconds that a mode may take to come up."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table. ``rate``: requests a second in an open loop; None: a closed one."""

    mode: Mode
    workload: Workload
    connections: int
    rate: int | None = None

    def describe(self) -> str:
        """Return in words what is measured: mode, workload, connections or rate."""
        loop = f" at {self.rate:,}/s" if self.rate else ""
        return (
            f"{self.mode.describe()}: {self.workload}{loop}, {self.connections} "
            f"connection{'s' if self.connections > 1 else ''}"
        )

    def measure(self, seconds: int) -> Sample:
        """Put this load on for *seconds* and return what came of it, with the CPU time that it
        took. Raises CompareError when nothing is answered.
        """
        mode = self.mode
        client = mode.client(self.workload)
        everything = mode.lab.group
        before = mode.cpu_seconds()
        all_before = measure.group_cpu_seconds(everything)
        return replace(
            self._put(client, seconds),
            cpu_seconds=mode.cpu_seconds() - before,
            all_cpu_seconds=measure.group_cpu_seconds(everything) - all_before,
        )

    def _put(self, client: Client, seconds: int) -> Sample:
        """Put the load on *client*'s pod."""
        workload = self.workload
        mode = self.mode
        if workload in ("bulk", "bulk-cross-node"):
            return load.stream(client, mode.address(workload), seconds)
        if workload == "h2-bulk":
            return calls.download(client, mode.url(workload))
        if workload == "grpc":
            return calls.calls(client, mode.address(workload), self.connections, calls.STREAMS[workload], seconds)
        if workload == "grpc-stream":
            return calls.messages(client, mode.address(workload), self.connections, calls.STREAMS[workload], seconds)
        if workload in calls.STREAMS:
            return calls.requests(client, mode.url(workload), self.connections, calls.STREAMS[workload], seconds)
        if self.rate:
            return load.open_loop(client, mode.url(workload), self.rate, self.connections, seconds)
        return load.closed(client, mode.url(workload), self.connections, seconds, fresh=workload in load.CHURN)


@dataclass(slots=True)
class Results:
    """Everything that was measured; what is missing was not reached, or is named."""

    samples: dict[Cell, list[Sample]] = field(default_factory=dict)
    answered: dict[Cell, int] = field(default_factory=dict)
    """Requests, those of the warm-up with them."""
    memory: dict[tuple[Mode, Workload], int] = field(default_factory=dict)
    """PSS of what the mode adds for the pods that take part, in bytes."""
    work: dict[Mode, tuple[list[str], list[str]]] = field(default_factory=dict)
    """What was checked of a mode's work, and what of it failed."""
    scale: list[Scale] = field(default_factory=list)
    switches: list[Switched] = field(default_factory=list)
    micro: Micro | None = None
    logs: dict[LogCell, list[LogSample]] = field(default_factory=dict)
    beside_logs: list[ProxyBesideLogs] = field(default_factory=list)
    """Of the agent's proxy, with a shipper of logs at full load beside it and without."""
    missing: list[Missing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What went wrong, in words."""


def run(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
    """Carry *plan* out, into *results* as it comes.

    A mode that does not come up, or fails in the middle, is named in ``results.missing``, and the
    others go on. Raises CompareError when there is nothing to compare; leaves nothing on the
    machine, however it ends.
    """
    names = [setup.lab for setup in labs.SETUPS] + [SCALE_LAB, SWITCH_LAB, BESIDE_LAB]
    with labs.alone(names):
        if (busy := measure.busy_cores(_WATCH_SECONDS)) > _QUIET_CORES:
            results.notes.append(
                f"the machine was busy before anything was measured ({busy:.1f} cores): these figures are noisy"
            )
        if plan.modes:
            _measure_modes(plan, results, progress)
        if plan.scale:
            measure_scale(plan.scale, plan.modes, results.scale, results.missing, progress)
        if plan.switches:
            measure_switches(plan.seconds, plan.rounds, plan.modes, results.switches, results.missing, progress)
        if plan.variants:
            progress("single decisions", 0, 1)
            results.micro = measure_micro()
        if plan.logs:
            measure_logs(plan.rounds, _LOGS_SECONDS, results.logs, results.missing, progress)
            _measure_beside(plan, results, progress)


def _measure_beside(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
    """Measure what a node's logs do to its proxy."""
    progress("nodeagent, under full log load", 0, 1)
    try:
        with beside.logged_node(plan.wait) as node:
            cell = Cell(NodeAgent(node.lab, workloads=("http",)), "http", beside.CONNECTIONS, beside.RATE)
            until_answered(cell.measure, _WARM_UP_SECONDS)
            node.compare(plan.rounds * beside.PAIRS, lambda: cell.measure(plan.seconds), results.beside_logs)
    except (NodeagentError, OSError) as error:
        results.missing.append({"what": "nodeagent, under full log load", "why": str(error)})


def _measure_modes(plan: ComparisonPlan, results: Results, progress: Progress) -> None:
    if calls.GRPC.intersection(plan.workloads) and not calls.built():
        results.missing.append({"what": "grpc, grpc-stream", "why": "grpcload is not built: make grpc-load"})
        plan = replace(plan, workloads=tuple(each for each in plan.workloads if each not in calls.GRPC))
    modes = labs.bring_up(
        plan.modes,
        LabNeeds(plan.workloads, plan.variants, plan.files, plan.target, plan.wait),
        results.missing,
        lambda what: progress(what, 0, 1),
    )
    if not modes:
        raise CompareError(f"no mode came up: {'; '.join(each['why'] for each in results.missing)}")
    try:
        lost = _rounds(plan, modes, results, progress)
        _account([mode for mode in modes if mode not in lost], results)
    finally:
        for mode in modes:
            mode.lab.down()


def _rounds(plan: ComparisonPlan, modes: Sequence[Mode], results: Results, progress: Progress) -> set[Mode]:
    """Measure, and return the modes that failed in the middle."""
    cells = all_cells(plan, modes)
    total = (plan.rounds + 1) * len(cells)
    done = 0
    lost: set[Mode] = set()
    for turn in range(plan.rounds + 1):
        for cell in cells:
            done += 1
            if cell.mode in lost:
                continue
            progress(cell.describe() if turn else f"warm-up: {cell.describe()}", done - 1, total)
            measured = _OPEN_SECONDS if cell.rate else plan.seconds
            try:
                sample = until_answered(cell.measure, (measured, measured * _LONGER) if turn else _WARM_UP_SECONDS)
            except (NodeagentError, OSError) as error:
                lost.add(cell.mode)
                results.missing.append(
                    {"what": f"{cell.mode.describe()}, from {cell.workload} in round {turn} on", "why": str(error)}
                )
                continue
            results.answered[cell] = results.answered.get(cell, 0) + sample.requests
            if turn:
                results.samples.setdefault(cell, []).append(sample)
            for log in cell.mode.logs:
                log.drain()
    return lost


def until_answered(measure: Callable[[int], Sample], attempts: Sequence[int]) -> Sample:
    """Have *measure*, given the seconds of one of *attempts* after the other, ask until something is answered.

    Return what it saw then. Raises UnansweredError where the last attempt was not enough, and at
    once what else it raises.
    """
    *first, last = attempts
    for seconds in first:
        with suppress(UnansweredError):
            return measure(seconds)
    return measure(last)


def _account(modes: Sequence[Mode], results: Results) -> None:
    """Note memory after all that load, and whether each mode did the work that it was measured for."""
    for mode in modes:
        try:
            for workload in mode.workloads:
                results.memory[mode, workload] = mode.memory(workload)
            results.work[mode] = mode.verify(_by_workload(mode, results.answered))
        except (NodeagentError, OSError) as error:
            results.work[mode] = ([], [f"its work could not be checked: {error}"])
        results.notes += [f"{mode.describe()}: {fault}" for fault in results.work[mode][1]]
    for cell, samples in results.samples.items():
        if errors := sum(sample.errors for sample in samples):
            results.notes.append(
                f"{cell.describe()}: {errors} of {sum(sample.requests for sample in samples)} requests failed, or "
                "were not sent in time"
            )


def _by_workload(mode: Mode, answered: Mapping[Cell, int]) -> dict[Workload, int]:
    counted = dict.fromkeys(mode.workloads, 0)
    for cell, requests in answered.items():
        if cell.mode is mode:
            counted[cell.workload] += requests
    return counted


def all_cells(plan: ComparisonPlan, modes: Sequence[Mode]) -> list[Cell]:
    """Return what to measure, what is compared with each other side by side."""
    return [*_closed_cells(plan, modes), *_open_cells(plan, modes)]


def _closed_cells(plan: ComparisonPlan, modes: Sequence[Mode]) -> Iterator[Cell]:
    for workload in plan.workloads:
        serving = [mode for mode in modes if workload in mode.workloads]
        for connections in _CONNECTIONS.get(workload, (1, 32)):
            for mode in serving:
                if connections in mode.connections or workload in _CONNECTIONS:
                    yield Cell(mode, workload, connections)


def _open_cells(plan: ComparisonPlan, modes: Sequence[Mode]) -> Iterator[Cell]:
    whole = [mode for mode in modes if "http" in mode.workloads and mode.whole and not mode.variant]
    for rate in plan.rates:
        for mode in whole:
            yield Cell(mode, "http", _OPEN_CONNECTIONS, rate)
