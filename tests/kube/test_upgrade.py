"""The agents of a real cluster are rolled out, and rolled back, while pods that are STRICT are asked:
nobody notices.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from nodeagent.lab.kube import Kube
from tests.kube.cluster import ROOT
from tests.kube.mesh import AGENT, SECONDS, SYSTEM, agents, apply, enrolled, get, namespace, policy, ready, rolled_out
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
KINDS = 3
"""What is asked of a server: requests on new connections and on a kept one, and lines of a stream."""


def server(node: str) -> Document:
    """Return a pod on *node* that answers HTTP, and echoes lines."""
    echo = {**container("python3", "-c", ECHO), "name": "echo"}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [nginx(), echo]}
    metadata = {"name": f"server-{node}", "namespace": "steady"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def steady(mesh: Kube) -> Iterator[Kube]:
    """A client, and a server on its node and one on the other, all STRICT."""
    strict = policy("PeerAuthentication", "default", "steady", {"mtls": {"mode": "STRICT"}})
    enabled = {"nodeagent.io/dataplane": "enabled"}
    apply(mesh, namespace("steady", **enabled), strict, *map(server, NODES), client("steady", "node-a"))
    ready(mesh, "steady")
    enrolled(mesh, "node-a", "steady/client-node-a", "steady/server-node-a")
    enrolled(mesh, "node-b", "steady/server-node-b")
    yield mesh
    mesh.kubectl("delete", "namespace", "steady", "--wait=false")


@dataclass(frozen=True, slots=True)
class Asking:
    """The client, which asks the servers of both nodes."""

    process: subprocess.Popen[str]

    def say(self) -> dict[str, dict[str, int]]:
        """Return how often what was tried came to what."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, dict[str, int]] = json.loads(self.process.stdout.readline())
        return found

    def goes_on(self, more: int = 20) -> None:
        """Wait until everything was served so much oftener; nothing has failed."""
        before = self.say()

        def served() -> bool:
            found = self.say()
            assert len(found) == KINDS * len(NODES), found
            assert all(set(each) == {"ok"} for each in found.values()), found
            return all(each["ok"] >= before.get(what, {}).get("ok", 0) + more for what, each in found.items())

        eventually(served, f"everything is served again, after {before}", SECONDS)


@contextmanager
def asking(kube: Kube) -> Iterator[Asking]:
    hosts = [get(kube, "pod", "-n", "steady", f"server-{node}")["status"]["podIP"] for node in NODES]
    script = ["python3", "-c", CLIENT.read_text(), *hosts]
    command = kube.kubectl_command(["exec", "-i", "-n", "steady", "client-node-a", "--", *script])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Asking(process)
        finally:
            process.kill()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("change", ["restart", "undo"])
def test_agents_are_replaced_while_nobody_notices(steady: Kube, change: str) -> None:
    """Verdict: every agent is another one, by the real DaemonSet controller; no request fails, on new
    connections or kept ones, within a node or between nodes; no stream is cut; the old agents end.
    """
    before = agents(steady)
    with asking(steady) as asks:
        asks.goes_on()
        steady.kubectl("rollout", change, "-n", SYSTEM, "daemonset/nodeagent")
        eventually(lambda: taken_over(steady, before.values()), "every agent is another one", SECONDS)
        asks.goes_on()
        assert not alone(steady), "the old agents carry the streams yet"
    eventually(lambda: alone(steady), "the old agents have ended", SECONDS)
    rolled_out(steady)  # not before: the controller looks at the oldest pod of a node, also while it drains
    assert not set(agents(steady).values()) & set(before.values())


def taken_over(kube: Kube, old: Collection[str]) -> bool:
    """Say whether each node has an agent that is ready and not of *old*, and the old ones were told to end."""
    found = get(kube, "pods", "-n", SYSTEM, *AGENT)["items"]
    new = [each for each in found if each["metadata"]["name"] not in old]
    told = all("deletionTimestamp" in each["metadata"] for each in found if each not in new)
    ready_on = [each["spec"]["nodeName"] for each in new if all(one["ready"] for one in containers(each))]
    return told and sorted(ready_on) == list(NODES)


def containers(pod: Document) -> list[Document]:
    """Return the states of a pod's containers; a pod that is new has one at least that is not ready."""
    return pod["status"].get("containerStatuses") or [{"ready": False}]


def alone(kube: Kube) -> bool:
    """Say whether each node has one agent."""
    found = get(kube, "pods", "-n", SYSTEM, *AGENT)["items"]
    return sorted(each["spec"]["nodeName"] for each in found) == list(NODES)
