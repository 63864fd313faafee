"""Records for tests of what is behind the files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nodeagent.logs.records import LogOrigin, LogRecords
from nodeagent.vocabulary import PodUid

NOW = 1795946400.0
"""Seconds since 1970 when the records are written: 2026-11-29T10:00:00Z."""


def origin(
    pod: str = "web-1", namespace: str = "shop", container: str = "app", labels: Mapping[str, str] | None = None
) -> LogOrigin:
    """Return where records of a container come from."""
    kubernetes = {"namespace_name": namespace, "pod_name": pod, "container_name": container}
    members = json.dumps({"kubernetes": kubernetes})[1:-1].encode()
    return LogOrigin(
        uid=PodUid(f"uid-{pod}"),
        namespace=namespace,
        pod=pod,
        container=container,
        path="",
        node="node1",
        labels=labels or {"app": "web"},
        members=members,
        tag=f"kube.{namespace}.{pod}.{container}",
        sinks=("s",),
    )


def records(
    objects: Sequence[Any],
    start: int = 0,
    source: LogOrigin | None = None,
    file: bytes = b"f00d",
) -> LogRecords:
    """Return a record for each of *objects*, which are text or an application's JSON object."""
    result = LogRecords(source or origin(), file, end=start + 100 * len(objects), read=100 * len(objects))
    for row, each in enumerate(objects):
        text = each if isinstance(each, str) else json.dumps(each)
        result.offsets.append(start + 100 * row)
        result.times.append(f"2026-11-29T10:00:{row % 60:02}.{row:09}Z".encode())
        result.streams.append(b"stdout")
        result.texts.append(text.encode())
        result.objects.append(json.dumps({"log": each} if isinstance(each, str) else each).encode())
    return result
