"""Observe, of connections: which are open, which path they take, what was refused and why.

Each connection is entered once and struck once; requests are counted by the pipeline.
"""

from __future__ import annotations

from time import time

from nodeagent.errors import Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.records import connection_record
from nodeagent.proxy.route import Route
from nodeagent.proxy.routing import Routing
from nodeagent.proxy.transport import Transport, reset
from nodeagent.telemetry.metrics import CONNECTIONS, REFUSED


class Ledger:
    """One proxy's."""

    def __init__(self, context: Context, routing: Routing) -> None:
        self._context = context
        self._routing = routing

    def opened(self, connection: Connection) -> None:
        """Enter *connection*."""
        context = self._context
        context.connections[connection.number] = connection
        connection.pod.connections += 1
        if len(context.connections) == 1 and context.stir is not None:
            context.stir()

    def closed(self, connection: Connection) -> None:
        """Strike *connection*, which is gone; it stays among the recent flows for a while. Again: nothing."""
        context = self._context
        if context.connections.pop(connection.number, None) is None:
            return
        connection.pod.connections -= 1
        connection.closed = time()
        connection.let_go()
        if connection.verdict == "pending" and connection.peer.address in context.node_addresses:
            connection.probe = True  # the kubelet has looked whether somebody listens
        if connection.pod.uid in context.pods:
            context.recent.add(connection)

    def follow(self, connection: Connection, route: Route) -> None:
        """Note which path *connection* takes; it is counted by the first."""
        if connection.path == "none":
            self._context.metrics.count(CONNECTIONS, (connection.direction, route.path))
        connection.path = route.path
        connection.upstream_workload = route.workload

    def refuse(self, connection: Connection, transport: Transport, reason: Reason) -> None:
        """Cut *connection* before it carried anything; the client sees a reset."""
        connection.refused(reason)
        self.failed(connection, self._routing.nowhere(connection), reason, time(), 0.0)
        reset(transport)

    def failed(self, connection: Connection, route: Route, reason: Reason, wall: float, seconds: float) -> None:
        """Count, log and strike *connection*, which began at *wall* (Unix seconds) and carried nothing
        for *seconds*: by its *reason*, and under that's response flag in Istio's metrics.
        """
        self.count_refused(reason)
        cell = route.tcp(reason.flag)
        cell.opened += 1
        cell.closed += 1
        self.record(connection, route, reason, wall, 0, 0, seconds)
        self.closed(connection)

    def record(
        self,
        connection: Connection,
        route: Route,
        reason: Reason | None,
        wall: float,
        received: int,
        sent: int,
        seconds: float,
    ) -> None:
        """Write the access-log record of a connection, see ``records.connection_record``, if there is such a log."""
        access_log = self._context.access_log
        if access_log is not None:
            access_log.log(connection_record(connection, route, reason, wall, received, sent, seconds))

    def count_refused(self, reason: Reason) -> None:
        """Count a connection that was refused, or ended, for *reason*."""
        self._context.metrics.count(REFUSED, (reason.code,))
