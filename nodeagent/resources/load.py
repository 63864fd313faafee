"""Read Kubernetes YAML into typed objects, or say in one line what is wrong and what is allowed.

The whole input is checked before anything is handed out, so a caller never acts on half of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nodeagent.errors import ResourceError, in_quotes, unread
from nodeagent.resources import security, yaml_text
from nodeagent.resources.fields import FIELD_FAULT
from nodeagent.resources.model import CLUSTER_SCOPED, KINDS, Resource
from nodeagent.vocabulary import ObjectKey

SUFFIXES = (".yaml", ".yml", ".json")
_PROGRAM: Final = re.compile(r"ontainers\[\d+\]\.command$")
_MISSING: Final = ": the lab runs programs of this machine, no images: it names one (docs/lab.md)"
_MAX_FAULTS = 200
"""That one is chosen from: to look at each of a hundred thousand takes seconds."""


@dataclass(frozen=True, slots=True)
class Document:
    """A resource and where it was read."""

    file: str
    number: int
    """Position in the file, from 1."""
    resource: Resource

    @property
    def key(self) -> ObjectKey:
        """Return (kind, namespace, name); the namespace of a cluster-scoped object is empty."""
        metadata = self.resource.metadata
        return self.resource.kind, "" if self.resource.kind in CLUSTER_SCOPED else metadata.namespace, metadata.name

    def error(self, field: str, value: object, allowed: str) -> ResourceError:
        """Return the error for *field* (dotted path), whose *value* should have been *allowed*."""
        return ResourceError(
            f"{self.file}: document {self.number} ({self.resource.describe()}): {field}: {_show(value)}: allowed: "
            f"{allowed}"
        )


def load_documents(paths: Iterable[Path | str]) -> list[Document]:
    """Return the resources of *paths*: files, folders (their YAML and JSON files by name), or ``-``
    for standard input.

    Raises ResourceError: a file cannot be read, is not YAML, or holds an unknown kind or field, a
    wrong value or the same object twice.
    """
    documents: list[Document] = []
    for path in paths:
        for file, text in texts(path):
            documents += parse(text, file)
    refuse_duplicates(documents)
    return documents


def refuse_duplicates(documents: Iterable[Document]) -> None:
    """Raise ResourceError if two of *documents* are the same object."""
    first: dict[ObjectKey, Document] = {}
    for document in documents:
        other = first.setdefault(document.key, document)
        if other is not document:
            raise document.error(
                "metadata.name",
                document.resource.metadata.name,
                f"a name that differs from {other.file}: document {other.number}",
            )


def texts(path: Path | str) -> Iterator[tuple[str, str]]:
    """Return name and content of what *path* means: a file, a folder's YAML and JSON files by name,
    or ``-`` for standard input. Raises ResourceError.
    """
    if str(path) == "-":
        yield "<stdin>", standard_input()
        return
    path = Path(path)
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    except OSError as error:
        raise ResourceError(unread(path, error)) from None
    if not files:
        raise ResourceError(f"{path}: the folder holds no file that ends in {', '.join(SUFFIXES)}")
    for file in files:
        try:
            yield str(file), file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ResourceError(unread(file, error)) from None


def standard_input(limit: int = -1) -> str:
    """Return the text of standard input, at most *limit* characters of it. Raises ResourceError."""
    try:
        return sys.stdin.read(limit)
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(unread("<stdin>", error)) from None


def parse(text: str, file: str) -> list[Document]:
    """Return the resources in *text*, whose name for messages is *file*; raises ResourceError."""
    documents = []
    try:
        raw: list[object] = []
        for line, part in yaml_text.split(text):
            raw += yaml_text.load(part, line)
    except ResourceError as error:
        raise ResourceError(f"{file}: {error}") from None
    for number, value in enumerate(raw, 1):
        documents += [Document(file, number, _validate(item, file, number)) for item in yaml_text.items(value)]
    return documents


def _validate(value: object, file: str, number: int) -> Resource:
    where = f"{file}: document {number}"
    if not isinstance(value, dict):
        raise ResourceError(f"{where}: {_show(value)}: allowed: a mapping with apiVersion, kind, metadata")
    kind = value.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ResourceError(f"{where}: kind: {_show(kind)}: allowed: {', '.join(KINDS)}")
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = ""
    if kind not in CLUSTER_SCOPED and isinstance(metadata, dict):
        namespace = f"{metadata.get('namespace', 'default')}/"
    try:
        resource = model.model_validate_json(json.dumps(value), by_alias=True, by_name=False)
        if kind in security.KINDS:
            security.parse(value)
        if kind != "ConfigMap" and (place := _nul(value, "")):
            raise ResourceError(f"{place}: a text without NUL is expected: no file, variable or argument has one")
    except ValidationError as error:
        raise ResourceError(f"{where} ({kind} {namespace}{name}): {explain(error, model)}") from None
    except ResourceError as error:
        raise ResourceError(f"{where} ({kind} {namespace}{name}): {error}") from None
    return resource


def _nul(value: object, path: str) -> str:
    """Return where in *value*, which stands at *path*, a text has the character NUL; empty: nowhere."""
    if isinstance(value, str):
        return path if "\0" in value else ""
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        parts = ((f"{path}.{key}" if path else str(key), each) for key, each in value.items())
    elif isinstance(value, list):
        parts = ((f"{path}[{index}]", each) for index, each in enumerate(value))
    return next((found for place, each in parts if (found := _nul(each, place))), "")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return *error*'s most telling fault as ``field: value: allowed: …``."""
    faults = error.errors(include_url=False)[:_MAX_FAULTS]
    # A union reports every branch; the deepest fault is the branch that was meant.
    fault = max(faults, key=lambda each: (len(_path(each["loc"], model)[0]), each["type"] != "missing"))
    path, owner = _path(fault["loc"], model)
    context: Mapping[str, object] = fault.get("ctx", {})
    match fault["type"]:
        case "extra_forbidden":
            allowed = ", ".join(sorted(field.alias or name for name, field in owner.model_fields.items()))
            return f"{path}: {_show(fault['input'])}: unknown field: allowed: {allowed}"
        case "missing":
            hint = _MISSING if _PROGRAM.search(path) else ""
            return f"{path}: missing: allowed: a value, as this field is required{hint}"
        case "literal_error":
            allowed = str(context["expected"])
        case "string_pattern_mismatch":
            allowed = f"text that matches {context['pattern']}"
        case kind if kind == FIELD_FAULT:
            return f"{path}.{context['path']}: {_show(context['value'])}: allowed: {context['allowed']}"
        case "value_error":
            allowed = str(context["error"])
        case _:
            others = {each["msg"] for each in faults if _path(each["loc"], model)[0] == path}
            allowed = " or ".join(
                sorted(message.removeprefix("Input should be ").removeprefix("a valid ") for message in others)
            )
            allowed += in_quotes(fault["input"]) if fault["type"] == "string_type" else ""
    # An ancestor of a wrong field is often reported too, as a list that became too short without
    # it.
    paths = {_path(fault["loc"], model)[0] for fault in faults}
    others_too = sum(not path.startswith(each) for each in paths)
    more = f" (and {others_too} more)" if others_too else ""
    return f"{path or 'document'}: {_show(fault['input'])}: allowed: {allowed}{more}"


def _path(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """Return *location* as ``spec.containers[0].name``, without pydantic's names of union branches,
    and the model that holds it.
    """
    text = ""
    owner = model
    annotation: object = model
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        models = _models(annotation)
        field = _field(models, part)
        if models:
            owner = models[0]
        if not models and text and not _is_mapping(annotation):
            continue
        if part != "[key]":
            text += f".{part}" if text else part
        annotation = field.annotation if field else None
    return text, owner


def _field(models: Iterable[type[BaseModel]], alias: str) -> FieldInfo | None:
    for model in models:
        for field in model.model_fields.values():
            if field.alias == alias:
                return field
    return None


def _is_mapping(annotation: object) -> bool:
    return get_origin(annotation) is dict or any(_is_mapping(argument) for argument in get_args(annotation))


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    models: list[type[BaseModel]] = []
    for argument in get_args(annotation):
        models += _models(argument)
    return models


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
