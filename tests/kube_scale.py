"""How long a node takes to know a large cluster, what that costs it, and how soon it hears of a change:
``make scale``, or after it ``tests/room.sh .venv/bin/python -m tests.kube_scale PODS SERVICES``.

A real API server with its etcd holds the pods (110 of them this node's) and Services; a process of its
own follows them with what control follows them with, and compiles them. Printed, not asserted.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from nodeagent.kube.access import open_access
from nodeagent.kube.client import MERGE, KubeClient
from nodeagent.kube.snapshot import SnapshotFile
from nodeagent.kube.source import KubernetesSource
from nodeagent.memory import settle
from nodeagent.mesh.compile import Mesh
from nodeagent.resources.changes import Change
from tests.kube.cluster import ROOT, TOKEN, Cluster, running

NODE = "node-0"
PER_NODE = 110
REPLICAS = 5
THREADS = 8
CHANGES = 50
Request = tuple[str, str, dict[str, Any]]
"""Method, path, body."""


def requests(pods: int, services: int) -> Iterator[list[Request]]:
    """Yield what makes the cluster: namespaces, then Services and pods with their status, as lists
    whose requests follow each other.
    """
    for number in range(10):
        name = f"ns-{number}"
        account = {"metadata": {"name": "default"}}
        yield [
            ("POST", "/api/v1/namespaces", {"metadata": {"name": name}}),
            ("POST", f"/api/v1/namespaces/{name}/serviceaccounts", account),
        ]
    for number in range(services):
        spec = {"selector": {"app": f"app-{number}"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        path = f"/api/v1/namespaces/ns-{number % 10}/services"
        yield [("POST", path, {"metadata": {"name": f"svc-{number}"}, "spec": spec})]
    for number in range(pods):
        yield _pod(number, (number // REPLICAS) % services)


def _pod(number: int, app: int) -> list[Request]:
    name = f"app-{app}-5d9c7b8f6-{number}"
    path = f"/api/v1/namespaces/ns-{app % 10}/pods"
    labels = {"app": f"app-{app}", "pod-template-hash": "5d9c7b8f6", "app.kubernetes.io/managed-by": "Helm"}
    probe = {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5}
    environment = [{"name": f"SETTING_{index}", "value": "x" * 40} for index in range(12)]
    container = {
        "name": "web",
        "image": "registry.example.org/team/web:1.2.3",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": probe,
        "livenessProbe": probe,
        "env": environment,
    }
    body = {
        "metadata": {"name": name, "labels": labels, "annotations": {"checksum/config": "a" * 64}},
        "spec": {"nodeName": f"node-{number // PER_NODE}", "containers": [container]},
    }
    address = f"10.{1 + number // 65536}.{number // 256 % 256}.{number % 256}"
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
        "containerStatuses": [
            {
                "name": "web",
                "image": container["image"],
                "imageID": "sha256:" + "b" * 64,
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-31T12:00:00Z"}},
                "containerID": "containerd://" + "c" * 64,
            }
        ],
    }
    return [("POST", path, body), ("PATCH", f"{path}/{name}/status", {"status": status})]


def fill(cluster: Cluster, pods: int, services: int) -> None:
    """Make the cluster's objects, over some connections that are kept."""
    host = cluster.server.removeprefix("https://")
    context = ssl.create_default_context(cafile=str(cluster.folder / "pki" / "apiserver.crt"))

    def make(lists: Iterable[list[Request]]) -> None:
        connection = http.client.HTTPSConnection(host, context=context, timeout=60)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for requests in lists:
            for method, path, body in requests:
                kind = {"Content-Type": MERGE if method == "PATCH" else "application/json"}
                connection.request(method, path, json.dumps(body), headers | kind)
                response = connection.getresponse()
                content = response.read()
                assert response.status < 300, content
        connection.close()

    every = list(requests(pods, services))
    make(every[:10])
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(make, (every[10 + each :: THREADS] for each in range(THREADS))))


def pss() -> int:
    """Return this process's memory, in bytes."""
    gc.collect()
    settle()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10


async def measure(kubeconfig: Path, folder: Path) -> None:
    """Print how one node fares with the cluster of *kubeconfig*."""
    client = KubeClient(open_access(kubeconfig))
    kept = SnapshotFile(folder, NODE)
    source = KubernetesSource(client, NODE, kept=kept)
    mesh = Mesh(NODE, "cluster.local")
    before = pss()
    used = time.process_time()
    began = time.perf_counter()
    batch = await source.changes()
    listed = time.perf_counter()
    delta = mesh.apply(batch)
    compiled = time.perf_counter()
    used = time.process_time() - used
    found = [change for change in batch if isinstance(change, Change) and change.kind == "Pod"]
    entries = len(delta.upserts)
    del batch, delta
    after = pss()
    print(
        f"{len(found)} pods: listed in {listed - began:.2f} s, compiled in {compiled - listed:.2f} s, {entries} entries"
    )
    print(f"snapshot: {compiled - began:.2f} s (goal 3 s), {used:.2f} s of CPU")
    print(f"memory: {before >> 20} MB before, {after >> 20} MB after: {(after - before) / len(found):.0f} bytes a pod")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(f"peak: {int(peak.split()[1]) >> 10} MB")
    began = time.perf_counter()
    await kept.write()
    size = (folder / "cluster.snapshot").stat().st_size
    print(f"kept on disk: {size >> 20} MB in {time.perf_counter() - began:.2f} s")
    await _changes(client, source, mesh, found[len(found) // 2])
    source.close()
    began = time.perf_counter()
    restored = SnapshotFile(folder, NODE).restore()
    print(f"read from disk: {len(restored)} documents in {time.perf_counter() - began:.2f} s")


async def _changes(client: KubeClient, source: KubernetesSource, mesh: Mesh, pod: Change) -> None:
    """Print how soon a change of an endpoint is in the snapshot."""
    taken: list[float] = []
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
    for number in range(CHANGES):
        ready = {"type": "Ready", "status": "False" if number % 2 == 0 else "True"}
        began = time.perf_counter()
        asking = asyncio.ensure_future(client.patch(path, {"status": {"conditions": [ready]}}))
        while not mesh.apply(await source.changes()):
            pass
        taken.append(time.perf_counter() - began)
        await asking
    taken.sort()
    middle = statistics.median(taken) * 1000
    most = taken[-1] * 1000
    print(f"a change of an endpoint, from its request on: p50 {middle:.0f} ms, most {most:.0f} ms (goal 100 ms)")


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        settle()
        uvloop.run(measure(Path(sys.argv[2]), Path(sys.argv[3])))
        return
    given = [int(text) for text in sys.argv[1:3]]
    pods, services = given + [10_000, 2_000][len(given) :]
    printed = subprocess.run(["make", "--silent", "kube-path"], cwd=ROOT, capture_output=True, text=True, check=True)
    with running(Path(printed.stdout.strip())) as cluster:
        began = time.perf_counter()
        fill(cluster, pods, services)
        print(f"{pods} pods and {services} Services made in {time.perf_counter() - began:.0f} s", flush=True)
        command = [sys.executable, "-m", "tests.kube_scale", "measure", cluster.kubeconfig, cluster.folder / "kept"]
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
