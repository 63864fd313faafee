"""A cluster's pods from YAML or JSON: what ``kubectl get -o yaml`` writes, or manifests, where a
workload counts as its replicas.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

from nodeagent.compare.estimate.amount import NOTHING, Amount
from nodeagent.compare.estimate.known import Kind, sidecars
from nodeagent.compare.estimate.known import kind as kind_of
from nodeagent.errors import InjectionError, NodeagentError, ResourceError, unread
from nodeagent.inject import annotated
from nodeagent.inject.values import Values
from nodeagent.istio import INJECT, SYSTEM_NAMESPACES
from nodeagent.resources import yaml_text
from nodeagent.resources.quantity import quantity
from nodeagent.vocabulary import Json, JsonObject, ObjectKey

_REPLICATED: Final = ("Deployment", "StatefulSet", "ReplicaSet", "ReplicationController")
_WORKLOADS: Final = (*_REPLICATED, "DaemonSet", "Job", "CronJob")
BOUNDS: Final = yaml_text.Bounds(20_000_000, 1 << 30)
"""Of one YAML document: a list of tens of thousands of pods."""


class EstimateError(NodeagentError):
    """A file is not what kubectl writes, or holds no pods."""


@dataclass(frozen=True, slots=True)
class EstimatedSidecar:
    """A container beside an application. ``requested`` is None where neither a request nor a limit is set."""

    name: str
    kind: Kind
    requested: Amount | None


@dataclass(frozen=True, slots=True)
class EstimatedPod:
    """A pod with its sidecars, or *count* pods that are alike (replicas of a workload)."""

    namespace: str
    name: str
    node: str | None
    count: int
    sidecars: tuple[EstimatedSidecar, ...]
    injected: Amount | None
    """What Istio's injector would make a proxy of it request, if it has none and may have one."""


@dataclass(frozen=True, slots=True)
class PodListing:
    """The pods that were read, and notes for people about what was not counted."""

    pods: tuple[EstimatedPod, ...]
    notes: tuple[str, ...] = ()


def read(files: Sequence[str]) -> PodListing:
    """Return the pods in *files*; ``-`` is standard input. Raises EstimateError."""
    texts = []
    for file in files:
        try:
            texts.append((file, sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise EstimateError(unread(file, error)) from None
    return parse(texts)


def parse(texts: Iterable[tuple[str, str]]) -> PodListing:
    """Return the pods in *texts*, pairs of a name for messages and YAML or JSON. Raises
    EstimateError, also if there are none.
    """
    names: list[str] = []
    objects: list[tuple[str, JsonObject]] = []
    for file, text in texts:
        names.append(file)
        for number, value in enumerate(_values(file, text), 1):
            where = f"{file}: document {number}"
            if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
                raise EstimateError(
                    f"{where}: allowed: Kubernetes objects with apiVersion and kind, as kubectl get -o yaml writes them"
                )
            objects += _items(where, value)
    cluster = _cluster(objects)
    if not cluster.pods:
        raise EstimateError(
            f"{', '.join(names) or 'no file'}: no pods: allowed: the output of kubectl get pods -A -o yaml (or "
            "json), or manifests of workloads"
        )
    return cluster


def _values(file: str, text: str) -> list[object]:
    if text.lstrip().startswith("{"):  # JSON is YAML too, but read much faster
        try:
            return [json.loads(text)]
        except (ValueError, RecursionError) as error:
            # several documents, or flow YAML
            if not isinstance(error, json.JSONDecodeError) or error.msg != "Extra data":
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise EstimateError(f"{file}: not JSON: {reason}") from None
    values: list[object] = []
    try:
        for line, part in yaml_text.split(text):
            values += yaml_text.load(part, line, BOUNDS)
        return values
    except ResourceError as error:
        raise EstimateError(f"{file}: {error}") from None


def _items(where: str, value: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield *value*, or what it lists, with words for where that stands."""
    kind = str(value["kind"])
    if not kind.endswith("List"):
        yield where, value
        return
    items = value.get("items")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            raise EstimateError(f"{where}: items[{index}]: allowed: a Kubernetes object")
        # Items of a typed list, such as PodList, need not repeat their kind.
        yield f"{where}: items[{index}]", {"kind": kind.removesuffix("List"), **item}


def _cluster(objects: Sequence[tuple[str, JsonObject]]) -> PodListing:
    # A listing may hold a Deployment, its ReplicaSet and their pods: only what owns nothing there
    # is counted.
    owners: set[str] = set()
    for where, each in objects:
        references = _list(where, _section(where, each, "metadata"), "ownerReferences")
        owners |= {str(reference.get("uid")) for reference in references}
    pods: list[EstimatedPod] = []
    notes: dict[str, None] = {}
    seen: set[ObjectKey] = set()
    for where, each in objects:
        metadata = _section(where, each, "metadata")
        kind = str(each["kind"])
        key = (
            kind,
            str(metadata.get("namespace", "default")),
            str(metadata.get("name", metadata.get("generateName", where))),
        )
        if key in seen or (metadata.get("uid") is not None and str(metadata["uid"]) in owners):
            continue
        seen.add(key)
        if kind == "Pod" and _section(where, each, "status").get("phase") not in ("Succeeded", "Failed"):
            pods.append(_pod(where, key, metadata, _section(where, each, "spec"), 1))
        elif kind == "CronJob":
            notes[f"CronJob {key[1]}/{key[2]} is not counted: its pods come and go"] = None
        elif kind in _WORKLOADS:
            pods += _workload(where, key, each, notes)
    return PodListing(tuple(pods), tuple(notes))


def _workload(where: str, key: ObjectKey, each: JsonObject, notes: dict[str, None]) -> Iterator[EstimatedPod]:
    """Yield the pods of a workload's template."""
    spec = _section(where, each, "spec")
    kind = key[0]
    if kind == "DaemonSet":
        count = _section(where, each, "status").get("desiredNumberScheduled")
        if count is None:
            count = 1
            notes[f"DaemonSet {key[1]}/{key[2]} is counted as one pod: on how many nodes it runs is not known"] = None
    else:
        count = spec.get("replicas" if kind in _REPLICATED else "parallelism", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 1_000_000:
        raise EstimateError(f"{where} ({kind} {key[1]}/{key[2]}): replicas: {count!r:.40}: allowed: a whole number")
    template = _section(where, spec, "template")
    if count:
        yield _pod(where, key, _section(where, template, "metadata"), _section(where, template, "spec"), count)


def _pod(where: str, key: ObjectKey, metadata: JsonObject, spec: JsonObject, count: int) -> EstimatedPod:
    where = f"{where} ({key[0]} {key[1]}/{key[2]})"
    containers = _list(where, spec, "containers")
    native = [each for each in _list(where, spec, "initContainers") if each.get("restartPolicy") == "Always"]
    kinds = sidecars([_names(each) for each in containers], [_names(each) for each in native])
    found = tuple(
        EstimatedSidecar(name, kinds[name], _requested(where, each))
        for each in (*containers, *native)
        if (name := _names(each)[0]) in kinds
    )
    node = spec.get("nodeName")
    pod = EstimatedPod(key[1], key[2], node if isinstance(node, str) and node else None, count, found, None)
    # a gateway
    meshed = any(each.kind == "mesh" for each in found) or any(kind_of(*_names(each)) == "mesh" for each in containers)
    marks = {
        name: {str(mark): str(text).lower() for mark, text in _section(where, metadata, name).items()}
        for name in ("labels", "annotations")
    }
    opted_out = marks["labels"].get(INJECT, marks["annotations"].get(INJECT)) == "false"
    if meshed or opted_out or spec.get("hostNetwork") is True or key[1] in SYSTEM_NAMESPACES:
        return pod
    return replace(pod, injected=_injected(where, _section(where, metadata, "annotations")))


def _injected(where: str, annotations: JsonObject) -> Amount:
    """Return what the injector would request for the pod's proxy."""
    texts = {name: str(text) for name, text in annotations.items()}
    try:
        return _amount(f"{where}: the proxy", annotated.resources(texts, Values().resources)) or NOTHING
    except InjectionError as error:
        raise EstimateError(f"{where}: {error}") from None


def _requested(where: str, container: JsonObject) -> Amount | None:
    """Return what a container requests."""
    return _amount(f"{where}: container {_names(container)[0]}", _section(where, container, "resources"))


def _amount(where: str, resources: JsonObject) -> Amount | None:
    """Return what *resources* request, None if nothing; a limit without a request is the request, as for Kubernetes."""
    both = _section(where, resources, "limits") | _section(where, resources, "requests")
    if both.get("cpu") is None and both.get("memory") is None:
        return None
    return Amount(*(_quantity(where, f"resources.requests.{what}", both.get(what) or 0) for what in ("cpu", "memory")))


def _quantity(where: str, field: str, value: Json) -> Fraction:
    try:
        amount = quantity(value)
    except ValueError as error:
        raise EstimateError(f"{where}: {field}: {value!r:.40}: allowed: {error}") from None
    if amount < 0:
        raise EstimateError(f"{where}: {field}: {value!r:.40}: allowed: nothing below zero")
    return amount


def _names(container: JsonObject) -> tuple[str, str]:
    return str(container.get("name", "")), str(container.get("image", ""))


def _section(where: str, value: JsonObject, name: str) -> dict[str, Json]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise EstimateError(f"{where}: {name}: {found!r:.40}: allowed: a mapping")
    return found


def _list(where: str, value: JsonObject, name: str) -> list[dict[str, Json]]:
    found = value.get(name)
    if found is None:
        return []
    items = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    if not isinstance(found, list) or len(items) < len(found):
        raise EstimateError(f"{where}: {name}: {found!r:.40}: allowed: a list of mappings")
    return items
