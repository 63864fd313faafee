"""The daemon's own small HTTP server: admin, metrics, readiness.

It answers people, Prometheus and the kubelet a few times a minute, and must stay harmless to the
data plane whoever connects: heads, bodies, connections and times are bounded. Written here because
aiohttp adds 7 MB to the daemon, a tenth of what it has, and bounds neither connections nor times.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError, NodeagentError
from nodeagent.telemetry.http_request import BadRequestError, Request, Response, Routes, answer_head, chunk, parse
from nodeagent.telemetry.negotiation import preferred
from nodeagent.telemetry.sources import Sources

__all__ = ["EVERYWHERE", "LOCALHOST", "HttpServer", "Response", "Routes", "ServerLimits", "serve", "serve_unix"]

LOCALHOST: Final = ("127.0.0.1", "::1")
EVERYWHERE: Final = ("0.0.0.0", "::")
_BACKLOG: Final = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on what clients may make the daemon hold."""

    connections: int = 64
    """Beyond it, the connection that has waited longest for its next request goes."""
    connections_per_source: int = 16
    """The same among those of one address. The node itself (loopback, a unix socket) has no bound of its own."""
    requests_per_second: float = 20.0
    """Of one address, after as many at once as two seconds allow; what is more waits."""
    head_bytes: int = 8192
    body_bytes: int = 65536
    request_seconds: float = 5.0
    """For a new connection's first request, and from a request's first byte to its last."""
    idle_seconds: float = 75.0
    """Between requests: more than Prometheus's usual interval, so that its connection is kept."""
    answer_seconds: float = 30.0
    """For the client to take the whole answer."""


class HttpServer:
    """Listening sockets, and the connections that they accepted."""

    def __init__(self, routes: Routes, limits: ServerLimits) -> None:
        self.port = 0
        """The TCP port, also where a free one was asked for; 0 on a unix socket."""
        self._routes = routes
        self._limits = limits
        self.listeners: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._sources = Sources(limits.requests_per_second, 2 * limits.requests_per_second)
        self._waiting: dict[asyncio.StreamWriter, None] = {}  # in the order in which they began to wait
        self._socket: tuple[Path, int] | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Accept on *listener*, which the server then owns."""
        self.listeners.append(listener)
        if listener.family == socket.AF_UNIX:
            path = Path(listener.getsockname())
            self._socket = (path, path.stat().st_ino)
            self._servers.append(
                await asyncio.start_unix_server(
                    self._accepted, sock=listener, limit=self._limits.head_bytes, backlog=_BACKLOG
                )
            )
        else:
            self.port = listener.getsockname()[1]
            self._servers.append(
                await asyncio.start_server(
                    self._accepted, sock=listener, limit=self._limits.head_bytes, backlog=_BACKLOG
                )
            )

    async def close(self) -> None:
        """Stop listening, drop every connection, remove the unix socket unless a successor has put its own there."""
        for server in self._servers:
            server.close()
        for task, writer in self._tasks.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(FileNotFoundError):
            if self._socket and self._socket[0].stat().st_ino == self._socket[1]:
                self._socket[0].unlink()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not self._has_room(_source(writer)):
            writer.transport.abort()
            return
        self._tasks[task] = writer
        # So that drain() means that the client has taken everything, and the bound on time is one
        # on memory.
        writer.transport.set_write_buffer_limits(0)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, EOFError):
            pass  # gone or too slow: there is nobody to tell
        finally:
            del self._tasks[task]
            self._waiting.pop(writer, None)
            writer.transport.abort()

    def _has_room(self, source: str) -> bool:
        """Say whether one more connection of *source* may stay; for that the one that has waited
        longest goes, of the same source where that has its share.
        """
        full = len(self._tasks) >= self._limits.connections
        crowded = (
            bool(source)
            and sum(1 for writer in self._tasks.values() if _source(writer) == source)
            >= self._limits.connections_per_source
        )
        if not full and not crowded:
            return True
        victim = next((writer for writer in self._waiting if not crowded or _source(writer) == source), None)
        if victim is None:
            return False
        del self._waiting[victim]
        victim.transport.abort()
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        patience = self._limits.request_seconds
        source = _source(writer)
        keep_alive = True
        while keep_alive:
            self._waiting[writer] = None
            try:
                request = await self._receive(reader, patience)
            except BadRequestError as error:
                refusal = Response(f"{error}\n".encode(), error.status)
                await self._send(writer, refusal, keep_alive=False, chunked=False, bodiless=False)
                await self._linger(reader, writer)
                return
            del self._waiting[writer]
            if source and (wait := self._sources.wait(source)):
                await asyncio.sleep(wait)
            keep_alive = request.keep_alive and request.chunked
            response = await self._answer(request)
            await self._send(
                writer, response, keep_alive=keep_alive, chunked=request.chunked, bodiless=request.method == "HEAD"
            )
            patience = self._limits.idle_seconds

    async def _receive(self, reader: asyncio.StreamReader, patience: float) -> Request:
        async with asyncio.timeout(patience):
            first = await reader.readexactly(1)
        async with asyncio.timeout(self._limits.request_seconds):
            try:
                request = parse(first + await reader.readuntil(b"\r\n\r\n"), self._limits.body_bytes)
            except asyncio.LimitOverrunError:
                raise BadRequestError(431, f"a request's head has at most {self._limits.head_bytes} bytes") from None
            remaining = request.length
            while remaining:
                remaining -= len(await reader.readexactly(min(remaining, self._limits.head_bytes)))
        return request

    async def _answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._routes.get((method, request.path))
        if handler is None:
            known = sorted({path for _, path in self._routes})
            status, message = (
                (405, f"{request.path} does not take {method}")
                if request.path in known
                else (404, f"no such path; there is: {' '.join(known)}")
            )
            return Response(f"{message}\n".encode(), status)
        try:
            response = await handler(request.query)
            if not response.variants:
                return response
            chosen = preferred(request.accept, response.variants)
            return replace(response, body=await chosen.body(), content_type=chosen.content_type)
        except NodeagentError as error:
            return Response(f"{error}\n".encode(), 500)
        except Exception:  # noqa: BLE001 - a handler's mistake must not end the agent, and is logged whole
            _log.exception("%s %s failed", method, request.path)
            return Response(b"internal error; the agent's log says more\n", 500)

    async def _send(
        self, writer: asyncio.StreamWriter, response: Response, *, keep_alive: bool, chunked: bool, bodiless: bool
    ) -> None:
        async with asyncio.timeout(self._limits.answer_seconds):
            writer.write(answer_head(response, keep_alive=keep_alive, chunked=chunked))
            if not bodiless:
                for piece in _pieces(response.body, chunked):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)  # the loop has more to do than this answer
            await writer.drain()

    async def _linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what else was sent, within bounds: closing on unread bytes makes a RST, and the
        client loses the answer.
        """
        writer.write_eof()
        async with asyncio.timeout(1.0):
            for _ in range(64):
                if not await reader.read(self._limits.head_bytes):
                    return


def _source(writer: asyncio.StreamWriter) -> str:
    """Return the address from which somebody else than the node asks, empty where it is the node."""
    peer = writer.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) and peer[0] not in (*LOCALHOST, f"::ffff:{LOCALHOST[0]}") else ""


def _pieces(body: bytes | Iterable[bytes], chunked: bool) -> Iterable[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    for piece in body:
        if piece:
            yield chunk(piece) if chunked else piece
    if chunked:
        yield chunk(b"")


async def serve(
    routes: Routes,
    *,
    port: int = 0,
    hosts: Sequence[str] = LOCALHOST,
    limits: ServerLimits | None = None,
    inherited: Mapping[str, socket.socket] | None = None,
) -> HttpServer:
    """Serve *routes* on TCP *port* of *hosts* (LOCALHOST or EVERYWHERE); port 0 takes a free one,
    the same on all hosts. *inherited*: listeners that are there already, by host, for *port*.

    An IPv6 host is left out where the machine has no IPv6. Raises ConfigError when the port is
    taken.
    """
    server = HttpServer(routes, limits or ServerLimits())
    there = inherited or {}
    for host in hosts:
        try:
            listener = there[host] if host in there else _tcp_listener(host, port)
        except OSError as error:
            if ":" in host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            await server.close()
            raise ConfigError(
                f"{host} port {port}: {error.strerror}: does another agent run here? (telemetry.*Port chooses others)"
            ) from None
        await server.listen(listener)
        port = server.port
    return server


async def serve_unix(routes: Routes, path: Path, *, limits: ServerLimits | None = None) -> HttpServer:
    """Serve *routes* on a unix socket at *path*, mode 0600; what a dead process left there is
    replaced.

    Raises ConfigError when it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)  # before it listens, so nobody can have connected
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{path}: {error.strerror or error}: runtimeDirectory must be a folder in which the agent may make sockets"
        ) from None
    server = HttpServer(routes, limits or ServerLimits())
    await server.listen(listener)
    return server


def _tcp_listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
