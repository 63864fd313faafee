"""The cluster's state as a folder of JSON files, watched by inotify: what changed, as soon as it changed, without polling.

``objects/`` holds one Kubernetes object a file, ``<Kind>.<namespace>.<name>.json``; ``enrolled/`` one empty file a pod
that takes mTLS. A file that is wrong never takes a good object away: the last good one stays until it is right again.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import logging
import os
import re
import stat
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent.errors import ConfigError, KernelError, ResourceError
from nodeagent.mesh.entries import PodUid
from nodeagent.resources.objects import Object, parse

OBJECTS, ENROLLED = "objects", "enrolled"
MAX_OBJECT_BYTES: Final = 4 << 20
"""etcd takes no object above 1.5 MiB."""
_CREATE, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE = 0x100, 0x8, 0x40, 0x80, 0x200
_IGNORED, _OVERFLOW, _ONLYDIR = 0x8000, 0x4000, 0x01000000
_EVENT: Final = struct.Struct("iIII")
_MARK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
log = logging.getLogger("nodeagent.resources")


@dataclass(frozen=True, slots=True)
class Change:
    """An object that was put (``object``) or is gone (None)."""

    kind: str
    namespace: str
    name: str
    object: Object | None


@dataclass(frozen=True, slots=True)
class EnrolledChange:
    """A pod that takes mTLS from now on, or no more."""

    uid: PodUid
    enrolled: bool


AnyChange = Change | EnrolledChange


class DirectorySource:
    """Watches *path*. Use :meth:`changes` once, on a running loop; :meth:`close` ends it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._objects: dict[str, Change] = {}
        self._marks: set[str] = set()
        self._bad: dict[str, str] = {}
        self._watches: dict[int, str] = {}
        self._inotify = -1

    async def changes(self) -> AsyncIterator[list[AnyChange]]:
        """Yield batches of changes; the first, perhaps empty, is everything that is there at the start.

        Raises ConfigError when the folder is not there, KernelError when it cannot be watched.
        """
        loop = asyncio.get_running_loop()
        self._open()
        readable = asyncio.Event()
        loop.add_reader(self._inotify, readable.set)
        try:
            yield self._list((OBJECTS, ENROLLED))
            while True:
                await readable.wait()
                readable.clear()
                batch = self._read()
                if batch:
                    yield batch
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._inotify >= 0:
            try:
                asyncio.get_running_loop().remove_reader(self._inotify)
            except RuntimeError:
                pass  # the loop has ended, and its readers with it
            os.close(self._inotify)
            self._inotify = -1

    def publish(self, uid: PodUid, enrolled: bool) -> None:
        """Tell the other nodes that the pod *uid* takes mTLS, or no more. Idempotent. Raises ResourceError."""
        if not _MARK.fullmatch(uid):
            raise ResourceError(f"metadata.uid: {uid!r:.80}: letters, digits, '.', '_' and '-' are allowed")
        mark = self._path / ENROLLED / uid
        try:
            if enrolled:
                mark.parent.mkdir(exist_ok=True)
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"{mark}: cannot be {'made' if enrolled else 'removed'}: {error.strerror}") from None

    # -- inotify --

    def _open(self) -> None:
        if not self._path.is_dir():
            raise ConfigError(f"source: {self._path}: no such folder: is the lab (or the controller) up?")
        self._inotify = _inotify_init()
        self._watch(self._path, _CREATE | _MOVED_TO, "")
        for folder in (OBJECTS, ENROLLED):
            self._watch_folder(folder)

    def _watch_folder(self, folder: str) -> None:
        try:
            # A new object is read when its writer closes it; a mark has no content to wait for.
            self._watch(self._path / folder, _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | (_CREATE if folder == ENROLLED else 0), folder)
        except FileNotFoundError:
            return  # its parent is watched: it is taken up when it comes
        newest = max(self._watches)
        for number in [number for number, watched in self._watches.items() if watched == folder and number != newest]:
            del self._watches[number]  # a folder of this name that was moved away
            _libc.inotify_rm_watch(self._inotify, number)

    def _watch(self, path: Path, mask: int, folder: str) -> None:
        number = _libc.inotify_add_watch(self._inotify, os.fsencode(path), mask | _ONLYDIR)
        if number < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.ENOTDIR):
                raise FileNotFoundError(code, os.strerror(code), str(path))
            hint = ": raise fs.inotify.max_user_watches" if code == errno.ENOSPC else ""
            raise KernelError(f"{path}: cannot be watched: {os.strerror(code)}{hint}")
        self._watches[number] = folder

    def _read(self) -> list[AnyChange]:
        """Return the changes behind the events that wait (inotify(7))."""
        touched: dict[tuple[str, str], None] = {}
        anew: set[str] = set()
        for number, mask, name in _events(self._inotify):
            if mask & _OVERFLOW:
                anew |= {OBJECTS, ENROLLED}
            elif mask & _IGNORED:
                if (gone := self._watches.pop(number, None)) is not None:
                    log.warning("%s: the folder is gone; what was known of it stays in force", self._path / gone)
            elif (folder := self._watches.get(number)) == "":
                if name in (OBJECTS, ENROLLED):
                    self._watch_folder(name)
                    anew.add(name)
            elif folder is not None and not name.startswith("."):
                touched[folder, name] = None
        changes = self._list(sorted(anew))
        for folder, name in touched:
            if folder not in anew:
                changes += self._look(folder, name)
        return changes

    # -- files --

    def _list(self, folders: Iterable[str]) -> list[AnyChange]:
        """Compare whole *folders* with what is known."""
        changes: list[AnyChange] = []
        for folder in folders:
            try:
                found = {name for name in os.listdir(self._path / folder) if not name.startswith(".")}
            except FileNotFoundError:
                continue
            known = set(self._objects) if folder == OBJECTS else self._marks
            for name in sorted(known - found) + sorted(found):
                changes += self._look(folder, name)
        return changes

    def _look(self, folder: str, name: str) -> list[AnyChange]:
        """Return what is new about the file *name*."""
        if folder == ENROLLED:
            there = _MARK.fullmatch(name) is not None and os.path.lexists(self._path / folder / name)
            if there == (name in self._marks):
                return []
            (self._marks.add if there else self._marks.discard)(name)
            return [EnrolledChange(PodUid(name), there)]
        if not name.endswith(".json"):
            return []
        known = self._objects.get(name)
        try:
            change = self._load(name)
        except FileNotFoundError:
            self._bad.pop(name, None)
            if known is None:
                return []
            del self._objects[name]
            return [Change(known.kind, known.namespace, known.name, None)]
        except ResourceError as error:
            self._complain(name, str(error), stays=known is not None)
            return []
        if self._bad.pop(name, None):
            log.info("%s: good again", self._path / OBJECTS / name)
        if change is None or change == known:
            return []
        self._objects[name] = change
        return [change]

    def _load(self, name: str) -> Change | None:
        """Read one object; None for a kind that nobody reads. Raises FileNotFoundError, ResourceError."""
        document = _read_json(self._path / OBJECTS / name)
        found = parse(document)
        metadata = document.get("metadata") or {}
        kind, namespace, own = document["kind"], metadata.get("namespace") or "", str(metadata.get("name"))
        if name != f"{kind}.{namespace}.{own}.json":
            raise ResourceError(f"metadata: the file holds {kind} {namespace}/{own}: its name must be {kind}.{namespace}.{own}.json")
        return None if found is None else Change(kind, namespace, own, found)

    def _complain(self, name: str, error: str, *, stays: bool) -> None:
        """Log once for each thing that is wrong with a file."""
        if self._bad.get(name) != error:
            self._bad[name] = error
            log.error("%s: %s (%s)", self._path / OBJECTS / name, error, "the last good object stays" if stays else "left out")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ResourceError(f"cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_OBJECT_BYTES:
            raise ResourceError(f"not a regular file of at most {MAX_OBJECT_BYTES} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_OBJECT_BYTES)
    finally:
        os.close(descriptor)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResourceError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ResourceError(f"document: {type(document).__name__}: a mapping is expected")
    return document


_libc = ctypes.CDLL(None, use_errno=True)


def _inotify_init() -> int:
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise KernelError(f"inotify: {os.strerror(code)}: raise fs.inotify.max_user_instances")
    return int(descriptor)


def _events(descriptor: int) -> list[tuple[int, int, str]]:
    """Return the waiting events as (watch, mask, file name); inotify(7)."""
    found: list[tuple[int, int, str]] = []
    while True:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return found
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            found.append((number, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
