"""Reads an HTTP/1 client's requests: what the parser tells is put together to exchanges.

What is ambiguous is refused (RFC 9112 sections 6 and 11.2); nothing is done about it here.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

import httptools
from mypy_extensions import trait

from nodeagent.errors import BAD_REQUEST, HEADERS_TOO_LARGE, Reason
from nodeagent.proxy.context import Context
from nodeagent.proxy.http import fields as field
from nodeagent.proxy.http.exchange import UNKNOWN, Downstream
from nodeagent.proxy.http.fields import Field, classify, has_room, size, without
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http1.exchange import Http1Exchange
from nodeagent.proxy.http1.framing import HOP_BY_HOP, Ambiguous, origin_form, request_framing, valid_target
from nodeagent.proxy.http1.wire import trimmed

_BEHIND: Final = b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n"
_SLASH: Final = 0x2F
_PROTO: Final = (b"x-forwarded-proto", b"http")
_CLOSING: Final = (b"connection", b"close")
_hosts: Final[dict[bytes, int]] = {}
"""Host values that were found to be valid."""


@trait
class RequestSink:
    """Who is told of requests."""

    def began(self, exchange: Http1Exchange) -> None:
        """The head of *exchange* is whole; where it is refused, the reader's ``refused`` says why."""
        raise NotImplementedError

    def completed(self, exchange: Http1Exchange) -> None:
        """All of *exchange*, which is answered already, has been read."""
        raise NotImplementedError


class RequestReader:
    """The parser of one connection, and what it has told of the request that it reads."""

    def __init__(self, sink: RequestSink, downstream: Downstream, line: Line, context: Context) -> None:
        """*sink* and *downstream* are the same codec."""
        self._sink = sink
        self._downstream = downstream
        self._line = line
        self._context = context
        self._header_limit = context.limits.header_bytes
        self._count_limit = context.limits.header_count
        self._buffer_limit = context.limits.buffer_bytes
        self.parser = httptools.HttpRequestParser(self)
        self.reading: Http1Exchange | None = None
        """Of which the body is read."""
        self.reading_head = False
        self.refused: Reason | None = None
        """Why the last request, and with it all that follows, is not taken."""
        self.closed = False
        """Nothing that still comes is a request."""
        self.behind = b""
        """A head like that of the request with an Upgrade whose body comes next."""
        self._head_bytes = 0
        self._trailers: list[Field] = []
        self._reset()

    def _reset(self) -> None:
        self._fields: list[Field] = []
        self._url = self._host = self._connection = self._request_id = self._user_agent = self._forwarded_for = b""
        self._content_type = b""
        self._seen = self._hosts = 0

    def feed(self, data: bytes) -> Reason | None:
        """Parse *data*; return why what it is cannot be taken, None where it can. Raises
        HttpParserUpgrade, with the place in *data*, behind a request that offers another protocol.
        """
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            return self.refused or BAD_REQUEST
        return self.excess()

    def excess(self) -> Reason | None:
        """Return why nothing more is taken: what was refused, or a head that does not end."""
        if self.refused is None and self._head_bytes and self._head_bytes > self._header_limit:
            return HEADERS_TOO_LARGE
        return self.refused

    def read_behind(self) -> None:
        """Read on as the body behind an Upgrade (a Java client's h2c offer): llhttp believes that
        there is none, and would take it for the next request.
        """
        behind, self.behind = self.behind, b""
        self.closed = True  # the head that primes the parser is no news
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(behind)
        self.closed = False
        self.reading_head = False
        self._reset()

    # -- events of the parser --

    def on_message_begin(self) -> None:
        self.reading_head = True

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = classify(name)
        value = trimmed(value)
        if not self.reading_head:
            self._trailer(kind, name, value)
            return
        if kind:
            self._seen |= kind
            if kind == field.HOST:
                self._hosts += 1
                self._host = value
            elif kind == field.CONNECTION:
                self._connection = _another(self._connection, value)
            elif kind == field.USER_AGENT:
                self._user_agent = _another(self._user_agent, value)
            elif kind == field.REQUEST_ID:
                if not value:
                    return  # one that says nothing would hide ours
                self._request_id = _another(self._request_id, value)
            elif kind == field.FORWARDED_FOR:
                self._forwarded_for = _another(self._forwarded_for, value)
            elif kind == field.CONTENT_TYPE:
                self._content_type = _another(self._content_type, value)
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.refused is not None or self.closed:
            return
        self.reading_head = False
        parser = self.parser
        seen = self._seen
        fields = self._fields
        host = self._host
        exchange = Http1Exchange(self._downstream, parser.get_method(), self._url, host, fields, perf_counter())
        framing = seen & field.FRAMING
        usual = self._hosts == 1 and host in _hosts and self._url[0] == _SLASH
        closes = (
            usual
            and framing == field.CONNECTION
            and self._connection == b"close"
            and parser.get_http_version() == "1.1"
        )
        if closes:
            exchange.keep_alive = False
            exchange.fields = without(fields, _is_closing)
        simple = closes or (usual and not framing and parser.should_keep_alive())
        if not simple and not self._frame(exchange, parser.get_http_version()):
            self.refused = BAD_REQUEST
        elif len(fields) > self._count_limit or (
            self._head_bytes > self._header_limit and size(fields) > self._header_limit
        ):
            self.refused = HEADERS_TOO_LARGE
        self._head_bytes = 0
        self._note(exchange, seen)
        self._reset()
        self.reading = exchange
        self._sink.began(exchange)

    def _note(self, exchange: Http1Exchange, seen: int) -> None:
        """Take over what the log and policies ask for, and add what goes on with every request."""
        if seen & field.NOTED:
            exchange.user_agent = self._user_agent
            exchange.forwarded_for = self._forwarded_for
            exchange.client_cert = seen & field.CLIENT_CERT != 0
            exchange.request_id = self._request_id
            exchange.content_type = self._content_type
        if not exchange.request_id:
            exchange.request_id = self._line.new_request_id()
            exchange.fields.append((b"x-request-id", exchange.request_id))
        if not seen & field.FORWARDED_PROTO:
            exchange.fields.append(_PROTO)

    def _keep_to_this_hop(self, names: frozenset[bytes]) -> None:
        """Forget what was noted of fields that end here: no application reads them."""
        if b"user-agent" in names:
            self._user_agent = b""
        if b"x-request-id" in names:
            self._request_id = b""
        if b"content-type" in names:
            self._content_type = b""

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        exchange = self.reading
        if exchange is None or exchange.finished:
            return
        exchange.data(data)
        if exchange.pending_bytes > self._buffer_limit and exchange.arrived is None:
            self._downstream.pause(exchange, "body")

    def on_message_complete(self) -> None:
        if self.refused is not None:
            return  # who feeds answers it, and must know that this is the one
        exchange, self.reading = self.reading, None
        if exchange is None:
            return
        if exchange.length:
            if self.behind:
                self.reading = exchange  # another parser reads its body
                return
            exchange.since = self._context.now
            if self._trailers:
                exchange.trailers = self._trailers
                self._trailers = []
        exchange.complete()
        if exchange.finished:
            self._sink.completed(exchange)

    def _trailer(self, kind: int, name: bytes, value: bytes) -> None:
        """Keep a trailer to pass on; fields that frame, route or identify have no business there
        (RFC 9110 section 6.5.1).
        """
        exchange = self.reading
        if exchange is not None and not kind:
            exchange.received += len(name) + len(value)
            self._trailers.append((name, value))
            if len(self._trailers) > self._count_limit:
                self.refused = HEADERS_TOO_LARGE

    def _frame(self, exchange: Http1Exchange, version: str) -> bool:
        """Decide body, persistence and hop-by-hop fields of a request that names any of them; False: refuse it."""
        try:
            framing = request_framing(exchange.method, version, exchange.fields)
        except Ambiguous:
            return False
        if not valid_target(exchange.method, exchange.target, exchange.authority):
            return False
        if has_room(_hosts, exchange.authority):
            _hosts[exchange.authority] = field.HOST
        if version == "1.0":
            exchange.http10 = True
            exchange.protocol = "HTTP/1.0"
        downstream = self._downstream
        host = b"" if self._hosts else downstream.connection.local_text.encode()
        exchange.target = origin_form(exchange.target)
        exchange.adopt(framing, host, tunnels=not downstream.permit.only_probes)
        if framing.hop_by_hop is not HOP_BY_HOP:
            self._keep_to_this_hop(framing.hop_by_hop)
        if exchange.length and self.parser.should_upgrade():
            self.behind = _BEHIND % (
                b"transfer-encoding: chunked" if exchange.length == UNKNOWN else b"content-length: %d" % exchange.length
            )
        return True


def _another(before: bytes, value: bytes) -> bytes:
    """Return the value of a field of which there was one line *before*, unless that is empty (RFC 9110 section 5.3)."""
    return before + b"," + value if before else value


def _is_closing(name: bytes) -> bool:
    """Name what ``Connection: close`` keeps to this hop."""
    return name.lower() in _CLOSING
