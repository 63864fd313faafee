"""The objects of a kustomization or of files of YAML, in the order in which they have to come."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError, ResourceError, unread
from nodeagent.kube.access import KubeObject
from nodeagent.resources import yaml_text

OVERLAYS: Final = Path("daemonset/overlays")
"""Where they are below a checkout, and below the installed package."""
_PACKAGE: Final = Path(__file__).resolve().parents[1]
RENDER_SECONDS: Final = 60.0
ORDER: Final = (
    "CustomResourceDefinition",
    "Namespace",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "CSIDriver",
    "ConfigMap",
    "Secret",
    "Service",
    "PodDisruptionBudget",
)
"""What others need comes first; kinds that are not named come after these."""
LAST: Final = ("Deployment", "DaemonSet", "MutatingWebhookConfiguration")
"""A registration stands when somebody answers: until then it would hold pods up."""

CLUSTERS: Final = frozenset(
    (
        "APIService",
        "CSIDriver",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "IngressClass",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "MutatingWebhookConfiguration",
        "Namespace",
        "Node",
        "PersistentVolume",
        "PriorityClass",
        "RuntimeClass",
        "StorageClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    )
)
"""Kinds of which objects are in no namespace: a kustomize that is older than a kind writes its own one on them."""


@dataclass(frozen=True, slots=True)
class ObjectName:
    """Which object: its kind with group and version, its namespace (empty: none) and its name."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}"


def name_of(document: KubeObject) -> ObjectName:
    """Return which object *document* is. Raises ConfigError."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name") or not document.get("kind"):
        raise ConfigError("a document without kind and metadata.name: every object needs both")
    kind = str(document["kind"])
    namespace = "" if kind in CLUSTERS else str(metadata.get("namespace", ""))
    return ObjectName(str(document.get("apiVersion", "")), kind, namespace, str(metadata["name"]))


def overlay(name: str) -> Path:
    """Return the folder of the overlay *name*: of the checkout that the command runs in, the path that *name* is, or
    that which came with this package. Raises ConfigError.
    """
    own = [folder / OVERLAYS for folder in (_PACKAGE, _PACKAGE.parent)]
    for path in (OVERLAYS / name, Path(name), *(folder / name for folder in own)):
        if path.exists():
            return path
    there = chain.from_iterable(folder.glob("*/kustomization.yaml") for folder in (OVERLAYS, *own))
    known = sorted({path.parent.name for path in there})
    raise ConfigError(f"overlay {name}: neither {OVERLAYS / name} nor a path: there are: {', '.join(known) or 'none'}")


def load(path: Path) -> list[KubeObject]:
    """Return the objects of *path*, in order: a folder with a kustomization, which kubectl renders; a
    file of YAML; ``-``: standard input. Raises ConfigError.
    """
    text = _rendered(path) if str(path) != "-" and _is_folder(path) else _read(path)
    documents: list[KubeObject] = []
    try:
        for number, value in enumerate(yaml_text.load(text), 1):
            documents += _objects(value, f"document {number}")
    except (ConfigError, ResourceError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not documents:
        raise ConfigError(f"{path}: holds no objects")
    return ordered(documents)


def _read(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unread(path, error)) from None


def _is_folder(path: Path) -> bool:
    """Raises ConfigError."""
    try:
        return path.is_dir()
    except OSError as error:
        raise ConfigError(unread(path, error)) from None


def _objects(value: object, where: str) -> list[KubeObject]:
    """Return the objects of the document *value*. Raises ConfigError, which says *where* it stands."""
    try:
        found = list(_flat([value]))
        for document in found:
            name_of(document)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return found


def ordered(documents: Iterable[KubeObject]) -> list[KubeObject]:
    """Return *documents* so that each comes after what it needs."""
    return sorted(documents, key=lambda document: _rank(str(document.get("kind"))))


def _rank(kind: str) -> int:
    if kind in ORDER:
        return ORDER.index(kind)
    return len(ORDER) + 1 + LAST.index(kind) if kind in LAST else len(ORDER)


def _flat(documents: Iterable[object]) -> Iterator[KubeObject]:
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ConfigError(f"a {type(document).__name__} stands where an object is expected")
        if document.get("kind") == "List":
            yield from _flat(document.get("items") or ())
        else:
            yield document


def _rendered(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    kustomize = shutil.which("kustomize")
    if kubectl is None and kustomize is None:
        raise ConfigError(
            f"{folder}: neither kubectl nor kustomize is on PATH, and one is needed to render a kustomization: "
            "install one, or give its output: kubectl kustomize FOLDER | nodeagent install -f -"
        )
    command = [kubectl, "kustomize", str(folder)] if kubectl is not None else [str(kustomize), "build", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{' '.join(map(str, command))}: {error}") from None
    if done.returncode:
        raise ConfigError(f"{folder}: cannot be rendered: {done.stderr.strip()[-500:]}")
    return done.stdout
