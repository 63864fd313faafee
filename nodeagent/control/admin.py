"""The ports at which the daemon answers about itself: admin API, metrics, readiness."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nodeagent.config import Telemetry
from nodeagent.telemetry.http_request import Handler, Routes
from nodeagent.telemetry.http_server import EVERYWHERE, LOCALHOST, HttpServer, serve, serve_unix


class AdminPorts:
    """The HTTP servers of control. They open when there is something to tell, and close last: what
    drains is still told.
    """

    def __init__(self, telemetry: Telemetry, runtime_directory: Path, inherited: dict[str, socket.socket]) -> None:
        """*inherited*: listeners of the daemon that is succeeded, by ``ROLE/ADDRESS``; those that fit are taken out."""
        self._telemetry = telemetry
        self._socket = runtime_directory / "admin.sock"
        self._inherited = inherited
        self._open: dict[str, HttpServer] = {}
        self._servers = AsyncExitStack()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Leaving closes what :meth:`open` opened, in that order's reverse."""
        yield
        await self.close()

    async def close(self) -> None:
        """Close what :meth:`open` opened."""
        await self._servers.aclose()

    async def open(self, admin: Routes, metrics: Routes, ready: Handler) -> None:
        """Open the ports of ``telemetry`` in agent.yaml (0: any free one) and the admin socket.

        *admin* is told on localhost and at the socket; *metrics* and *ready* everywhere. Raises
        ConfigError when one of them cannot be had.
        """
        telemetry = self._telemetry
        readiness = {("GET", "/ready"): ready, ("GET", "/healthz/ready"): ready}
        await self._serve("admin", admin, telemetry.admin_port, LOCALHOST)
        self._close(await serve_unix(admin, self._socket))
        await self._serve("metrics", metrics, telemetry.metrics_port, EVERYWHERE)
        await self._serve("ready", readiness, telemetry.ready_port, EVERYWHERE)

    def listeners(self) -> dict[str, int]:
        """Return the TCP listeners, by ``ROLE/ADDRESS``: for a daemon that goes on with them."""
        found: dict[str, int] = {}
        for role, server in self._open.items():
            for listener in server.listeners:
                found[f"{role}/{listener.getsockname()[0]}"] = listener.fileno()
        return found

    async def _serve(self, role: str, routes: Routes, port: int, hosts: Sequence[str]) -> None:
        inherited = {host: self._fitting(f"{role}/{host}", port) for host in hosts}
        found = {host: listener for host, listener in inherited.items() if listener is not None}
        server = await serve(routes, port=port, hosts=hosts, inherited=found)
        self._open[role] = server
        self._close(server)

    def _fitting(self, key: str, port: int) -> socket.socket | None:
        """Return the inherited listener *key*, if it listens on *port*."""
        listener = self._inherited.pop(key, None)
        if listener is not None and port not in (0, listener.getsockname()[1]):
            listener.close()
            return None
        return listener

    def _close(self, server: HttpServer) -> None:
        self._servers.push_async_callback(server.close)
