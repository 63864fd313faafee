"""The long stream: ``make kube-soak``, or ``tests/room.sh .venv/bin/python -m tests.kube_soak MINUTES``.

On a real cluster, pods that are STRICT are asked all the time, on new connections and kept ones, within
a node and between nodes, and streams stay open that were opened at the beginning. Once a minute the
agents are rolled out anew, or back, by the DaemonSet's controller: the first ones carry the streams
to the end, while others come and go. Prints each change, and what came of everything; exit code 1 if
anything failed.
"""

from __future__ import annotations

import itertools
import sys
import time

from nodeagent.lab.kube import Kube
from tests.kube.mesh import SECONDS, SYSTEM, agent_pods, alone, install, rolled_out, taken_over
from tests.kube.steady import asking, failures, pods_addresses, strict_pods
from tests.waiting import eventually

MINUTES = 10.0
EVERY_SECONDS = 60.0


def main(minutes: float) -> int:
    with Kube.up(name="soak") as kube:
        install(kube)
        with strict_pods(kube):
            return soak(kube, minutes * 60)


def soak(kube: Kube, seconds: float) -> int:
    """Roll agents out and back for *seconds*; return the exit code."""
    begun = time.monotonic()
    with asking(kube, *pods_addresses(kube)) as asks:
        for turn in itertools.count(1):
            before = agent_pods(kube)
            change = "restart" if turn % 2 else "undo"
            kube.kubectl("rollout", change, "-n", SYSTEM, "daemonset/nodeagent")
            eventually(lambda old=before: taken_over(kube, old), "every agent is another one", SECONDS)
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
    ending = time.monotonic()
    eventually(lambda: alone(kube), "the old agents have ended", SECONDS)
    rolled_out(kube)
    print(f"old agents were gone {time.monotonic() - ending:.0f} s after the last connection; {failures(found)} failed")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
