"""Labels and annotations of the project's own that nobody reads: a mistyped one would have no effect, and no
word would be said of it. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.mesh.local import BYPASS, PATH, WORKLOAD_API
from nodeagent.mesh.membership import DATAPLANE, ENROLL
from nodeagent.vocabulary import LOGS

PREFIX: Final = "nodeagent.io/"
LOG_KEYS: Final = "nodeagent.io/log-"
"""Annotations that begin so are judged by who reads logs."""
_WRITTEN: Final = ("nodeagent.io/job", "nodeagent.io/unit", "nodeagent.io/netns", "nodeagent.io/cgroup")
"""What the project itself writes on pods."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """What is read of one kind of object."""

    labels: Collection[str]
    annotations: Collection[str]


OF_PODS: Final = OwnKeys((DATAPLANE, ENROLL, LOGS), (DATAPLANE, ENROLL, PATH, BYPASS, WORKLOAD_API, LOGS))
OF_NAMESPACES: Final = OwnKeys((DATAPLANE,), (DATAPLANE, PATH))
OF_SERVICES: Final = OwnKeys((), (PATH,))


@dataclass(frozen=True, slots=True)
class UnreadKey:
    """A key that nobody reads; its words are made when they are asked for, as they cost more than to find it."""

    where: str
    """Whose it is, and whether a label or an annotation."""
    name: str
    keys: OwnKeys

    def __str__(self) -> str:
        misplaced = self.where.endswith("labels") and self.name in self.keys.annotations
        why = "an annotation, not a label, of this name is read" if misplaced else _meant(self.name, self.keys)
        return f"{self.where}[{self.name:.80}]: it has no effect: {why}"


def unread(labels: Mapping[str, str], annotations: Mapping[str, str], whose: str, keys: OwnKeys) -> Iterator[UnreadKey]:
    """Yield which of *labels* and *annotations* of an object of which *keys* are read nobody reads; their words
    begin with *whose* they are. They may be as many as whoever makes the object likes.
    """
    for name in _own(labels):
        if name not in keys.labels:
            yield UnreadKey(f"{whose}metadata.labels", name, keys)
    for name in _own(annotations):
        if name not in keys.annotations and not name.startswith(LOG_KEYS):
            yield UnreadKey(f"{whose}metadata.annotations", name, keys)


def _own(names: Iterable[str]) -> Iterator[str]:
    """Yield those of *names* that are the project's and that people write."""
    for name in names:
        if name.startswith(PREFIX) and name not in _WRITTEN:
            yield name


def _meant(name: str, keys: OwnKeys) -> str:
    known = list(dict.fromkeys((*keys.labels, *keys.annotations)))
    near = difflib.get_close_matches(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], 1)
    meant = f"is {PREFIX}{near[0]} meant? There are" if near else "there are"
    return f"no such key is known; {meant} {', '.join(known)}"
