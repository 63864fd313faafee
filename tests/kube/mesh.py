"""The agents' DaemonSet on a cluster, and what tests ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nodeagent.errors import LabError
from nodeagent.lab.kube import Kube
from nodeagent.lab.kube.layout import CONTROL
from tests.kube.cluster import ROOT
from tests.kube.workloads import Document
from tests.waiting import eventually

SYSTEM = "nodeagent-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:nodeagent"
AGENT = ("-l", "app.kubernetes.io/name=nodeagent")
SECONDS = 120.0
"""In which what a cluster does has been done, on a machine that does much else."""
OVERLAYS = ("crds", "minimal")
ARCHIVE = ROOT / "build" / "image.tar"
"""The agent's image."""


def load(kube: Kube) -> None:
    """Give the nodes the agent's image."""
    assert ARCHIVE.exists(), f"{ARCHIVE} is not there: run `make image` first"
    kube.load(ARCHIVE)


def install(kube: Kube) -> None:
    """Give the nodes the agent's image, apply the manifests, and wait until every agent is ready."""
    load(kube)
    for overlay in OVERLAYS:
        kube.kubectl("apply", "-k", str(ROOT / "daemonset" / "overlays" / overlay))
    rolled_out(kube)


def rolled_out(kube: Kube) -> None:
    """Wait until authority and agents are ready; say what they say where they do not get there."""
    for what in ("deployment/nodeagent-ca", "daemonset/nodeagent"):
        try:
            kube.kubectl("rollout", "status", "-n", SYSTEM, what, f"--timeout={SECONDS:g}s", seconds=SECONDS + 10)
        except LabError as error:
            seen = [kube.kubectl("get", each, "-n", SYSTEM) for each in ("pods", "events")]
            said = kube.kubectl("logs", "-n", SYSTEM, what, "--all-pods", "--tail=20", "--ignore-errors")
            raise AssertionError("\n".join([str(error), *seen, said])) from None


def apply(kube: Kube, *documents: Document) -> None:
    """Apply *documents*."""
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


def ready(kube: Kube, namespace: str, *what: str) -> None:
    """Wait until the pods *what* (a name, or a selector) of *namespace* are ready."""
    wanted = what or ("--all",)
    kube.kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod", *wanted, f"--timeout={SECONDS:g}s")


def get(kube: Kube, *what: str) -> Any:
    """Return what kubectl gets."""
    return json.loads(kube.kubectl("get", *what, "-o", "json"))


def nodeagent(kube: Kube, commands: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an administrator does, in a checkout, with kubectl on PATH."""
    command = kube.command(CONTROL, [sys.executable, "-m", "nodeagent", *arguments])
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "KUBECONFIG": str(kube.layout.admin)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def agents(kube: Kube) -> dict[str, str]:
    """Return the name of each node's agent; not of those that drain."""
    found = [each for each in agent_pods(kube) if "deletionTimestamp" not in each["metadata"]]
    return {each["spec"]["nodeName"]: each["metadata"]["name"] for each in found}


def agent_pods(kube: Kube) -> list[Document]:
    """Return the agents' pods, also of those that drain."""
    found: list[Document] = get(kube, "pods", "-n", SYSTEM, *AGENT)["items"]
    return found


def taken_over(kube: Kube, before: Sequence[Document]) -> bool:
    """Say whether each node has an agent that is ready and not of *before*, and those were told to end."""
    old = [each["metadata"]["name"] for each in before]
    found = agent_pods(kube)
    new = [each for each in found if each["metadata"]["name"] not in old]
    told = all("deletionTimestamp" in each["metadata"] for each in found if each not in new)
    ready_on = [each["spec"]["nodeName"] for each in new if all(one["ready"] for one in containers(each))]
    return told and sorted(ready_on) == [own.name for own in kube.nodes]


def containers(pod: Document) -> list[Document]:
    """Return the states of a pod's containers; a pod that is new has one at least that is not ready."""
    return pod["status"].get("containerStatuses") or [{"ready": False}]


def alone(kube: Kube) -> bool:
    """Say whether each node has one agent."""
    return sorted(each["spec"]["nodeName"] for each in agent_pods(kube)) == [own.name for own in kube.nodes]


def in_agent(kube: Kube, node: str, *command: str) -> str:
    """Return what *command* prints in the container of *node*'s agent."""
    return kube.kubectl("exec", "-n", SYSTEM, agents(kube)[node], "-c", "agent", "--", *command)


def states(kube: Kube, node: str) -> dict[str, str]:
    """Return what *node*'s agent says of its pods: state by namespace/name. An agent that does not
    answer yet is an AssertionError, for those who wait.
    """
    try:
        rows = json.loads(in_agent(kube, node, "nodeagent", "get", "pods", "-o", "json"))
    except LabError as error:
        raise AssertionError(str(error)) from None
    return {f"{each['namespace']}/{each['pod']}": each["state"] for each in rows}


def enrolled(kube: Kube, node: str, *pods: str) -> None:
    """Wait until *node*'s agent has enrolled *pods* (namespace/name)."""

    def all_are() -> bool:
        found = states(kube, node)
        assert all(found.get(each) == "enrolled" for each in pods), found
        return True

    eventually(all_are, f"{pods} enrolled", SECONDS)


def says(kube: Kube, node: str) -> str:
    """Return what *node*'s agent says of itself (``/ready``), ready or not; empty: it does not answer."""
    name = agents(kube).get(node)
    if name is None:
        return ""
    command = kube.kubectl_command(["exec", "-n", SYSTEM, name, "-c", "agent", "--", "nodeagent", "ready", "--own"])
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def curl(kube: Kube, pod: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask for something from the pod *pod* (namespace/name); the answer's status is what is printed."""
    namespace, _, name = pod.partition("/")
    asked = ["curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *arguments]
    command = kube.kubectl_command(["exec", "-n", namespace, name, "--", *asked])
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def statuses(kube: Kube, pod: str, url: str, *arguments: str, times: int = 1) -> Sequence[str]:
    """Return the statuses of *times* answers to *pod*; ``000``: none came."""
    return [curl(kube, pod, *arguments, url).stdout for _ in range(times)]


def namespace(name: str, **labels: str) -> Document:
    """Return a Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def policy(kind: str, name: str, where: str, spec: Document) -> Document:
    """Return one of Istio's policies."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": where},
        "spec": spec,
    }
