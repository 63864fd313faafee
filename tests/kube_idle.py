"""What an idle agent asks of a processor, without a cluster: ``tests/room.sh .venv/bin/python -m tests.kube_idle``.

Beside an API server and a container runtime in memory there are 250 pods on two nodes, 110 in the mesh, and of this
node's each has a network namespace. Printed for each process of the agent: milliseconds of a processor for each
second, and how often it was woken. Two releases are compared where each has run several times, by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nodeagent.lab import http
from tests.fakes.cri import FakeCri, FakeSandbox, containerd_info
from tests.fakes.kube_api import FakeKubeApi

ROOT = Path(__file__).resolve().parent.parent
NODES = ("node-a", "node-b")
RENEW_SECONDS = 10.0
READY_SECONDS = 120.0
ISTIO = frozenset({"peerauthentications", "authorizationpolicies", "requestauthentications"})
Document = dict[str, Any]
_fork = multiprocessing.get_context("fork")


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def pod(number: int, node: str, namespace: str) -> Document:
    """Return a pod as a cluster has it."""
    name = f"waits-{number:05d}"
    owner = {"kind": "ReplicaSet", "name": f"waits-{namespace}", "controller": True, "uid": uid(1)}
    fields = {"manager": "kubelet", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:conditions": {"x": {}}}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid(number),
            "labels": {"app": "waits", "pod-template-hash": "7d4f"},
            "creationTimestamp": "2026-11-30T00:00:00Z",
            "ownerReferences": [owner],
            "managedFields": [fields],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"]}],
        },
        "status": {
            "phase": "Running",
            "podIP": address(number),
            "podIPs": [{"ip": address(number)}, {"ip": address(number, six=True)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def address(number: int, *, six: bool = False) -> str:
    return f"fd00:88::{number:x}" if six else f"10.88.{number // 250}.{number % 250 + 1}"


def status(node: str, pods: Sequence[int], renewed: int) -> Document:
    """Return what the agent of *node* says."""
    said = {"enrolled": [uid(each) for each in pods], "leaseDurationSeconds": 40, "renewTime": str(renewed)}
    metadata = {"name": node, "managedFields": [{"manager": "nodeagent", "fieldsV1": {"f:status": {}}}]}
    return {"apiVersion": "nodeagent.io/v1alpha1", "kind": "NodeStatus", "metadata": metadata, "status": said}


def places(count: int, enrolled: int) -> list[tuple[int, str, str]]:
    """Return each pod's number, node and namespace."""
    return [(each, NODES[each % 2], "inside" if each < enrolled else "outside") for each in range(count)]


def api_server(folder: Path, pods: Sequence[tuple[int, str, str]], told: Any) -> None:
    """Be the API server, of a cluster without Istio's kinds; the other node's agent renews what it says."""

    async def serve() -> None:
        api = FakeKubeApi(folder)
        api.served -= ISTIO
        access = await api.start()
        for node in NODES:
            api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "uid": node}, "status": {}})
        for name, dataplane in (("inside", "enabled"), ("outside", "disabled")):
            metadata = {"name": name, "labels": {"nodeagent.io/dataplane": dataplane}}
            api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        for each in pods:
            api.put(pod(*each))
        told.send((access.server, (folder / "api" / "root-cert.pem").exists(), api._roots))
        others = [number for number, node, where in pods if node == NODES[1] and where == "inside"]
        for renewal in range(1 << 30):
            api.put(status(NODES[1], others, renewal))
            await asyncio.sleep(RENEW_SECONDS)

    asyncio.run(serve())


def runtime(path: Path, group: Path, pods: Sequence[int], names: dict[int, str], told: Any) -> None:
    """Be the container runtime, one without events."""
    fake = FakeCri(path)
    for number in pods:
        info = containerd_info(f"/run/netns/idle-{number}", f"/kubepods/pod{uid(number)}/c{number}")
        addresses = (address(number), address(number, six=True))
        name = f"waits-{number:05d}"
        fake.sandboxes.append(
            FakeSandbox(f"c{number}", uid(number), name, names[number], created=number, addresses=addresses, info=info)
        )
    fake.start()
    told.send("serves")
    signal.pause()


def tree() -> Path:
    """Return where cgroup2 is mounted."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return next(Path(line.split()[1]) for line in lines if line.split()[2] == "cgroup2")


def configuration(folder: Path, server: str, roots: str) -> Path:
    """Write agent.yaml, as the manifests have it but for the authority, and what it names."""
    (folder / "roots.pem").write_text(roots)
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(folder / "roots.pem")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    (folder / "ca").mkdir(mode=0o700)
    settings = {
        "node": NODES[0],
        "kubernetes": {"kubeconfig": str(folder / "kubeconfig"), "runtime": str(folder / "cri.sock")},
        "runtimeDirectory": str(folder / "run"),
        "identity": {"caDirectory": str(folder / "ca")},
        "redirect": {"cgroup": str(tree() / "kubepods"), "pinDirectory": "/sys/fs/bpf/idle"},
        "telemetry": {"accessLog": {"path": "-"}},
    }
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def used(pid: int) -> tuple[int, int]:
    """Return nanoseconds of a processor that *pid* has had, and how often it was woken."""
    spent = woken = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
        lines = (task / "status").read_text().splitlines()
        woken += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return spent, woken


def processes(top: int) -> dict[str, int]:
    """Return the agent's processes by what they are."""
    children = [int(each) for each in Path(f"/proc/{top}/task/{top}/children").read_text().split()]
    workers = [pid for pid in children if os.stat(f"/proc/{pid}").st_uid]
    (control,) = [pid for pid in children if pid not in workers]
    return {"supervisor": top, "control": control, **{f"worker {n}": pid for n, pid in enumerate(workers)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--enrolled", type=int, default=110)
    parser.add_argument("--settle", type=float, default=35.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--then", help="a command that is run at last, with the processes' pids as arguments")
    parser.add_argument("releases", nargs="*", type=Path, default=[ROOT])
    given = parser.parse_args()
    pods = places(given.pods, given.enrolled)
    here = [number for number, node, _ in pods if node == NODES[0]]
    names = {number: namespace for number, _, namespace in pods}
    for number in here:
        subprocess.run(["ip", "netns", "add", f"idle-{number}"], check=True)
        subprocess.run(["ip", "-n", f"idle-{number}", "link", "set", "lo", "up"], check=True)
        (tree() / "kubepods" / f"pod{uid(number)}").mkdir(parents=True)
    for release in given.releases:
        with tempfile.TemporaryDirectory(prefix="idle-", dir="/run") as text:
            measure(Path(text), release.resolve(), pods, here, names, given)


def measure(
    folder: Path,
    release: Path,
    pods: Sequence[tuple[int, str, str]],
    here: Sequence[int],
    names: dict[int, str],
    given: argparse.Namespace,
) -> None:
    """Run the agent of *release*, and print what it uses."""
    ours, theirs = _fork.Pipe()
    server = _fork.Process(target=api_server, args=(folder, pods, theirs), daemon=True)
    cri = _fork.Process(target=runtime, args=(folder / "cri.sock", tree(), here, names, theirs), daemon=True)
    server.start()
    url, _, roots = ours.recv()
    cri.start()
    assert ours.recv() == "serves"
    config = configuration(folder, url, roots)
    command = [sys.executable, "-m", "nodeagent", "run", "-c", str(config)]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, cwd=release, stdout=log, stderr=log)
    try:
        ready(agent, folder)
        time.sleep(given.settle)
        whole = processes(agent.pid)
        before = {name: used(pid) for name, pid in whole.items()}
        time.sleep(given.seconds)
        print(release)
        total = 0.0
        for name, pid in whole.items():
            spent, woken = (now - had for now, had in zip(used(pid), before[name], strict=True))
            total += spent / 1e6 / given.seconds
            print(f"  {name}: {spent / 1e6 / given.seconds:.2f} ms/s, {woken / given.seconds:.1f} wakeups/s")
        print(f"  all: {total:.2f} ms/s, {total / 10:.2f} % of a core", flush=True)
        if given.then:
            subprocess.run([given.then, *map(str, whole.values())], check=False)
    finally:
        agent.terminate()
        agent.wait()
        for each in (server, cri):
            each.kill()
            each.join()


def ready(agent: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            answer, text = http.get(Path("/proc/self/ns/net"), 15021, "/ready", seconds=2)
        except OSError as error:
            answer, text = 0, str(error)
        if answer == 200:
            return
        log = (folder / "agent.log").read_text()
        assert agent.poll() is None and time.monotonic() < deadline, f"not ready: {text}\n{log[-4000:]}"
        time.sleep(0.2)


if __name__ == "__main__":
    main()
