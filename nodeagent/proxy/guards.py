"""Authorize: the guards of the pods' ports, and which of them a route meets."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.errors import UNPARSED_HTTP
from nodeagent.mesh.entries import Workload, takes_mtls
from nodeagent.proxy.client_guard import UNGUARDED, ClientGuard, Surroundings, facts
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.guard import Compiler, Guard
from nodeagent.proxy.route import Route


@dataclass(frozen=True)
class _Made:
    """A guard, and on what it rests."""

    guard: Guard
    protection: int
    """Of the view when it was made."""
    policies: tuple[str, ...]
    """The keys of the workload's policies."""


class Guards:
    """One proxy's guards: one for each protected pod of this node and kind of traffic, made when it is first met."""

    def __init__(self, context: Context, providers: Providers) -> None:
        """*providers*: whom policies may ask."""
        self._context = context
        self.around = Surroundings(context.metrics, providers)
        self.compiler = Compiler(context.mesh)
        self._made: dict[tuple[str, bool], _Made] = {}

    def guard(self, connection: Connection, route: Route, *, http: bool) -> ClientGuard:
        """Return what stands between the client of *connection* and the application on *route*. It
        is kept there: a change of policies ends the routes.
        """
        bound = route.http_guard if http else route.tcp_guard
        if bound is not None:
            return bound
        bound = self._bound(connection, route, http)
        if http:
            route.http_guard = bound
        else:
            route.tcp_guard = bound
        return bound

    def forget(self, uid: str) -> None:
        """The pod *uid* is no longer enrolled."""
        for http in (False, True):
            self._made.pop((uid, http), None)

    def _bound(self, connection: Connection, route: Route, http: bool) -> ClientGuard:
        """Nothing stands there where another proxy will check."""
        workload = route.workload
        endpoint = route.endpoint
        if not route.delivers or workload is None or not workload.policies:
            return UNGUARDED
        assert endpoint is not None, "what is delivered to an application has an endpoint"
        guard = self._guard(workload, http)
        peer = connection.peer.workload
        client = f"{peer.namespace}/{peer.pod}" if peer is not None else connection.peer.address
        known = facts(connection, endpoint, _server_name(connection, workload, endpoint.port))
        bound = ClientGuard(guard, known, client, f"{workload.namespace}/{workload.workload}", endpoint.uid)
        if not http and guard.reads_requests and workload.protocol_at(endpoint.port) != "tcp":
            bound.reason = UNPARSED_HTTP
        return bound

    def _guard(self, workload: Workload, http: bool) -> Guard:
        view = self._context.view
        known = self._made.get((workload.uid, http))
        # a pod that went and came back changes no verdict by itself
        if known is not None and known.protection == view.protection and known.policies == workload.policies:
            return known.guard
        previous = known.guard if known is not None else None
        guard = Guard.made(view, self.compiler, workload, previous, http=http, share=self._context.share)
        self._made[workload.uid, http] = _Made(guard, view.protection, workload.policies)
        return guard


def _server_name(connection: Connection, workload: Workload, port: int) -> str:
    """Return the server name that the pod of *workload* was told, or that it would be on another node."""
    if connection.direction == "inbound":
        return connection.sni
    return connection.target.server_name() if takes_mtls(workload, port) else ""
