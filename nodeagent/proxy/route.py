"""Where a request of one connection goes, with all that can be decided before the request comes.

A route is made once per (client, target, endpoint) and snapshot; a request only picks one and
counts on its cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.mesh.entries import Endpoint, Workload
from nodeagent.proxy.client_guard import ClientGuard
from nodeagent.proxy.connection import Connection, Path
from nodeagent.proxy.grpc.status import UNKNOWN as UNTOLD
from nodeagent.proxy.http.fields import NO_FIELDS, Field
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.pool import Pool
from nodeagent.telemetry import labels
from nodeagent.telemetry.cells import HttpCell, MessageCell, TcpCell, WorkerMetrics
from nodeagent.telemetry.metrics import UNKNOWN, Labels
from nodeagent.vocabulary import host_port

NAMED = 64
"""Pods' own ports that the series of one pod tell apart."""
ANSWERS = 64
"""Kinds of answers (status, gRPC's, flags) that the series of one route tell apart: a server may make
up as many as it likes. Those beyond them count by the class of their status.
"""


@dataclass(frozen=True, slots=True)
class Destination:
    """The upstream side of a route: ``pool`` is None when nothing serves the target."""

    endpoint: Endpoint | None
    workload: Workload | None
    path: Path
    pool: Pool | None
    cluster: str
    delivers: bool
    """The next hop is the application itself: no other proxy will check or count the request."""


class Route(Hop):
    """One endpoint as one client reaches it, with its counters."""

    __slots__ = (
        "_calls",
        "_cells",
        "_messages",
        "_metrics",
        "_peers",
        "_pod",
        "_reporters",
        "_tcp",
        "active",
        "cluster",
        "delivers",
        "endpoint",
        "http_guard",
        "path",
        "pool",
        "tcp_guard",
        "upstream_host",
        "workload",
    )

    def __init__(self, metrics: WorkerMetrics, connection: Connection, to: Destination, cluster_id: str) -> None:
        single = to.pool is not None and to.pool.once
        Hop.__init__(self, _forwarded(connection, to), single)
        self._metrics = metrics
        self._pod: str = connection.pod.uid
        self._peers = _peers(connection, to, cluster_id)
        self._reporters = _reporters(connection, to)
        self._cells: dict[tuple[int, str], HttpCell] = {}
        self._calls: dict[tuple[int, str, str], HttpCell] = {}
        self._messages: MessageCell | None = None
        self._tcp: dict[str, TcpCell] = {}
        self.workload = to.workload
        self.path = to.path
        self.delivers = to.delivers
        self.pool = to.pool
        self.cluster = to.cluster
        self.upstream_host = host_port(to.endpoint.address, to.endpoint.port) if to.endpoint else "-"
        self.active = 0
        self.endpoint = to.endpoint
        self.http_guard: ClientGuard | None = None
        """What protects the endpoint against this client (``proxy/guard.py``), bound when the first request comes."""
        self.tcp_guard: ClientGuard | None = None

    def cell(self, status: int, flags: str) -> HttpCell:
        """Return the counters of answers with *status* and response *flags* on this route."""
        cells = self._cells
        found = cells.get((status, flags))
        if found is None:
            if len(cells) >= ANSWERS:
                status = _class_of(status)
                found = cells.get((status, flags))
            if found is None:
                found = cells[status, flags] = self._made(labels.http(self._peers, status, flags))
        return found

    def call_cell(self, status: int, grpc_status: str, flags: str) -> HttpCell:
        """Return the counters of gRPC calls that ended with *grpc_status* (empty: none) in an answer with *status*."""
        cells = self._calls
        found = cells.get((status, grpc_status, flags))
        if found is None:
            if len(cells) >= ANSWERS:
                status = _class_of(status)
                grpc_status = UNTOLD
                found = cells.get((status, grpc_status, flags))
            if found is None:
                made = self._made(labels.http(self._peers, status, flags, "grpc", grpc_status))
                found = cells[status, grpc_status, flags] = made
        return found

    def _made(self, names: Labels) -> HttpCell:
        return self._metrics.http(self._reporters, names, self._pod)

    def messages(self) -> MessageCell:
        """Return the counters of the messages of gRPC calls on this route."""
        if self._messages is None:
            self._messages = self._metrics.messages(self._reporters, labels.messages(self._peers), self._pod)
        return self._messages

    def tcp(self, flags: str = "-") -> TcpCell:
        """Return the counters of TCP connections that ended with *flags*."""
        found = self._tcp.get(flags)
        if found is None:
            found = self._tcp[flags] = self._metrics.tcp(self._reporters, labels.tcp(self._peers, flags), self._pod)
        return found


def _class_of(status: int) -> int:
    """Return the status that stands for all of its class (RFC 9110 section 15)."""
    return status // 100 * 100


def _reporters(connection: Connection, to: Destination) -> tuple[str, ...]:
    """Return whose view of the request this proxy gives: Istio counts each request at both ends."""
    if connection.direction == "inbound":
        return ("destination",)
    return ("source", "destination") if to.delivers else ("source",)


def _peers(connection: Connection, to: Destination, cluster_id: str) -> Labels:
    peer = connection.peer
    target = connection.target
    source = labels.side(peer.workload, peer.identity or None, cluster_id)
    secured = to.path != "proxy-plaintext" and to.workload is not None
    destination = labels.side(
        to.workload, to.workload.identity if to.workload is not None and secured else None, cluster_id
    )
    if target.service is None and not target.passthrough:
        service: Labels = (_named(connection), UNKNOWN, to.workload.namespace if to.workload else UNKNOWN)
    else:
        service = labels.service(target.service)
    policy: labels.SecurityPolicy = peer.security if secured or connection.direction == "inbound" else "none"
    return labels.peers(source, destination, service, policy)


def _named(connection: Connection) -> str:
    """Return the dialled address and port as a label; of what a pod dials beyond NAMED the port is
    0: it may dial as many as it likes.
    """
    target = connection.target
    named = connection.pod.named
    dialled = (target.address, target.port)
    if dialled not in named:
        if len(named) >= NAMED:
            return host_port(target.address, 0)
        named.add(dialled)
    return host_port(*dialled)


def _forwarded(connection: Connection, to: Destination) -> list[Field]:
    """Return what is added to a request's head: on delivery X-Forwarded-Client-Cert says what was
    proved, as Istio's inbound does.
    """
    if not to.delivers or not connection.peer.identity or to.workload is None:
        return NO_FIELDS
    proved = f"By={to.workload.identity};URI={connection.peer.identity}".encode()
    return [(b"x-forwarded-client-cert", proved)]
