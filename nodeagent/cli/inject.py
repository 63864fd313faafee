"""``nodeagent inject``: classic sidecars, given to pods and workloads in YAML."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from nodeagent.errors import InjectionError, ResourceError, unread
from nodeagent.vocabulary import ObjectKey

if TYPE_CHECKING:
    from nodeagent.inject import InjectionSettings
    from nodeagent.inject.documents import PodDocument
    from nodeagent.inject.model import Document

_T = TypeVar("_T")


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A file, a folder, or -; several may be given.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write; standard output by default.",
)
@click.option("--uninject", "undo", is_flag=True, help="Take the sidecars away again.")
@click.option(
    "--template",
    default="envoy",
    show_default=True,
    help="envoy, nodeagent, or a path: a file, or a folder with sidecar.yaml.",
)
@click.option(
    "--set", "assigned", multiple=True, metavar="NAME=VALUE", help="A value of the template; lists as a,b or as JSON."
)
@click.option("--values", type=click.Path(path_type=Path), help="A YAML file of values.")
@click.option(
    "--policies",
    multiple=True,
    metavar="FILE",
    help="AuthorizationPolicies that the sidecars enforce (template envoy).",
)
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of objects that do not say theirs."
)
@click.option(
    "--namespace-label", "labels", multiple=True, metavar="KEY=VALUE",
    help="Labels of the objects' namespaces; they decide with the pods' own labels who gets a sidecar, as in "
"Istio. By default they ask for one.",
)  # fmt: skip
@click.option("--revision", default="", help="This injector's revision (istio.io/rev).")
@click.option(
    "--native",
    is_flag=True,
    help="The proxy as a native sidecar: an init container that keeps running (Kubernetes 1.29).",
)
@click.option("--hold", is_flag=True, help="Applications start after the proxy is ready.")
def inject(
    files: tuple[str, ...],
    output: Path | None,
    undo: bool,
    template: str,
    assigned: tuple[str, ...],
    values: Path | None,
    policies: tuple[str, ...],
    namespace: str,
    labels: tuple[str, ...],
    revision: str,
    native: bool,
    hold: bool,
) -> None:
    """Give pods a sidecar: Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs,
    CronJobs, and Lists of them.

    Other kinds pass through as they are, and so do pods that have a sidecar or opted out. Nothing
    is written when anything is wrong.
    """
    from nodeagent.inject import InjectionSettings
    from nodeagent.istio import INJECTION_LABEL, REVISION_LABEL

    given = _values(values) | dict(_assignments("--set", assigned, _parsed))
    if policies:
        there = given.get("authorizationPolicies", ())
        if not isinstance(there, list | tuple):
            raise InjectionError("authorizationPolicies: allowed: a list of AuthorizationPolicies")
        given["authorizationPolicies"] = [*there, *_policies(policies)]
    settings = InjectionSettings(template, revision, native, hold, given)
    asking = {REVISION_LABEL: revision} if revision else {INJECTION_LABEL: "enabled"}
    namespace_labels = dict(_assignments("--namespace-label", labels, str)) or asking
    notes: list[str] = []
    change = _undo(notes) if undo else _change(settings, namespace, namespace_labels, notes)
    text = _transform(files, change)
    if not notes:
        raise InjectionError(f"{', '.join(files)}: nothing in it has pods: allowed: {_kinds()}, List")
    _write(output, text)
    for note in notes:
        click.echo(note, err=True)


def _kinds() -> str:
    from nodeagent.inject.documents import TEMPLATES

    return ", ".join(TEMPLATES)


def _change(
    settings: InjectionSettings, namespace: str, labels: dict[str, str], notes: list[str]
) -> Callable[[PodDocument], Document]:
    from nodeagent.inject import PodNamespace, Skipped
    from nodeagent.inject import inject as into
    from nodeagent.inject.documents import LABELS_LATER
    from nodeagent.inject.model import PROXY

    def change(workload: PodDocument) -> Document:
        later = LABELS_LATER.get(workload.kind, frozenset())
        found = into(workload.pod, PodNamespace(workload.namespace or namespace, labels), settings, later)
        if isinstance(found, Skipped):
            notes.append(f"skipped: {workload}: {found.text}")
            return workload.pod
        spec = found.pod["spec"]
        kept = any(container["name"] == PROXY for container in spec["containers"])
        ends = kept and (workload.kind in ("Job", "CronJob") or spec.get("restartPolicy") in ("Never", "OnFailure"))
        notes.append(
            f"injected: {workload}{': its sidecar keeps it from completing; --native does not' if ends else ''}"
        )
        return found.pod

    return change


def _undo(notes: list[str]) -> Callable[[PodDocument], Document]:
    from nodeagent.inject import uninject

    def change(workload: PodDocument) -> Document:
        found = uninject(workload.pod)
        notes.append(f"{'skipped' if found == workload.pod else 'uninjected'}: {workload}")
        return found

    return change


def _transform(files: tuple[str, ...], change: Callable[[PodDocument], Document]) -> str:
    from nodeagent.inject.documents import transform
    from nodeagent.resources.load import texts

    seen: dict[ObjectKey, PodDocument] = {}

    def once(workload: PodDocument) -> Document:
        other = (
            seen.setdefault((workload.kind, workload.namespace, workload.name), workload) if workload.name else workload
        )
        if other is not workload:
            raise InjectionError(f"name: {workload.name}: allowed: another name than that of {other}")
        return change(workload)

    found = ""
    for path in files:
        for file, text in texts(path):
            new = transform(text, file, once)
            apart = "" if not found or new.startswith("---") else "---\n"
            found += ("\n" if found and not found.endswith("\n") else "") + apart + new
    return found


def _values(path: Path | None) -> dict[str, object]:
    from nodeagent.resources import yaml_text

    if path is None:
        return {}
    try:
        found = yaml_text.load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InjectionError(unread(path, error)) from None
    except ResourceError as error:
        raise InjectionError(f"{path}: {error}") from None
    if len(found) != 1 or not isinstance(found[0], dict):
        raise InjectionError(f"{path}: allowed: one mapping of values by name")
    return dict(found[0])


def _policies(paths: tuple[str, ...]) -> list[object]:
    from nodeagent.resources import yaml_text
    from nodeagent.resources.load import texts

    found = []
    for file, text in chain.from_iterable(map(texts, paths)):
        try:
            for line, part in yaml_text.split(text):
                found += yaml_text.load(part, line)
        except ResourceError as error:
            raise InjectionError(f"{file}: {error}") from None
    return found


def _assignments(option: str, items: tuple[str, ...], read: Callable[[str], _T]) -> Iterator[tuple[str, _T]]:
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{item!r}: NAME=VALUE is expected", param_hint=option)
        yield key, read(value)


def _parsed(text: str) -> object:
    """JSON where it is, else the text itself."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found


def _write(path: Path | None, text: str) -> None:
    """Write the whole *text* or nothing."""
    if path is None:
        sys.stdout.write(text)
        return
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise InjectionError(f"{path}: cannot be written: {error.strerror}") from None
