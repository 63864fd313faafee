"""HTTP/1.1 as it stands on the wire: status lines, field lines, chunks (RFC 9112)."""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.http.exchange import UNKNOWN, Exchange
from nodeagent.proxy.http.fields import Field

_SPACE: Final = 0x20
PHRASES: Final = {
    100: b"Continue",
    101: b"Switching Protocols",
    103: b"Early Hints",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    206: b"Partial Content",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
"""RFC 9110 section 15. The phrase has no meaning; a status that is not here goes out with none."""


_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase) for status, phrase in PHRASES.items()}


def status_line(status: int) -> bytes:
    """Return the first line of an answer."""
    line = _STATUS_LINES.get(status)
    return line if line is not None else b"HTTP/1.1 %d \r\n" % status


def trimmed(value: bytes) -> bytes:
    """Return *value* of a field line as its parser gives it, without the white space behind it, which is
    no part of it (RFC 9112 section 5.1): applications do not see it, so nobody else may. No other
    control passes that parser.
    """
    return value.rstrip(b" \t") if value and value[-1] <= _SPACE else value


def write_fields(parts: list[bytes], fields: list[Field]) -> None:
    """Add the lines of *fields* to *parts* of a message."""
    for name, value in fields:  # one by one: compiled, that is faster than a tuple of four
        parts.append(name)
        parts.append(b": ")
        parts.append(value)
        parts.append(b"\r\n")


def chunk(piece: bytes) -> bytes:
    """Return *piece*, which is not empty, as a chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def last_chunk(trailers: list[Field]) -> bytes:
    """Return a chunked body's end."""
    if not trailers:
        return b"0\r\n\r\n"
    parts = [b"0\r\n"]
    write_fields(parts, trailers)
    parts.append(b"\r\n")
    return b"".join(parts)


def request_head(exchange: Exchange) -> bytes:
    """Return the head of *exchange* as it goes to the endpoint, written anew from what was parsed."""
    hop = exchange.route
    assert hop is not None, "a request is routed before it is forwarded"
    parts = [exchange.method, b" ", exchange.target, b" HTTP/1.1\r\n"]
    write_fields(parts, exchange.onward())
    if exchange.length == UNKNOWN:
        parts.append(b"transfer-encoding: chunked\r\n")
    if exchange.upgrade:
        parts += (b"connection: upgrade\r\nupgrade: ", exchange.upgrade, b"\r\n")
    elif hop.single:
        parts.append(b"connection: close\r\n")
    if hop.forwarded:
        write_fields(parts, hop.forwarded)
    parts.append(b"\r\n")
    return b"".join(parts)
