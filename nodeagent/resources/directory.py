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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import orjson

from nodeagent.errors import ConfigError, ResourceError
from nodeagent.resources import inotify, not_taken, object_file, objects, security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange, Refused
from nodeagent.resources.last_good import LastGood
from nodeagent.resources.manifests import Manifests
from nodeagent.resources.marks import ENROLLED, is_mark
from nodeagent.resources.precedence import Origin, Precedence
from nodeagent.resources.security import Policy
from nodeagent.resources.seen import SeenMapping
from nodeagent.vocabulary import PodUid

OBJECTS: Final = "objects"
log = logging.getLogger("nodeagent.resources")


class DirectorySource:
    """A source (``resources/source.py``) that watches *path*, and *resources*: folders of YAML with
    policies. :meth:`changes` wants a running loop.

    A policy that stands in several places is taken from *path* first, then from the first file by
    name; the others are refused.
    """

    def __init__(self, path: Path, resources: Sequence[Path] = (), last_good: Path | None = None) -> None:
        """*last_good*: the folder in which policies are kept for a restart while their documents are wrong."""
        self._path = path
        self._last_good = LastGood(last_good)
        self._manifests = Manifests(resources, self._last_good)
        self._precedence = Precedence()
        self._objects: dict[str, Change] = {}
        self._marks: set[str] = set()
        self._bad: dict[str, str] = {}
        self._ignored: dict[str, str] = {}
        """What is lost by objects that nobody carries out here, by file."""
        self._watches: dict[int, str] = {}
        self._readable = asyncio.Event()
        self._inotify = -1
        self._manifests_inotify = -1

    async def changes(self) -> list[AnyChange]:
        """Return the next batch of changes; the first, perhaps empty, is everything that is there.

        After an error, or when it was cancelled, the next call begins to watch anew, with what
        differs. Raises ConfigError when the folder is not there, KernelError when it cannot be
        watched.
        """
        try:
            if self._inotify < 0:
                return self._begin()
            while True:
                await self._readable.wait()
                self._readable.clear()
                batch = self._read() + self._claimed(self._manifests.changed())
                if batch:
                    return batch
        except BaseException:
            self.close()
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
        self._inotify = -1
        self._manifests_inotify = -1

    def refused(self) -> tuple[Refused, ...]:
        """Return the documents with policies that are wrong, those that stand in two places, and the
        objects that nobody carries out here.
        """
        found = [
            Refused(*object_file.key_of(name), str(self._path / OBJECTS / name), why, False, ignored=True)
            for name, why in sorted(self._ignored.items())
        ]
        for name, error in sorted(self._bad.items()):
            key = object_file.key_of(name)
            if key[0] in security.KINDS:
                stays = not _closes(self._objects.get(name))
                found.append(Refused(*key, str(self._path / OBJECTS / name), error, stays))
        return (*found, *self._precedence.displaced(), *self._manifests.refused())

    def unread_pods(self) -> list[str]:
        """Return the files of pods that are wrong and never were right here, or the folder of
        objects where it is not there.
        """
        if not (self._path / OBJECTS).is_dir():
            return [OBJECTS]
        return sorted(name for name in self._bad if name.startswith("Pod.") and name not in self._objects)

    # -- inotify --

    def _begin(self) -> list[AnyChange]:
        """Watch, and return what differs from what is known."""
        loop = asyncio.get_running_loop()
        self._open()
        self._manifests_inotify = self._manifests.open()
        self._readable.clear()
        for descriptor in (self._inotify, self._manifests_inotify):
            if descriptor >= 0:
                loop.add_reader(descriptor, self._readable.set)
        self._last_good.prune()
        return self._list((OBJECTS, ENROLLED)) + self._claimed(self._manifests.everything())

    def _open(self) -> None:
        if not self._path.is_dir():
            raise ConfigError(f"source: {self._path}: no such folder: is the lab (or the controller) up?")
        self._inotify = inotify.open_instance()
        self._watches.clear()  # numbers of an instance before this one are others' here
        self._watch(self._path, inotify.CREATE | inotify.MOVED_TO, "")
        for folder in (OBJECTS, ENROLLED):
            self._watch_folder(folder)

    def _watch_folder(self, folder: str) -> None:
        # A new object is read when its writer closes it; a mark has no content to wait for.
        mask = inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE
        if folder == ENROLLED:
            mask |= inotify.CREATE
        try:
            self._watch(self._path / folder, mask, folder)
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
                gone = self._watches.pop(number, None)
                if gone is not None:
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
            known = self._objects.keys() | self._ignored.keys() if folder == OBJECTS else self._marks
            for name in sorted(known - found) + sorted(found):
                changes += self._look(folder, name)
        return changes

    def _look(self, folder: str, name: str) -> list[AnyChange]:
        """Return what is new about the file *name*."""
        if folder == ENROLLED:
            return self._look_at_mark(name)
        return self._look_at_object(name) if name.endswith(object_file.SUFFIX) else []

    def _look_at_mark(self, name: str) -> list[AnyChange]:
        there = is_mark(name) and os.path.lexists(self._path / ENROLLED / name)
        if there == (name in self._marks):
            return []
        if there:
            self._marks.add(name)
        else:
            self._marks.discard(name)
        return [EnrolledChange(PodUid(name), there)]

    def _look_at_object(self, name: str) -> list[AnyChange]:
        path = self._path / OBJECTS / name
        known = self._objects.get(name)
        self._ignored.pop(name, None)
        try:
            found = object_file.read(path)
        except FileNotFoundError:
            return self._gone(name, known)
        except ResourceError as error:
            change = known if not _closes(known) else self._instead(name, str(error))
            self._complain(name, str(error), change)
        else:
            change = found.change
            if change is None and (lost := not_taken.lost(found.document)):
                self._ignored[name] = lost
            if self._bad.pop(name, None):
                log.info("%s: good again", path)
            if change is not None and isinstance(change.object, Policy):
                self._last_good.keep(path, {change.object.key: orjson.dumps(found.document)})
        if change is None or change == known:
            return []
        self._objects[name] = change
        if isinstance(change.object, Policy):
            return [*self._precedence.claim(Origin(0, path), [change.object])]
        return [change]

    def _gone(self, name: str, known: Change | None) -> list[AnyChange]:
        path = self._path / OBJECTS / name
        self._bad.pop(name, None)
        self._last_good.keep(path, {})
        if known is None:
            return []
        del self._objects[name]
        if isinstance(known.object, Policy):
            return [*self._precedence.claim(Origin(0, path), [])]
        return [Change(known.kind, known.namespace, known.name, None)]

    def _claimed(self, files: Iterable[Path]) -> list[AnyChange]:
        """Return what the policies of *files* of YAML change."""
        changes: list[AnyChange] = []
        for file in files:
            changes += self._precedence.claim(Origin(1, file), self._manifests.held(file).values())
        return changes

    # -- what is wrong --

    def _instead(self, name: str, error: str) -> Change | None:
        """Return what takes the place of a wrong file that was not right in this process, if its
        *name* says that it is a policy's.

        A policy for the network is read by somebody else, perhaps well: it may be for any pod.
        """
        key = object_file.key_of(name)
        if objects.is_network_policy(key[0]):
            return Change(*key, objects.UnreadPolicy())
        kept, _ = self._last_good.of(self._path / OBJECTS / name)
        document: object
        try:
            document = object_file.read_json(self._path / OBJECTS / name)
        except (FileNotFoundError, ResourceError):
            document = SeenMapping(whole=False)
        policy = kept.get(key) or security.stand_in(key, document, error)
        return Change(*key, policy) if policy is not None else None

    def _complain(self, name: str, error: str, instead: Change | None) -> None:
        """Log once for each thing that is wrong with a file, with what is in force *instead*."""
        if self._bad.get(name) == error:
            return
        self._bad[name] = error
        outcome = "left out"
        if not _closes(instead):
            outcome = "the last good object stays"
        elif instead is not None:
            outcome = instead.object.closing if isinstance(instead.object, Policy) else "it closes what it selects"
        log.error("%s: %s (%s)", self._path / OBJECTS / name, error, outcome)


def _closes(change: Change | None) -> bool:
    """Say whether no good object is known: none at all, or what stands in its place."""
    if change is None or isinstance(change.object, objects.UnreadPolicy):
        return True
    return isinstance(change.object, Policy) and bool(change.object.refused)
