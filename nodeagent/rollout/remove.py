"""Takes the agent off a cluster, such that nothing of it is left on any node.

The order matters. Before anything goes, no pod may have a volume of the agents' driver: once nobody
serves it the kubelet cannot unmount it, and the pod never ends. First goes the webhook's
registration, which would hold pods up. Then the DaemonSet gets another command: on each node the
agent ends, and in its place a pod detaches and removes what is pinned there, and stays, so that a
node which comes back later is cleaned as well (:func:`cleaning`; ``daemonset/uninstall.yaml`` is the same
for ``kubectl``). When every node has been, marks on nodes go, then all objects, and last
what defines their kinds.

What is gone already is no error: it may be broken off anywhere, and begun again. The DaemonSet goes
with its namespace, the last of all: as long as it is there, nodes that were away are cleaned.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Final

from nodeagent.errors import ControlError
from nodeagent.kube.access import ApiError, KubeObject
from nodeagent.kube.client import MERGE
from nodeagent.rollout.manifests import ObjectName, name_of
from nodeagent.rollout.on_nodes import agent_container, unbound
from nodeagent.rollout.placement import DAEMON_SET, NAMESPACE, PART_OF, agents
from nodeagent.rollout.progress import Say, waited
from nodeagent.rollout.resources import CONFLICT, NOT_FOUND, ClusterObjects
from nodeagent.rollout.workloads import behind
from nodeagent.uninstall import KEPT

OWN: Final = "nodeagent.io/"
"""With what the agent's labels, annotations and taints of nodes begin."""
GROUP: Final = "nodeagent.io"
MADE_BY_AGENTS: Final = ("NodeStatus",)
"""Kinds of the own group whose objects nobody else makes."""
DEFINITIONS: Final = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
REGISTRATIONS: Final = ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration")
CLUSTER_WIDE: Final = (
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("storage.k8s.io/v1", "CSIDriver"),
)
ELSEWHERE: Final = (
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
)
"""What may be in other namespaces than the agent's."""
UNINSTALL: Final = ("nodeagent", "uninstall", "-c", "/etc/nodeagent/agent.yaml")
CLEANER: Final = "uninstall"
"""The container that cleans a node."""
STAY: Final = ("sleep", "infinity")
DRIVER: Final = "csi.nodeagent.io"
GRACE_SECONDS: Final = 30
"""For an agent to end: what is open then ends with it."""


def cleaning(daemon_set: KubeObject) -> KubeObject:
    """Return *daemon_set* such that it cleans each node instead: its spec's template has the agent's
    container run ``nodeagent uninstall``, and then one that does nothing.
    """
    made: KubeObject = copy.deepcopy(daemon_set)
    spec = made["spec"]["template"]["spec"]
    container = agent_container(spec)
    for name in ("readinessProbe", "livenessProbe", "startupProbe", "lifecycle", "ports", "args", "resources"):
        container.pop(name, None)
    rest = {"name": "done", "image": container["image"], "command": list(STAY)}
    if "imagePullPolicy" in container:
        rest["imagePullPolicy"] = container["imagePullPolicy"]
    unbound(spec)
    spec |= {
        "initContainers": [container | {"name": CLEANER, "command": list(UNINSTALL)}],
        "containers": [rest],
        "terminationGracePeriodSeconds": 1,
    }
    made["spec"]["updateStrategy"] = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0},
    }
    return made


class Removal:
    """One removal from the cluster of *objects*."""

    def __init__(self, objects: ClusterObjects, say: Say, *, seconds: float) -> None:
        """*seconds*: how long is waited for all nodes, and for what ends after that."""
        self._objects = objects
        self._say = say
        self._seconds = seconds
        self._agents = DAEMON_SET

    async def run(self, documents: Sequence[KubeObject], *, nodes: bool, policies: bool, volumes: bool) -> None:
        """Remove everything. *documents*: the manifests, for a cluster whose DaemonSet is gone already;
        *nodes* False: do not clean them; *policies*: with what people wrote in kinds of the own group;
        *volumes*: though pods have volumes of the agents' driver.

        Raises ControlError, ApiError, saying what is left.
        """
        self._agents = await agents(self._objects, documents)
        if not documents and await self._is_clean():
            self._say("nothing of the agent is there")
            return
        await self._refuse_namespace()
        await self._refuse_policies(policies)
        if not volumes:
            await self._refuse_volumes()
        await self._each(REGISTRATIONS)
        leaving = await self._leaves()
        if leaving:
            self._say(f"{self._namespace()} is being removed: no node is cleaned any more, as one before it was")
        elif nodes:
            await self._clean(documents)
        await self._unmark()
        for kind in (*ELSEWHERE, *CLUSTER_WIDE):
            await self._each(kind)
        namespace = self._namespace()
        for definition in await self._definitions():
            if await self._objects.delete(definition):
                self._say(f"{definition}: removed")
        if leaving or await self._objects.delete(namespace):
            await waited(partial(self._objects.remains, namespace), self._say, self._seconds, str(namespace))
            self._say(f"{namespace}: removed, with all that was in it")

    def _namespace(self) -> ObjectName:
        return ObjectName("v1", "Namespace", "", self._agents.namespace)

    async def _leaves(self) -> bool:
        """Say whether the agents' namespace is being removed, which is the last of all. Raises ApiError."""
        found = await self._objects.get(self._namespace())
        return found is not None and "deletionTimestamp" in found["metadata"]

    async def _is_clean(self) -> bool:
        """Say whether there is nothing to remove. Raises ApiError."""
        for name in (self._agents, self._namespace()):
            if await self._objects.get(name) is not None:
                return False
        for kind in (REGISTRATIONS, *CLUSTER_WIDE, *ELSEWHERE):
            if await self._objects.list(*kind, labels=PART_OF):
                return False
        return not await self._own_definitions() and not any(map(unmarked, await self._objects.list("v1", "Node")))

    async def _refuse_namespace(self) -> None:
        """Raise ControlError where the agents are in a namespace that is not theirs: it would go with them."""
        name = self._namespace()
        found = await self._objects.get(name) if name.name != NAMESPACE else None
        label, _, value = PART_OF.partition("=")
        if found is not None and (found["metadata"].get("labels") or {}).get(label) != value:
            raise ControlError(
                f"the agents are in {name}, which is not theirs alone (it has no label {PART_OF}), and what else is in "
                "it would go with them: label it, or follow docs/kubernetes.md, kubectl alone; nothing has been removed"
            )

    async def _refuse_policies(self, allowed: bool) -> None:
        """Raise ControlError for objects of the own group that people wrote, unless they may go."""
        found: list[str] = []
        for definition in await self._own_definitions():
            spec = definition["spec"]
            if allowed or spec["names"]["kind"] in MADE_BY_AGENTS:
                continue
            version = f"{spec['group']}/{spec['versions'][-1]['name']}"
            items = await self._objects.list(version, spec["names"]["kind"])
            found += [f"{spec['names']['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
                      for item in items]  # fmt: skip
        if found:
            shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
            raise ControlError(
                f"{len(found)} objects would be lost with the definition of their kinds ({shown}): save what you "
                "need, and give --with-policies; nothing has been removed"
            )

    async def _refuse_volumes(self) -> None:
        """Raise ControlError for pods that could never end, as nobody would unmount their volumes."""
        pods = await self._objects.list("v1", "Pod")
        found = [
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in pods
            if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and _has_volume(pod)
        ]
        if found:
            shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
            raise ControlError(
                f"{len(found)} pods have volumes of {DRIVER} ({shown}), which without agents the kubelet cannot "
                "unmount: they would stay Terminating; roll them out without these volumes, or delete them, "
                "first, or give --with-volumes; nothing has been removed"
            )

    async def _clean(self, documents: Sequence[KubeObject]) -> None:
        """Have every node cleaned. Raises ControlError, naming the nodes that are not."""
        found = await self._objects.get(self._agents)
        if found is None:
            found = await self._made_again(documents)
        first = found["spec"]["template"]["spec"].get("initContainers") or [{}]
        if first[0].get("name") != CLEANER:
            await self._change(found)
        await waited(partial(behind, self._objects, self._agents), self._say, self._seconds, "nodes that are cleaned")
        self._say("every node that can be reached is clean")
        for pod in await self._pods(found):
            await self._tell_kept(pod)

    async def _tell_kept(self, pod: KubeObject) -> None:
        """Say what stays on the node that *pod* has cleaned: with the pod goes what it said. Raises ApiError."""
        if not any(each["name"] == CLEANER for each in pod["spec"].get("initContainers") or ()):
            return
        node = f"Node {pod['spec'].get('nodeName', '')}"
        try:
            said = await self._objects.log(_pod_name(pod), CLEANER)
        except ApiError as error:
            self._say(f"{node}: whether logs stay in /var/lib/nodeagent/logs is not known: {error}")
            return
        for line in said.splitlines():
            if KEPT in line:
                self._say(f"{node}: {KEPT}{line.partition(KEPT)[2]}")

    async def _pods(self, daemon_set: KubeObject) -> list[KubeObject]:
        labels = daemon_set["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return await self._objects.list("v1", "Pod", namespace=self._agents.namespace, labels=selector)

    async def _change(self, found: KubeObject) -> None:
        path = f"/apis/apps/v1/namespaces/{self._agents.namespace}/daemonsets/{self._agents.name}"
        changed = cleaning(found)
        changed.pop("status", None)
        await self._objects.client.put(path, changed)
        # The old pods may have long to end: connections are let go on only where a successor comes.
        for pod in await self._pods(found):
            await self._objects.delete(_pod_name(pod), grace=GRACE_SECONDS)

    async def _made_again(self, documents: Sequence[KubeObject]) -> KubeObject:
        """Apply what the agent needs to run on the nodes once more. Raises ControlError."""
        made = [each for each in documents if name_of(each) == self._agents]
        if not made:
            raise ControlError(
                f"{self._agents} is not there, so that nothing can clean the nodes: what is pinned on them keeps "
                "protected pods refused: give the manifests that it came from (--overlay or -f), or --skip-nodes "
                "where no node has anything"
            )
        for document in documents:
            if name_of(document).kind in ("Namespace", "ServiceAccount", "ConfigMap"):
                await self._objects.apply(document, force=True)
        await self._objects.apply(cleaning(made[0]), force=True)
        again = await self._objects.get(self._agents)
        assert again is not None
        return again

    async def _unmark(self) -> None:
        """Take the agent's labels, annotations and taints off all nodes. Raises ApiError."""
        for node in await self._objects.list("v1", "Node"):
            name = ObjectName("v1", "Node", "", node["metadata"]["name"])
            if unmarked(node) and await self._unmark_one(name):
                self._say(f"{name}: labels, annotations and taints removed")

    async def _unmark_one(self, name: ObjectName) -> bool:
        """Do that with one node, as it is by then; say whether it was there, with any. Raises ApiError."""
        while (found := await self._objects.get(name)) is not None and (patch := unmarked(found)):
            try:
                await self._objects.client.patch(f"/api/v1/nodes/{name.name}", patch, MERGE)
            except ApiError as error:
                if error.status not in (CONFLICT, NOT_FOUND):
                    raise
                continue
            return True
        return False

    async def _each(self, kind: tuple[str, str]) -> None:
        """Remove the agent's objects of *kind*, wherever they are. Raises ApiError."""
        for item in await self._objects.list(*kind, labels=PART_OF):
            metadata = item["metadata"]
            name = ObjectName(*kind, metadata.get("namespace", ""), metadata["name"])
            if await self._objects.delete(name):
                self._say(f"{name}: removed")

    async def _own_definitions(self) -> list[KubeObject]:
        return [item for item in await self._objects.list(*DEFINITIONS) if item["spec"]["group"] == GROUP]

    async def _definitions(self) -> list[ObjectName]:
        return [ObjectName(*DEFINITIONS, "", item["metadata"]["name"]) for item in await self._own_definitions()]


def unmarked(node: KubeObject) -> KubeObject:
    """Return the merge patch that takes the agent's marks off *node*; empty: there are none."""
    metadata = node["metadata"]
    patch: KubeObject = {}
    for name in ("labels", "annotations"):
        own: dict[str, None] = {key: None for key in metadata.get(name) or {} if key.startswith(OWN)}
        if own:
            patch.setdefault("metadata", {})[name] = own
    taints = (node.get("spec") or {}).get("taints") or []
    kept = [taint for taint in taints if not taint["key"].startswith(OWN)]
    if len(kept) != len(taints):
        patch["spec"] = {"taints": kept}
        patch.setdefault("metadata", {})["resourceVersion"] = metadata["resourceVersion"]
    return patch


def _pod_name(pod: KubeObject) -> ObjectName:
    return ObjectName("v1", "Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])


def _has_volume(pod: KubeObject) -> bool:
    """Say whether *pod* has a volume of the agents' driver."""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return any((volume.get("csi") or {}).get("driver") == DRIVER for volume in volumes)
