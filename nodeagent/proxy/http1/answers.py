"""What the proxy says on its own account: status lines, and whole answers to what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nodeagent.errors import Reason

if TYPE_CHECKING:
    from nodeagent.proxy.http1.exchange import Exchange

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


def refusal(exchange: Exchange, reason: Reason) -> bytes:
    """Return the answer to *exchange* that says why it is refused: flag, likely cause and next step."""
    body = reason.body or f"{reason.code} ({reason.flag}): {reason.hint}\n".encode()
    # RFC 9110 sections 15.3.5, 15.4.5: what follows would be taken for the next answer
    bodiless = reason.status in (204, 304)
    own = () if bodiless else (("content-type", "text/plain"), ("content-length", str(len(body))))
    given = frozenset(name for name, _ in reason.headers)
    fields = (*[field for field in (*own, ("server", "nodeagent")) if field[0] not in given], *reason.headers)
    text = "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1", "replace")
    connection = (
        (b"connection: keep-alive\r\n" if exchange.http10 else b"") if exchange.keep_alive else b"connection: close\r\n"
    )
    head = b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (reason.status, PHRASES.get(reason.status, b""), text, connection)
    return head if bodiless or exchange.method == b"HEAD" else head + body
