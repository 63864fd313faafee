"""What an HTTP/1 client's request has beyond an exchange of any version."""

from __future__ import annotations

from nodeagent.proxy.http.exchange import UNKNOWN, Exchange
from nodeagent.proxy.http.fields import without
from nodeagent.proxy.http1.framing import BodyKind, Framing


class Http1Exchange(Exchange):
    """A request on a connection that answers one after the other."""

    keep_alive = True
    """Another request may follow on the client's connection."""
    http10 = False

    def persistence(self) -> bytes:
        """Return the line of the answer's head that says what becomes of the connection; HTTP/1.1
        keeps it unless something is said (RFC 9112 section 9.3).
        """
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.http10 else b""

    def adopt(self, framing: Framing, host: bytes, *, tunnels: bool) -> None:
        """Take over what *framing* decided, and with it the fields as they go on. *host* stands in
        for a missing Host: HTTP/1.0 may leave out what goes on as HTTP/1.1. Unless *tunnels*, no
        upgrade is offered on.
        """
        self.keep_alive = framing.keep_alive
        self.fields = without(self.fields, lambda name: name.lower() in framing.hop_by_hop)
        if host:
            self.fields.append((b"host", host))
            self.authority = host
        if framing.kind is BodyKind.CHUNKED:
            self.length = UNKNOWN
            self.own = ((b"transfer-encoding", b"chunked"),)
            return
        self.length = framing.length
        if framing.upgrade and not self.length and tunnels:
            self.upgrade = framing.upgrade
            self.own = ((b"connection", b"upgrade"), (b"upgrade", framing.upgrade))
