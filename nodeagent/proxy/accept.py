"""Accept: what a captured connection is, before a byte of it is carried.

Whom it asked for, ``originals`` tells; the first bytes of an inbound one tell mTLS from plaintext.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Literal

from nodeagent.errors import (
    NO_CERTIFICATE,
    NO_ORIGINAL,
    NOT_HBONE,
    OVER_LIMIT,
    PLAINTEXT_REFUSED,
    UPSTREAM_TLS,
    IdentityError,
    Reason,
)
from nodeagent.identity.spiffe import same_account
from nodeagent.identity.tls import (
    HTTP2_ALPN,
    HTTP_ALPN,
    SHARED_ALPN,
    TUNNEL_ALPN,
    Contexts,
    peer_expiry,
    peer_identity,
)
from nodeagent.mesh.entries import HTTP, Protocol
from nodeagent.policy.model import MtlsMode
from nodeagent.proxy.admission import admit, is_hbone
from nodeagent.proxy.carry import Admitted
from nodeagent.proxy.connection import Connection, Peer
from nodeagent.proxy.context import Context
from nodeagent.proxy.hbone.server import HboneDownstream
from nodeagent.proxy.hbone.stream import HboneStream
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.originals import Originals
from nodeagent.proxy.permit import NotAdmitted, Permit
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.shared.heads import Carried
from nodeagent.proxy.shared.server import SharedDownstream
from nodeagent.proxy.shared.stream import SharedStream
from nodeagent.proxy.sniff import FirstLine, Verdict, sniff_declared
from nodeagent.proxy.tls.client_hello import ClientHello, NeedMore, parse
from nodeagent.proxy.tls.stream import TlsStream
from nodeagent.proxy.transport import Transport, peer_address, reset
from nodeagent.proxy.view import Resolved
from nodeagent.vocabulary import Direction, SpiffeId


@dataclass(frozen=True)
class Entrance:
    """What is behind the door: where connections are entered, and who takes them over."""

    context: Context
    ledger: Ledger
    begin: Callable[[Admitted, Verdict | Literal["silent"], bytes], None]
    """Goes on with a permitted connection of which it is known what it is, see ``Pipeline.begin``."""


class Accepted:
    """The protocol of a connection until it is known what it is; then it hands the transport on."""

    def __init__(self, entrance: Entrance, pod: PodState, direction: Direction, originals: Originals) -> None:
        self._entrance = entrance
        self._context = entrance.context
        self._ledger = entrance.ledger
        self._begin = entrance.begin
        self._pod = pod
        self._direction = direction
        self._originals = originals
        self._transport: Transport
        self._connection: Connection | None = None
        self._handed: Connection | None = None
        self._permit: Permit | None = None
        self._permitted = -1
        """By which generation of the snapshot."""
        self._early = b""
        self._timer: asyncio.TimerHandle | None = None
        self._protocol: Protocol = "auto"
        self._line: FirstLine | None = None

    # -- events of the transport --

    def connection_made(self, transport: Transport) -> None:
        self._transport = transport
        pod = self._pod
        target, peer, chosen = self._identify(transport)
        if target is None:
            self._ledger.count_refused(NO_ORIGINAL)
            reset(transport)
            return
        connection = self._connection = Connection(pod, self._direction, peer, target, time())
        connection.chosen = chosen
        if not self._is_entered(connection, transport):
            return
        self._protocol = target.protocol
        if self._direction == "outbound":
            self._admit()
            if self._protocol == "tcp":
                self._hand_on("tcp")
                return
        self._timer = self._context.loop.call_later(self._patience(), self._silent)

    def data_received(self, data: bytes) -> None:
        if self._handed:
            self._handed.early += data  # the endpoint is being dialled
            return
        self._early = early = self._early + data if self._early else data
        if self._direction == "inbound" and self._permit is None:
            hello = parse(early)
            if isinstance(hello, NeedMore):
                return
            if isinstance(hello, ClientHello) and self._terminates(hello):
                self._start_tls(early)
                return
            if not self._admit():
                return
        verdict = self._sniff(early, data)
        if verdict != "more":
            self._hand_on(verdict)

    def eof_received(self) -> bool:
        if self._handed is not None:
            self._handed.half_closed = True
        elif self._connection is not None and self._admit():
            self._connection.half_closed = True
            self._hand_on("tcp")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel()
        if self._connection is not None:
            self._ledger.closed(self._connection)

    def pause_writing(self) -> None:
        """Nothing was written yet."""

    def resume_writing(self) -> None:
        """Nothing was written yet."""

    # -- stages --

    def _sniff(self, early: bytes, data: bytes) -> Verdict:
        """Return what the connection is by *early*, which ends with *data*."""
        if self._protocol == "tcp":
            return "tcp"
        if self._protocol == "http":
            return sniff_declared(early)
        if self._line is not None:
            verdict = self._line.feed(data)
        else:
            self._line = FirstLine()
            verdict = self._line.feed(early)
            if verdict == "more":  # an HTTP request has begun, so it may take longer than silence
                self._cancel()
                self._timer = self._context.loop.call_later(self._context.timeouts.handshake, self._silent)
        return "http" if verdict == "more" and len(early) > self._context.limits.header_bytes else verdict

    def _identify(self, transport: Transport) -> tuple[Resolved | None, Peer, tuple[str, int] | None]:
        """Who is it, whom did it ask for, and which endpoint did the kernel pick? The listener's
        namespace says which pod, nothing the peer sends.
        """
        view = self._context.view
        pod = self._pod
        address, port = peer_address(transport)
        original = self._originals.of(transport, pod, self._direction)
        target = view.resolve(original.address, original.port) if original else None
        if self._direction == "outbound":
            workload = view.workload(pod.uid)
            # A redirected socket's own address is the loopback's; whose it is, the record shall
            # say.
            own = [one for one in workload.addresses if (":" in one) == (":" in address)] if workload else []
            peer = Peer(own[0] if own else address, port, pod.identity, "kernel_attested", workload)
        else:
            peer = Peer(address, port, "", "none", view.workload_at(address))
        return target, peer, original.chosen if original else None

    def _patience(self) -> float:
        """How long the first bytes may take, in seconds. A peer that is enrolled always begins with
        a ClientHello: to take it for a silent client because its node is busy would hand its TLS to
        the application. On an HTTP port the client speaks first.
        """
        connection = self._connection
        timeouts = self._context.timeouts
        assert connection is not None
        workload = connection.peer.workload
        mode = self._mode() if self._direction == "inbound" else "DISABLE"
        if mode == "STRICT":
            return timeouts.handshake
        if self._protocol in HTTP:
            return timeouts.idle
        return (
            timeouts.handshake
            if mode == "PERMISSIVE" and workload is not None and (workload.enrolled or workload.sidecar)
            else timeouts.sniff
        )

    def _mode(self) -> MtlsMode:
        """The server's mTLS mode at the port that was asked for."""
        assert self._connection is not None
        if is_hbone(self._context, self._connection):
            return "STRICT"
        workload = self._context.view.workload(self._pod.uid)
        return workload.mtls_at(self._connection.target.port) if workload is not None else "STRICT"

    def _admit(self) -> bool:
        connection = self._connection
        assert connection is not None
        if connection.struck():
            return False  # it was ended with its peer's certificate
        verdict = admit(self._context, connection)
        if isinstance(verdict, NotAdmitted):
            self._cancel()
            self._ledger.refuse(connection, self._transport, verdict.reason)
            return False
        self._permit = verdict
        self._permitted = self._context.view.generation
        return True

    def _terminates(self, hello: ClientHello) -> bool:
        """A peer's mTLS has Istio's ALPN; an application's own TLS goes through untouched where plaintext may."""
        assert self._connection is not None
        self._connection.sni = hello.sni or ""
        mode = self._mode()
        return mode == "STRICT" or (mode == "PERMISSIVE" and any(name.startswith(b"istio") for name in hello.alpn))

    def _start_tls(self, early: bytes) -> None:
        tls = self._pod.tls
        self._cancel()
        if tls is None:
            self._transport.pause_reading()
            self._early = early
            task = self._context.loop.create_task(self._await_certificate())
            self._pod.open.add(task)
            task.add_done_callback(self._pod.open.discard)
            return
        stream = TlsStream(self._server(tls), server_side=True, ready=self._tls_ready, failed=self._tls_failed)
        self._early = b""
        self._timer = self._context.loop.call_later(self._context.timeouts.handshake, self._transport.abort)
        transport = self._transport
        transport.set_protocol(stream)
        stream.connection_made(transport)
        stream.data_received(early)

    def _server(self, tls: Contexts) -> ssl.SSLContext:
        """Return the one that takes what comes to this port."""
        assert self._connection is not None
        if tls.tunnel is not None and is_hbone(self._context, self._connection):
            return tls.tunnel.server
        return tls.server

    async def _await_certificate(self) -> None:
        """Begin the handshake when the pod has its first certificate."""
        tls = await self._pod.certified()
        if self._transport.is_closing():
            return
        if tls is None:
            assert self._connection is not None
            self._ledger.refuse(self._connection, self._transport, NO_CERTIFICATE)
        else:
            self._transport.resume_reading()
            self._start_tls(self._early)

    def _tls_ready(self, stream: TlsStream) -> None:
        self._cancel()
        connection = self._connection
        assert connection is not None
        try:
            mesh = self._context.mesh
            identity = peer_identity(stream.session, mesh.trust_domain, mesh.trust_domain_aliases)
        except IdentityError:
            self._ledger.refuse(connection, self._transport, UPSTREAM_TLS)
            return
        connection.peer = self._proved(connection.peer, identity)
        connection.expires = peer_expiry(stream.session)
        self._transport = connection.transport = stream
        stream.protocol = self
        if not self._admit():
            return
        alpn = stream.session.selected_alpn_protocol()
        if is_hbone(self._context, connection):
            self._tunnel(stream, alpn)
        elif alpn == SHARED_ALPN:
            self._share(stream)
        else:
            self._await_first(http=alpn in (HTTP_ALPN, HTTP2_ALPN))

    def _proved(self, peer: Peer, identity: SpiffeId) -> Peer:
        """Return *peer*, which is found to be *identity*."""
        workload = self._context.view.workload_at(peer.address)
        known = workload is not None and same_account(workload.identity, identity)
        return Peer(peer.address, peer.port, identity, "mutual_tls", workload if known else None)

    def _share(self, stream: TlsStream) -> None:
        """The peer is an agent, which carries many connections over this one."""
        outer = self._handed_over()

        def enter(carried: SharedStream, inside: Carried) -> None:
            accepted = Accepted(self._entrance, self._pod, "inbound", self._originals)
            accepted.enter(carried, accepted.within(outer, outer.target.port), http=inside == "http")

        stream.protocol = codec = SharedDownstream(self._context, self._ledger, outer, enter)
        codec.begin()

    def _tunnel(self, stream: TlsStream, alpn: str | None) -> None:
        """The peer is a proxy of an ambient mesh, which carries its connections to the pod over this one."""
        if alpn != TUNNEL_ALPN:
            assert self._connection is not None
            self._ledger.refuse(self._connection, self._transport, NOT_HBONE)
            return
        outer = self._handed_over()

        def lead(carried: HboneStream, port: int) -> None:
            accepted = Accepted(self._entrance, self._pod, "inbound", self._originals)
            connection = carried.connection = accepted.within(outer, port)
            accepted.enter(carried, connection, http=False)
            if connection.target.protocol != "tcp":
                carried.accept()  # what it is, and what policies say of it, its first bytes tell

        stream.protocol = codec = HboneDownstream(self._context, self._ledger, outer, lead)
        codec.begin()

    def _handed_over(self) -> Connection:
        """Return the connection, which somebody else carries from now on."""
        connection = self._handed = self._connection
        self._connection = None
        assert connection is not None
        return connection

    def within(self, outer: Connection, port: int) -> Connection:
        """Return a connection that a stream of *outer* is, to *port* of the address that *outer* asked for; who
        asks is known by that.
        """
        target = self._context.view.resolve(outer.target.address, port)
        peer = self._proved(outer.peer, SpiffeId(outer.peer.identity))
        connection = Connection(self._pod, "inbound", peer, target, time())
        connection.expires = outer.expires
        connection.sni = outer.sni
        return connection

    def enter(self, stream: SharedStream, connection: Connection, *, http: bool) -> None:
        """Accept *connection*, which *stream* is; *http*: that is inside, as its client says."""
        stream.protocol = self
        self._transport = stream
        self._connection = connection
        if self._is_entered(connection, stream) and self._admit():
            self._protocol = connection.target.protocol
            self._await_first(http=http)

    def _is_entered(self, connection: Connection, transport: Transport) -> bool:
        """Enter *connection*; say whether its pod may have one more."""
        connection.transport = transport
        self._ledger.opened(connection)
        if connection.pod.connections <= self._context.limits.connections_per_pod:
            return True
        self._ledger.refuse(connection, transport, OVER_LIMIT)
        return False

    def _await_first(self, *, http: bool) -> None:
        """A peer has proved who it is, and says whether it carries *http*: its first bytes follow, or the server's."""
        timeouts = self._context.timeouts
        if http and self._protocol not in HTTP:
            self._protocol = "http"
        # What the peer says that it carries is its word: what the port is, its own pod says.
        if self._protocol == "tcp":
            self._hand_on("tcp")
        else:
            self._timer = self._context.loop.call_later(
                timeouts.idle if self._protocol in HTTP else timeouts.sniff, self._silent
            )

    def _tls_failed(self, error: Exception) -> None:
        self._cancel()
        connection = self._connection
        if connection is not None:
            self._ledger.refuse(connection, self._transport, self._tls_reason(connection, error))

    def _tls_reason(self, connection: Connection, error: Exception) -> Reason:
        """Return why *error* ended the handshake of *connection*."""
        if not isinstance(error, ssl.SSLError) or error.reason != "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return UPSTREAM_TLS
        return NOT_HBONE if is_hbone(self._context, connection) else PLAINTEXT_REFUSED

    def _silent(self) -> None:
        """The client may be waiting for the server to speak first; on an HTTP port it idled too long."""
        if self._permit is None and not self._admit():
            return
        if self._protocol in HTTP:
            self._transport.close()
        elif self._protocol == "tcp":
            self._hand_on("tcp")
        else:
            self._hand_on("unlikely" if self._early else "silent")

    def _hand_on(self, verdict: Verdict | Literal["silent"]) -> None:
        self._cancel()
        connection = self._connection
        assert connection is not None
        permitted = self._permitted == self._context.view.generation and not connection.unproved(time())
        if (not permitted or connection.struck()) and not self._admit():
            return  # the client took its time, and what let it in is no longer in force
        self._connection = None
        assert self._permit is not None
        self._handed = connection
        connection.line = self._line if verdict == "unlikely" else None
        self._begin(Admitted(connection, self._permit, self._transport), verdict, self._early)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
