"""A client that asks steadily while something is done to the cluster, and the servers that it asks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nodeagent.lab.kube import Kube
from tests.kube.cluster import ROOT
from tests.kube.mesh import SECONDS, apply, enrolled, get, namespace, policy, ready
from tests.kube.workloads import Document, client, container, nginx
from tests.waiting import eventually

CLIENT = ROOT / "tests" / "apps" / "steady.py"
ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer(("", 9000), Echo).serve_forever()
"""
NODES = ("node-a", "node-b")
NAMESPACE = "steady"
Counts = Mapping[str, Mapping[str, int]]
"""What was tried, and how often it came to what."""


def server(node: str) -> Document:
    """Return a pod on *node* that answers HTTP, and echoes lines."""
    echo = {**container("python3", "-c", ECHO), "name": "echo"}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [nginx(), echo]}
    metadata = {"name": f"server-{node}", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@contextmanager
def strict_pods(kube: Kube) -> Iterator[Kube]:
    """Have a client, and a server on its node and one on the other, all STRICT."""
    strict = policy("PeerAuthentication", "default", NAMESPACE, {"mtls": {"mode": "STRICT"}})
    enabled = {"nodeagent.io/dataplane": "enabled"}
    apply(kube, namespace(NAMESPACE, **enabled), strict, *map(server, NODES), client(NAMESPACE, "node-a"))
    ready(kube, NAMESPACE)
    enrolled(kube, "node-a", f"{NAMESPACE}/client-node-a", f"{NAMESPACE}/server-node-a")
    enrolled(kube, "node-b", f"{NAMESPACE}/server-node-b")
    yield kube
    kube.kubectl("delete", "namespace", NAMESPACE, f"--timeout={SECONDS:g}s")  # another test makes it again


def pods_addresses(kube: Kube, nodes: Sequence[str] = NODES) -> list[str]:
    """Return the addresses of the servers on *nodes*."""
    return [get(kube, "pod", "-n", NAMESPACE, f"server-{node}")["status"]["podIP"] for node in nodes]


@dataclass(frozen=True, slots=True)
class Asking:
    """The client, which asks."""

    process: subprocess.Popen[str]

    def say(self) -> Counts:
        """Return what was tried so far."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: Counts = json.loads(self.process.stdout.readline())
        return found

    def goes_on(self, kinds: int, more: int = 20) -> None:
        """Wait until each of *kinds* things was served so much oftener; nothing has failed."""
        before = self.say()

        def served() -> bool:
            found = self.say()
            assert len(found) == kinds, found
            assert not failures(found), found
            return all(each["ok"] >= before.get(what, {}).get("ok", 0) + more for what, each in found.items())

        eventually(served, f"everything is served again, after {before}", SECONDS)


def failures(counts: Counts) -> int:
    """Return how often something failed."""
    return sum(number for each in counts.values() for came_to, number in each.items() if came_to != "ok")


@contextmanager
def asking(kube: Kube, *whom: str) -> Iterator[Asking]:
    """Have the client ask *whom*, as ``tests/apps/steady.py`` takes it, meanwhile."""
    script = ["python3", "-c", CLIENT.read_text(), *whom]
    command = kube.kubectl_command(["exec", "-i", "-n", NAMESPACE, "client-node-a", "--", *script])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Asking(process)
        finally:
            process.kill()
