"""What every record of a container or file carries of its pod: :class:`LogOrigin`, with its members
encoded once; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from nodeagent.logs.process.objects import OWN_MEMBERS
from nodeagent.logs.records import LogOrigin
from nodeagent.vocabulary import PodUid

NOT_THE_APPLICATIONS: Final = frozenset({*OWN_MEMBERS, "kubernetes", "log_file"})
"""Members that records may have of the agent's."""

LABELS_BYTES: Final = 8 << 10
"""Of JSON, that labels and annotations of a pod have in each of its records: a line of two bytes carries them too."""


@dataclass(frozen=True, slots=True)
class OriginFacts:
    """A container's output, or a file, of a pod, or of the node."""

    uid: PodUid
    """Empty: the node itself."""
    namespace: str
    pod: str
    container: str
    """Empty: a file."""
    path: str
    """Of a file in a volume, from the volume's name on, or of the node; empty for a container's output."""
    node: str
    labels: Mapping[str, str]
    """Of the pod, as Kubernetes has them."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those of the pod that records have too."""


def make_origin(facts: OriginFacts, tag: str, sinks: tuple[str, ...], flatten_dots: bool = True) -> LogOrigin:
    """Return what records of what *facts* tell of carry.

    Args:
        tag: Fluentd's name for it.
        sinks: Names of those that its records are routed to.
        flatten_dots: Whether ``.`` and ``/`` in labels' names become ``_``: an index with ``app`` as text
            refuses ``app.kubernetes.io/name``, which makes an object of it.
    """
    return LogOrigin(
        uid=facts.uid,
        namespace=facts.namespace,
        pod=facts.pod,
        container=facts.container,
        path=facts.path,
        node=facts.node,
        labels=dict(facts.labels),
        members=_members(facts, flatten_dots),
        tag=tag,
        sinks=sinks,
    )


def _members(facts: OriginFacts, flatten_dots: bool) -> bytes:
    about: dict[str, object] = {}
    if facts.uid:
        about["namespace_name"] = facts.namespace
        about["pod_name"] = facts.pod
        about["pod_id"] = facts.uid
    if facts.container:
        about["container_name"] = facts.container
    about["host"] = facts.node
    left = LABELS_BYTES
    left_out = 0
    for name, given in (("labels", facts.labels), ("annotations", facts.annotations)):
        wanted = _labels(given, flatten_dots)
        taken, left = _within(wanted, left)
        left_out += len(wanted) - len(taken)
        if taken:
            about[name] = taken
    if left_out:
        about["left_out"] = left_out
    members: dict[str, object] = {"kubernetes": about}
    if facts.path:
        members["log_file"] = facts.path
    return msgspec.json.encode(members)[1:-1]


def _labels(labels: Mapping[str, str], flatten_dots: bool) -> dict[str, str]:
    if not flatten_dots:
        return dict(labels)
    made: dict[str, str] = {}
    for name, value in sorted(labels.items()):
        flat = name.replace(".", "_").replace("/", "_")
        # Two names that become one: the first in order keeps it.
        made.setdefault(flat, value)
    return made


def _within(pairs: Mapping[str, str], most: int) -> tuple[dict[str, str], int]:
    """Return those of *pairs* for which there is room in *most* bytes of JSON, and what is left of that."""
    taken: dict[str, str] = {}
    for name, value in pairs.items():
        size = len(msgspec.json.encode({name: value}))
        if size <= most:
            taken[name] = value
            most -= size
    return taken, most
