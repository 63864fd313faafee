"""Pods as an API server writes them in protobuf (Kubernetes API concepts, "Protobuf encoding"; field
numbers and what is inline: k8s.io/api core/v1 generated.proto), from what they are in JSON.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict

from nodeagent.kube.pod_messages import MAGIC
from nodeagent.protocols.pods_pb2 import Envelope, Pod, PodList

Document = dict[str, Any]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def message(pod: Document) -> Pod:
    """Return the message of the pod *pod*; fields that nobody here reads are left out."""
    shaped = dict(pod)
    spec = dict(pod.get("spec") or {})
    for name in ("containers", "initContainers"):
        spec[name] = [_container(each) for each in spec.get(name) or ()]
    spec["volumes"] = [
        {"name": each["name"], "volumeSource": {name: value for name, value in each.items() if name != "name"}}
        for each in spec.get("volumes") or ()
    ]
    shaped["spec"] = spec
    return ParseDict(shaped, Pod(), ignore_unknown_fields=True)


def encoded(items: list[Document], metadata: Document) -> bytes:
    """Return the list of the pods *items* with the *metadata* of a list."""
    found = PodList(items=[message(each) for each in items])
    ParseDict(metadata, found.metadata, ignore_unknown_fields=True)
    return MAGIC + Envelope(raw=found.SerializeToString()).SerializeToString()


def _container(container: Document) -> Document:
    shaped = dict(container)
    for name in PROBES:
        if name in shaped:
            shaped[name] = {"handler": _handler(shaped[name])}
    if "lifecycle" in shaped:
        shaped["lifecycle"] = {hook: _handler(declared) for hook, declared in shaped["lifecycle"].items()}
    return shaped


def _handler(declared: Document) -> Document:
    shaped = {name: dict(value) for name, value in declared.items() if isinstance(value, dict)}
    for name in ("httpGet", "tcpSocket"):
        if name in shaped:
            port = shaped[name]["port"]
            shaped[name]["port"] = {"type": 1, "strVal": port} if isinstance(port, str) else {"intVal": port}
    return shaped
