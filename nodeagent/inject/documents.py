"""Pods and pod templates in YAML text: where they stand in which kind of object, and the text anew
with nothing else changed. Pure.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.errors import InjectionError, ResourceError
from nodeagent.inject import round_trip
from nodeagent.inject.model import Document, show
from nodeagent.resources import yaml_text

TEMPLATES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "Pod": ("", ()),
    "Deployment": ("apps", ("spec", "template")),
    "StatefulSet": ("apps", ("spec", "template")),
    "DaemonSet": ("apps", ("spec", "template")),
    "ReplicaSet": ("apps", ("spec", "template")),
    "ReplicationController": ("", ("spec", "template")),
    "Job": ("batch", ("spec", "template")),
    "CronJob": ("batch", ("spec", "jobTemplate", "spec", "template")),
}
"""Kind -> (its API group, where its pod or pod template stands)."""
_OF_JOBS: Final = frozenset(
    {
        "job-name",
        "controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
    }
)
LABELS_LATER: Final[dict[str, frozenset[str]]] = {
    "Deployment": frozenset({"pod-template-hash"}),
    "StatefulSet": frozenset(
        {"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "controller-revision-hash"}
    ),
    "DaemonSet": frozenset({"controller-revision-hash", "pod-template-generation"}),
    "Job": _OF_JOBS,
    "CronJob": _OF_JOBS,
}
"""Kind -> the labels that its controller gives to pods, beside those of the template."""
_HEAD: Final = re.compile(r"(?:(?:---)?[ \t]*(?:#[^\n]*)?\n)*")
_INDENT: Final = re.compile(r"\{\s*\n( +)")


@dataclass(frozen=True, slots=True)
class PodDocument:
    """A pod, or an object with a pod template, where it stands in a file."""

    file: str
    document: int
    """Position in the file, from 1."""
    kind: str
    namespace: str
    """Empty: the object does not say."""
    name: str
    """Empty: the API server makes one (generateName)."""
    pod: Document
    path: tuple[str | int, ...]
    """Where ``pod`` stands in the document."""

    def __str__(self) -> str:
        return (
            f"{self.file}: document {self.document} ({self.kind} "
            f"{f'{self.namespace}/' if self.namespace else ''}{self.name})"
        )


PodChange = Callable[[PodDocument], Document]
"""Returns the pod anew, or the same one. Raises InjectionError, whose message begins with the field."""


def transform(text: str, file: str, change: PodChange) -> str:
    """Return *text*, one or more YAML or JSON documents, with every pod and pod template in it
    *change*\\ d; *file* names it in errors.

    A document in which nothing changes is not touched; in others comments, order and quotes of the
    rest stay. Raises InjectionError naming file, document and field.
    """
    parts = []
    number = 0
    for line, part in yaml_text.split(text):
        try:
            values = yaml_text.load(part, line)
        except ResourceError as error:
            raise InjectionError(f"{file}: {error}") from None
        if not values:
            parts.append(part)
            continue
        number += 1
        parts.append(_document(part, _object(values[0], f"{file}: document {number}"), file, number, change))
    return "".join(parts)


def _document(part: str, value: Document, file: str, number: int, change: PodChange) -> str:
    found = copy.deepcopy(value)
    for workload in _workloads(value, file, number, ()):
        try:
            _put(found, workload.path, change(workload))
        except InjectionError as error:
            at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in workload.path).removeprefix(".")
            of_pod = str(error).startswith(("spec", "metadata"))
            raise InjectionError(f"{workload}: {f'{at}.' if at and of_pod else ''}{error}") from None
    if found == value:
        return part
    head = _HEAD.match(part)
    begin = head.end() if head else 0
    try:
        written = part[:begin] + (_as_json(part[begin:], found) or round_trip.edit(part[begin:], value, found))
    except InjectionError as error:
        raise InjectionError(f"{file}: document {number}: {error}") from None
    if yaml_text.load(written) != [found]:
        raise InjectionError(
            f"{file}: document {number}: cannot be changed without changing the rest of it: write it in plain "
            "block style"
        )
    return written


def _object(value: object, where: str) -> Document:
    """Return *value*, which stands at *where*, as the Kubernetes object that it must be. Raises InjectionError."""
    if isinstance(value, dict) and isinstance(value.get("kind"), str):
        return value
    shown = value.get("kind") if isinstance(value, dict) else value
    raise InjectionError(
        f"{where}: kind: {show(shown)}: allowed: a Kubernetes object: a mapping with apiVersion, kind, metadata"
    )


def _workloads(
    value: object, file: str, number: int, path: tuple[str | int, ...], of_all: Document | None = None
) -> Iterator[PodDocument]:
    where = f"{file}: document {number}{''.join(f'[{key}]' if isinstance(key, int) else f' {key}' for key in path)}"
    document = _object((of_all or {}) | value if isinstance(value, dict) else value, where)
    kind = document["kind"]
    metadata = document.get("metadata")
    of = kind.removesuffix("List")
    if kind == "List" or of in TEMPLATES.keys() - {kind}:
        items = document.get("items")
        if not isinstance(items, list):
            raise InjectionError(f"{where}: items: {show(items)}: allowed: a list of objects")
        for index, item in enumerate(items):
            # Of its own lists' items the API server leaves out what the list says of all.
            of_all = {"apiVersion": document.get("apiVersion"), "kind": of} if of else {}
            yield from _workloads(item, file, number, (*path, "items", index), of_all)
        return
    group, place = TEMPLATES.get(kind, (None, ()))
    version = document.get("apiVersion")
    if group is None or not isinstance(version, str) or version.rpartition("/")[0] != group:
        return
    names = metadata if isinstance(metadata, dict) else {}
    pod = value if isinstance(value, dict) else document
    for depth, key in enumerate(place):
        below = pod.get(key)
        if not isinstance(below, dict):
            at = ".".join(place[: depth + 1])
            raise InjectionError(f"{where} ({kind} {names.get('name')}): {at}: {show(below)}: allowed: a mapping")
        pod = below
    yield PodDocument(
        file, number, kind, str(names.get("namespace") or ""), str(names.get("name") or ""), pod, (*path, *place)
    )


def _put(document: Document, path: tuple[str | int, ...], pod: Document) -> None:
    target: Any = document  # a mapping or a list, by turns, as the path says
    for key in path:
        target = target[key]
    target.clear()
    target.update(copy.deepcopy(pod))


def _as_json(text: str, value: Document) -> str:
    """Return *value* as JSON indented as *text* is; empty: *text* is not JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return ""
    indent = _INDENT.match(text.lstrip())
    tail = text[len(text.rstrip()) :]
    return json.dumps(value, indent=len(indent[1]) if indent else None, ensure_ascii=False) + tail
