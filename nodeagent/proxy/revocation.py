"""What ends connections that are established: a change of what protects, a certificate that ends or
is renewed, the end of this process, and time.
"""

from __future__ import annotations

from time import time
from typing import Final, cast

from nodeagent.errors import CERTIFICATE_ENDED, PROBE_REFUSED, Reason
from nodeagent.proxy.admission import admit
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.guards import Guards
from nodeagent.proxy.http.exchange import Downstream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.pace import Pace
from nodeagent.proxy.permit import NotAdmitted, is_probe
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.route import Route
from nodeagent.proxy.routing import Routing

SWEPT_A_TURN: Final = 512
"""Connections that a sweep looks at before the loop turns."""


class Revocation:
    """Looks at one proxy's open connections again."""

    def __init__(self, context: Context, routing: Routing, guards: Guards, ledger: Ledger) -> None:
        self._context = context
        self._routing = routing
        self._guards = guards
        self._ledger = ledger

    # -- policies --

    async def reconsider(self) -> None:
        """After a change that may alter verdicts: close established connections that would not be permitted now."""
        pace = Pace()
        for connection in list(self._context.connections.values()):
            await pace.keep()
            if connection.carriage is None:
                continue  # gone, or not permitted yet: it will be by what is in force now
            reason = self.reconsidered(connection, cast(Route | None, connection.carriage.taken))
            if reason is not None:
                self.revoke(connection, reason)
            elif isinstance(connection.carriage, Downstream):
                self._reconsider_requests(connection, connection.carriage)

    def _reconsider_requests(self, connection: Connection, codec: Downstream) -> None:
        """End what is under way on *connection* and would not be permitted now where it went; the
        connection stays as far as its protocol has words for that.
        """
        exchanges = codec.under_way()
        if not exchanges:
            return
        routes = {route.upstream_host: route for route in self._routing.routes(connection)}
        for exchange in exchanges:
            if exchange.finished or is_probe(codec.permit, exchange.method, exchange.target):
                continue
            before = cast(Route | None, exchange.route)
            reason = None
            if codec.permit.only_probes:
                reason = PROBE_REFUSED
            elif before is not None:
                route = routes.get(before.upstream_host) or self._routing.again(connection, before)
                reason = self._guards.guard(connection, route, http=True).forbids(exchange)
            if reason is not None:
                self._ledger.count_refused(reason)
                exchange.give_up(reason)

    def reconsidered(self, connection: Connection, taken: Route | None) -> Reason | None:
        """Return why *connection* would not be permitted now, None where it would; *taken*: where all of it goes,
        None: each request goes where it may.
        """
        verdict = admit(self._context, connection)
        if isinstance(verdict, NotAdmitted):
            return verdict.reason
        carriage = connection.carriage
        http = carriage is not None and carriage.http
        requests = carriage is not None and carriage.requests
        if carriage is not None:
            carriage.allow(verdict)
        if verdict.only_probes and not requests:
            return PROBE_REFUSED
        if verdict.probes and requests:
            return None  # each request is looked at
        if taken is not None:
            routes = [self._routing.again(connection, taken)]
        else:
            routes = self._routing.routes(connection) if http else []
        reasons = [self._guards.guard(connection, route, http=http).reason for route in routes]
        return reasons[0] if reasons and all(reason is not None for reason in reasons) else None

    def revoke(self, connection: Connection, reason: Reason) -> None:
        """Close *connection*, which is no longer permitted, be it that nothing carries it yet."""
        if connection.carriage is not None:
            self._ledger.count_refused(reason)
            connection.refused(reason)
            connection.carriage.reset()
        elif connection.transport is not None:
            self._ledger.refuse(connection, connection.transport, reason)

    # -- certificates, and the end --

    def renewed(self, pod: PodState) -> None:
        """*pod* has a new certificate: clients come back before the one that they were shown ends."""
        for connection in list(self._context.connections.values()):
            if connection.pod is not pod or connection.direction != "inbound":
                continue
            if connection.carriage is not None and connection.peer.security == "mutual_tls":
                connection.carriage.drain()

    def released(self, pod: PodState) -> None:
        """*pod* is no longer enrolled: what is open of it goes on, and takes nothing more."""
        for connection in list(self._context.connections.values()):
            if connection.pod is pod and connection.carriage is not None:
                connection.carriage.depart()

    def drain(self) -> None:
        """Ask clients to come back on new connections as they finish; idle upstream connections close."""
        self._context.draining = True
        for connection in list(self._context.connections.values()):
            if connection.carriage is not None:
                connection.carriage.drain()

    # -- time --

    def sweep(self) -> None:
        """Enforce timeouts; runs a few times a second instead of a timer per request."""
        context = self._context
        context.tick()
        self._sweep_from(list(context.connections.values()), 0)
        self._routing.sweep(context.now, context.timeouts.idle)

    def _sweep_from(self, connections: list[Connection], at: int) -> None:
        """Look at a number of *connections* from index *at* on; the rest in the loop's next turn: a
        pod may hold thousands open.
        """
        now = self._context.now
        now_wall = time()
        end = at + SWEPT_A_TURN
        for connection in connections[at:end]:
            if connection.closed is not None:
                continue
            if connection.unproved(now_wall):
                self.revoke(connection, CERTIFICATE_ENDED)
            elif connection.carriage is not None:
                connection.carriage.sweep(now)
        if end < len(connections):
            self._context.loop.call_soon(self._sweep_from, connections, end)
