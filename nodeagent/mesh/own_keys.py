"""Labels and annotations of the project's own that nobody reads: a mistyped one would have no effect, and no
word would be said of it. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nodeagent.mesh.local import BYPASS, PATH, WORKLOAD_API
from nodeagent.mesh.membership import DATAPLANE, ENROLL
from nodeagent.vocabulary import LOGS

PREFIX: Final = "nodeagent.io/"
LOG_KEYS: Final = "nodeagent.io/log-"
"""Annotations that begin so are judged by who reads logs."""
_WRITTEN: Final = ("nodeagent.io/job", "nodeagent.io/unit", "nodeagent.io/netns", "nodeagent.io/cgroup")
"""What the project itself writes on pods."""
_MAX: Final = 8
"""So many of one object are named: whoever makes it writes as many as he likes."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """What is read of one kind of object."""

    labels: Collection[str]
    annotations: Collection[str]


OF_PODS: Final = OwnKeys((DATAPLANE, ENROLL, LOGS), (DATAPLANE, ENROLL, PATH, BYPASS, WORKLOAD_API, LOGS))
OF_NAMESPACES: Final = OwnKeys((DATAPLANE,), (DATAPLANE, PATH))
OF_SERVICES: Final = OwnKeys((), (PATH,))


def unread(labels: Mapping[str, str], annotations: Mapping[str, str], whose: str, keys: OwnKeys) -> Iterator[str]:
    """Yield, in words that begin with *whose* they are, which of *labels* and *annotations* of an object of which
    *keys* are read nobody reads.
    """
    yield from islice(_unread(labels, annotations, whose, keys), _MAX)


def _unread(labels: Mapping[str, str], annotations: Mapping[str, str], whose: str, keys: OwnKeys) -> Iterator[str]:
    for name in _own(labels):
        if name not in keys.labels:
            words = (
                "an annotation, not a label, of this name is read" if name in keys.annotations else _meant(name, keys)
            )
            yield f"{whose}metadata.labels[{name:.80}]: it has no effect: {words}"
    for name in _own(annotations):
        if name not in keys.annotations and not name.startswith(LOG_KEYS):
            yield f"{whose}metadata.annotations[{name:.80}]: it has no effect: {_meant(name, keys)}"


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
