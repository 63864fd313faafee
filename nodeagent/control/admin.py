"""The ports at which the daemon answers about itself: admin API, metrics, readiness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nodeagent.config import Telemetry
from nodeagent.telemetry.http_request import Handler, Routes
from nodeagent.telemetry.http_server import EVERYWHERE, LOCALHOST, HttpServer, serve, serve_unix


class AdminPorts:
    """The HTTP servers of control. They open when there is something to tell, and close last: what
    drains is still told.
    """

    def __init__(self, telemetry: Telemetry, runtime_directory: Path) -> None:
        self._telemetry = telemetry
        self._socket = runtime_directory / "admin.sock"
        self._servers = AsyncExitStack()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Leaving closes what :meth:`open` opened, in that order's reverse."""
        yield
        await self._servers.aclose()

    async def open(self, admin: Routes, metrics: Routes, ready: Handler) -> None:
        """Open the ports of ``telemetry`` in agent.yaml (0: any free one) and the admin socket.

        *admin* is told on localhost and at the socket; *metrics* and *ready* everywhere. Raises
        ConfigError when one of them cannot be had.
        """
        telemetry = self._telemetry
        readiness = {("GET", "/ready"): ready, ("GET", "/healthz/ready"): ready}
        self._close(await serve(admin, port=telemetry.admin_port, hosts=LOCALHOST))
        self._close(await serve_unix(admin, self._socket))
        self._close(await serve(metrics, port=telemetry.metrics_port, hosts=EVERYWHERE))
        self._close(await serve(readiness, port=telemetry.ready_port, hosts=EVERYWHERE))

    def _close(self, server: HttpServer) -> None:
        self._servers.push_async_callback(server.close)
