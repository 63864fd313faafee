"""Observe: the access-log records of requests, and of connections that are carried as bytes or not at all.

The order of the values is Envoy's default format's (``telemetry/log_format.py``); ``-`` stands for
what there is not.
"""

from __future__ import annotations

from nodeagent.errors import Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.route import Route
from nodeagent.telemetry.log_format import Record


def request_record(
    exchange: Exchange, route: Route, status: int, reason: Reason | None, wall: float, milliseconds: float
) -> Record:
    """Return the record of *exchange*, which began at *wall* (Unix seconds), took *milliseconds* on
    *route* and was answered with *status*; *reason*: why the answer is not the application's.
    """
    connection = exchange.downstream.connection
    return (
        wall,
        exchange.method.decode("latin-1"),
        exchange.target.decode("latin-1"),
        exchange.protocol,
        status,
        "-" if reason is None else reason.flag,
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
        "-" if exchange.call is None else exchange.call.ended(status) or "-",
    )


def connection_record(
    connection: Connection, route: Route, reason: Reason | None, wall: float, received: int, sent: int, seconds: float
) -> Record:
    """Return the record of *connection*, which was carried as bytes on *route* for *seconds* from
    *wall* (Unix seconds) on; *reason*: why it was not carried. *received* and *sent*: bytes as the
    client sent and got them.
    """
    return (
        wall,
        "-",
        "-",
        "-",
        0,
        "-" if reason is None else reason.flag,
        "-" if reason is None else reason.details,
        "-",
        "-",
        received,
        sent,
        seconds * 1000,
        None,
        "-",
        "-",
        "-",
        "-",
        route.upstream_host,
        route.cluster,
        "-",
        connection.local_text,
        connection.peer_text,
        "-",
        "-",
        "-",
    )
