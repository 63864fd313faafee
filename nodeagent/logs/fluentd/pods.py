"""Fluentd as a sidecar in a pod's manifest: where its configuration, environment and volumes are, and the pod
without it. Pure.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import ConfigError, ResourceError
from nodeagent.inject.documents import PodDocument, transform
from nodeagent.inject.model import Document
from nodeagent.logs.fluentd.convert import FluentdSidecar, Imported, convert
from nodeagent.logs.fluentd.inputs import Mounted
from nodeagent.logs.fluentd.merge import merged, names
from nodeagent.logs.fluentd.syntax import FluentSection, ImportNote, parse
from nodeagent.logs.fluentd.values import text_of
from nodeagent.resources import yaml_text

_IMAGE: Final = re.compile(r"(?:^|/)fluentd(?:[-_][a-z0-9-]+)?(?::|@|$)|/fluentd/")
_FOLDER: Final = "/fluentd/etc"
_NAME: Final = "fluent.conf"


@dataclass(frozen=True, slots=True)
class PodImport:
    """What has become of one pod."""

    pod: str
    """As its document says: ``Pod NAMESPACE/NAME``."""
    imported: Imported
    """Its section ``logs`` is one for all pods of the YAML."""
    text: str
    """The YAML that it stood in, with the pods changed, and nothing else."""
    stays: bool = False
    """It has no other container than Fluentd's, and is not changed."""


def is_fluentd(container: Document) -> bool:
    """Say whether *container* of a pod runs Fluentd, by its image or, without one, its name."""
    image = str(container.get("image") or "")
    return bool(_IMAGE.search(image)) or (not image and container.get("name") == "fluentd")


def import_pods(text: str, file: str, environment: Mapping[str, str], config: str | None = None) -> list[PodImport]:
    """Return what becomes of the pods with a Fluentd sidecar in *text*, YAML with their ConfigMaps.

    Of several, names of sinks and parsers have the pod's namespace and name. *environment* is added to that of the
    container. *config*: Fluentd's configuration, where the ConfigMap is not in *text*. Raises ConfigError and
    InjectionError, naming file and field.
    """
    found = _found(text, file, environment, config)
    if not found:
        raise ConfigError(
            f"{file}: no pod in it has a container of Fluentd's (an image such as fluent/fluentd): "
            "give the pod's YAML, or Fluentd's configuration itself"
        )
    imported = _imported(found)
    annotations = iter(imported)

    def change(document: PodDocument) -> Document:
        which = _fluentd_of(document)
        if which is None:
            return document.pod
        own = next(annotations).annotations
        return document.pod if _is_alone(document, which) else _without(document.pod, which, own)

    changed = transform(text, file, change)
    return [
        PodImport(each.pod, one, changed, each.stays)
        for each, one in zip(found, map(_with_note, found, imported), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Found:
    """A pod with Fluentd, and its configuration."""

    pod: str
    identity: tuple[str, str, str]
    root: FluentSection
    sidecar: FluentdSidecar
    stays: bool


def _found(text: str, file: str, environment: Mapping[str, str], config: str | None) -> list[_Found]:
    maps = _config_maps(text, file)
    found: list[_Found] = []

    def look(document: PodDocument) -> Document:
        which = _fluentd_of(document)
        if which is not None:
            identity = (document.kind, document.namespace or "default", document.name)
            name = f"{document.kind} {identity[1]}/{document.name}"
            spec = document.pod["spec"]
            sidecar = _sidecar(document, spec, which, environment)
            root = _config(which, spec, maps, sidecar, config, f"{file}: {name}")
            found.append(_Found(name, identity, root, sidecar, _is_alone(document, which)))
        return document.pod

    transform(text, file, look)
    return found


def _imported(found: Sequence[_Found]) -> list[Imported]:
    """Return what becomes of *found*: of several, one section ``logs``."""
    if len(found) == 1:
        return [convert(found[0].root, found[0].sidecar)]
    own = names([each.identity for each in found])
    sidecars = [replace(each.sidecar, name=name) for each, name in zip(found, own, strict=True)]
    made = [convert(each.root, sidecar) for each, sidecar in zip(found, sidecars, strict=True)]
    if any(each.logs["containers"] == "all" for each in made):
        apart = [replace(sidecar, apart=True) for sidecar in sidecars]
        made = [convert(each.root, sidecar) for each, sidecar in zip(found, apart, strict=True)]
    return merged(made)


def _with_note(found: _Found, imported: Imported) -> Imported:
    if not found.stays:
        return imported
    note = ImportNote(
        found.root.place, f"{found.pod}: has no other container than Fluentd: it stays as it is; delete it"
    )
    return replace(imported, notes=(*imported.notes, note))


def _fluentd_of(document: PodDocument) -> Document | None:
    """Return the container of Fluentd's, if the pod has one."""
    spec = document.pod.get("spec")
    return next(filter(is_fluentd, _lasting(spec)), None) if isinstance(spec, dict) else None


def _is_alone(document: PodDocument, which: Document) -> bool:
    containers = document.pod["spec"].get("containers") or ()
    return len(containers) == 1 and which in containers


def _config_maps(text: str, file: str) -> dict[str, Mapping[str, str]]:
    """Return name -> data of the ConfigMaps in *text*."""
    found: dict[str, Mapping[str, str]] = {}
    try:
        for line, part in yaml_text.split(text):
            for document in yaml_text.load(part, line):
                for item in yaml_text.items(document):
                    if isinstance(item, dict) and item.get("kind") == "ConfigMap":
                        data = item.get("data") or {}
                        found[str(item.get("metadata", {}).get("name"))] = {key: str(data[key]) for key in data}
    except ResourceError as error:
        raise ConfigError(f"{file}: {error}") from None
    return found


def _sidecar(
    document: PodDocument, spec: Document, container: Document, environment: Mapping[str, str]
) -> FluentdSidecar:
    variables = {str(each.get("name")): str(each["value"]) for each in container.get("env") or () if "value" in each}
    metadata = document.pod.get("metadata") or {}
    labels = {str(key): str(value) for key, value in (metadata.get("labels") or {}).items()}
    mounts = tuple(_mounts(spec, container))
    return FluentdSidecar({**variables, **environment}, mounts, document.namespace or "default", labels)


def _mounts(spec: Document, container: Document) -> Iterator[Mounted]:
    volumes = {each.get("name"): each for each in spec.get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        volume = volumes.get(mount.get("name"), {})
        path = str(mount.get("mountPath", ""))
        name = str(mount.get("name"))
        below = str(mount.get("subPath") or "").strip("/")
        if "emptyDir" in volume and not mount.get("subPathExpr"):
            yield Mounted(path, name, "emptyDir", f"{below}/" if below else "")
        elif isinstance(host := volume.get("hostPath"), dict):
            yield Mounted(path, name, "hostPath", str(host.get("path", "")))
        else:
            yield Mounted(path, name, "other")


def _config(
    container: Document,
    spec: Document,
    maps: Mapping[str, Mapping[str, str]],
    sidecar: FluentdSidecar,
    given: str | None,
    where: str,
) -> FluentSection:
    """Return the sections of the container's configuration, as its arguments, environment and volumes say."""
    path = _config_path(container, sidecar.environment)
    folder, name = posixpath.split(path)
    files = _mounted_files(container, spec, maps, folder)
    text = given if given is not None else files.get(name)
    if text is None:
        raise ConfigError(
            f"{where}: {path}: Fluentd's configuration is in no ConfigMap that stands in the file: add the ConfigMap's "
            "YAML, or name the configuration too"
        )

    def include(asked: str) -> dict[str, str]:
        wanted = asked.removeprefix(f"{folder}/").removeprefix("./")
        matched = {each: files[each] for each in sorted(files) if fnmatch.fnmatchcase(each, wanted)}
        if not matched and not set("*?[") & set(wanted):
            raise ConfigError(f"{where}: @include {asked}: it is in no ConfigMap that stands in the file")
        return matched

    return parse(text, name, include, lambda value: text_of(value, sidecar.environment))


def _config_path(container: Document, environment: Mapping[str, str]) -> str:
    words = [str(each) for each in (*(container.get("command") or ()), *(container.get("args") or ()))]
    for flag, value in itertools.pairwise(words):
        if flag in ("-c", "--config"):
            return value
    path = environment.get("FLUENTD_CONF", _NAME)
    return path if path.startswith("/") else f"{_FOLDER}/{path}"


def _mounted_files(
    container: Document, spec: Document, maps: Mapping[str, Mapping[str, str]], folder: str
) -> dict[str, str]:
    """Return what ConfigMaps put into *folder* of the container."""
    volumes = {each.get("name"): each for each in spec.get("volumes") or ()}
    files: dict[str, str] = {}
    for mount in container.get("volumeMounts") or ():
        source = volumes.get(mount.get("name"), {}).get("configMap")
        if not isinstance(source, dict):
            continue
        data = maps.get(str(source.get("name")), {})
        items = {str(each["key"]): str(each["path"]) for each in source.get("items") or ()}
        named = {items.get(key, key): text for key, text in data.items() if not items or key in items}
        path = str(mount.get("mountPath", "")).rstrip("/")
        if sub := mount.get("subPath"):
            if posixpath.dirname(path) == folder and sub in named:
                files[posixpath.basename(path)] = named[sub]
        elif path == folder:
            files |= named
    return files


def _without(pod: Document, container: Document, annotations: Mapping[str, str]) -> Document:
    """Return *pod* without *container* and the volumes that only it had, with *annotations*."""
    changed: Document = copy.deepcopy(dict(pod))
    spec = changed["spec"]
    for row in ("containers", "initContainers"):
        left = [each for each in spec.get(row) or () if each.get("name") != container.get("name")]
        if left:
            spec[row] = left
        else:
            spec.pop(row, None)
    used = set().union(*map(_volume_names, _everyone(spec)))
    only_its = _volume_names(container) - used
    volumes = [each for each in spec.get("volumes") or () if each.get("name") not in only_its]
    if volumes:
        spec["volumes"] = volumes
    else:
        spec.pop("volumes", None)
    if annotations:
        metadata = changed.setdefault("metadata", {})
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
    return changed


def _lasting(spec: Document) -> Iterator[Document]:
    """Yield the containers that run as long as the pod: native sidecars too."""
    yield from (each for each in spec.get("containers") or () if isinstance(each, dict))
    for each in spec.get("initContainers") or ():
        if isinstance(each, dict) and each.get("restartPolicy") == "Always":
            yield each


def _everyone(spec: Document) -> Sequence[Document]:
    return [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]


def _volume_names(container: Document) -> set[str]:
    return {str(each.get("name")) for each in container.get("volumeMounts") or ()}
