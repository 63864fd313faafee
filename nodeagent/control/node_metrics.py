"""Metrics of the node as a whole: its pods by what was decided of them, the heartbeat's age, and the
memory of the daemon's processes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from nodeagent.mesh.node_pods import NodePod
from nodeagent.telemetry.metrics import HEARTBEAT_AGE, MEMORY, NODE_PODS
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import PodUid

UNUSABLE: Final = "unusable"
"""The state of pods that shall be captured and cannot be, though they run."""
STATES: Final = ("captured", "awaited", UNUSABLE, "left alone", "undecided")
PodFaults = Callable[[PodUid], list[str]]
"""Says why a pod has no place that can be used, though it runs."""


def unusable(pods: Iterable[NodePod], faults: PodFaults) -> list[str]:
    """Name those of *pods* that shall be captured and cannot be, though they run, and why."""
    found = [(each, faults(each.uid)) for each in pods if each.awaited]
    return [f"pod {pod.namespace}/{pod.pod}: not captured: {'; '.join(why)}" for pod, why in found if why]


class NodeMetrics:
    """What only a scrape needs."""

    def __init__(
        self,
        pods: Iterable[NodePod],
        beaten: Callable[[], int],
        workers: Callable[[], Iterable[int]],
        *,
        faults: PodFaults = lambda _: [],
        proc: Path = Path("/proc"),
        clock: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC),
    ) -> None:
        """*pods*: the node's, as they are each time. *beaten* returns when the heartbeat was last, in
        nanoseconds of *clock*, 0: it has stopped. *workers* returns their process ids.
        """
        self._pods = pods
        self._beaten = beaten
        self._workers = workers
        self._faults = faults
        self._proc = proc
        self._clock = clock

    def collect(self, store: Store) -> None:
        """Set the metrics. Raises OSError: the heartbeat cannot be read."""
        counted = Counter(UNUSABLE if each.awaited and self._faults(each.uid) else each.state for each in self._pods)
        store.replace(NODE_PODS, {(state,): counted[state] for state in STATES})
        store.replace(MEMORY, self._memory())
        beaten = self._beaten()
        store.set(HEARTBEAT_AGE, (), (self._clock() - beaten) / 1e9 if beaten else float("inf"))

    def _memory(self) -> Mapping[tuple[str, ...], float]:
        """Return the memory of each kind of process, of those that this one may look into."""
        kinds = {"supervisor": [os.getppid()], "control": [os.getpid()], "workers": list(self._workers())}
        found: dict[tuple[str, ...], float] = {}
        for kind, pids in kinds.items():
            sizes = [size for pid in pids if (size := self._pss(pid)) is not None]
            if sizes:
                found[(kind,)] = sum(sizes)
        return found

    def _pss(self, pid: int) -> int | None:
        """Return the bytes of process *pid*, pages that several share divided among them (PSS); None
        where it ended meanwhile, or without the right to ptrace (CAP_SYS_PTRACE for the workers, who
        are another user).
        """
        try:
            lines = (self._proc / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), None)
