"""Forward: one connection that is carried as bytes, joined with the endpoint's."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from nodeagent.errors import UNPARSED_HTTP
from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.route import Route
from nodeagent.proxy.tcp import Relay
from nodeagent.proxy.transport import Transport, reset


@dataclass(frozen=True)
class Ends:
    """The two transports, and what was read from each before they were joined."""

    client: Transport
    endpoint: Transport
    early: bytes
    """The client's."""
    answer: bytes
    """The endpoint's."""


class CarriedConnection(Carriage):
    """Relays, counts as it goes, and is logged once, when both sides are gone."""

    requests = False

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        connection: Connection,
        route: Route,
        ends: Ends,
        *,
        started: float,
        http: bool = False,
    ) -> None:
        """*started*: when what leads here began, by ``perf_counter()``. *http*: it was an exchange
        that both sides agreed to leave.
        """
        self.http = http
        self.taken = route
        self._context = context
        self._ledger = ledger
        self._connection = connection
        self._route = route
        self._ends = ends
        self._started = started
        self._cell = route.tcp()
        self._moved = context.now
        """When bytes were seen to have moved last, by the context's clock."""
        self._relay = Relay(ends.client, ends.endpoint, self._closed, context.busy_poll)

    def start(self, *, ended: bool = False) -> None:
        """Join the two sides. *ended*: the endpoint has sent all that it will."""
        connection = self._connection
        relay = self._relay
        self._cell.opened += 1
        connection.allowed()
        if connection.line is not None:
            relay.watch(connection.line, self._refuse)
        connection.carriage = self
        relay.start(self._ends.early, self._ends.answer)
        if connection.half_closed:
            relay.downstream.eof_received()
        if ended:
            relay.upstream.eof_received()

    def sweep(self, now: float) -> None:
        """Count what was carried since the last time, and close what has stood still for too long."""
        bound = self._context.timeouts.stream_idle
        if self._count():
            self._moved = now
        elif bound is not None and now - self._moved > bound:
            self._relay.downstream.transport.close()

    def reset(self) -> None:
        reset(self._relay.downstream.transport)

    def _refuse(self) -> None:
        """The client's first line, part of which has gone on, became one of HTTP: nobody parsed it."""
        self._ledger.count_refused(UNPARSED_HTTP)
        self._connection.refused(UNPARSED_HTTP)
        self.reset()

    def _closed(self, received: int, sent: int, error: Exception | None) -> None:
        connection = self._connection
        self._count()
        self._cell.closed += 1
        seconds = perf_counter() - self._started
        self._ledger.record(connection, self._route, None, connection.wall, received, sent, seconds)
        self._ledger.closed(connection)

    def _count(self) -> int:
        """Add what the relay carried since the last time, so that a long connection shows in the
        metrics while it lives; return how many bytes.
        """
        received, sent = self._relay.take()
        self._cell.received += received
        self._cell.sent += sent
        self._connection.received += received
        self._connection.sent += sent
        return received + sent
