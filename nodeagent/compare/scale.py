"""What an agent takes for a node full of pods: memory, start, enrolment, CPU at rest."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nodeagent.compare import measure
from nodeagent.lab import Lab

_IDLE_SECONDS = 10.0
_SETTLE_SECONDS = 2.0
_POD = """
---
apiVersion: v1
kind: Pod
metadata: {{name: pod-{index}}}
spec: {{nodeName: node1, containers: [{{name: main, command: [sleep, infinity]}}]}}
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """One agent with ``pods`` pods."""

    pods: int
    memory_bytes: int
    """PSS of all of its processes."""
    idle_cpu_percent: float
    """Of one core, while no pod does anything."""
    ready_seconds: float
    """From the start of the process until readiness answers 200, with the pods already there."""
    enrolled_seconds: float
    """From the same moment until the last pod was enrolled."""


def measure_scale(pods: int, name: str = "bench-scale") -> Scale:
    """Make a lab *name* of one node with *pods* pods that sleep, measure its agent, and remove it."""
    text = "".join(_POD.format(index=index) for index in range(pods))
    with Lab.up(text=text, name=name, nodes=1, mode="nodeagent", wait_seconds=120) as lab:
        agent = lab.agent()
        agent.stop()
        marks = lab.state / "enrolled"
        started = time.monotonic()
        agent.start()
        ready = time.monotonic() - started
        while sum(1 for mark in marks.iterdir() if not mark.name.startswith(".")) < pods:
            time.sleep(0.005)
        enrolled = time.monotonic() - started
        time.sleep(_SETTLE_SECONDS)
        before = measure.group_cpu_seconds(agent.cgroup)
        time.sleep(_IDLE_SECONDS)
        idle = measure.group_cpu_seconds(agent.cgroup) - before
        return Scale(pods, measure.memory(agent.processes()).pss, 100 * idle / _IDLE_SECONDS, ready, enrolled)
