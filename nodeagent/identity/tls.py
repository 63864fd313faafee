"""Mutual TLS between workloads as Istio speaks it: TLS 1.3, both sides prove a SPIFFE ID, ALPN says
what is inside.

Keys reach OpenSSL through memory, never through a file on disk. Resumption is off: every connection
proves both identities against the roots of this hour.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import parse
from nodeagent.vocabulary import SpiffeId

HTTP_ALPN: Final = "istio-http/1.1"
HTTP2_ALPN: Final = "istio-h2"
TCP_ALPN: Final = "istio"
SHARED_ALPN: Final = "nodeagent-h2"
"""Only agents know it: many connections over one (``proxy/shared/``)."""
TUNNEL_ALPN: Final = "h2"
"""HBONE's: ztunnels and waypoints offer and take nothing else."""
Inside = Literal["http", "http2", "tcp"]
"""What a connection carries inside its TLS, as its client says."""
_OFFERED: Final[dict[Inside, tuple[str, ...]]] = {
    "http": (HTTP_ALPN,),
    "http2": (HTTP2_ALPN, TCP_ALPN, "h2"),
    "tcp": (TCP_ALPN,),
}
"""What Istio's sidecars offer (its alpn_override filter); ``h2`` is what a sidecar's server picks."""


@dataclass(frozen=True, slots=True)
class TunnelContexts:
    """Those of HBONE (``proxy/hbone/``)."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Contexts:
    """The contexts of one identity; workloads of one service account may share them."""

    server: ssl.SSLContext
    client_http: ssl.SSLContext
    client_http2: ssl.SSLContext
    client_tcp: ssl.SSLContext
    shared_http: ssl.SSLContext
    shared_tcp: ssl.SSLContext
    tunnel: TunnelContexts | None = None
    """None: HBONE is not spoken."""

    def client(self, inside: Inside, *, shared: bool = False) -> ssl.SSLContext:
        """Return the context of a client that carries what *inside* says; *shared*: or many such, where
        the peer can.
        """
        if inside == "tcp":
            return self.shared_tcp if shared else self.client_tcp
        if inside == "http2":
            return self.client_http2
        return self.shared_http if shared else self.client_http


def contexts(certificate: Certificate, *, shared: bool = False, hbone: bool = False) -> Contexts:
    """Return all contexts for *certificate*; *shared*: its server takes shared connections; *hbone*: it speaks
    that too. Raises IdentityError.
    """
    return Contexts(
        server_context(certificate, shared=shared),
        client_context(certificate, *_OFFERED["http"]),
        client_context(certificate, *_OFFERED["http2"]),
        client_context(certificate, *_OFFERED["tcp"]),
        client_context(certificate, SHARED_ALPN, *_OFFERED["http"]),
        client_context(certificate, SHARED_ALPN, *_OFFERED["tcp"]),
        _tunnel_contexts(certificate) if hbone else None,
    )


def _tunnel_contexts(certificate: Certificate) -> TunnelContexts:
    return TunnelContexts(
        _server_context(certificate, (TUNNEL_ALPN,)),
        client_context(certificate, TUNNEL_ALPN),
    )


def server_context(certificate: Certificate, *, shared: bool = False) -> ssl.SSLContext:
    """Return the context of a server that demands the client's certificate; takes HTTP before
    TCP, and before both, where *shared*, many connections over one. Raises IdentityError.
    """
    taken = (HTTP2_ALPN, HTTP_ALPN, TCP_ALPN)
    return _server_context(certificate, (SHARED_ALPN, *taken) if shared else taken)


def _server_context(certificate: Certificate, taken: tuple[str, ...]) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, taken)
    context.num_tickets = 0
    return context


def client_context(certificate: Certificate, *alpn: str) -> ssl.SSLContext:
    """Return the context of a client that offers *alpn*, best first. Raises IdentityError.

    The caller compares :func:`peer_identity` with whom it meant to reach: a SPIFFE ID is no host
    name.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, alpn)


def peer_identity(session: Any, trust_domain: str, aliases: Collection[str] = ()) -> SpiffeId:
    """Return the SPIFFE ID that the peer of the finished handshake *session* (SSLObject or
    SSLSocket) proved.

    Raises IdentityError when its certificate has not exactly one URI, or one of another trust
    domain than *trust_domain* and *aliases* of that (SPIFFE X.509-SVID, section 2).
    """
    certificate = session.getpeercert()
    if not certificate:
        raise IdentityError("the peer showed no certificate: is it part of the mesh?")
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise IdentityError(f"the peer's certificate holds {len(uris)} URIs, a SPIFFE certificate exactly one")
    parse(uris[0], trust_domain, aliases)
    return SpiffeId(uris[0])


def peer_expiry(session: Any) -> float:
    """Return when the certificate that the peer of *session* showed ends, in seconds of the Unix epoch."""
    return float(ssl.cert_time_to_seconds(session.getpeercert()["notAfter"]))


def _context(protocol: int, certificate: Certificate, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(list(alpn))
    try:
        context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
        load_chain(context, certificate.chain_pem, certificate.key_pem)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise IdentityError(
            f"{certificate.identity}: the certificate, its key and its roots do not fit together: {error}"
        ) from None
    return context


def load_chain(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Have *context* show this chain with this key from the next handshake on. Raises ssl.SSLError
    when they do not fit together.

    The ssl module only reads files, so they stand in memory for that moment.
    """
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, chain_pem + key_pem)
        # An encrypted key must be an error, not a question on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
