"""What a mode takes for a node full of pods that do nothing: memory, CPU at rest, how long until they are served."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nodeagent.compare import manifests, measure
from nodeagent.compare.labs import Missing
from nodeagent.compare.load import CompareError
from nodeagent.errors import NodeagentError
from nodeagent.inject.model import PROXY
from nodeagent.lab import Lab, cgroup
from nodeagent.lab.cluster import Mode

SCALE_LAB: Final = "compare-scale"
MODES: Final[Sequence[Mode]] = ("nodeagent", "sidecar", "envoy")
_IDLE_SECONDS: Final = 8.0
_SETTLE_SECONDS: Final = 2.0
_WAIT_SECONDS: Final = 240.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What *mode* takes on one node with ``pods`` pods that do nothing."""

    mode: str
    pods: int
    memory_bytes: int
    """PSS of everything that the mode adds."""
    idle_cpu_percent: float
    """Of one core, while no pod does anything."""
    ready_seconds: float
    """Until all pods were ready and served: for an agent from its start, with the pods already
    there; for sidecars from when the last pods were applied.
    """


def measure_scale(
    counts: Sequence[int],
    modes: Sequence[str],
    found: list[Scale],
    missing: list[Missing],
    progress: Callable[[str, int, int], None],
) -> None:
    """Measure each of *modes* with each of *counts* pods (rising), into *found*; what fails goes to *missing*."""
    for mode in (mode for mode in MODES if mode in modes):
        try:
            with Lab.up(name=SCALE_LAB, nodes=1, mode=mode) as lab:
                before = 0
                for step, count in enumerate(counts):
                    progress(f"{mode}: {count} pods", step, len(counts))
                    started = time.monotonic()
                    lab.apply(text=manifests.sleepers(range(before, count)), wait_seconds=_WAIT_SECONDS)
                    ready = time.monotonic() - started if mode != "nodeagent" else restart(lab)
                    found.append(_measured(lab, mode, count, ready))
                    before = count
        except (NodeagentError, OSError) as error:
            missing.append({"what": f"{mode}: many pods", "why": str(error)})


def restart(lab: Lab) -> float:
    """Start the agent anew with all pods there; return the seconds until the last one is enrolled."""
    agent = lab.agent()
    marks = lab.state / "enrolled"
    agent.stop()
    started = time.monotonic()
    agent.start()
    deadline = started + _WAIT_SECONDS
    while sum(1 for mark in marks.iterdir() if not mark.name.startswith(".")) < len(lab.pods):
        if time.monotonic() > deadline:
            raise CompareError(f"not all pods were enrolled {_WAIT_SECONDS:g} s after the agent's start")
        time.sleep(0.005)
    return time.monotonic() - started


def _measured(lab: Lab, mode: str, pods: int, ready: float) -> Scale:
    groups = (
        [lab.agent().cgroup] if mode == "nodeagent" else [group for group in lab.group.rglob(PROXY) if group.is_dir()]
    )

    def used() -> float:
        return sum(map(measure.group_cpu_seconds, groups))

    time.sleep(_SETTLE_SECONDS)
    before = used()
    time.sleep(_IDLE_SECONDS)
    idle = used() - before
    pids = itertools.chain.from_iterable(map(cgroup.processes, groups))
    memory = measure.memory(pids)
    return Scale(mode, pods, memory, 100 * idle / _IDLE_SECONDS, ready)
