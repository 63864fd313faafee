"""Which pods are in the mesh with their first packet, with a containerd that waits for the agent: ``make
nri``, or after it ``tests/room.sh .venv/bin/python -m tests.kube_first_packet FOLDER PODS STALLED EVERY
WHAT WEIGHT``.

A real cluster of two nodes, whose containerd is the one in FOLDER (empty: the machine's), makes PODS
pods at once. The first instruction of each is a request to a STRICT server. Meanwhile, for STALLED
milliseconds of each EVERY, agents get no processor (WHAT is ``processes``), or only their event loops
stand still (``loops``), and there are loops that want all processors and have 100 where each node
has WEIGHT (0: there are none). Prints how many were answered at once, and what the agents say of the
containers about which they were asked; exit code 1 where not all were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from nodeagent.lab.kube import Kube
from nodeagent.telemetry.metrics import CONTAINER_STARTS
from tests.held_loops import hold, let_go
from tests.kube.agents import Agents, agents
from tests.kube.hasty import strict_server, tried
from tests.kube.mesh import ready
from tests.kube_soak import starved


def _signal(number: int, pid: int) -> None:
    with suppress(ProcessLookupError):  # it has been replaced
        os.kill(pid, number)


PODS = 100
STALLED = 700
EVERY = 1000
WHAT = "processes"
WEIGHT = 0
HOLDING: Mapping[str, tuple[Callable[[int], None], Callable[[int], None]]] = {
    "processes": (partial(_signal, signal.SIGSTOP), partial(_signal, signal.SIGCONT)),
    "loops": (hold, let_go),
}
"""How a process is held, and how it is let go, by WHAT."""


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
def stalled(kube: Kube, milliseconds: int, every: int, what: str) -> Iterator[None]:
    """Within, agents, or *what* of them, stand still for *milliseconds* of each *every*."""
    over = threading.Event()
    processes = controls_and_workers(kube)
    hold_one, let_one_go = HOLDING[what]

    def stall() -> None:
        while not over.wait((every - milliseconds) / 1000):
            for pid in processes:
                hold_one(pid)
            over.wait(milliseconds / 1000)
            for pid in processes:
                let_one_go(pid)

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


def refusals(found: Agents, node: str) -> Counter[str]:
    """Return how many requests *node*'s agent did not let through, by why."""
    records = found.requests(node)
    return Counter(str(each["response_code_details"]) for each in records if each["response_code"] != 200)


def measure(kube: Kube, found: Agents, pods: int, stalls: tuple[int, int, str], weight: int) -> int:
    """Return how many of *pods* were answered at once; *stalls*: as :func:`stalled` wants them."""
    strict_server(kube)
    ready(kube, "mesh")
    began = time.monotonic()
    with starved(kube, weight), stalled(kube, *stalls):
        tries = tried(kube, pods)
    print(f"{tries.count(0)} of {pods} pods were in the mesh with their first packet")
    print(f"all had ended after {time.monotonic() - began:.0f} s; requests in vain: {sorted(filter(None, tries))}")
    for own in kube.nodes:
        print(f"{own.name}: {starts(kube, own.name)}")
        print(f"  refused requests: {dict(refusals(found, own.name)) or 'none'}")
        for line in found.log(own.name).read_text().splitlines():
            if "starts" in line or "nri" in line or "refused" in line:
                print(f"  {line}")
    return tries.count(0)


def main() -> int:
    given = dict(enumerate(sys.argv[1:]))
    folder = given.get(0, "")
    pods = int(given.get(1, PODS))
    stalls = int(given.get(2, STALLED)), int(given.get(3, EVERY)), given.get(4, WHAT)
    weight = int(given.get(5, WEIGHT))
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}" if folder else os.environ["PATH"]
    with Kube.up(name="first-packet") as kube, agents(kube) as found:
        return 0 if measure(kube, found, pods, stalls, weight) == pods else 1


if __name__ == "__main__":
    sys.exit(main())
