"""The cluster's state as a folder of JSON files, watched by inotify: what changed, as soon as it
changed, without polling.

``objects/`` holds one Kubernetes object a file, ``<Kind>.<namespace>.<name>.json``; ``enrolled/``
one empty file a pod that takes mTLS. A file that is wrong never takes a good object away: the last
good one stays until it is right again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from nodeagent.errors import ConfigError, ResourceError, shown, translated
from nodeagent.resources import inotify, objects, security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange, Refused
from nodeagent.resources.last_good import LastGood
from nodeagent.resources.manifests import Manifests
from nodeagent.resources.security import Policy
from nodeagent.vocabulary import ObjectKey, PodUid

__all__ = ["AnyChange", "Change", "DirectorySource", "EnrolledChange", "Refused"]

OBJECTS, ENROLLED = "objects", "enrolled"
MAX_OBJECT_BYTES: Final = 4 << 20
"""etcd takes no object above 1.5 MiB."""
_MARK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
log = logging.getLogger("nodeagent.resources")


class DirectorySource:
    """Watches *path*, and *resources*: folders of YAML with policies. Use :meth:`batch` or
    :meth:`changes` on a running loop; :meth:`close` ends it.

    A policy that stands in several places is taken from *path* first, then from the first file by
    name; the others are refused.
    """

    def __init__(self, path: Path, resources: Sequence[Path] = (), last_good: Path | None = None) -> None:
        """*last_good*: the folder in which policies are kept for a restart while their documents are wrong."""
        self._path = path
        self._last_good = LastGood(last_good)
        self._manifests = Manifests(resources, self._last_good)
        self._policies: dict[ObjectKey, dict[Path, Policy]] = {}
        self._given: dict[Path, set[ObjectKey]] = {}
        self._objects: dict[str, Change] = {}
        self._marks: set[str] = set()
        self._bad: dict[str, str] = {}
        self._watches: dict[int, str] = {}
        self._inotify = self._manifests_inotify = -1
        self._batches: AsyncIterator[list[AnyChange]] | None = None

    async def changes(self) -> AsyncIterator[list[AnyChange]]:
        """Yield batches of changes; the first, perhaps empty, is everything that is there at the
        start.

        Raises ConfigError when the folder is not there, KernelError when it cannot be watched.
        """
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            self._open()
            self._manifests_inotify = self._manifests.open()
            for descriptor in (self._inotify, self._manifests_inotify):
                if descriptor >= 0:
                    loop.add_reader(descriptor, readable.set)
            self._last_good.prune()
            yield self._list((OBJECTS, ENROLLED)) + self._claimed(self._manifests.everything())
            while True:
                await readable.wait()
                readable.clear()
                batch = self._read() + self._claimed(self._manifests.changed())
                if batch:
                    yield batch
        finally:
            self.close()

    async def batch(self) -> list[AnyChange]:
        """Return the next batch of :meth:`changes`; the first is everything. After an error the
        next call begins to watch anew, with what differs.
        """
        if self._batches is None:
            self._batches = self.changes()
        try:
            return await anext(self._batches)
        except BaseException:
            self._batches = None
            raise

    def close(self) -> None:
        """Stop watching."""
        for descriptor in (self._inotify, self._manifests_inotify):
            if descriptor >= 0:
                try:
                    asyncio.get_running_loop().remove_reader(descriptor)
                except RuntimeError:
                    pass  # the loop has ended, and its readers with it
        if self._inotify >= 0:
            os.close(self._inotify)
        self._manifests.close()
        self._inotify = self._manifests_inotify = -1

    def refused(self) -> tuple[Refused, ...]:
        """Return the documents with policies that are wrong, and those that stand in two places."""
        found = []
        for name, error in sorted(self._bad.items()):
            kind, _, rest = name.partition(".")
            if kind in security.KINDS:
                namespace, _, own = rest.removesuffix(".json").partition(".")
                found.append(
                    Refused(
                        kind,
                        namespace,
                        own,
                        str(self._path / OBJECTS / name),
                        error,
                        not _closes(self._objects.get(name)),
                    )
                )
        for key, holders in sorted(self._policies.items()):
            first, *others = self._ordered(holders)
            found += [
                Refused(
                    *key, str(file), f"metadata.name: {key[2]!r}: stands in {first} too, and that one is in force", True
                )
                for file in others
            ]
        return (*found, *self._manifests.refused())

    def unread_pods(self) -> list[str]:
        """Return the files of pods that are wrong and never were right here, or the folder of
        objects where it is not there.
        """
        if not (self._path / OBJECTS).is_dir():
            return [OBJECTS]
        return sorted(name for name in self._bad if name.startswith("Pod.") and name not in self._objects)

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
        self._inotify = inotify.open_instance()
        self._watches.clear()  # numbers of an instance before this one are others' here
        self._watch(self._path, inotify.CREATE | inotify.MOVED_TO, "")
        for folder in (OBJECTS, ENROLLED):
            self._watch_folder(folder)

    def _watch_folder(self, folder: str) -> None:
        try:
            # A new object is read when its writer closes it; a mark has no content to wait for.
            mask = inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE
            self._watch(self._path / folder, mask | (inotify.CREATE if folder == ENROLLED else 0), folder)
        except FileNotFoundError:
            return  # its parent is watched: it is taken up when it comes
        newest = max(self._watches)
        for number in [number for number, watched in self._watches.items() if watched == folder and number != newest]:
            del self._watches[number]  # a folder of this name that was moved away
            inotify.unwatch(self._inotify, number)

    def _watch(self, path: Path, mask: int, folder: str) -> None:
        self._watches[inotify.watch(self._inotify, path, mask)] = folder

    def _read(self) -> list[AnyChange]:
        """Return the changes behind the events that wait (inotify(7))."""
        touched: dict[tuple[str, str], None] = {}
        anew: set[str] = set()
        for number, mask, name in inotify.events(self._inotify):
            if mask & inotify.OVERFLOW:
                anew |= {OBJECTS, ENROLLED}
            elif mask & inotify.IGNORED:
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
            return self._look_at_mark(name)
        return self._look_at_object(name) if name.endswith(".json") else []

    def _look_at_mark(self, name: str) -> list[AnyChange]:
        there = _MARK.fullmatch(name) is not None and os.path.lexists(self._path / ENROLLED / name)
        if there == (name in self._marks):
            return []
        (self._marks.add if there else self._marks.discard)(name)
        return [EnrolledChange(PodUid(name), there)]

    def _look_at_object(self, name: str) -> list[AnyChange]:
        known = self._objects.get(name)
        try:
            change, document = self._load(name)
        except FileNotFoundError:
            self._bad.pop(name, None)
            self._last_good.keep(self._path / OBJECTS / name, {})
            if known is None:
                return []
            del self._objects[name]
            if isinstance(known.object, Policy):
                return self._claim(self._path / OBJECTS / name, [])
            return [Change(known.kind, known.namespace, known.name, None)]
        except ResourceError as error:
            change = known if not _closes(known) else self._instead(name, str(error))
            self._complain(
                name,
                str(error),
                "the last good object stays"
                if not _closes(change)
                else "it closes what it selects"
                if change
                else "left out",
            )
        else:
            if self._bad.pop(name, None):
                log.info("%s: good again", self._path / OBJECTS / name)
            if change is not None and isinstance(change.object, Policy):
                self._last_good.keep(self._path / OBJECTS / name, {change.object.key: orjson.dumps(document)})
        if change is None or change == known:
            return []
        self._objects[name] = change
        if isinstance(change.object, Policy):
            return self._claim(self._path / OBJECTS / name, [change.object])
        return [change]

    # -- policies, which may stand in several places --

    def _claimed(self, files: Iterable[Path]) -> list[AnyChange]:
        return [change for file in files for change in self._claim(file, self._manifests.held(file).values())]

    def _claim(self, file: Path, policies: Iterable[Policy]) -> list[AnyChange]:
        """Take *policies* as what *file* holds and return what that changes."""
        given = {policy.key: policy for policy in policies}
        changes: list[AnyChange] = []
        for key in sorted(self._given.get(file, set()) | given.keys()):
            holders = self._policies.setdefault(key, {})
            before, held = self._first(holders), holders.get(file)
            if (policy := given.get(key)) is not None:
                holders[file] = policy
            else:
                holders.pop(file, None)
            after = self._first(holders)
            if not holders:
                del self._policies[key]
            if after is not before:
                changes.append(Change(*key, holders[after] if after else None, str(after or "")))
            elif after == file and policy is not None and policy != held:
                changes.append(Change(*key, policy, str(file)))
        if given:
            self._given[file] = set(given)
        else:
            self._given.pop(file, None)
        return changes

    def _first(self, holders: Mapping[Path, Policy]) -> Path | None:
        return next(iter(self._ordered(holders)), None)

    def _ordered(self, holders: Mapping[Path, Policy]) -> list[Path]:
        """Return who holds a policy, the one that is in force first: what is right goes before what
        stands in for a wrong document.
        """
        return sorted(
            holders, key=lambda file: (bool(holders[file].refused), file.parent != self._path / OBJECTS, file)
        )

    def _instead(self, name: str, error: str) -> Change | None:
        """Return what takes the place of a wrong file that was not right in this process, if its
        *name* says that it is a policy's.

        A policy for the network is read by somebody else, perhaps well: it may be for any pod.
        """
        kind, _, rest = name.removesuffix(".json").partition(".")
        namespace, _, own = rest.partition(".")
        if objects.is_network_policy(kind):
            return Change(kind, namespace, own, objects.UnreadPolicy())
        kept, _ = self._last_good.of(self._path / OBJECTS / name)
        try:
            document = _read_json(self._path / OBJECTS / name)
        except (FileNotFoundError, ResourceError):
            document = {}
        policy = kept.get((kind, namespace, own)) or security.stand_in((kind, namespace, own), document, error)
        return Change(kind, namespace, own, policy) if policy is not None else None

    def _load(self, name: str) -> tuple[Change | None, dict[str, Any]]:
        """Read one object, and as which document; None for a kind that nobody reads. Raises
        FileNotFoundError, ResourceError.
        """
        document = _read_json(self._path / OBJECTS / name)
        with translated(ResourceError, "the object cannot be read"):
            found: objects.Object | Policy | None = (
                security.parse(document) if document.get("kind") in security.KINDS else objects.parse(document)
            )
            metadata = document.get("metadata") or {}
            kind, namespace, own = document["kind"], metadata.get("namespace") or "", str(metadata.get("name"))
            expected = f"{kind}.{namespace}.{own}.json"
            if name != expected:
                raise ResourceError(
                    f"metadata: the file holds {shown(f'{kind} {namespace}/{own}')}: its name must be {shown(expected)}"
                )
            return None if found is None else Change(kind, namespace, own, found), document

    def _complain(self, name: str, error: str, instead: str) -> None:
        """Log once for each thing that is wrong with a file, with what is in force *instead*."""
        if self._bad.get(name) != error:
            self._bad[name] = error
            log.error("%s: %s (%s)", self._path / OBJECTS / name, error, instead)


def _closes(change: Change | None) -> bool:
    """Say whether no good object is known: none at all, or what stands in its place."""
    return (
        change is None
        or isinstance(change.object, objects.UnreadPolicy)
        or (isinstance(change.object, Policy) and bool(change.object.refused))
    )


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
        # also refuses what is no Unicode (a lone surrogate) and what JSON has not (NaN)
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ResourceError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ResourceError(f"document: {type(document).__name__}: a mapping is expected")
    return document
