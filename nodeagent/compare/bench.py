"""One interleaved run: every mode is measured in turn, round after round, so that a machine that slows down slows all of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from nodeagent.compare import envoy, load, measure
from nodeagent.compare.load import BenchError, Client, Sample, Workload
from nodeagent.compare.micro import Micro, measure_micro
from nodeagent.compare.modes import Bypass, Direct, EnvoyHop, EnvoyPair, HaproxyHop, KernelPath, Mode, NodeAgent, namespaces, policies
from nodeagent.compare.scale import Scale, measure_scale
from nodeagent.lab import Lab

EVERYWHERE: Sequence[Workload] = ("http", "tcp-churn", "cross-node", "bulk", "bulk-cross-node")
ALL: Sequence[Workload] = (*EVERYWHERE, "http-authz", "http-kernel-metrics")
POLICIES = (1, 100, 10_000)
LABS = ("bench", "bench-agent", "bench-workers", "bench-kernel", *(f"bench-authz-{count}" for count in POLICIES))
SCALE_LAB = "bench-scale"
MANY_PODS = 100
_CONNECTIONS: Mapping[Workload, Sequence[int]] = {"bulk": (1,), "bulk-cross-node": (1,), "http-authz": (32,)}
"""Where it is not 1 and 32."""
_WARM_UP_SECONDS = 1
_WATCH_SECONDS, _QUIET_CORES = 2.0, 0.15


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table."""

    mode: Mode
    workload: Workload
    connections: int

    def describe(self) -> str:
        variant = f" ({self.mode.variant})" if self.mode.variant else ""
        return f"{self.mode.name}{variant}: {self.workload}, {self.connections} connection{'s' if self.connections > 1 else ''}"

    def measure(self, seconds: int) -> Sample:
        """Put load on for *seconds*. Raises BenchError."""
        address = self.mode.address(self.workload)
        before = measure.cpu_seconds(self.mode.processes())
        if "bulk" in self.workload:
            sample = load.stream(self.mode.client, address, seconds)
        else:
            sample = load.requests(self.mode.client, address, self.connections, seconds, fresh=self.workload == "tcp-churn")
        return replace(sample, cpu_seconds=measure.cpu_seconds(self.mode.processes()) - before)


@dataclass(slots=True)
class Results:
    """Everything that was measured; what is missing was not reached."""

    samples: dict[Cell, list[Sample]] = field(default_factory=dict)
    answered: dict[Cell, int] = field(default_factory=dict)
    """Requests, those of the warm-up with them."""
    memory: dict[str, int] = field(default_factory=dict)
    """What the text says -> bytes."""
    scale: Scale | None = None
    micro: Micro | None = None
    notes: list[str] = field(default_factory=list)
    """What went wrong, in words."""


def run(rounds: int, seconds: int, results: Results, progress: Callable[[str, int, int], None]) -> None:
    """Measure *rounds* times *seconds* for each figure, into *results* as it comes; *progress* is told what, done, of how many.

    Raises BenchError or LabError when a mode does not come up; leaves nothing on the machine, however it ends.
    """
    progress("setting up", 0, 1)
    with all_modes() as modes:
        if (busy := measure.busy_cores(_WATCH_SECONDS)) > _QUIET_CORES:
            results.notes.append(f"the machine was busy before anything was measured ({busy:.1f} cores): these figures are noisy")
        cells = all_cells(modes)
        total = (rounds + 1) * len(cells) + 1
        done = 0
        for turn in range(rounds + 1):
            for cell in cells:
                progress(cell.describe() if turn else f"warm-up: {cell.describe()}", done, total)
                sample = cell.measure(seconds if turn else _WARM_UP_SECONDS)
                results.answered[cell] = results.answered.get(cell, 0) + sample.requests
                if turn:
                    results.samples.setdefault(cell, []).append(sample)
                for log in cell.mode.logs:
                    log.drain()
                done += 1
        results.memory = _memory(modes)
        progress(f"one agent, {MANY_PODS} pods", total - 1, total)
        results.scale = measure_scale(MANY_PODS, SCALE_LAB)
        results.micro = measure_micro()
        for mode in modes:  # only now: Envoy writes its log out every 10 s
            results.notes += mode.verify(_by_workload(mode, results.answered))
    for cell, samples in results.samples.items():
        if errors := sum(sample.errors for sample in samples):
            results.notes.append(f"{cell.describe()}: {errors} of {sum(sample.requests for sample in samples)} requests failed")


def _by_workload(mode: Mode, answered: Mapping[Cell, int]) -> dict[Workload, int]:
    counted = dict.fromkeys(mode.workloads, 0)
    for cell, requests in answered.items():
        if cell.mode is mode:
            counted[cell.workload] += requests
    return counted


def all_cells(modes: Sequence[Mode]) -> list[Cell]:
    """Return what to measure, what is compared with each other side by side."""
    return [
        Cell(mode, workload, connections)
        for workload in ALL
        for connections in (_CONNECTIONS.get(workload, (1, 32)))
        for mode in modes
        if workload in mode.workloads and (connections in mode.connections or "bulk" in workload)
    ]


@contextmanager
def all_modes() -> Iterator[list[Mode]]:
    """Set all modes up; take everything down afterwards. Labs of the same names that a crash left are removed first."""
    envoy.binary()
    with ExitStack() as stack:
        _alone(stack.enter_context(socket.socket(socket.AF_UNIX)))
        for name in (*LABS, SCALE_LAB):
            Lab.remove(name)
            stack.callback(Lab.remove, name)
        plain, agents, workers, kernel, *authz = LABS
        lab = Lab.up(text=namespaces(["plain", "pair", "pair-one"]), name=plain)
        directory = lab.state / "bench"
        directory.mkdir()
        direct = Direct(Client(lab, "plain"), workloads=EVERYWHERE)
        haproxy, hop = HaproxyHop(direct.client), EnvoyHop(direct.client)
        pair = EnvoyPair(Client(lab, "pair"), workloads=EVERYWHERE)
        single = EnvoyPair(Client(lab, "pair-one"), "concurrency 1", connections=(32,), concurrency=1)
        for started in (haproxy, hop, pair, single):
            started.start(directory)
        agent = NodeAgent(Client(Lab.up(text=namespaces(["mesh"]), name=agents, mode="nodeagent"), "mesh"), workloads=EVERYWHERE)
        two = Lab.up(text=namespaces(["mesh"]), name=workers, mode="nodeagent", agent={"proxy": {"workers": 2}})
        several = NodeAgent(Client(two, "mesh"), "2 workers", workloads=("http", "cross-node"), connections=(32,))
        silent = {"telemetry": {"accessLog": {"path": ""}}}
        setting = "nodeagent.io/path: kernel"
        text = (
            namespaces(["kernel"], annotations=setting)
            + "\n---\n"
            + namespaces(["bypass"], annotations=setting, pod_annotations="nodeagent.io/bypass: enabled")
        )
        around = Lab.up(text=text, name=kernel, mode="nodeagent", agent=silent)
        past = KernelPath(Client(around, "kernel"), workloads=("http", "http-kernel-metrics", "tcp-churn", "bulk"))
        joined = Bypass(Client(around, "bypass"), workloads=("http", "bulk"))
        protected = []
        for count, name in zip(POLICIES, authz, strict=True):
            guarded = Lab.up(text=namespaces(["mesh"]) + policies("mesh", count), name=name, mode="nodeagent")
            protected.append(NodeAgent(Client(guarded, "mesh"), f"{count:,} polic{'ies' if count > 1 else 'y'}", workloads=("http-authz",), connections=(32,)))
        for each in (agent, several, past, joined, *protected):
            each.start()
        yield [direct, haproxy, hop, pair, single, agent, several, past, joined, *protected]


def _alone(lock: socket.socket) -> None:
    """Hold a name that only one process of the machine can hold; it goes with the process. Raises BenchError."""
    try:
        lock.bind("\0nodeagent-bench")
    except OSError:
        raise BenchError("another benchmark is running on this machine: they would disturb each other") from None


def _memory(modes: Sequence[Mode]) -> dict[str, int]:
    """Return the memory of each mode after all that load."""
    found = {}
    for mode in modes:
        if isinstance(mode, NodeAgent) and not mode.variant:
            found["agent, 2 pods"] = measure.memory(mode.client.lab.agent("node1").processes()).pss
        if isinstance(mode, EnvoyPair) and not mode.variant:
            one = measure.memory(mode.envoys("client"))
            found["one Envoy"] = one.pss
            found[f"{MANY_PODS} Envoys"] = one.times(MANY_PODS)
    return found
