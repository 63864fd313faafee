"""Forward: what is not HTTP, whole, byte by byte; and what an exchange left behind that agreed on
another protocol.

A connection on a port that nobody declared, whose client keeps silent, may still turn out to be
HTTP (``first_words.py``): then it goes back to where it came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, time
from typing import cast

from nodeagent.errors import DOWNSTREAM_GONE, NO_ENDPOINTS, PROBE_REFUSED, Reason
from nodeagent.proxy.admission import admit
from nodeagent.proxy.carried import CarriedConnection, Ends
from nodeagent.proxy.client_guard import UNGUARDED, ClientGuard
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import DialError, Dialled
from nodeagent.proxy.first_words import FirstWords
from nodeagent.proxy.guards import Guards
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.permit import NotAdmitted, Permit, asked_health
from nodeagent.proxy.revocation import Revocation
from nodeagent.proxy.route import Route
from nodeagent.proxy.routing import Routing, pick
from nodeagent.proxy.sniff import Verdict
from nodeagent.proxy.transport import Transport, reset

AsHttp = Callable[["Admitted", bytes, Verdict], None]
"""Goes on with a connection that is HTTP after all, with what was read of it, and with its version."""


@dataclass(frozen=True)
class Admitted:
    """A connection that was let in, and its transport, which nobody uses yet."""

    connection: Connection
    permit: Permit
    transport: Transport


class Carrier:
    """The connections of one proxy that are carried as bytes."""

    def __init__(
        self, context: Context, routing: Routing, guards: Guards, ledger: Ledger, revocation: Revocation
    ) -> None:
        self._context = context
        self._routing = routing
        self._guards = guards
        self._ledger = ledger
        self._revocation = revocation

    def begin(self, admitted: Admitted, early: bytes, as_http: AsHttp, *, silent: bool) -> None:
        """Forward the connection of *admitted*, of which *early* was read already, whole; one that is
        *silent* may still turn out to be HTTP, and goes on by *as_http* then.
        """
        if admitted.permit.only_probes:
            self._probed(admitted, early)
            return
        context = self._context
        connection = admitted.connection
        connection.early = early
        words = None
        if silent:
            timeouts = context.timeouts
            words = FirstWords(context.loop, admitted.transport, timeouts.handshake, context.limits.header_bytes)
            admitted.transport.set_protocol(words)
        task = context.loop.create_task(self._carry(admitted, context.view.generation, words, as_http))
        connection.pod.open.add(task)
        task.add_done_callback(connection.pod.open.discard)

    def tunnel(self, exchange: Exchange, ends: Ends) -> None:
        """Relay between *ends*, whose sides agreed to leave HTTP with *exchange*, which was counted."""
        connection = exchange.downstream.connection
        connection.protocol = "upgrade"
        route = cast(Route, exchange.route)
        CarriedConnection(
            self._context, self._ledger, connection, route, ends, started=exchange.started, http=True
        ).start()

    async def _carry(self, admitted: Admitted, generation: int, words: FirstWords | None, as_http: AsHttp) -> None:
        """*generation*: of the snapshot that permitted the connection."""
        connection = admitted.connection
        transport = admitted.transport
        started = perf_counter()
        if words is None and not transport.is_closing():
            transport.pause_reading()  # an authorizer, or the endpoint, may take its time
        route = pick(self._routing.routes(connection))
        guard = self._guards.guard(connection, route, http=False)
        if words is not None and guard.awaits_requests:
            verdict = await words.decided(None, words.patience)
            if self._turned(admitted, words, verdict, as_http):
                return
        reason = await self._unpermitted(connection, guard)
        if connection.struck():
            return  # its peer's certificate ended meanwhile
        if reason is not None:
            self._not_carried(admitted, reason)
            return
        if connection.protocol == "http2":  # it did not need what a gRPC probe may
            self._go_on(admitted, connection.early, "http2", as_http)
            return
        self._ledger.follow(connection, route)
        try:
            dialled = await self._dialled(route, transport)
        except DialError as error:
            if not connection.struck():
                connection.refused(error.reason)
                self._ledger.failed(connection, route, error.reason, connection.wall, perf_counter() - started)
                reset(transport)
            return
        if words is not None and self._turned(admitted, words, await words.decided(dialled), as_http):
            dialled.transport.abort()
            return
        if self._stands(admitted, dialled, route, generation):
            ends = Ends(transport, dialled.transport, connection.early, dialled.early)
            carried = CarriedConnection(self._context, self._ledger, connection, route, ends, started=started)
            transport.resume_reading()  # before the relay, which may want to pause again
            carried.start(ended=dialled.ended)

    async def _unpermitted(self, connection: Connection, guard: ClientGuard) -> Reason | None:
        """Return why a connection that is not HTTP may not go on, None where it may."""
        if guard is UNGUARDED:
            return None
        return await guard.admits_connection(self._guards.around, connection)

    def _not_carried(self, admitted: Admitted, reason: Reason) -> None:
        """Refuse a connection, but for the health that the node may ask for."""
        services = asked_health(admitted.permit, admitted.connection.early)
        if not services:
            self._ledger.refuse(admitted.connection, admitted.transport, reason)
            return
        if not admitted.transport.is_closing():
            admitted.transport.resume_reading()
        self._answer_health(admitted, services)

    async def _dialled(self, route: Route, transport: Transport) -> Dialled:
        """Return a connection to the endpoint of *route*. Raises DialError."""
        if transport.is_closing():
            raise DialError(DOWNSTREAM_GONE)
        if route.pool is None:
            raise DialError(NO_ENDPOINTS)
        return await route.pool.connect()

    def _stands(self, admitted: Admitted, dialled: Dialled, route: Route, generation: int) -> bool:
        """Say whether both sides are still there, and still permitted; else neither is kept."""
        connection = admitted.connection
        if admitted.transport.is_closing() or dialled.lost:
            reset(dialled.transport)
            reset(admitted.transport)
            self._ledger.closed(connection)
            return False
        if generation == self._context.view.generation and not connection.unproved(time()):
            return True
        reason = self._revocation.reconsidered(connection, route)
        if reason is None:
            return True
        reset(dialled.transport)
        self._ledger.refuse(connection, admitted.transport, reason)
        return False

    def _turned(self, admitted: Admitted, words: FirstWords, verdict: Verdict, as_http: AsHttp) -> bool:
        """Take over what the client has said; say whether that is HTTP, as which the connection
        goes on then, by what permits it now.
        """
        connection = admitted.connection
        connection.early = words.early
        connection.half_closed = words.ended
        connection.protocol = "http2" if verdict == "http2" else "tcp"
        connection.line = words.line if verdict == "unlikely" else None
        if verdict not in ("http", "http2") or admitted.transport.is_closing():
            return False
        self._go_on(admitted, words.early, verdict, as_http)
        return True

    def _go_on(self, admitted: Admitted, early: bytes, verdict: Verdict, as_http: AsHttp) -> None:
        """Let the connection go on as HTTP, which begins with *early*, by what permits it now."""
        connection = admitted.connection
        permit = admit(self._context, connection)
        if isinstance(permit, NotAdmitted):
            self._ledger.refuse(connection, admitted.transport, permit.reason)
        elif admitted.transport.is_closing():
            self._ledger.closed(connection)
        else:
            admitted.transport.resume_reading()
            as_http(Admitted(connection, permit, admitted.transport), early, verdict)

    # -- probes --

    def _probed(self, admitted: Admitted, early: bytes) -> None:
        """Of who may ask for probes alone, and not by HTTP/1.1: a gRPC probe is answered, and for a TCP
        probe it is enough that the connection was opened.
        """
        admitted.connection.early = early
        services = asked_health(admitted.permit, early)
        if services:
            self._answer_health(admitted, services)
        elif early:
            self._ledger.refuse(admitted.connection, admitted.transport, PROBE_REFUSED)
        else:
            self._ledger.closed(admitted.connection)
            admitted.transport.close()

    def _answer_health(self, admitted: Admitted, services: frozenset[str]) -> None:
        """Let the client ask for the health of *services*; it is the application's, whatever else
        the client wants does not reach that.
        """
        from nodeagent.proxy.grpc_probe import answering  # it brings gRPC

        context = self._context
        connection = admitted.connection
        transport = admitted.transport
        route = pick(self._routing.routes(connection))
        assert route.pool is not None, "a pod's own port is always there"
        self._ledger.follow(connection, route)
        protocol = answering(services, route.pool.dial, context, lambda: self._ledger.closed(connection))
        transport.set_protocol(protocol)
        protocol.connection_made(cast(asyncio.BaseTransport, transport))
        protocol.data_received(connection.early)
        if connection.half_closed:
            protocol.eof_received()
        context.loop.call_later(context.timeouts.head, transport.close)
