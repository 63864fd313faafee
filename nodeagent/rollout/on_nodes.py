"""Runs a command on every node as the agent would run there: in a pod made from the template of its
DaemonSet, with its image, its mounts and its rights, and another command.

A pod is bound to its node by name, so that no taint and no scheduler keeps it away; it is removed
when its words have been read, also when something fails.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.rollout.manifests import ObjectName
from nodeagent.rollout.progress import LOOK_SECONDS
from nodeagent.rollout.resources import ClusterObjects
from nodeagent.rollout.workloads import unready

JOB: Final = "nodeagent.io/job"
"""The label of pods that are made here: what they are for."""
ENDED: Final = ("Succeeded", "Failed")
AT_ONCE: Final = 20
"""Nodes that are worked on at the same time."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the command said on a node; ``status`` None: it did not come to an end, and ``words`` say why."""

    node: str
    status: int | None
    words: str


def alone(template: KubeObject, command: Sequence[str]) -> KubeObject:
    """Return the spec of *template*, a DaemonSet's pod template, with the agent's container only, which
    runs *command* once: no probes, no ports, no bounds on memory, and no priority: where a node is full, a
    kubelet ends others' pods for one that is critical (``pkg/kubelet/preemption``).
    """
    spec: KubeObject = copy.deepcopy(template["spec"])
    container = agent_container(spec)
    for name in ("readinessProbe", "livenessProbe", "startupProbe", "lifecycle", "ports", "args", "resources"):
        container.pop(name, None)
    container["command"] = list(command)
    for name in ("initContainers", "priorityClassName", "priority", "preemptionPolicy"):
        spec.pop(name, None)
    unbound(spec)
    return spec | {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}


def unbound(spec: KubeObject) -> None:
    """Have *spec* wait for no ConfigMap or Secret: what is run once needs none but its configuration,
    and the authority's may not be there yet, or any more.
    """
    for volume in spec.get("volumes") or ():
        for kind in ("configMap", "secret"):
            if kind in volume:
                volume[kind]["optional"] = True


def agent_container(spec: KubeObject) -> KubeObject:
    """Return the container of *spec* that is the agent: the one named so, else the first."""
    containers: list[KubeObject] = spec["containers"]
    named = [each for each in containers if each["name"] in ("agent", "nodeagent")]
    return named[0] if named else containers[0]


class NodeRuns:
    """Commands on nodes, in pods of *namespace* made from *template*."""

    def __init__(self, objects: ClusterObjects, namespace: str, template: KubeObject) -> None:
        self._objects = objects
        self._namespace = namespace
        self._template = template

    async def run(self, job: str, command: Sequence[str], nodes: Sequence[str], seconds: float) -> list[Told]:
        """Run *command* on each of *nodes* for at most *seconds*, and return what each said."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(node: str) -> Told:
            async with turns:
                return await self._one(job, command, node, seconds)

        return list(await asyncio.gather(*(one(node) for node in nodes)))

    async def _one(self, job: str, command: Sequence[str], node: str, seconds: float) -> Told:
        name = ObjectName("v1", "Pod", self._namespace, f"nodeagent-{job}-{node}"[:253].rstrip(".-"))
        spec = alone(self._template, command) | {"nodeName": node, "activeDeadlineSeconds": int(seconds)}
        labels = {JOB: job, "app.kubernetes.io/part-of": "nodeagent", "nodeagent.io/dataplane": "disabled"}
        metadata = {"name": name.name, "namespace": name.namespace, "labels": labels}
        try:
            await self._gone(name, seconds)
            body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            await self._objects.client.post(f"/api/v1/namespaces/{self._namespace}/pods", body)
            return await self._told(name, node, seconds)
        except ApiError as error:
            return Told(node, None, str(error))
        except TimeoutError:
            return Told(node, None, f"the pod of an earlier run does not go within {seconds:g} s: is the node there?")
        finally:
            with suppress(ApiError):
                await self._objects.delete(name, grace=0)

    async def _gone(self, name: ObjectName, seconds: float) -> None:
        """Remove what an earlier run left. Raises ApiError, TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self._objects.delete(name, grace=0):
                await asyncio.sleep(LOOK_SECONDS)

    async def _told(self, name: ObjectName, node: str, seconds: float) -> Told:
        """Wait until the pod has ended. Raises ApiError."""
        pod: KubeObject | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    pod = await self._objects.get(name)
                    if pod is None:
                        return Told(node, None, "its pod was removed by somebody else")
                    if pod.get("status", {}).get("phase") in ENDED:
                        break
                    await asyncio.sleep(LOOK_SECONDS)
        ended = _ended(pod)
        if ended is None:
            why = unready(pod) if pod is not None else "no pod"
            over = pod is not None and pod.get("status", {}).get("phase") in ENDED
            return Told(node, None, why if over else f"not after {seconds:g} s: {why}")
        return Told(node, ended, await self._objects.log(name))


def _ended(pod: KubeObject | None) -> int | None:
    """Return the exit status of the pod's container; None: it has not ended by itself."""
    for container in (pod or {}).get("status", {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None:
            return int(ended.get("exitCode", 1))
    return None
