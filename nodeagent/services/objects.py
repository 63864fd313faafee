"""The pods that services are, as files of the folder ``source``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import ResourceError
from nodeagent.resources import object_file
from nodeagent.resources.directory import OBJECTS
from nodeagent.resources.part import Field
from nodeagent.services.as_pods import UNIT
from nodeagent.vocabulary import JsonObject

_POD: Final = "Pod"


def file_name(document: JsonObject) -> str:
    """Return the name of the file that holds *document*, a Pod."""
    metadata = Field("", document).part("metadata")
    return f"{_POD}.{metadata.text('namespace')}.{metadata.text('name')}{object_file.SUFFIX}"


def own_files(folder: Path, node: str) -> Iterator[tuple[Path, JsonObject]]:
    """Yield the files in *folder*, the source's, with the services of *node*, and what they hold; what cannot
    be read is nobody's.
    """
    for path in sorted((folder / OBJECTS).glob(f"{_POD}.*{object_file.SUFFIX}")):
        try:
            document = object_file.read_json(path)
            root = Field("", document)
            ours = UNIT in root.part("metadata").texts("annotations") and root.part("spec").text("nodeName", "") == node
        except (FileNotFoundError, ResourceError):
            continue
        if ours:
            yield path, document


def put(folder: Path, documents: Mapping[str, JsonObject], node: str) -> None:
    """Have *folder* hold *documents*, by file name, and no other services of *node*. Raises ResourceError."""
    known = {path.name: document for path, document in own_files(folder, node)}
    try:
        for name in known.keys() - documents.keys():
            (folder / OBJECTS / name).unlink(missing_ok=True)
        for name, document in documents.items():
            if known.get(name) != document:
                _write(folder / OBJECTS / name, document)
    except OSError as error:
        raise ResourceError(
            f"{error.filename}: the services of this machine cannot be told: {error.strerror}; is `source` mounted "
            "read-only?"
        ) from None


def _write(path: Path, document: JsonObject) -> None:
    """Write a whole file in one step: others watch the folder. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(orjson.dumps(document))
    fresh.replace(path)
