"""Where an exchange goes next, as far as codecs are concerned."""

from __future__ import annotations

from nodeagent.proxy.http.fields import Field


class Hop:
    """What codecs know of where an exchange goes; a route (``proxy/route.py``) is one."""

    __slots__ = ("forwarded", "single")

    def __init__(self, forwarded: list[Field], single: bool) -> None:
        """*forwarded*: fields that the proxy adds to each request there. *single*: every connection
        carries one request, and the server is told so (RFC 9112 section 9.6).
        """
        self.forwarded = forwarded
        self.single = single
