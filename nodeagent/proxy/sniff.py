"""Which protocol a client speaks, from its first bytes. Pure; hostile input is expected."""

from __future__ import annotations

from typing import Final, Literal

from nodeagent.mesh.entries import Protocol

Verdict = Literal["http", "tcp", "more"]

_METHODS: Final = tuple(method + b" " for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"))
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
LONGEST: Final = 16


def sniff(data: bytes, protocol: Protocol) -> Verdict:
    """Return how a connection that began with *data* is carried on a port of *protocol*; ``more`` bytes may be needed.

    A declared HTTP port is HTTP unless the client starts HTTP/2 (RFC 9113 section 3.4), which is carried as TCP; a
    declared TCP port is TCP; any other is HTTP when a usual method starts it.
    """
    if protocol == "tcp":
        return "tcp"
    start = data[:LONGEST]
    if _HTTP2_PREFACE.startswith(start):
        return "tcp" if len(start) == len(_HTTP2_PREFACE) else "more"
    if protocol == "http":
        return "http"
    if start.startswith(_METHODS):
        return "http"
    return "more" if any(method.startswith(start) for method in _METHODS) else "tcp"
