"""The pods that services are, as files of the folder ``source``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
_State = tuple[int, ...]


def file_name(namespace: str, name: str) -> str:
    """Return the name of the file that holds the Pod *name*."""
    return f"{_POD}.{namespace}.{name}{object_file.SUFFIX}"


def own_files(folder: Path, node: str) -> Iterator[tuple[Path, JsonObject]]:
    """Yield the files in *folder*, the source's, with the services of *node*, and what they hold; what cannot
    be read is nobody's.
    """
    for path in sorted((folder / OBJECTS).glob(f"{_POD}.*{object_file.SUFFIX}")):
        document = _own(path, node)
        if document is not None:
            yield path, document


def _own(path: Path, node: str) -> JsonObject | None:
    """Return what the file *path* holds where that is a service of *node*."""
    try:
        document = object_file.read_json(path)
        root = Field("", document)
        ours = UNIT in root.part("metadata").texts("annotations") and root.part("spec").text("nodeName", "") == node
    except (FileNotFoundError, ResourceError):
        return None
    return document if ours else None


@dataclass(frozen=True, slots=True)
class _Known:
    """A file with a service of this machine, as it was read or written last."""

    document: JsonObject
    state: _State


class OwnFiles:
    """The files with the services of *node* in *folder*, the source's. All of the folder is read once; of those that
    are told, one is read again where it is not as it was left: an earlier daemon, which draws back, may have written.
    """

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder / OBJECTS
        self._node = node
        self._known = {path.name: _Known(document, _state(path)) for path, document in own_files(folder, node)}

    def documents(self) -> Iterator[JsonObject]:
        """Yield what they hold."""
        return (known.document for known in self._known.values())

    def put(self, documents: Mapping[str, JsonObject]) -> set[str]:
        """Have the folder hold *documents*, by file name, and no other services of this machine. Return the names
        of files that are another's: they stay as they are. Raises ResourceError.
        """
        try:
            for name in self._known.keys() - documents.keys():
                self._remove(name)
            return {name for name, document in documents.items() if not self._told(name, document)}
        except OSError as error:
            raise ResourceError(
                f"{error.filename}: the services of this machine cannot be told: {error.strerror}; is `source` mounted "
                "read-only?"
            ) from None

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if self._see(name, path):
            path.unlink(missing_ok=True)
        self._known.pop(name, None)

    def _told(self, name: str, document: JsonObject) -> bool:
        """Write *document*, unless it is there. Return False where the file is another's."""
        path = self._folder / name
        if not self._see(name, path):
            return False
        known = self._known.get(name)
        if known is None or known.document != document:
            _write(path, document)
            self._known[name] = _Known(document, _state(path))
        return True

    def _see(self, name: str, path: Path) -> bool:
        """Know *path* as it is now. Return False where there is such a file, and it is another's."""
        state = _state(path)
        known = self._known.get(name)
        if known is not None and known.state == state:
            return True
        self._known.pop(name, None)
        document = _own(path, self._node) if state else None
        if document is not None:
            self._known[name] = _Known(document, state)
        return not state or document is not None


def _state(path: Path) -> _State:
    """Return by what it is seen that a file is another one, or was written; nothing where there is none, or
    one that is empty, as the end of a machine's power may leave it.
    """
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if found.st_size:
            return (found.st_ino, found.st_size, found.st_mtime_ns)
    return ()


def _write(path: Path, document: JsonObject) -> None:
    """Write a whole file in one step: others watch the folder. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(orjson.dumps(document))
    fresh.replace(path)
