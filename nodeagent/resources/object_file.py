"""One Kubernetes object as a JSON file named after it: ``<Kind>.<namespace>.<name>.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import ResourceError, shown, translated
from nodeagent.resources import objects, regular_file, security
from nodeagent.resources.changes import Change
from nodeagent.resources.part import Field
from nodeagent.vocabulary import JsonObject, ObjectKey

SUFFIX: Final = ".json"
MAX_BYTES: Final = 4 << 20
"""etcd takes no object above 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """What one file holds: as a change that puts it, None for a kind that nobody reads."""

    change: Change | None
    document: JsonObject


def key_of(name: str) -> ObjectKey:
    """Return whose a file of this *name* says it is; parts that it lacks are empty."""
    kind, _, rest = name.removesuffix(SUFFIX).partition(".")
    namespace, _, own = rest.partition(".")
    return kind, namespace, own


def read(path: Path) -> ObjectFile:
    """Read one object. Raises FileNotFoundError; ResourceError for a file that is no JSON object of
    at most ``MAX_BYTES``, for an object that is wrong, or for one that the file is not named after.
    """
    document = read_json(path)
    with translated(ResourceError, "the object cannot be read"):
        found: objects.KubernetesObject | security.Policy | None
        found = security.parse(document) if document.get("kind") in security.KINDS else objects.parse(document)
        root = Field("", document)
        metadata = root.part("metadata")
        kind = root.text("kind")
        namespace = metadata.text("namespace", "")
        own = metadata.text("name")
        expected = f"{kind}.{namespace}.{own}{SUFFIX}"
        if path.name != expected:
            raise ResourceError(
                f"metadata: the file holds {shown(f'{kind} {namespace}/{own}')}: its name must be {shown(expected)}"
            )
        return ObjectFile(None if found is None else Change(kind, namespace, own, found), document)


def read_json(path: Path) -> JsonObject:
    """Return the JSON object in *path*, no symbolic link. Raises FileNotFoundError, ResourceError."""
    content = regular_file.content(path, MAX_BYTES, links=False)
    try:
        # also refuses what is no Unicode (a lone surrogate) and what JSON has not (NaN)
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ResourceError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ResourceError(f"document: {type(document).__name__}: a mapping is expected")
    return document
