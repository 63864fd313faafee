"""How an endpoint is dialled: from inside which pod, with whose identity, and what is spoken there."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nodeagent.errors import (
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    NO_CERTIFICATE,
    UPSTREAM_TLS,
    IdentityError,
    Reason,
)
from nodeagent.identity.spiffe import same_account
from nodeagent.identity.tls import SHARED_ALPN, TUNNEL_ALPN, Contexts, Inside, peer_expiry, peer_identity
from nodeagent.log_lines import SparingLog
from nodeagent.mesh import entries
from nodeagent.proxy.context import Context
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.shared.lease import Leased
from nodeagent.proxy.sniff import begins_http2
from nodeagent.proxy.tls.stream import TlsStream
from nodeagent.proxy.transport import Transport
from nodeagent.vocabulary import SpiffeId, family_of, host_port

_ELSEWHERE: Final = frozenset((errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL))
"""What tells that an endpoint is not at this address, and may be at another."""
log: Final = SparingLog(logging.getLogger("nodeagent.proxy"))


class DialError(Exception):
    """An endpoint could not be reached; ``reason`` is what the client is told."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


class Tunnel(Protocol):
    """What carries connections to one pod (``proxy/hbone/``)."""

    async def lead(self, address: str, port: int) -> Dialled:
        """Return a connection to *port* at *address*, the pod's own. Raises DialError."""


@dataclass(frozen=True, slots=True)
class Dial:
    """How to reach an endpoint: from inside which pod, at which address, expecting whom (None:
    plaintext).

    ``other``: its address in the other family, empty if it has none; it is tried where nothing
    listens at the first: the client, whose connection the proxy took, cannot go there itself any
    more (RFC 8305 section 5). ``client``: the client's addresses, of which an application that is
    dialled itself sees the first of its family; the pool is that client's alone then. Empty:
    another proxy, or something outside, is dialled. ``bound``: what is dialled for a connection of
    the client serves that one alone, so that the network is asked about each. ``declared``: what
    the port is declared to speak. ``uid``: the pod that is there, empty where it is none: another
    one may get its address, and has none of its connections. ``tunnel``: what carries connections
    there; None: they are dialled. ``hbone``: such a tunnel's own are dialled. ``server_name``: the
    name of what was asked for, which mTLS tells; connections for another one are not mixed with them.
    """

    pod: PodState
    address: str
    port: int
    expected: SpiffeId | None
    other: str = ""
    client: tuple[str, ...] = ()
    bound: bool = False
    declared: entries.Protocol = "auto"
    uid: str = ""
    tunnel: Tunnel | None = None
    hbone: bool = False
    server_name: str = ""

    def contexts(self) -> Contexts | None:
        """Return the TLS contexts that a new connection would have; None: plaintext."""
        return self.pod.tls if self.expected is not None else None

    async def connect(self, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        """Return a connected transport, plain or a TlsStream whose peer proved to be ``expected`` and
        was told what is *inside*; *shared*: an agent is told that it is many such connections.

        Raises DialError.
        """
        if self.tunnel is not None:
            return await self.tunnel.lead(self.address, self.port)
        timeouts = context.timeouts
        try:
            async with asyncio.timeout(timeouts.connect):
                return await self._connect(context, inside, shared=shared)
        except TimeoutError:
            raise DialError(
                NO_CERTIFICATE if self.expected is not None and self.pod.tls is None else CONNECT_TIMEOUT
            ) from None
        except (ssl.SSLError, IdentityError) as error:
            between = f"{self.pod.identity} to {host_port(self.address, self.port)}"
            log.tell(between, f"mTLS from {between} failed: {error}")
            raise DialError(UPSTREAM_TLS) from None
        except OSError as error:
            raise DialError(self._failed(error)) from None

    async def _connect(self, context: Context, inside: Inside, *, shared: bool) -> Dialled:
        loop = context.loop
        tls = await self.pod.certified() if self.expected is not None else None
        if self.expected is not None and tls is None:
            raise DialError(NO_CERTIFICATE)
        try:
            sock = await self._connected(context, self.address)
        except OSError as error:
            if not self.other or error.errno not in _ELSEWHERE:
                raise
            sock = await self._connected(context, self.other)
        if tls is None:
            return (await loop.create_connection(Dialled, sock=sock))[1]
        established: asyncio.Future[TlsStream] = loop.create_future()

        def failed(error: Exception) -> None:
            if not established.done():
                established.set_exception(error)

        offered = tls.tunnel.client if self.hbone and tls.tunnel is not None else tls.client(inside, shared=shared)
        stream = TlsStream(
            offered, server_side=False, ready=established.set_result, failed=failed, server_name=self.server_name
        )
        dialled = stream.protocol = Dialled()
        dialled.transport = stream
        await loop.create_connection(lambda: stream, sock=sock)  # type: ignore[type-var]  # asyncio's protocols are duck-typed
        try:
            await established
            dialled.shared = stream.session.selected_alpn_protocol() == (TUNNEL_ALPN if self.hbone else SHARED_ALPN)
            mesh = context.mesh
            found = peer_identity(stream.session, mesh.trust_domain, mesh.trust_domain_aliases)
            if self.expected is None or not same_account(found, self.expected):
                raise IdentityError(f"{self.address}:{self.port} proved to be {found}, not {self.expected}")
            dialled.expires = peer_expiry(stream.session)
        except BaseException:
            stream.abort()
            raise
        return dialled

    async def _connected(self, context: Context, address: str) -> socket.socket:
        """Return a socket that is connected to the endpoint at *address*. Raises OSError."""
        family = family_of(address)
        sock = await self.pod.stock[family].take()
        try:
            seen = next((own for own in self.client if (":" in own) == (family == 6)), None)
            if seen is not None and context.announce is not None:
                context.announce(sock, seen)
            await _connect_socket(context.loop, sock, (address, self.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _failed(self, error: OSError) -> Reason:
        """Return the reason that says which addresses could not be reached, and what the kernel said of the last."""
        where = " and ".join(host_port(address, self.port) for address in (self.address, self.other) if address)
        return replace(CONNECT_FAILED, hint=f"{where}: {error.strerror or error}: {CONNECT_FAILED.hint}")


async def _connect_socket(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: tuple[str, int]) -> None:
    """Connect to a numeric *address*; the loop's own sock_connect would start resolver threads for
    it. Raises OSError.
    """
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock, _wake, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Dialled(asyncio.Protocol):
    """A connected transport that waits for its real protocol; keeps what a server that speaks first says meanwhile."""

    def __init__(self) -> None:
        self.transport: Transport
        self.early = b""
        self.ended = self.lost = False
        self.shared = False
        """Its peer agreed to carry many connections over it."""
        self.expires = 0.0
        """When the certificate that its peer showed ends, Unix seconds; 0: it showed none."""
        self.stream: Leased | None = None
        """What it is, where a shared connection carries it."""
        self._heard: asyncio.Future[None] | None = None

    def heard(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return what is done as soon as the server has said something, or leaves. That it takes
        HTTP/2 is no word: its client may still be silent. What is said behind that without end is:
        all of it is kept here.
        """
        self._heard = loop.create_future()
        self._told()
        return self._heard

    def _told(self) -> None:
        spoke = self.early != b"" and not begins_http2(self.early)
        if self._heard is not None and not self._heard.done() and (spoke or self.ended or self.lost):
            self._heard.set_result(None)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # it is one of these
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.early += data
        self._told()

    def eof_received(self) -> bool:
        self.ended = True
        self._told()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._told()
