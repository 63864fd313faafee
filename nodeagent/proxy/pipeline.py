"""The way of a connection through the proxy: accept → identify → authorize → route → forward →
observe.

One instance a worker. Everything here runs on the worker's event loop, without locks; what can be
decided once per connection or per route is not decided again per request.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from time import monotonic, perf_counter, time
from typing import Any, Final, cast

from nodeagent.errors import CERTIFICATE_ENDED, EXTERNAL_ERROR, NO_ENDPOINTS, PROBE_REFUSED, UNPARSED_HTTP, Reason
from nodeagent.proxy.authorize import OPEN, Permit, Refusal, authorize_connection, is_probe
from nodeagent.proxy.carry import Carrier
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.first_words import FirstWords
from nodeagent.proxy.goaway import go_away
from nodeagent.proxy.guard import UNGUARDED, Bound, Compiler, Guard, facts
from nodeagent.proxy.http import patience
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.pace import Pace
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.pool import Dial
from nodeagent.proxy.route import Route
from nodeagent.proxy.routing import Routing
from nodeagent.proxy.tcp import reset
from nodeagent.telemetry.log_format import Record
from nodeagent.telemetry.metrics import CONNECTIONS, REFUSED
from nodeagent.vocabulary import host_port

SWEPT_A_TURN: Final = 512
"""Connections that a sweep looks at before the loop turns."""
log = logging.getLogger("nodeagent.proxy")


class Pipeline(Line):
    """The stages, put together over the *context* that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._request_ids: list[bytes] = []
        self.routing = Routing(self)
        self.carrier = Carrier(self)
        self.compiler = Compiler(context.trust_domain)
        self._guards: dict[tuple[str, bool], tuple[Guard, int, tuple[str, ...]]] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self.providers = Providers((), self.routing.way_to)
        """Whom policies may ask (``extensionProviders``)."""

    # -- the line --

    def begin(self, connection: Connection, permit: Permit, transport: Any, verdict: str, early: bytes) -> None:
        """Carry an identified and permitted connection of which *verdict* says what it is,
        ``silent``: nothing yet; *early* was read already.
        """
        connection.protocol, connection.probe = verdict if verdict in ("http", "http2") else "tcp", bool(permit.probes)
        if verdict == "http":
            codec = Http1Downstream(self, self.context, connection, permit, transport)
            connection.http = codec
            transport.set_protocol(codec)
            if early:
                codec.data_received(early)
            return
        if permit.only_probes:
            self.carrier.probed(connection, permit, transport, early)
            return
        connection.early = early
        words = (
            FirstWords(self.context.loop, transport, self.context.timeouts.handshake, self.context.limits.header_bytes)
            if verdict == "silent"
            else None
        )
        if words is not None:
            transport.set_protocol(words)
        task = self.context.loop.create_task(
            self.carrier.carry(connection, transport, permit, self.context.view.generation, words)
        )
        connection.pod.open.add(task)
        task.add_done_callback(connection.pod.open.discard)

    def request(self, exchange: Exchange) -> None:
        """Authorize, route and forward one HTTP request; :meth:`observe` follows when it is answered."""
        self.context.busy_poll.event(exchange.started)
        connection = exchange.downstream.connection
        permit = exchange.downstream.permit
        probe = permit is not OPEN and is_probe(permit, exchange.method, exchange.target)
        if not probe:
            connection.probe = False
            if permit.only_probes:
                exchange.refuse(PROBE_REFUSED)
                return
        route = exchange.route = self.route(connection)
        route.active += 1
        guard = route.http_guard
        if guard is None:
            guard = self.guard(connection, route, http=True)
        if guard is UNGUARDED or probe or guard.admits(self, exchange, route):
            self.forward(exchange, route)

    def forward(self, exchange: Exchange, route: Route) -> None:
        """Send an authorized request to its endpoint."""
        if route.pool is None:
            exchange.refuse(NO_ENDPOINTS)
            return
        connection = exchange.downstream.connection
        if connection.upstream_workload is not route.workload or connection.path != route.path:
            self.follow(connection, route)
        exchange.since = self.context.now
        route.pool.send(exchange)

    def route(self, connection: Connection) -> Route:
        """Return the route of the connection's next request: of two random endpoints the less busy one."""
        if connection.view != self.context.view.generation:
            self.routing.provide(connection)
        routes: list[Route] = connection.routes
        if len(routes) == 1:
            return routes[0]
        one, other = _two(len(routes))
        return routes[one] if routes[one].active <= routes[other].active else routes[other]

    def tunnel(self, exchange: Exchange, client: Any, endpoint: Any, early: bytes, rest: bytes) -> None:
        self.carrier.tunnel(exchange, client, endpoint, early, rest)

    def follow(self, connection: Connection, route: Route) -> None:
        """Note which path the connection takes; it is counted by the first."""
        if connection.path == "none":
            self.context.metrics.count(CONNECTIONS, (connection.direction, route.path))
        connection.path, connection.upstream_workload = route.path, route.workload

    def observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        """Count an answered request and write its access-log record."""
        connection = exchange.downstream.connection
        if exchange.route is None:
            route = self.routing.nowhere(connection)
        else:
            route = cast(Route, exchange.route)
            route.active -= 1
        flags = "-" if reason is None else reason.flag
        now = perf_counter()
        self.context.busy_poll.event(now)
        milliseconds = (now - exchange.started) * 1000
        connection.answered(status, reason, exchange.received, exchange.sent)
        route.cell(status, flags).observe(milliseconds, exchange.received, exchange.sent)
        if self.context.access_log is not None:
            self.context.access_log.log(self._record(exchange, connection, route, status, flags, reason, milliseconds))

    # -- identify and authorize: at accept --

    def admit(self, connection: Connection) -> Permit | Refusal:
        """Authorize a connection at the server's side; a client's side asks nothing of its own pod."""
        if connection.direction == "outbound":
            return OPEN
        workload = self.context.view.workload(connection.pod.uid)
        if workload is None:
            return Refusal(NO_ENDPOINTS)
        from_node = connection.peer.address in self.context.node_addresses
        return authorize_connection(connection.peer, workload, connection.target.port, from_node=from_node)

    def opened(self, connection: Connection) -> None:
        self.context.connections[connection.number] = connection
        connection.pod.connections += 1

    def closed(self, connection: Connection) -> None:
        """The downstream connection is gone."""
        if self.context.connections.pop(connection.number, None) is not None:
            connection.pod.connections -= 1
            connection.closed = time()
            # it stays among the recent flows for a while, they shall not
            connection.http = connection.relay = connection.routes = None
            connection.view = -1
            if connection.verdict == "pending" and connection.peer.address in self.context.node_addresses:
                connection.probe = True  # the kubelet has looked whether somebody listens
            if connection.pod.uid in self.context.pods:
                self.context.recent.add(connection)

    def refuse(self, connection: Connection, transport: Any, reason: Reason) -> None:
        """Cut a connection before it carried anything; the client sees a reset."""
        connection.refused(reason)
        route = self.routing.nowhere(connection)
        self.count_failed(route, reason)
        self.tcp_record(connection, route, reason, time(), 0, 0, 0.0)
        self.closed(connection)
        if connection.protocol == "http2" and reason is UNPARSED_HTTP:
            go_away(self.context.loop, transport, reason)
        else:
            reset(transport)

    def guard(self, connection: Connection, route: Route, *, http: bool) -> Bound:
        """Return what stands between the client and the application on *route*, which is kept
        there: a change of policies ends the routes.
        """
        bound: Bound | None = route.http_guard if http else route.tcp_guard
        if bound is None:
            bound = self._bound(connection, route, http)
            if http:
                route.http_guard = bound
            else:
                route.tcp_guard = bound
        return bound

    def _bound(self, connection: Connection, route: Route, http: bool) -> Bound:
        """Nothing stands there where another proxy will check."""
        workload = route.workload
        if not route.delivers or workload is None or not workload.policies:
            return UNGUARDED
        key = (workload.uid, http)
        guard, protection, policies = self._guards.get(key, (None, -1, ()))
        # a pod that went and came back changes no verdict by itself
        if guard is None or protection != self.context.view.protection or policies != workload.policies:
            guard = Guard.made(self.context.view, self.compiler, workload, guard, http=http, share=self.context.share)
            self._guards[key] = (guard, self.context.view.protection, workload.policies)
        peer = connection.peer.workload
        client = f"{peer.namespace}/{peer.pod}" if peer is not None else connection.peer.address
        bound = guard.bind(facts(connection, route), client, f"{workload.namespace}/{workload.workload}")
        if (
            not http
            and guard.reads_requests
            and route.endpoint is not None
            and workload.protocol_at(route.endpoint.port) != "tcp"
        ):
            bound.reason = UNPARSED_HTTP
        return bound

    def release(self, uid: str) -> PodState | None:
        """Forget the pod *uid*, which is no longer enrolled; return what there was of it."""
        for http in (False, True):
            self._guards.pop((uid, http), None)
        self.context.recent.forget(uid)
        pod = self.context.pods.pop(uid, None)
        self.context.view.generation += pod is not None
        return pod

    async def reconsider(self) -> None:
        """After a change that may alter verdicts: close established connections that would not be permitted now."""
        pace = Pace()
        for connection in list(self.context.connections.values()):
            await pace.keep()
            if connection.http is None and connection.relay is None:
                continue  # gone, or not permitted yet: it will be by what is in force now
            reason = self.reconsidered(connection)
            if reason is not None:
                self.revoke(connection, reason)

    def reconsidered(self, connection: Connection) -> Reason | None:
        """Return why *connection* would not be permitted now, None where it would."""
        verdict = self.admit(connection)
        if isinstance(verdict, Refusal):
            return verdict.reason
        http = connection.http is not None
        if http:
            connection.http.permit = verdict
        requests = http and connection.relay is None
        if verdict.only_probes and not requests:
            return PROBE_REFUSED
        if verdict.probes and requests:
            return None  # each request is looked at
        self.route(connection)
        uid = connection.upstream_workload.uid if connection.upstream_workload is not None else ""
        routes = [
            route for route in connection.routes if http or (route.workload is not None and route.workload.uid == uid)
        ]
        reasons = [self.guard(connection, route, http=http).reason for route in routes]
        return reasons[0] if reasons and all(reason is not None for reason in reasons) else None

    def revoke(self, connection: Connection, reason: Reason) -> None:
        """Close an established connection that is no longer permitted."""
        self.count_refused(reason)
        connection.refused(reason)
        if connection.relay is not None:
            reset(connection.relay[0].downstream.transport)
        else:
            reset(connection.http.transport)

    # -- observe --

    def _record(
        self,
        exchange: Exchange,
        connection: Connection,
        route: Route,
        status: int,
        flags: str,
        reason: Reason | None,
        milliseconds: float,
    ) -> Record:
        return (
            exchange.started + self.context.wall_offset,
            exchange.method.decode("latin-1"),
            exchange.target.decode("latin-1"),
            exchange.protocol,
            status,
            flags,
            "via_upstream" if reason is None else reason.details,
            "-",
            "-",
            exchange.received,
            exchange.sent,
            milliseconds,
            milliseconds if exchange.upstream is not None else None,
            exchange.forwarded_for.decode("latin-1") or "-",
            exchange.user_agent.decode("latin-1") or "-",
            exchange.request_id.decode("latin-1") or "-",
            exchange.authority.decode("latin-1") or "-",
            route.upstream_host,
            route.cluster,
            "-",
            connection.local_text,
            connection.peer_text,
            "-",
            "default",
        )

    def tcp_record(
        self,
        connection: Connection,
        route: Route,
        reason: Reason | None,
        wall: float,
        received: int,
        sent: int,
        seconds: float,
    ) -> None:
        """Write the access-log record of a connection that is carried as bytes, or of none."""
        if self.context.access_log is None:
            return
        flags, details = ("-", "-") if reason is None else (reason.flag, reason.details)
        self.context.access_log.log((
            wall, "-", "-", "-", 0, flags, details, "-", "-", received, sent, seconds * 1000, None, "-", "-", "-", "-",
            route.upstream_host, route.cluster, "-", connection.local_text, connection.peer_text, "-", "-",
        ))  # fmt: skip

    def new_request_id(self) -> bytes:
        """Return a random UUID (version 4, RFC 9562) for a request that has none."""
        ids = self._request_ids
        if not ids:
            text = os.urandom(16 * 256).hex()
            drawn = [text[at : at + 32] for at in range(0, len(text), 32)]
            ids += [f"{one[:8]}-{one[8:12]}-4{one[13:16]}-a{one[17:20]}-{one[20:]}".encode() for one in drawn]
        return ids.pop()

    def count_failed(self, route: Route, reason: Reason) -> None:
        """Count a connection that carried nothing: by its reason, and under its response flag in Istio's metrics."""
        self.count_refused(reason)
        cell = route.tcp(reason.flag)
        cell.opened += 1
        cell.closed += 1

    def count_refused(self, reason: Reason) -> None:
        self.context.metrics.count(REFUSED, (reason.code,))

    def note_failure(self, dial: Dial, error: Exception) -> None:
        log.warning("mTLS from %s to %s failed: %s", dial.pod.identity, host_port(dial.address, dial.port), error)

    def wait(self, exchange: Exchange, verdict: Coroutine[Any, Any, None]) -> None:
        """Let *verdict*, which refuses or forwards *exchange*, wait for somebody else's answer;
        what the client sends meanwhile is held.
        """
        if exchange.pending is None:
            exchange.pending = []
        task = self.context.loop.create_task(self._decided(exchange, verdict))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _decided(self, exchange: Exchange, verdict: Coroutine[Any, Any, None]) -> None:
        try:
            await verdict
        except Exception as error:
            log.error("a request could not be decided: %s", error, exc_info=error)
            exchange.refuse(EXTERNAL_ERROR)

    # -- time --

    def renewed(self, pod: PodState) -> None:
        """*pod* has a new certificate: clients come back before the one that they were shown ends."""
        for connection in list(self.context.connections.values()):
            if (
                connection.pod is pod
                and connection.direction == "inbound"
                and connection.http is not None
                and connection.peer.security == "mutual_tls"
            ):
                connection.http.drain()

    def drain(self) -> None:
        """Ask clients to come back on new connections as they finish; idle upstream connections close."""
        self.context.draining = True
        for connection in list(self.context.connections.values()):
            if connection.http is not None:
                connection.http.drain()

    def sweep(self) -> None:
        """Enforce timeouts; runs a few times a second instead of a timer per request."""
        self.context.now = now = monotonic()
        self.context.wall_offset = time() - perf_counter()
        self._sweep_from(list(self.context.connections.values()), 0)
        self.routing.sweep(now, self.context.timeouts.idle)

    def _sweep_from(self, connections: list[Connection], at: int) -> None:
        """Look at a number of *connections* from index *at* on; the rest in the loop's next turn: a
        pod may hold thousands open.
        """
        now, now_wall, end = self.context.now, time(), at + SWEPT_A_TURN
        for connection in connections[at:end]:
            if connection.closed is not None:
                continue
            if connection.expires and connection.expires < now_wall:
                self.revoke(connection, CERTIFICATE_ENDED)
            elif connection.relay is not None:
                self.carrier.sweep(connection)
            elif connection.http is not None:
                patience.enforce(connection.http, now, self.context.timeouts)
        if end < len(connections):
            self.context.loop.call_soon(self._sweep_from, connections, end)


def _two(count: int) -> tuple[int, int]:
    """Return two different random indexes below *count* (at least 2)."""
    chosen = int.from_bytes(os.urandom(4), "little")
    one = chosen % count
    return one, (one + 1 + (chosen >> 16) % (count - 1)) % count
