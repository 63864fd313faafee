"""What the kernel says of connections on the kernel path: who, and how they fared; read only, but
for the places for ended ones.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from nodeagent.errors import KernelError
from nodeagent.mesh.kernel_plan import Where
from nodeagent.redirect import layout
from nodeagent.redirect.layout import unpack_address
from nodeagent.redirect.maps import Map


class FlowId(NamedTuple):
    """A connection as its client sees it."""

    source: Where
    destination: Where


@dataclass(frozen=True, slots=True)
class RecordedFlow:
    """A connection on the kernel path. ``source`` and ``destination``: numbers of pods;
    ``service``: its name, empty for a pod's own address.
    """

    id: FlowId
    source: int
    destination: int
    service: str
    opened: float
    """Unix time, 0: not established yet."""
    client: int
    """Cookies of the client's socket, """
    server: int
    """and of the server's; 0: not established yet."""
    http: bool
    bypass: bool


class CountedPair(NamedTuple):
    """What connections are counted by: numbers of pods, the server's port, the name of the Service (empty: none)."""

    source: int
    destination: int
    port: int
    service: str


@dataclass(frozen=True, slots=True)
class Total:
    """Connections, and the bytes of those that have ended."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection on the kernel path that has ended: when, in Unix time, and the bytes that the
    server has received and sent.
    """

    flow: RecordedFlow
    closed: float
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Refusals:
    """Connections refused in the kernel. ``policy``: ``namespace/name``, empty when no ALLOW policy
    matched; ``last``: Unix time.
    """

    pair: CountedPair
    policy: str
    count: int
    last: float


class Record:
    """The connections that are open, and the last ones of each pod that have ended."""

    def __init__(self, opened: Mapping[str, Map], service_name: Callable[[int], str]) -> None:
        """*opened*: maps by name; *service_name* by number. Raises OSError."""
        self._flows = opened["kernel_flows"]
        self._closed = opened["closed_flows"]
        self._service_name = service_name
        self._rings: set[int] = set()
        for place in list(self._closed.keys()):  # an earlier daemon's: it alone knew whose numbers those were
            self._closed.drop(place)
        self._wall = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def unix(self, monotonic: int) -> float:
        """Return a monotonic time in ns as Unix time: the same for the same moment, however often it is asked for."""
        return (monotonic + self._wall) / 1e9

    def flows(self) -> list[RecordedFlow]:
        """Return the connections whose client's end is open. Raises OSError."""
        found = (
            (layout.FlowKey.from_buffer_copy(key), layout.KernelFlow.from_buffer_copy(value))
            for key, value in self._flows.items()
        )
        return [self._flow(ends, flow) for ends, flow in found if not flow.client_closed]

    def ended(self) -> list[Ended]:
        """Return the last connections of each pod that have ended. Raises OSError."""
        ended = []
        for ring in map(layout.ClosedFlows.from_buffer_copy, dict(self._closed.items()).values()):
            ended += [
                Ended(self._flow(one.ends, one.flow), self.unix(one.closed), *carried(one.flow))
                for one in ring.flows
                if one.closed
            ]
        return ended

    def keep(self, pods: Collection[int]) -> None:
        """Have a place for the ended connections of each of *pods*; where the map is full a pod has
        none, and they leave no row. Raises OSError.
        """
        for pod in set(pods) - self._rings:
            with suppress(KernelError):
                self._closed.put(struct.pack("=I", pod), bytes(layout.ClosedFlows()))
                self._rings.add(pod)

    def forget(self, gone: Collection[int]) -> None:
        """Pods that are *gone* need no place any more. Raises OSError."""
        for pod in self._rings.intersection(gone):
            self._closed.drop(struct.pack("=I", pod))
            self._rings.discard(pod)

    def _flow(self, ends: layout.FlowKey, flow: layout.KernelFlow) -> RecordedFlow:
        opened = self.unix(flow.opened) if flow.opened else 0.0
        http = bool(flow.flags & layout.FLOW_HTTP)
        bypass = bool(flow.flags & layout.FLOW_BYPASS)
        source, destination = (unpack_address(bytes(end)) for end in (ends.source, ends.destination))
        named = FlowId((source, ends.source_port), (destination, ends.destination_port))
        return RecordedFlow(
            named,
            flow.source,
            flow.destination,
            self._service_name(flow.service),
            opened,
            flow.client,
            flow.server,
            http,
            bypass,
        )


def carried(flow: layout.KernelFlow) -> tuple[int, int]:
    """Return the bytes that the server has received and sent, as far as both ends know."""
    client, server = flow.ends
    return max(client.sent, server.received), max(server.sent, client.received)
