"""What is known of the cluster, on disk: an agent that starts while the API server is away serves by it.

One file: a line that says what it is (version, node, the digest of the rest), then one JSON document a
line, of the shape that Kubernetes gives it, with what is read of it and nothing else. It is replaced
as a whole, and what is in it is read as any document is. A file of another version or node, or with
another digest, is named and ignored: it is never half used.

It is written soon after what this node decides by has changed (its own pods, policies, namespaces),
and seldom after others; never so often that writing takes more than a fiftieth of the time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import ResourceError, shown
from nodeagent.kube.access import KubeObject
from nodeagent.kube.foreign import FOREIGN
from nodeagent.kube.kind_objects import HeldObject
from nodeagent.kube.kinds import NODE_STATUS
from nodeagent.kube.lean import UNWRITTEN, unwritten
from nodeagent.resources import regular_file
from nodeagent.resources.changes import Change
from nodeagent.resources.labels import LabelSelector
from nodeagent.resources.objects import (
    SERVICE_NAME,
    ContainerObject,
    EndpointSliceObject,
    KubernetesObject,
    NamespaceObject,
    NetworkPolicyObject,
    NodeObject,
    PodObject,
    ProbeAction,
    ServiceObject,
)
from nodeagent.resources.security import Policy

VERSION: Final = 1
NAME: Final = "cluster.snapshot"
MAX_BYTES: Final = 256 << 20
SOON_SECONDS: Final = 1.0
SELDOM_SECONDS: Final = 60.0
_SHARE: Final = 50
"""Writing takes no more than one part in so many of the time."""
log = logging.getLogger("nodeagent.kube")


class SnapshotFile:
    """The file in *folder*, of *node*. *now*, a steady clock in seconds, is injected for tests."""

    def __init__(
        self,
        folder: Path,
        node: str,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder / NAME
        self._node = node
        self._now = now
        self._documents: Callable[[], Sequence[HeldObject]] = list
        self._due = float("inf")
        self._not_before = 0.0
        self._resigned = False
        self._wake = asyncio.Event()

    def resign(self) -> None:
        """Write nothing from now on: a successor does."""
        self._resigned = True

    def restore(self) -> list[KubeObject]:
        """Return the documents; none where there is no file that is good, of this version and node."""
        try:
            content = regular_file.content(self._path, MAX_BYTES, links=False)
            head, _, rest = content.partition(b"\n")
            said = orjson.loads(head)
            if not isinstance(said, dict) or said.get("version") != VERSION:
                raise ResourceError(f"version: {shown(said)}: {VERSION} is read here")
            if said.get("node") != self._node:
                raise ResourceError(f"node: {shown(said.get('node'))}: this node is {self._node}")
            if said.get("sha256") != sha256(rest).hexdigest():
                raise ResourceError("sha256: it is not that of the content: the file is damaged")
            documents = [orjson.loads(line) for line in rest.split(b"\n") if line]
        except FileNotFoundError:
            return []
        except (ResourceError, orjson.JSONDecodeError, OSError) as error:
            log.error("%s: %s; it is ignored, and written anew", self._path, error)
            return []
        log.info("%s: %d objects, for what the API server does not tell", self._path, len(documents))
        return documents

    def changed(self, changes: Iterable[Change], documents: Callable[[], Sequence[HeldObject]]) -> None:
        """Have *documents* written: soon, if *changes* are of this node or of what all decide by."""
        self._documents = documents
        soon = any(self._matters(change) for change in changes)
        self._due = min(self._due, self._now() + (SOON_SECONDS if soon else SELDOM_SECONDS))
        self._wake.set()

    async def keep(self) -> None:
        """Write when something is due, for ever."""
        while True:
            pause = max(self._due, self._not_before) - self._now()
            if pause > 0:
                self._wake.clear()
                try:
                    async with asyncio.timeout(None if pause == float("inf") else pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            await self.write()

    async def write(self) -> None:
        """Write what is known now."""
        if self._resigned:
            self._due = float("inf")
            return
        self._due = float("inf")
        begun = self._now()
        held = [(each.change, each.document) for each in self._documents()]
        try:
            await asyncio.to_thread(partial(_write, self._path, self._node, held))
        except OSError as error:
            log.error("%s: cannot be written, and a start without the API server fails: %s", self._path, error)
        self._not_before = begun + _SHARE * (self._now() - begun)

    def _matters(self, change: Change) -> bool:
        found = change.object
        if isinstance(found, PodObject):
            return found.node == self._node
        return change.kind not in ("Pod", "Service", "EndpointSlice", "Node")


def _write(path: Path, node: str, held: Sequence[tuple[Change | None, bytes]]) -> None:
    lines = [line for change, document in held if (line := document_of(change, document))]
    rest = b"\n".join(lines)
    head = orjson.dumps({"version": VERSION, "node": node, "sha256": sha256(rest).hexdigest(), "objects": len(lines)})
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with open(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb"
    ) as file:
        file.write(head + b"\n" + rest)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def document_of(change: Change | None, document: bytes = b"") -> bytes:
    """Return what *change* put, as JSON on one line: a policy, and what a node says, as its *document*;
    empty where there is nothing to keep.
    """
    if change is not None and change.kind == NODE_STATUS:
        return document
    found = change.object if change is not None else None
    if change is None or found is None:
        return b""
    if isinstance(found, Policy):
        return document
    if change.kind == FOREIGN:
        return orjson.dumps({"kind": FOREIGN, "name": change.name})
    metadata = {"name": change.name}
    if change.namespace:
        metadata["namespace"] = change.namespace
    version, parts = _parts(found)
    own = parts.pop("metadata", {})
    return orjson.dumps({"apiVersion": version, "kind": change.kind, "metadata": {**metadata, **own}, **parts})


def _parts(found: KubernetesObject) -> tuple[str, KubeObject]:
    """Return the apiVersion and the parts of a document that is read as *found*."""
    if isinstance(found, PodObject):
        return "v1", _pod(found)
    if isinstance(found, ServiceObject):
        return "v1", _service(found)
    if isinstance(found, EndpointSliceObject):
        return "discovery.k8s.io/v1", _endpoint_slice(found)
    if isinstance(found, NodeObject):
        addresses = [{"type": "InternalIP", "address": address} for address in found.addresses]
        ranges = [str(each) for each in found.pod_ranges]
        return "v1", {"spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}}
    if isinstance(found, NamespaceObject):
        return "v1", {"metadata": {"labels": dict(found.labels), "annotations": dict(found.annotations)}}
    if isinstance(found, NetworkPolicyObject):
        return "networking.k8s.io/v1", {"spec": {"podSelector": _selector(found.selector)}}
    return "policy.networking.k8s.io/unread", {}


def _pod(pod: PodObject) -> dict[str, KubeObject]:
    metadata: KubeObject = {
        "uid": pod.uid,
        "creationTimestamp": pod.created,
        "labels": dict(pod.labels),
        "annotations": dict(pod.annotations),
        "ownerReferences": [
            {"kind": owner.kind, "name": owner.name, "controller": owner.controller} for owner in pod.owners
        ],
    }
    if pod.terminating:
        metadata["deletionTimestamp"] = pod.created or "unknown"
    spec: KubeObject = {
        "nodeName": pod.node,
        "serviceAccountName": pod.service_account,
        "hostNetwork": pod.host_network,
        "containers": [_container(each) for each in pod.containers],
        "volumes": [{"csi": {"driver": driver}} for driver in pod.drivers],
    }
    status: KubeObject = {
        "phase": pod.phase,
        "podIPs": [{"ip": address} for address in pod.addresses],
        "conditions": [{"type": "Ready", "status": "True"}] if pod.ready else [],
    }
    return {"metadata": metadata, "spec": spec, "status": status, UNWRITTEN: unwritten(pod)}


def _container(container: ContainerObject) -> KubeObject:
    ports = [{"name": port.name, "containerPort": port.number} for port in container.ports]
    found: KubeObject = {"name": container.name, "ports": ports}
    places = ("startupProbe", "livenessProbe", "readinessProbe", "postStart", "preStop")
    for place, probe in zip(places, container.probes, strict=False):
        target = found.setdefault("lifecycle", {}) if place in ("postStart", "preStop") else found
        target[place] = _probe(probe)
    return found


def _probe(probe: ProbeAction) -> KubeObject:
    if probe.kind == "http":
        return {"httpGet": {"port": probe.port, "path": probe.path, "host": probe.host}}
    if probe.kind == "tcp":
        return {"tcpSocket": {"port": probe.port, "host": probe.host}}
    return {"grpc": {"port": probe.port, "service": probe.path}}


def _service(service: ServiceObject) -> dict[str, KubeObject]:
    metadata: KubeObject = {"creationTimestamp": service.created, "annotations": dict(service.annotations)}
    spec: KubeObject = {
        "type": "ExternalName" if service.external else "ClusterIP",
        "clusterIPs": list(service.addresses),
        "selector": dict(service.selector),
        "ports": [
            {
                "name": port.name,
                "port": port.port,
                "protocol": port.transport,
                "appProtocol": port.app_protocol,
                "targetPort": port.target,
            }
            for port in service.ports
        ],
        "publishNotReadyAddresses": service.publish_not_ready,
        "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
    }
    return {"metadata": metadata, "spec": spec}


def _endpoint_slice(found: EndpointSliceObject) -> KubeObject:
    endpoints = [
        {
            "addresses": [each.address],
            "conditions": {"ready": each.ready, "serving": each.ready or each.ending, "terminating": each.ending},
            **({"targetRef": {"kind": "Pod", "name": each.pod}} if each.pod else {}),
            **({"nodeName": each.node} if each.node else {}),
        }
        for each in found.endpoints
    ]
    return {
        "metadata": {"labels": {SERVICE_NAME: found.service} if found.service else {}},
        "addressType": "IPv6" if any(":" in each.address for each in found.endpoints) else "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": port.name, "port": port.number} for port in found.ports],
    }


def _selector(selector: LabelSelector) -> Mapping[str, object]:
    expressions = [
        {"key": each.key, "operator": each.operator, "values": sorted(each.values)} for each in selector.expressions
    ]
    return {"matchLabels": dict(selector.labels), "matchExpressions": expressions}
