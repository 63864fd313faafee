"""What the daemon's own HTTP server takes in and gives out: parsed heads, answers, their bytes. No I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

import httptools
import orjson

from nodeagent.telemetry.negotiation import Variant

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
_METHODS: Final = frozenset({"GET", "HEAD", "POST"})
_PARAMETERS: Final = 32


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; a *body* that is not bytes is sent piece by piece, as the client takes it."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    content_type: str = TEXT
    variants: tuple[Variant, ...] = ()
    """Where there are any, the first one that the client takes is its body."""

    @classmethod
    def json(cls, value: object, status: int = 200) -> Response:
        """Return *value* as JSON."""
        return cls(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE), status, JSON)


Handler = Callable[[Mapping[str, str]], Awaitable[Response]]
"""Takes the query's parameters. A NodeagentError that it raises becomes a 500 that says it."""
Routes = Mapping[tuple[str, str], Handler]
"""(``GET`` or ``POST``, path) -> handler; a route for GET answers HEAD as well."""


class BadRequestError(Exception):
    """A request that is answered with *status* and ends the connection; never leaves the server."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    length: int
    """Bytes of body that follow the head."""
    keep_alive: bool
    chunked: bool
    """Whether the client understands a chunked answer (HTTP/1.1)."""
    accept: str
    """Its Accept header, empty if it sent none."""


class _Head:
    """Collects what httptools calls back with."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        # Asked here, because the parser forgets it once the message is complete.
        self.keep_alive = self.parser.should_keep_alive()


def parse(head: bytes, body_bytes: int) -> Request:
    """Return the request of a complete *head*, blank line included.

    Raises BadRequestError: not HTTP/1.x, a method other than GET, HEAD and POST, a body that is
    chunked or larger than *body_bytes*.
    """
    events = _Head()
    parser = events.parser
    try:
        parser.feed_data(head)
        url = httptools.parse_url(events.target)
        query = dict(parse_qsl((url.query or b"").decode(), max_num_fields=_PARAMETERS))
        path = unquote((url.path or b"/").decode())
    except httptools.HttpParserUpgrade:
        raise BadRequestError(400, "no protocol is upgraded to here") from None
    except (httptools.HttpParserError, UnicodeDecodeError, ValueError) as error:
        raise BadRequestError(400, f"not a valid HTTP/1.1 request: {error}") from None
    method = parser.get_method().decode()
    if method not in _METHODS:
        raise BadRequestError(405, f"{method} is not a method of anything here")
    accepted = b",".join(value for name, value in events.headers if name == b"accept")
    return Request(
        method,
        path,
        query,
        _length(events.headers, body_bytes),
        events.keep_alive,
        parser.get_http_version() == "1.1",
        accepted.decode("latin-1"),
    )


def _length(headers: Iterable[tuple[bytes, bytes]], limit: int) -> int:
    values = {name: value for name, value in headers if name in (b"content-length", b"transfer-encoding")}
    if b"transfer-encoding" in values:
        raise BadRequestError(411, "a body needs a Content-Length")
    length = int(values.get(b"content-length", b"0"))  # llhttp has made sure that it is digits, and one value
    if length > limit:
        raise BadRequestError(413, f"a body has at most {limit} bytes")
    return length


def answer_head(response: Response, *, keep_alive: bool, chunked: bool) -> bytes:
    """Return the status line and headers of *response*; *chunked* frames a body that comes in pieces."""
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
    ]
    if response.variants:
        lines.append("Vary: Accept")
    if isinstance(response.body, bytes):
        lines.append(f"Content-Length: {len(response.body)}")
    elif chunked:
        lines.append("Transfer-Encoding: chunked")
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(piece: bytes) -> bytes:
    """Return *piece* framed as one chunk (RFC 9112 section 7.1); empty, it is the last one."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
