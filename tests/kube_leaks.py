"""What pods leave behind that come and go: ``make kube-leaks``, or after it ``tests/room.sh
.venv/bin/python -m tests.kube_leaks PODS``.

On a real cluster PODS pods in the mesh are made and removed, a few at a time; each asks a STRICT server
of either node. Before and after, when nothing is under way any more, is counted on each node what an
agent holds: entries of the BPF maps, programs that are attached, descriptors, certificates, folders of
cgroups and files. Prints both; exit code 1 where there is more than before. Memory is printed alone: an
allocator keeps what it had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nodeagent.compare.measure import memory
from nodeagent.lab.kube import Kube
from tests.kube.cluster import ROOT
from tests.kube.mesh import SECONDS, apply, get, in_agent, install
from tests.kube.steady import NAMESPACE, NODES, pods_addresses, strict_pods
from tests.kube.workloads import Document, client, container
from tests.kube_nodes import whole
from tests.waiting import eventually

PODS = 100
AT_ONCE = 20
LOOK = """
import json, os
from pathlib import Path
from nodeagent.config import MapSizes
from nodeagent.redirect import hooks, maps, syscall
found = {}
for name, each in maps.open_all(Path("/sys/fs/bpf/nodeagent/maps"), MapSizes()).items():
    if each.spec.kind in (1, 5, maps.SOCKHASH):  # arrays are full, and what is LRU forgets by itself
        found[f"entries of {name}"] = each.used()
def attached(path, kinds):
    fd = os.open(path, os.O_RDONLY)
    count = sum(len(syscall.program_query(fd, hook.attach_type)[0]) for hook in kinds)
    os.close(fd)
    return count
groups = [path for path in Path("/sys/fs/cgroup/unified").rglob("*") if path.is_dir()]
found["programs at cgroups"] = sum(attached(path, (*hooks.CGROUP_HOOKS, hooks.HTTP_EGRESS)) for path in groups)
found["programs in pods"] = sum(attached(path, (hooks.LOOKUP,)) for path in Path("/run/netns").iterdir())
found["pins"] = sum(1 for _ in Path("/sys/fs/bpf/nodeagent").rglob("*"))
found["cgroups"] = len(groups)
found["files"] = sum(1 for _ in Path("/run/nodeagent").rglob("*"))
print(json.dumps(found))
"""
ASK = "for host in {hosts}; do until curl -sf -m 20 -o /dev/null http://$host/; do sleep 0.2; done; done"
Counts = Mapping[str, int]


def held(kube: Kube, node: str) -> Counts:
    """Return how much *node*'s agent holds, by what it is."""
    look = kube.command(node, [sys.executable, "-c", LOOK])
    found: dict[str, int] = json.loads(
        subprocess.run(look, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    agent = whole(kube, node)
    for name, pid in zip(("supervisor", "control", "worker"), agent.all, strict=True):
        found[f"descriptors of {name}"] = len(os.listdir(f"/proc/{pid}/fd"))
    found["certificates"] = len(json.loads(in_agent(kube, node, "nodeagent", "get", "certs", "-o", "json")))
    return found


def asking(name: str, node: str, hosts: list[str]) -> Document:
    """Return a pod that asks *hosts*, and ends when all have answered."""
    pod = client(NAMESPACE, node, name=name)
    pod["spec"] |= {"restartPolicy": "Never", "containers": [container("sh", "-c", ASK.format(hosts=" ".join(hosts)))]}
    return pod


def come_and_go(kube: Kube, names: list[str], hosts: list[str]) -> None:
    """Make pods of *names*, wait until each was answered, and remove them."""
    apply(kube, *(asking(name, NODES[number % 2], hosts) for number, name in enumerate(names)))

    def ended() -> bool:
        found = {each["metadata"]["name"]: each["status"] for each in get(kube, "pods", "-n", NAMESPACE)["items"]}
        return all(found[name].get("phase") == "Succeeded" for name in names)

    eventually(ended, "all were answered", SECONDS + 6 * len(names))
    kube.kubectl("delete", "pod", "-n", NAMESPACE, *names, "--wait", f"--timeout={SECONDS:g}s")


def sizes(kube: Kube, node: str) -> str:
    agent = whole(kube, node)
    return f"{memory(agent.all) / (1 << 20):.1f} MB"


def settled(kube: Kube, before: Mapping[str, Counts]) -> dict[str, Counts]:
    """Return what is held when it is no more than *before*, or at last."""
    found: dict[str, Counts] = {}

    def no_more() -> bool:
        found.update({node: held(kube, node) for node in NODES})
        return not more(before, found)

    try:
        eventually(no_more, "no more than before", SECONDS)
    except AssertionError:
        print("there is more than before:")
    return found


def more(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[str]:
    """Return what there is more of."""
    return [
        f"{node}: {what}" for node in NODES for what in after[node] if after[node][what] > before[node].get(what, 0)
    ]


def loop(kube: Kube, count: int) -> int:
    """Have *count* pods come and go; return the exit code."""
    hosts = pods_addresses(kube)
    come_and_go(kube, [f"warm-{number}" for number in range(4)], hosts)  # connections are kept, stocks are full
    before = {node: held(kube, node) for node in NODES}
    had = {node: sizes(kube, node) for node in NODES}
    for first in range(0, count, AT_ONCE):
        come_and_go(kube, [f"goes-{number}" for number in range(first, min(first + AT_ONCE, count))], hosts)
        print(f"{min(first + AT_ONCE, count)} pods have come and gone", flush=True)
    after = settled(kube, before)
    for node in NODES:
        print(f"{node}: {had[node]} before, {sizes(kube, node)} after {count} pods")
        for what, number in after[node].items():
            print(f"  {what:32} {before[node].get(what, 0):6} {number:6}")
    left = more(before, after)
    print("\n".join(left) or "nothing is left")
    return 1 if left else 0


def main(count: int) -> int:
    printed = subprocess.run(["make", "--silent", "kube-path"], cwd=ROOT, capture_output=True, text=True, check=True)
    with Kube.up(name="leaks", binary=Path(printed.stdout.strip())) as kube:
        install(kube)
        with strict_pods(kube):
            return loop(kube, count)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else PODS))
