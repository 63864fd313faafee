"""What an HTTP/2 client's request has beyond an exchange of any version."""

from __future__ import annotations

from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http2.stream import Http2Stream


class Http2Exchange(Exchange):
    """A request on a stream of its own."""

    protocol = "HTTP/2"
    stream: Http2Stream
    moved_at = 0.0
    """When the client sent something of it, or its answer grew; by the context's clock."""
