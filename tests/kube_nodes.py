"""What a full node's agent costs, and how soon it is there again: ``make nodes``, or after it
``tests/room.sh .venv/bin/python -m tests.kube_nodes PODS ENROLLED``.

A real cluster of two nodes, with the image and the manifests of daemonset/, holds PODS pods, of which
ENROLLED are in the mesh. Printed, not asserted: what the machine does beside it counts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nodeagent.compare.measure import cpu_seconds, memory
from nodeagent.config import WORKERS_USER
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.cluster import KubeShape
from nodeagent.vocabulary import PodUid
from tests.kube.cluster import ROOT
from tests.kube.mesh import AGENT, SYSTEM, apply, get, install, states
from tests.kube.workloads import Document, container, deployment

IDLE_SECONDS = 60.0
SETTLE_SECONDS = 30.0
"""After the last pod has come, for what is written and renewed then."""
ROOM = 600.0
"""Seconds in which a machine that does much else has made the pods."""
WORKER = WORKERS_USER


@dataclass(frozen=True)
class Agent:
    """The agent of a node, by its processes as this one sees them."""

    node: str
    supervisor: int
    control: int
    workers: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return self.supervisor, self.control, *self.workers


def pods(namespace: str, name: str, replicas: int) -> Document:
    """Return a Deployment of pods that do nothing."""
    waiting = container("sleep", "infinity", resources={"requests": {"cpu": "1m", "memory": "1Mi"}})
    return deployment(name, namespace, replicas=replicas, containers=[waiting], terminationGracePeriodSeconds=0)


def fill(kube: Kube, count: int, enrolled: int) -> None:
    """Make *count* pods, *enrolled* of them in the mesh, and wait until all are ready."""
    for namespace, dataplane in (("inside", "enabled"), ("outside", "disabled")):
        labels = {"nodeagent.io/dataplane": dataplane}
        apply(kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    apply(kube, pods("inside", "waits", enrolled), pods("outside", "waits", count - enrolled))
    for namespace in ("inside", "outside"):
        kube.kubectl(
            "rollout", "status", "-n", namespace, "deployment/waits", f"--timeout={ROOM:g}s", seconds=ROOM + 10
        )


def agent(kube: Kube, node: str) -> Agent | None:
    """Return the agent of *node*; None while it is not whole."""
    found = get(kube, "pods", "-n", SYSTEM, *AGENT, "--field-selector", f"spec.nodeName={node}")["items"]
    uids = [PodUid(each["metadata"]["uid"]) for each in found]
    parents: dict[int, int] = {}
    users: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text().replace("_", "-")
            command = (folder / "cmdline").read_bytes()
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        except OSError:
            continue
        if any(uid in group for uid in uids) and b"nodeagent" in command and b"run" in command.split(b"\0"):
            parents[int(folder.name)] = int(status["PPid"])
            users[int(folder.name)] = int(status["Uid"].split()[0])
    tops = [pid for pid, parent in parents.items() if parent not in parents]
    workers = [pid for pid, user in users.items() if user == WORKER]
    controls = [pid for pid in parents if pid not in tops and pid not in workers]
    if len(tops) != 1 or len(controls) != 1 or not workers:
        return None
    return Agent(node, tops[0], controls[0], tuple(workers))


def whole(kube: Kube, node: str) -> Agent:
    """Return the agent of *node* as soon as it is whole."""
    deadline = time.monotonic() + ROOM
    while (found := agent(kube, node)) is None:
        assert time.monotonic() < deadline, f"{node} has no whole agent"
    return found


def restarted(kube: Kube, before: Agent) -> tuple[float, float, Agent]:
    """Kill the agent *before*; return the seconds from its successor's first instruction until that is
    ready, what they cost of a processor, and the successor.
    """
    os.kill(before.supervisor, signal.SIGKILL)
    ask = ("curl", "--silent", "--output", "/dev/null", "--fail", "http://127.0.0.1:15021/ready")
    deadline = time.monotonic() + ROOM
    while subprocess.run(kube.command(before.node, ask), check=False).returncode or not _gone(before):
        assert time.monotonic() < deadline, f"{before.node}: the agent does not become ready again"
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    after = whole(kube, before.node)
    fields = Path(f"/proc/{after.supervisor}/stat").read_text().rpartition(")")[2].split()
    used = cpu_seconds(after.all) + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    return now - int(fields[19]) / os.sysconf("SC_CLK_TCK"), used, after


def _gone(before: Agent) -> bool:
    return not Path(f"/proc/{before.supervisor}").exists()


def measure(kube: Kube) -> None:
    """Print what each node's agent costs."""
    for own in kube.nodes:
        known = Counter(states(kube, own.name).values())
        print(f"{own.name}: {', '.join(f'{count} pods {state}' for state, count in known.items())}", flush=True)
        seconds, used, _ = restarted(kube, whole(kube, own.name))
        print(f"  ready again {seconds:.1f} s after its start (goal 5 s), {used:.1f} s of CPU by then", flush=True)
    time.sleep(SETTLE_SECONDS)
    before = [(each, [cpu_seconds([pid]) for pid in each.all]) for each in _agents(kube)]
    time.sleep(IDLE_SECONDS)
    for each, had in before:
        shares = [100 * (cpu_seconds([pid]) - used) / IDLE_SECONDS for pid, used in zip(each.all, had, strict=True)]
        sizes = [memory([pid]) / (1 << 20) for pid in each.all]
        names = ("supervisor", "control", *("worker" for _ in each.workers))
        print(f"{each.node}: idle {sum(shares):.2f} % of a core (goal 1 %), {sum(sizes):.0f} MB (goal 80, at most 110)")
        for name, share, size in zip(names, shares, sizes, strict=True):
            print(f"  {name}: {share:.2f} %, {size:.1f} MB")


def _agents(kube: Kube) -> list[Agent]:
    return [whole(kube, own.name) for own in kube.nodes]


def main() -> None:
    given = [int(text) for text in sys.argv[1:3]]
    count, enrolled = given + [250, 110][len(given) :]
    printed = subprocess.run(["make", "--silent", "kube-path"], cwd=ROOT, capture_output=True, text=True, check=True)
    with Kube.up(name="nodes", binary=Path(printed.stdout.strip()), shape=KubeShape(max_pods=count)) as kube:
        install(kube)
        began = time.perf_counter()
        fill(kube, count, enrolled)
        print(f"{count} pods, {enrolled} in the mesh, made in {time.perf_counter() - began:.0f} s", flush=True)
        measure(kube)


if __name__ == "__main__":
    main()
