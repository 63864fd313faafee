"""What there is in a lab, and running commands in it: the reading half of :class:`nodeagent.lab.Lab`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeagent.errors import LabError
from nodeagent.lab import cgroup, cri_log
from nodeagent.lab.environment import environment
from nodeagent.lab.layout import PAUSE_PID, Layout, Node, NodeName, Object, read_objects
from nodeagent.lab.processes import inside, joining
from nodeagent.places.annotation import CGROUP, NETNS
from nodeagent.resources.pod import Container
from nodeagent.vocabulary import Family


class View:
    """A lab that is up, as its state on disk tells."""

    def __init__(self, layout: Layout, nodes: Sequence[Node], mode: str) -> None:
        self.layout = layout
        self.mode = mode
        self._nodes = tuple(nodes)

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def state(self) -> Path:
        """The folder with the lab's state: the agents' ``source``."""
        return self.layout.state

    @property
    def group(self) -> Path:
        """The cgroup of everything that the lab started."""
        return self.layout.cgroup(cgroup.hierarchy())

    @property
    def nodes(self) -> tuple[NodeName, ...]:
        return tuple(node.name for node in self._nodes)

    @property
    def pods(self) -> dict[str, Object]:
        """``namespace/name`` -> the pod's object as it is now."""
        found = (each for each in self.objects("Pod"))
        return {f"{each['metadata']['namespace']}/{each['metadata']['name']}": each for each in found}

    def objects(self, kind: str) -> Sequence[Object]:
        """Return the objects of *kind* as they are now."""
        return read_objects(self.layout.objects, f"{kind}.")

    def pod(self, target: str, namespace: str = "default") -> Object:
        """Return the pod that *target* means: ``pod``, ``namespace/pod`` or ``deploy/name`` (its
        first); raises LabError.
        """
        return self.select(target, namespace)[0]

    def select(self, target: str, namespace: str = "default") -> list[Object]:
        """Return the pods that *target* means, at least one; raises LabError."""
        first, slash, second = target.partition("/")
        pods = self.pods
        if first in ("deploy", "deployment") and slash:
            found = [
                each for each in pods.values() if each["metadata"]["namespace"] == namespace and owner(each) == second
            ]
        else:
            key = target if slash else f"{namespace}/{target}"
            found = [pods[key]] if key in pods else []
        if not found:
            raise LabError(f"there is no pod {target} in namespace {namespace}; there are: {', '.join(pods) or 'none'}")
        return found

    def address(self, target: str, namespace: str = "default", *, version: Family = 4) -> str:
        """Return the address of the pod, node or ``underlay`` that *target* means."""
        place = 0 if version == 4 else 1
        if node := self._node(target):
            return str(node.addresses[place])
        return str(self.pod(target, namespace)["status"]["podIPs"][place]["ip"])

    def netns(self, target: str, namespace: str = "default") -> Path:
        """Return the netns file of a pod, a node, or ``underlay`` (the bridge between them, and the world outside)."""
        if target == "underlay" or self._node(target):
            return self.layout.netns(target)
        return Path(self.pod(target, namespace)["metadata"]["annotations"][NETNS])

    def root(self, target: str, namespace: str = "default") -> Path:
        """Return the root of the pod's own view of the files, as seen from outside; a container's
        volumes are not in it.
        """
        return Path(f"/proc/{self.pod(target, namespace)['metadata']['annotations'][PAUSE_PID]}/root")

    def log_folder(self, target: str, namespace: str = "default", container: str | None = None) -> Path:
        """Return the folder of what a container of the pod writes (``nodeagent/lab/cri_log.py``); raises
        LabError if it has not been started yet.
        """
        pod = self.pod(target, namespace)
        name = _container(pod, container).name
        folder = self.layout.logs(pod) / name
        if not folder.exists():
            raise LabError(
                f"{target}: container {name} has not been started yet: nodeagent lab status --name {self.name} says why"
            )
        return folder

    def log(self, target: str, namespace: str = "default", container: str | None = None) -> str:
        """Return what a container of the pod has written so far."""
        pod = self.pod(target, namespace)
        return cri_log.text(self.layout.logs(pod) / _container(pod, container).name)

    def command(
        self, target: str, argv: Sequence[str], namespace: str = "default", container: str | None = None
    ) -> list[str]:
        """Return the command line by which *argv* runs in a pod's container, on a node or in the
        ``underlay``: for subprocess or asyncio.

        In a pod it has the container's environment and cgroup (so it is captured as the container
        is), and dies with the command.
        """
        group = self.group
        if target == "underlay" or self._node(target):
            return joining(group / "exec", inside(self.layout.netns(target), argv))
        pod = self.pod(target, namespace)
        spec = _container(pod, container)
        pid = _container_pid(pod, spec.name) or pod["metadata"]["annotations"][PAUSE_PID]
        pod_group = Path(pod["metadata"]["annotations"][CGROUP])
        maps = {
            each["metadata"]["name"]: each.get("data", {})
            for each in self.objects("ConfigMap")
            if each["metadata"]["namespace"] == pod["metadata"]["namespace"]
        }
        variables = [f"{key}={value}" for key, value in environment(spec, pod, maps.get).items()]
        enter = [
            "nsenter",
            "--target",
            str(pid),
            "--net",
            "--uts",
            "--ipc",
            "--mount",
            "--pid",
            "--",
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
        ]
        return joining(pod_group / spec.name, [*enter, "env", "-i", *variables, *argv])

    def exec(
        self,
        target: str,
        argv: Sequence[str],
        namespace: str = "default",
        *,
        container: str | None = None,
        input: str | None = None,
        timeout: float | None = 60,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* in a pod, on a node or in the ``underlay``, and return what it wrote and how
        it ended.

        Raises LabError if there is no such pod, subprocess.TimeoutExpired, and with *check*
        subprocess.CalledProcessError.
        """
        return subprocess.run(
            self.command(target, argv, namespace, container),
            input=input,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=check,
        )

    def popen(
        self,
        target: str,
        argv: Sequence[str],
        namespace: str = "default",
        *,
        container: str | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start *argv* as :meth:`exec` does and return the running process; *options* are subprocess.Popen's."""
        return subprocess.Popen(self.command(target, argv, namespace, container), **options)

    def status(self) -> Object:
        """Return the lab as plain values, for people and programs."""
        return {
            "name": self.name,
            "mode": self.mode,
            "state": str(self.state),
            "nodes": [self._node_status(node) for node in self._nodes],
            "pods": [_pod_status(pod) for pod in self.pods.values()],
            "services": [
                {
                    "name": each["metadata"]["name"],
                    "namespace": each["metadata"]["namespace"],
                    "clusterIPs": each["spec"]["clusterIPs"],
                    "ports": [port["port"] for port in each["spec"]["ports"]],
                }
                for each in self.objects("Service")
            ],
        }

    def _node_status(self, node: Node) -> Object:
        group = self.group / node.name
        agents = cgroup.processes(group / "agent") + cgroup.processes(group / "kubepods" / "agent")
        agent = "running" if agents else "not running"
        return {
            "name": node.name,
            "addresses": [str(address) for address in node.addresses],
            "netns": str(self.layout.netns(node.name)),
            "kubelet": bool(cgroup.processes(group / "kubelet")),
            "agent": "none" if self.mode == "direct" else agent,
        }

    def _node(self, name: str) -> Node | None:
        return next((node for node in self._nodes if node.name == name), None)


def owner(pod: Object) -> str | None:
    """Return the name of the pod's Deployment."""
    return next((each["name"] for each in pod["metadata"].get("ownerReferences", ())), None)


def is_ready(pod: Object) -> bool:
    """Return whether the pod's Ready condition holds."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


def faults(pod: Object) -> tuple[str, str]:
    """Return in words why a pod is not ready, and the name of the first container of which that is said."""
    message = next((str(each["message"]) for each in pod["status"]["conditions"] if "message" in each), "") or str(
        pod["status"]["phase"]
    )
    statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"]]
    named = [each["name"] for each in statuses if message.startswith(f"container {each['name']}: ")]
    ended = [each["name"] for each in statuses if each.get("lastState", {}).get("terminated", {}).get("exitCode")]
    return message, (named or ended or [statuses[0]["name"]])[0]


def _pod_status(pod: Object) -> Object:
    metadata = pod["metadata"]
    status = pod["status"]
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "node": pod["spec"]["nodeName"],
        "phase": status["phase"],
        "ready": is_ready(pod),
        "restarts": sum(each["restartCount"] for each in status["containerStatuses"]),
        "addresses": [each["ip"] for each in status["podIPs"]],
        "why": "" if is_ready(pod) or status["phase"] == "Succeeded" else faults(pod)[0],
    }


def _container(pod: Object, name: str | None) -> Container:
    spec = pod["spec"]
    containers = [
        Container.model_validate_json(json.dumps(each))
        for each in (*spec["containers"], *spec.get("initContainers", ()))
    ]
    found = next((each for each in containers if name in (None, each.name)), None)
    if found is None:
        raise LabError(
            f"pod {pod['metadata']['name']} has no container {name}; it has "
            f"{', '.join(each.name for each in containers)}"
        )
    return found


def _container_pid(pod: Object, name: str) -> int | None:
    status = pod["status"]
    statuses = [*status["containerStatuses"], *status.get("initContainerStatuses", ())]
    identifiers = [each.get("containerID") for each in statuses if each["name"] == name]
    return int(identifiers[0].removeprefix("lab://")) if identifiers and identifiers[0] else None
