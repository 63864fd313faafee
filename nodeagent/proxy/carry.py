"""Forward: what is not HTTP/1, whole, byte by byte; and what an exchange left behind that agreed on
another protocol.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from nodeagent.errors import DOWNSTREAM_GONE, NO_ENDPOINTS, PROBE_REFUSED, UNPARSED_HTTP, Reason
from nodeagent.proxy.authorize import Permit, Refusal, asked_health
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.first_words import FirstWords
from nodeagent.proxy.guard import UNGUARDED, Bound
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.pool import DialError, Dialled
from nodeagent.proxy.route import Route
from nodeagent.proxy.sniff import Verdict
from nodeagent.proxy.tcp import Relay, reset

if TYPE_CHECKING:
    from nodeagent.proxy.pipeline import Pipeline


class Carrier:
    """The connections of one pipeline that are carried as bytes."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def carry(
        self, connection: Connection, transport: Any, permit: Permit, generation: int, words: FirstWords | None
    ) -> None:
        """Forward a connection that is not HTTP, whole; the snapshot's *generation* permitted it.
        With *words* it may still turn out to be HTTP.
        """
        pipeline, started = self._pipeline, perf_counter()
        if words is None and not transport.is_closing():
            transport.pause_reading()  # an authorizer, or the endpoint, may take its time
        route = pipeline.route(connection)
        guard = pipeline.guard(connection, route, http=False)
        if (
            words is not None
            and guard.awaits_requests
            and self._turned(connection, transport, words, await words.decided(None, words.patience))
        ):
            return
        reason = await self._unpermitted(connection, route, guard)
        if reason is not None:
            self._not_carried(connection, permit, transport, reason)
            return
        pipeline.follow(connection, route)
        try:
            dialled = await self._dialled(route, transport)
        except DialError as error:
            connection.refused(error.reason)
            pipeline.count_failed(route, error.reason)
            pipeline.tcp_record(connection, route, error.reason, connection.wall, 0, 0, perf_counter() - started)
            pipeline.closed(connection)
            reset(transport)
            return
        if words is not None and self._turned(connection, transport, words, await words.decided(dialled)):
            dialled.transport.abort()
            return
        if transport.is_closing() or dialled.lost:
            reset(dialled.transport)
            reset(transport)
            pipeline.closed(connection)
            return
        if generation != pipeline.context.view.generation and (reason := pipeline.reconsidered(connection)) is not None:
            reset(dialled.transport)
            pipeline.refuse(connection, transport, reason)
            return
        self._join(connection, route, transport, dialled.transport, connection.early, dialled.early, started)
        if dialled.ended:
            connection.relay[0].upstream.eof_received()
        if not transport.is_closing():
            transport.resume_reading()

    async def _unpermitted(self, connection: Connection, route: Route, guard: Bound) -> Reason | None:
        """Return why a connection that is not HTTP/1 may not go on, None where it may."""
        if connection.protocol == "http2" and connection.target.protocol == "http":
            return UNPARSED_HTTP
        return None if guard is UNGUARDED else await guard.admits_connection(self._pipeline, connection, route)

    def _not_carried(self, connection: Connection, permit: Permit, transport: Any, reason: Reason) -> None:
        """Refuse a connection, but for the health that the node may ask for."""
        services = asked_health(permit, connection.early)
        if not services:
            self._pipeline.refuse(connection, transport, reason)
            return
        if not transport.is_closing():
            transport.resume_reading()
        self._answer_health(connection, services, transport)

    async def _dialled(self, route: Route, transport: Any) -> Dialled:
        if transport.is_closing():
            raise DialError(DOWNSTREAM_GONE)
        if route.pool is None:
            raise DialError(NO_ENDPOINTS)
        return await route.pool.dial.connect(self._pipeline, http=False)

    def _turned(self, connection: Connection, transport: Any, words: FirstWords, verdict: Verdict) -> bool:
        """Take over what the client has said; say whether that is HTTP, as which the connection
        goes on then, by what permits it now.
        """
        pipeline = self._pipeline
        connection.early, connection.half_closed = words.early, words.ended
        connection.protocol = "http2" if verdict == "http2" else "tcp"
        connection.line = words.line if verdict == "unlikely" else None
        if verdict != "http" or transport.is_closing():
            return False
        permit = pipeline.admit(connection)
        if isinstance(permit, Refusal):
            pipeline.refuse(connection, transport, permit.reason)
        else:
            transport.resume_reading()
            pipeline.begin(connection, permit, transport, "http", words.early)
        return True

    def probed(self, connection: Connection, permit: Permit, transport: Any, early: bytes) -> None:
        """Of what is not HTTP/1.1, declared probes alone: a gRPC probe is answered, and for a TCP
        probe it is enough that the connection was opened.
        """
        pipeline = self._pipeline
        connection.early = early
        if services := asked_health(permit, early):
            self._answer_health(connection, services, transport)
        elif early:
            pipeline.refuse(connection, transport, PROBE_REFUSED)
        else:
            pipeline.closed(connection)
            transport.close()

    def _answer_health(self, connection: Connection, services: frozenset[str], transport: Any) -> None:
        """Let the client ask for the health of *services*; it is the application's, whatever else
        the client wants does not reach that.
        """
        from nodeagent.proxy.grpc_probe import answering  # it brings gRPC

        pipeline = self._pipeline
        route = pipeline.route(connection)
        assert route.pool is not None, "a pod's own port is always there"
        pipeline.follow(connection, route)
        protocol = answering(services, route.pool.dial, pipeline, lambda: pipeline.closed(connection))
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(connection.early)
        if connection.half_closed:
            protocol.eof_received()
        pipeline.context.loop.call_later(pipeline.context.timeouts.head, transport.close)

    def tunnel(self, exchange: Exchange, client: Any, endpoint: Any, early: bytes, rest: bytes) -> None:
        """Both sides of an exchange left HTTP: relay between the transports *client* and *endpoint*
        what follows; *early* and *rest* were read from them already.
        """
        connection = exchange.downstream.connection
        route = cast(Route, exchange.route)
        connection.protocol = "upgrade"
        self._pipeline.observe(exchange, exchange.status, None)
        self._join(connection, route, client, endpoint, early, rest, exchange.started)

    def _join(
        self,
        connection: Connection,
        route: Route,
        transport: Any,
        upstream: Any,
        early: bytes,
        answer: bytes,
        started: float,
    ) -> None:
        pipeline = self._pipeline
        cell = route.tcp()
        cell.opened += 1
        connection.allowed()

        def closed(received: int, sent: int, error: Exception | None) -> None:
            self._count_bytes(connection)
            cell.closed += 1
            pipeline.tcp_record(connection, route, None, connection.wall, received, sent, perf_counter() - started)
            pipeline.closed(connection)

        relay = Relay(transport, upstream, closed, pipeline.context.busy_poll)
        if connection.line is not None:
            relay.watch(connection.line, lambda: pipeline.revoke(connection, UNPARSED_HTTP))
        connection.relay, connection.active = (relay, cell), pipeline.context.now
        relay.start(early, answer)
        if connection.half_closed:
            relay.downstream.eof_received()

    def _count_bytes(self, connection: Connection) -> int:
        """Add what a relay carried since the last time, so that a long connection shows in the
        metrics while it lives; return how much.
        """
        relay, cell = connection.relay
        received, sent = relay.take()
        cell.received += received
        cell.sent += sent
        connection.received += received
        connection.sent += sent
        return int(received + sent)

    def sweep(self, connection: Connection) -> None:
        """Count what *connection*, which is relayed, carried since the last time, and close it if
        it has stood still for too long.
        """
        pipeline = self._pipeline
        if self._count_bytes(connection):
            connection.active = pipeline.context.now
        elif (
            pipeline.context.timeouts.stream_idle is not None
            and pipeline.context.now - connection.active > pipeline.context.timeouts.stream_idle
        ):
            connection.relay[0].downstream.transport.close()
