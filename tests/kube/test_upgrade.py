"""The agents of a real cluster are rolled out, and rolled back, and a node is drained, while pods that
are STRICT are asked: nobody notices.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.config import CONTAINERD
from tests.kube.mesh import SECONDS, SYSTEM, agent_pods, agents, alone, apply, containers, get, rolled_out, taken_over
from tests.kube.steady import NAMESPACE, NODES, asking, pods_addresses, strict_pods
from tests.kube.workloads import Document, deployment, service
from tests.waiting import eventually

KINDS = 3
"""What is asked of a pod: requests on new connections and on a kept one, and lines of a stream."""
GATE = "/run/nodeagent/gate"
"""Agents that begin late begin when this file is there."""


@pytest.fixture(scope="module")
def steady(mesh: Kube) -> Iterator[Kube]:
    with strict_pods(mesh) as found:
        yield found


@pytest.mark.timeout(900)
def test_agents_are_replaced_while_nobody_notices(steady: Kube) -> None:
    """Input: a rollout, and one back. In the first, new pods begin late, and an old one is told to end before,
    as the DaemonSet's controller does when a readiness probe fails: a starved node's does.
    Verdict: every agent is another one, by the real DaemonSet controller; no request fails, on new
    connections or kept ones, within a node or between nodes; no stream is cut; the old agents end.
    At last a node's new agent is taken away beside the old one: another comes, though the streams never end.
    """
    replaced(steady, back=False)
    replaced(steady, back=True)


def replaced(steady: Kube, *, back: bool) -> None:
    """Roll out agents that begin late; *back*: roll that back."""
    before = agent_pods(steady)
    kinds = KINDS * len(NODES)
    with asking(steady, *pods_addresses(steady)) as asks:
        asks.goes_on(kinds)
        if back:
            steady.kubectl("rollout", "undo", "-n", SYSTEM, "daemonset/nodeagent")
        else:
            with late(steady):
                end_too_early(steady, before)
                asks.goes_on(kinds)
        eventually(lambda: taken_over(steady, before), "every agent is another one", SECONDS)
        asks.goes_on(kinds)
        assert not alone(steady), "the old agents carry the streams yet"
        if back:
            take_away(steady, NODES[0])
    eventually(lambda: alone(steady), "the old agents have ended", SECONDS)
    rolled_out(steady)  # not before: the controller looks at the oldest pod of a node, also while it drains
    old = {each["metadata"]["name"] for each in before}
    assert not old & set(agents(steady).values())


@contextmanager
def late(kube: Kube) -> Iterator[None]:
    """Roll out agents that do not begin within."""
    template = get(kube, "daemonset", "-n", SYSTEM, "nodeagent")["spec"]["template"]
    (agent,) = template["spec"]["containers"]
    (run,) = (each for each in agent["volumeMounts"] if each["name"] == "run")
    wait = ["sh", "-c", f"until [ -e {GATE} ]; do sleep 0.1; done"]
    gate = {"name": "gate", "image": agent["image"], "command": wait, "volumeMounts": [run]}
    patch = {"spec": {"template": {"spec": {"initContainers": [gate]}}}}
    kube.kubectl("patch", "-n", SYSTEM, "daemonset", "nodeagent", "-p", json.dumps(patch))
    try:
        yield
    finally:
        for node in NODES:
            subprocess.run(kube.command(node, ["touch", GATE]), check=True)


def end_too_early(kube: Kube, before: Sequence[Document]) -> None:
    """Tell the agent of *before* to end beside which another pod has come."""
    old = {each["spec"]["nodeName"]: each["metadata"]["name"] for each in before}

    def coming() -> list[str]:
        return [each["spec"]["nodeName"] for each in agent_pods(kube) if each["metadata"]["name"] not in old.values()]

    (node,) = eventually(coming, "a new agent's pod", SECONDS)
    kube.kubectl("delete", "pod", "-n", SYSTEM, old[node], "--wait=false")

    def waits() -> bool:
        said = kube.kubectl("logs", "-n", SYSTEM, old[node], "-c", "agent", "--tail=100")
        assert "it waits for the one that is coming" in said, said
        return True

    eventually(waits, "the old agent waits", SECONDS)


def take_away(kube: Kube, node: str) -> None:
    """Kill the agent of *node* that does not drain; when it has begun again, and knows nobody who drains, remove it,
    and wait for another one.
    """
    taken = agents(kube)[node]

    def state() -> Document:
        (found,) = containers(get(kube, "pod", "-n", SYSTEM, taken))
        return found

    container = state()["containerID"].rpartition("/")[2]
    kill = ["ctr", "-a", str(CONTAINERD), "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container]
    subprocess.run(kube.command(node, kill), check=True)
    eventually(lambda: state()["restartCount"] and state()["ready"], "the agent has begun again", SECONDS)
    kube.kubectl("delete", "pod", "-n", SYSTEM, taken, f"--timeout={SECONDS:g}s", seconds=SECONDS)
    eventually(lambda: agents(kube).get(node, taken) != taken, f"another agent on {node}", SECONDS)


@pytest.mark.timeout(900)
def test_a_node_is_drained_while_nobody_notices(steady: Kube) -> None:
    """Input: a Service of two pods, one on a node, both STRICT, of which one at most may be away; the other
    node is drained, by the API's evictions as kubectl makes them, and comes back.
    Verdict: its pod is gone from there and another one serves; no request to the Service fails, on new
    connections or a kept one, nor one to the pods that stay; the drained node keeps its agent.
    """
    web, budget = moved("web"), disruption("web")
    apply(steady, web, service("web", NAMESPACE), budget)
    steady.kubectl("rollout", "status", "-n", NAMESPACE, "deployment/web", f"--timeout={SECONDS:g}s")
    assert hosts(steady) == list(NODES)
    address = get(steady, "service", "-n", NAMESPACE, "web")["spec"]["clusterIP"]  # the DNS server may be drained, too
    with asking(steady, f"http://{address}", *pods_addresses(steady, NODES[:1])) as asks:
        asks.goes_on(KINDS + 2)
        drain = (
            "drain",
            "node-b",
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
        )  # pods nobody makes again
        steady.kubectl(*drain, f"--timeout={SECONDS:g}s", seconds=SECONDS + 10)
        steady.kubectl("rollout", "status", "-n", NAMESPACE, "deployment/web", f"--timeout={SECONDS:g}s")
        assert hosts(steady) == [NODES[0]] * 2
        asks.goes_on(KINDS + 2)
        assert sorted(agents(steady)) == list(NODES)
        steady.kubectl("uncordon", "node-b")
        steady.kubectl("rollout", "restart", "-n", NAMESPACE, "deployment/web")
        steady.kubectl("rollout", "status", "-n", NAMESPACE, "deployment/web", f"--timeout={SECONDS:g}s")
        asks.goes_on(KINDS + 2)


def moved(name: str) -> Document:
    """Return a Deployment whose pods are on different nodes where that is possible; each goes on until
    nobody asks it any more.
    """
    found = deployment(name, NAMESPACE)
    spec = found["spec"]["template"]["spec"]
    spec["topologySpreadConstraints"][0] |= {"whenUnsatisfiable": "ScheduleAnyway"}
    spec["terminationGracePeriodSeconds"] = 10
    spec["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": 3}}}
    found["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 0}}
    return found


def disruption(app: str) -> Document:
    """Return the budget by which one pod of *app* may be away."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": {"app": app}}}
    metadata = {"name": app, "namespace": NAMESPACE}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


def hosts(kube: Kube) -> list[str]:
    """Return the nodes of the Service's pods that are not being removed."""
    found = get(kube, "pods", "-n", NAMESPACE, "-l", "app=web")["items"]
    return sorted(each["spec"]["nodeName"] for each in found if "deletionTimestamp" not in each["metadata"])
