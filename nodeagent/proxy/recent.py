"""The connections of a worker that ended lately, as far as ``flows`` still shows them."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Final

from nodeagent.proxy.connection import Connection

KEPT: Final = 512
"""In all, shared evenly by the pods."""
FEWEST: Final = 8
"""Of a pod, however many pods there are."""
PROBES: Final = 4
"""Of a pod, besides: the kubelet's probes push out no others."""


class Recent:
    """A bounded number of each pod, so that a busy pod pushes out its own connections and nobody else's."""

    def __init__(self) -> None:
        self._pods: dict[str, tuple[collections.deque[Connection], collections.deque[Connection]]] = {}

    def __iter__(self) -> Iterator[Connection]:
        for kept, probes in self._pods.values():
            yield from kept
            yield from probes

    def add(self, connection: Connection) -> None:
        """Keep an ended *connection* for a while."""
        uid = connection.pod.uid
        if uid not in self._pods:
            self._pods[uid] = collections.deque(), collections.deque(maxlen=PROBES)
        kept, probes = self._pods[uid]
        (probes if connection.probe else kept).append(connection)
        while len(kept) > max(FEWEST, KEPT // len(self._pods)):
            kept.popleft()

    def forget(self, uid: str) -> None:
        """The pod *uid* is gone."""
        self._pods.pop(uid, None)
