"""The long stream: ``make kube-soak``, or ``tests/room.sh .venv/bin/python -m tests.kube_soak MINUTES WEIGHT``.

On a real cluster, pods that are STRICT are asked all the time, on new connections and kept ones, within
a node and between nodes, and streams stay open that were opened at the beginning. Once a minute the
agents are rolled out anew, or back, by the DaemonSet's controller: the first ones carry the streams
to the end, while others come and go. Prints each change, and what came of everything; exit code 1 if
anything failed.

With a WEIGHT the nodes are starved: they have this weight each, where each of some loops that want all
processors has 100. Everything takes long then, and nothing may fail.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from nodeagent.lab import cgroup
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.node import v1_hierarchies
from tests.kube.mesh import SECONDS, SYSTEM, agent_pods, alone, install, rolled_out, taken_over
from tests.kube.steady import asking, failures, pods_addresses, strict_pods
from tests.waiting import eventually

MINUTES = 10.0
EVERY_SECONDS = 60.0
LONG = 5 * SECONDS
"""For what a starved cluster does."""
WEIGHTS = {"cpu.weight": 1.0, "cpu.shares": 10.24}
"""Files of a cgroup, with what is 1 % of an ordinary group's weight there (v2, v1)."""


def main(minutes: float, weight: int) -> int:
    with Kube.up(name="soak") as kube:
        install(kube)
        with strict_pods(kube), starved(kube, weight):
            return soak(kube, minutes * 60)


@contextmanager
def starved(kube: Kube, weight: int) -> Iterator[None]:
    """Within, the nodes get little of the processors; *weight* 0: they get what they want."""
    if not weight:
        yield
        return
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        _weigh(kube, weight)
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()
        _weigh(kube, 100)


def unlooked(kube: Kube, node: str) -> str:
    """Return what the kernel of *node* counted while no daemon looked, or its heartbeat was late."""
    asked = kube.command(node, ["curl", "--silent", "http://127.0.0.1:15020/metrics"])
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    events = [line.removeprefix("nodeagent_kernel_events_total") for line in lines if "bound_dead_" in line]
    return ", ".join(each for each in events if float(each.rpartition(" ")[2]))


def _weigh(kube: Kube, weight: int) -> None:
    for hierarchy in (*v1_hierarchies(), cgroup.hierarchy()):
        groups = [kube.layout.cgroup(hierarchy, own.name) for own in kube.nodes]
        for path in (group / name for group in groups for name in WEIGHTS):
            if path.exists():
                path.write_text(str(int(weight * WEIGHTS[path.name])))


def soak(kube: Kube, seconds: float) -> int:
    """Roll agents out and back for *seconds*; return the exit code."""
    begun = time.monotonic()
    with asking(kube, *pods_addresses(kube)) as asks:
        for turn in itertools.count(1):
            before = agent_pods(kube)
            change = "restart" if turn % 2 else "undo"
            kube.kubectl("rollout", change, "-n", SYSTEM, "daemonset/nodeagent")
            eventually(partial(taken_over, kube, before), "every agent is another one", LONG)
            found = asks.say()
            pods = len(agent_pods(kube))
            served = sum(each.get("ok", 0) for each in found.values())
            passed = time.monotonic() - begun
            print(f"{passed:6.0f} s  {change}: {pods} agents, {served} served, {failures(found)} failed", flush=True)
            if passed + EVERY_SECONDS > seconds:
                break
            time.sleep(max(0.0, begun + turn * EVERY_SECONDS - time.monotonic()))
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        found = asks.say()
    for what, each in found.items():
        print(f"{what:24} {dict(each)}")
    for own in kube.nodes:
        print(f"{own.name}: {unlooked(kube, own.name) or 'a daemon looked all the time'}")
    ending = time.monotonic()
    eventually(lambda: alone(kube), "the old agents have ended", LONG)
    rolled_out(kube)
    print(f"old agents were gone {time.monotonic() - ending:.0f} s after the last connection; {failures(found)} failed")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
