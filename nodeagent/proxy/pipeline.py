"""The way of a connection through the proxy: accept → identify → authorize → route → forward →
observe.

One instance a worker. Everything here runs on the worker's event loop, without locks; what can be
decided once per connection or per route is not decided again per request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import replace
from time import perf_counter
from typing import Final, Literal, cast

from nodeagent.errors import DEADLINE, EXTERNAL_ERROR, NO_ENDPOINTS, PROBE_REFUSED, Reason
from nodeagent.proxy.carried import Ends
from nodeagent.proxy.carry import Admitted, Carrier
from nodeagent.proxy.client_guard import UNGUARDED
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.grpc.call import Call, call_of
from nodeagent.proxy.guards import Guards
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.http2.downstream import Http2Downstream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.permit import OPEN, asked_health, is_probe
from nodeagent.proxy.records import request_record
from nodeagent.proxy.request_ids import RequestIds
from nodeagent.proxy.route import Route
from nodeagent.proxy.routing import Routing, pick
from nodeagent.proxy.sniff import Verdict
from nodeagent.proxy.transport import Transport
from nodeagent.telemetry.cells import HttpCell

ELSEWHERE: Final = 2
"""How many other endpoints are tried where one cannot be reached: as often as Istio's default retries."""
log = logging.getLogger("nodeagent.proxy")


class Pipeline(Line):
    """The line itself: each method is a station, in the order in which they are passed."""

    def __init__(self, context: Context, routing: Routing, guards: Guards, ledger: Ledger, carrier: Carrier) -> None:
        self._context = context
        self._busy_poll = context.busy_poll
        self._routing = routing
        self._guards = guards
        self._ledger = ledger
        self._carrier = carrier
        self._request_ids = RequestIds()
        self._waiting: set[asyncio.Task[None]] = set()

    def begin(self, admitted: Admitted, verdict: Verdict | Literal["silent"], early: bytes) -> None:
        """Carry an identified and permitted connection of which *verdict* says what it is,
        ``silent``: nothing yet; *early* was read already.
        """
        if verdict == "http" or (verdict == "http2" and not self._asks_health(admitted, early)):
            self._as_http(admitted, early, verdict)
            return
        connection = admitted.connection
        connection.protocol = "http2" if verdict == "http2" else "tcp"
        connection.probe = bool(admitted.permit.probes)
        self._carrier.begin(admitted, early, self._as_http, silent=verdict == "silent")

    def request(self, exchange: Exchange) -> None:
        """Authorize, route and forward one HTTP request; :meth:`observe` follows when it is answered."""
        self._busy_poll.event(exchange.started)
        if exchange.content_type:
            exchange.call = call_of(exchange.content_type, exchange.protocol)
        downstream = exchange.downstream
        permit = downstream.permit
        # what asks to leave HTTP is more than a probe, whatever it is called
        probe = permit is not OPEN and not exchange.upgrade and is_probe(permit, exchange.method, exchange.target)
        if not probe:
            downstream.connection.probe = False
            if permit.only_probes:
                exchange.refuse(PROBE_REFUSED)
                return
        self._send_to(exchange, self.route(exchange), probe=probe)

    def route(self, exchange: Exchange) -> Route:
        """Return where *exchange* goes: of two random endpoints the less busy one."""
        routes = self._routing.routes(exchange.downstream.connection)
        return routes[0] if len(routes) == 1 else pick(routes)

    def forward(self, exchange: Exchange, route: Route) -> None:
        """Send an authorized request to its endpoint."""
        pool = route.pool
        if pool is None:
            exchange.refuse(NO_ENDPOINTS)
            return
        connection = exchange.downstream.connection
        if connection.upstream_workload is not route.workload or connection.path != route.path:
            self._ledger.follow(connection, route)
        exchange.since = self._context.now
        if exchange.call is not None:
            exchange.fields = exchange.call.shortened(exchange.fields, perf_counter() - exchange.started)
        pool.send(exchange)

    def elsewhere(self, exchange: Exchange) -> bool:
        route = cast(Route, exchange.route)
        others = [each for each in self._routing.routes(exchange.downstream.connection) if each.pool is not route.pool]
        if not others or exchange.missed >= ELSEWHERE:
            return False
        exchange.missed += 1
        route.active -= 1
        self._send_to(exchange, pick(others))
        return True

    def observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        """Count an answered request and write its access-log record."""
        context = self._context
        connection = exchange.downstream.connection
        if exchange.route is None:
            route = self._routing.nowhere(connection)
        else:
            route = cast(Route, exchange.route)
            route.active -= 1
        now = perf_counter()
        self._busy_poll.event(now)
        milliseconds = (now - exchange.started) * 1000
        connection.answered(status, reason, exchange.received, exchange.sent)
        flag = "-" if reason is None else reason.flag
        call = exchange.call
        cell = route.cell(status, flag) if call is None else self._ended(connection, call, route, status, flag)
        cell.observe(milliseconds, exchange.received, exchange.sent)
        if context.access_log is not None:
            wall = exchange.started + context.wall_offset
            context.access_log.log(request_record(exchange, route, status, reason, wall, milliseconds))

    # -- what codecs ask of the line --

    def new_request_id(self) -> bytes:
        return self._request_ids.take()

    def tunnel(self, exchange: Exchange, client: Transport, endpoint: Transport, early: bytes, rest: bytes) -> None:
        self.observe(exchange, exchange.status, None)
        self._carrier.tunnel(exchange, Ends(client, endpoint, early, rest))

    def broke(self, connection: Connection, reason: Reason, words: str) -> None:
        connection.refused(replace(reason, hint=f"{words}: {reason.hint}"))
        self._ledger.count_refused(reason)

    def closed(self, connection: Connection) -> None:
        self._ledger.closed(connection)

    # -- parts of the stations --

    def _send_to(self, exchange: Exchange, route: Route, *, probe: bool = False) -> None:
        """Authorize and forward *exchange* on *route*; what is a *probe* nobody guards against."""
        exchange.route = route
        route.active += 1
        if exchange.call is not None:
            self._calls(exchange, exchange.call, route)
        if route.http_guard is UNGUARDED or self._admits(exchange, route, probe=probe):
            self.forward(exchange, route)

    def _calls(self, exchange: Exchange, call: Call, route: Route) -> None:
        """Count the messages of a gRPC call from here on, and end it when its client's time is over."""
        first = call.cell is None
        call.cell = route.messages()
        seconds = call.waits(exchange.fields) if first else -1.0
        if seconds >= 0:
            call.timer = self._context.loop.call_later(seconds, exchange.give_up, DEADLINE)

    def _ended(self, connection: Connection, call: Call, route: Route, status: int, flag: str) -> HttpCell:
        """Note the end of a gRPC call; return what counts it."""
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        grpc_status = call.ended(status)
        connection.called(grpc_status)
        return route.call_cell(status, grpc_status, flag)

    def _asks_health(self, admitted: Admitted, early: bytes) -> bool:
        """Say whether the client of HTTP/2 is the node, which may ask for the health that a gRPC probe
        of the pod declares, whatever policies say (``carry.py``). One that policies let in comes as
        HTTP: bytes that nobody reads could forge what the proxy says of the client.
        """
        if admitted.permit.only_probes:
            return True
        if not asked_health(admitted.permit, early):
            return False
        connection = admitted.connection
        route = pick(self._routing.routes(connection))
        guard = self._guards.guard(connection, route, http=False)
        return guard.reason is not None or (guard.decision is not None and guard.decision.custom != "")

    def _as_http(self, admitted: Admitted, early: bytes, version: Verdict) -> None:
        """Give the connection to the codec for what the client speaks."""
        connection = admitted.connection
        connection.protocol = version
        connection.probe = bool(admitted.permit.probes)
        made = Http2Downstream if version == "http2" else Http1Downstream
        codec = made(self, self._context, connection, admitted.permit, admitted.transport)
        connection.carriage = codec
        admitted.transport.set_protocol(codec)
        if early:
            codec.data_received(early)

    def _admits(self, exchange: Exchange, route: Route, *, probe: bool) -> bool:
        """Authorize: say whether *exchange* may be forwarded; else it was refused, or others are asked first."""
        guard = route.http_guard
        if guard is None:
            guard = self._guards.guard(exchange.downstream.connection, route, http=True)
        if guard is UNGUARDED:
            return True
        if probe:
            guard.spares(exchange)
            return True
        verdict = guard.admits(self._guards.around, exchange)
        if isinstance(verdict, bool):
            return verdict
        if exchange.pending is None:
            exchange.pending = []  # what the client sends meanwhile
        task = self._context.loop.create_task(self._decided(exchange, route, verdict))
        exchange.deciding = task
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return False

    async def _decided(self, exchange: Exchange, route: Route, verdict: Awaitable[Reason | None]) -> None:
        """Forward or refuse *exchange* when *verdict* is there, unless its client did not wait."""
        try:
            reason = await verdict
            if reason is None and not exchange.finished:
                self.forward(exchange, route)
        except Exception as error:
            log.error("a request could not be decided, or not forwarded: %s", error, exc_info=error)
            reason = EXTERNAL_ERROR
        if reason is not None:
            exchange.give_up(reason)
