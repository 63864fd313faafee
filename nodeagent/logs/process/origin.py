"""What every record of a container or file carries of its pod: :class:`LogOrigin`, with its members
encoded once; pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from nodeagent.logs.records import LogOrigin
from nodeagent.vocabulary import PodUid


@dataclass(frozen=True, slots=True)
class LogSource:
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


def make_origin(source: LogSource, tag: str, sinks: tuple[str, ...], flatten_dots: bool = True) -> LogOrigin:
    """Return what records of *source* carry.

    Args:
        tag: Fluentd's name for it.
        sinks: Names of those that its records are routed to.
        flatten_dots: Whether ``.`` and ``/`` in labels' names become ``_``: an index with ``app`` as text
            refuses ``app.kubernetes.io/name``, which makes an object of it.
    """
    return LogOrigin(
        uid=source.uid,
        namespace=source.namespace,
        pod=source.pod,
        container=source.container,
        path=source.path,
        node=source.node,
        labels=dict(source.labels),
        members=_members(source, flatten_dots),
        tag=tag,
        sinks=sinks,
    )


def _members(source: LogSource, flatten_dots: bool) -> bytes:
    about: dict[str, object] = {}
    if source.uid:
        about["namespace_name"] = source.namespace
        about["pod_name"] = source.pod
        about["pod_id"] = source.uid
    if source.container:
        about["container_name"] = source.container
    about["host"] = source.node
    if source.labels:
        about["labels"] = _labels(source.labels, flatten_dots)
    members: dict[str, object] = {"kubernetes": about}
    if source.path:
        members["log_file"] = source.path
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
