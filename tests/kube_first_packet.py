"""Which pods are in the mesh with their first packet, with a containerd that waits for the agent: ``make
nri``, or after it ``tests/room.sh .venv/bin/python -m tests.kube_first_packet FOLDER PODS STALLED WEIGHT``.

A real cluster of two nodes, whose containerd is the one in FOLDER (empty: the machine's), makes PODS
pods at once. The first instruction of each is a request to a STRICT server. Meanwhile agents get no
processor for STALLED milliseconds of each second, and there are loops that want all processors and
have 100 where each node has WEIGHT (0: there are none). Prints how many were answered at once, and
what the agents say of the starts about which they were asked; exit code 1 where not all were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.lab.kube import Kube
from nodeagent.telemetry.metrics import CONTAINER_STARTS
from tests.kube.agents import Agents, agents
from tests.kube.hasty import strict_server, tried
from tests.kube.mesh import ready
from tests.kube_soak import starved

PODS = 100
STALLED = 700
WEIGHT = 0


def controls_and_workers(kube: Kube) -> list[int]:
    """Return the processes of all agents without their supervisors, which are others' children."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words[1:4] == [b"-m", b"nodeagent", b"run"] and words[-2].startswith(bytes(kube.layout.folder)):
            parents[int(folder.name)] = parent
    return [pid for pid, parent in parents.items() if parent in parents]


@contextmanager
def stalled(kube: Kube, milliseconds: int) -> Iterator[None]:
    """Within, no agent gets a processor for *milliseconds* of each second."""
    over = threading.Event()
    processes = controls_and_workers(kube)

    def stall() -> None:
        while not over.wait(1 - milliseconds / 1000):
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in processes:
                    os.kill(pid, number)
                if number == signal.SIGSTOP:
                    over.wait(milliseconds / 1000)

    thread = threading.Thread(target=stall)
    if milliseconds:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if milliseconds:
            thread.join()


def starts(kube: Kube, node: str) -> str:
    """Return what *node*'s agent counted of containers' starts."""
    asked = kube.command(node, ["curl", "--silent", "http://127.0.0.1:15020/metrics"])
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return "; ".join(line for line in lines if line.startswith(CONTAINER_STARTS.name)) or "was asked of none"


def measure(kube: Kube, found: Agents, pods: int, stall: int, weight: int) -> int:
    """Return how many of *pods* were answered at once."""
    strict_server(kube)
    ready(kube, "mesh")
    began = time.monotonic()
    with starved(kube, weight), stalled(kube, stall):
        tries = tried(kube, pods)
    print(f"{tries.count(0)} of {pods} pods were in the mesh with their first packet")
    print(f"all had ended after {time.monotonic() - began:.0f} s; requests in vain: {sorted(filter(None, tries))}")
    for own in kube.nodes:
        print(f"{own.name}: {starts(kube, own.name)}")
        for line in found.log(own.name).read_text().splitlines():
            if "starts" in line or "nri" in line:
                print(f"  {line}")
    return tries.count(0)


def main() -> int:
    folder, *numbers = sys.argv[1:]
    pods, stall, weight = (int(text) for text in [*numbers, *map(str, (PODS, STALLED, WEIGHT)[len(numbers) :])])
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}" if folder else os.environ["PATH"]
    with Kube.up(name="first-packet") as kube, agents(kube) as found:
        return 0 if measure(kube, found, pods, stall, weight) == pods else 1


if __name__ == "__main__":
    sys.exit(main())
