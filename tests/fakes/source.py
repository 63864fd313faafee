"""A source and its marks in memory: for tests of what follows a source, without a folder or a clock.

It keeps the contract of ``nodeagent/resources/source.py`` (tests/unit/resources/test_source_contract.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

from nodeagent.errors import ResourceError
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange, Refused
from nodeagent.vocabulary import ObjectKey, PodUid


class MemorySource:
    """What :meth:`put` and :meth:`remove` leave, and what :meth:`publish` marks."""

    def __init__(self) -> None:
        self._documents: dict[ObjectKey, dict[str, Any]] = {}
        self._marked: set[PodUid] = set()
        self._told: dict[ObjectKey, Change] = {}
        self._told_marks: set[PodUid] = set()
        self._wrong: dict[ObjectKey, str] = {}
        self._changed = asyncio.Event()
        self._begun = False

    def put(self, document: dict[str, Any]) -> None:
        """Have *document*, right or wrong, as the object that its metadata names."""
        metadata = document["metadata"]
        self._documents[document["kind"], metadata["namespace"], metadata["name"]] = document
        self._changed.set()

    def remove(self, kind: str, namespace: str, name: str) -> None:
        del self._documents[kind, namespace, name]
        self._changed.set()

    def publish(self, uid: PodUid, enrolled: bool) -> None:
        if enrolled:
            self._marked.add(uid)
        else:
            self._marked.discard(uid)
        self._changed.set()

    async def changes(self) -> list[AnyChange]:
        try:
            while True:
                self._changed.clear()
                found = [*self._objects(), *self._marks()]
                if found or not self._begun:
                    self._begun = True
                    return found
                await self._changed.wait()
        except BaseException:
            self.close()
            raise

    def refused(self) -> list[Refused]:
        return [
            Refused(*key, "memory", error, key in self._told)
            for key, error in sorted(self._wrong.items())
            if key[0] in security.KINDS
        ]

    def unread_pods(self) -> list[str]:
        return ["/".join(key) for key in sorted(self._wrong) if key[0] == "Pod" and key not in self._told]

    def close(self) -> None:
        self._begun = False

    def _objects(self) -> list[Change]:
        changes = [Change(*key, None) for key in sorted(self._told.keys() - self._documents.keys())]
        self._wrong.clear()
        for key, document in sorted(self._documents.items()):
            try:
                found = (security if key[0] in security.KINDS else objects).parse(document)
            except ResourceError as error:
                self._wrong[key] = str(error)
                continue
            change = Change(*key, found)
            if self._told.get(key) != change:
                changes.append(change)
        for change in changes:
            key = (change.kind, change.namespace, change.name)
            if change.object is None:
                del self._told[key]
            else:
                self._told[key] = change
        return changes

    def _marks(self) -> list[EnrolledChange]:
        changes = [EnrolledChange(uid, uid in self._marked) for uid in sorted(self._marked ^ self._told_marks)]
        self._told_marks = set(self._marked)
        return changes
