"""The server's half of HTTP/1.1: parses what a client sends, keeps requests in order, writes
answers.

It never forwards bytes that it did not parse: a request's head is written anew, its body is
re-framed. What is ambiguous is refused with 400 and the connection is closed (RFC 9112 sections 6
and 11.2).
"""

from __future__ import annotations

import collections
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import httptools

from nodeagent.errors import BAD_REQUEST, DOWNSTREAM_GONE, DOWNSTREAM_TIMEOUT, HEADERS_TOO_LARGE, Reason
from nodeagent.proxy.http1 import headers as field
from nodeagent.proxy.http1.answers import refusal
from nodeagent.proxy.http1.exchange import CHUNKED_BODY, NO_BODY, Exchange, without
from nodeagent.proxy.http1.framing import Ambiguous, request_framing, valid_target
from nodeagent.proxy.http1.headers import classify
from nodeagent.proxy.http1.turns import PORTION_BYTES, Turns
from nodeagent.proxy.tcp import reset

if TYPE_CHECKING:
    from nodeagent.proxy.authorize import Permit
    from nodeagent.proxy.connection import Connection
    from nodeagent.proxy.pipeline import Pipeline

QUEUED_REQUESTS: Final = 1
"""Pipelined requests taken before reading stops; they are answered in order, one upstream at a time."""
LINGER_SECONDS: Final = 1.0
"""What the client still sends is read and dropped so long: a close with unread bytes is a reset,
which can overtake the answer (RFC 9112 section 9.6).
"""
_BEHIND: Final = b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n"
_SLASH: Final = 0x2F
_PROTO_LINE: Final = (b"x-forwarded-proto", b": ", b"http", b"\r\n")
_CLOSING: Final = (b"connection", b"close")
_HOSTS_KNOWN: Final = 4096
_hosts: set[bytes] = set()
"""Host values that were found to be valid, within a bound."""


class HttpDownstream:
    """The protocol of an accepted connection that speaks HTTP/1.x; ``transport`` is plain or a TlsStream."""

    def __init__(self, pipeline: Pipeline, connection: Connection, permit: Permit, transport: Any) -> None:
        self.pipeline, self.connection, self.permit, self.transport = pipeline, connection, permit, transport
        self.write = transport.write
        self.header_limit, self.count_limit = (
            pipeline.context.limits.header_bytes,
            pipeline.context.limits.header_count * 4,
        )
        self.parser = httptools.HttpRequestParser(self)
        self.current: Exchange | None = None
        self.queue: collections.deque[Exchange] = collections.deque()
        self.reading: Exchange | None = None
        self.closing = self.retiring = False
        self.touched = pipeline.context.now
        self._refused: Reason | None = None
        self.reading_head = False
        self.head_since = self.touched
        self.swept = 0
        self._head_bytes = 0
        self._full = False
        self.turns = Turns(self)
        self._stepping = self._step_again = False
        self.paused: set[str] = set()
        self._trailers: list[bytes] = []
        self._behind = b""
        self._reset()

    def _reset(self) -> None:
        self._lines: list[bytes] = []
        self._url = self._host = self._connection = self._request_id = self._user_agent = self._forwarded_for = b""
        self._seen = self._hosts = 0

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self.touched = self.pipeline.context.now
        turns = self.turns
        if len(data) <= PORTION_BYTES and not turns.late:
            self.parse(data)
        else:
            turns.come(data)

    def parse(self, data: bytes) -> None:
        """Parse the next portion of what came."""
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._hold_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._protocol_error(self._refused or BAD_REQUEST)
            return
        if self._refused is not None:
            self._protocol_error(self._refused)
        elif self._head_bytes and self._head_bytes > self.header_limit:
            self._protocol_error(HEADERS_TOO_LARGE)

    def eof_received(self) -> bool:
        # A client may half-close after its last request and still read the answers.
        if self.current is None:
            return False
        if not self.closing:
            if self.reading is not None:
                return False
            self.closing = True
            (self.queue[-1] if self.queue else self.current).keep_alive = False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        current, self.current = self.current, None
        self.queue.clear()
        if current is not None and not current.finished:
            current.finished = True
            current.progressed()
            upstream = current.upstream
            if upstream is not None:
                upstream.abandon()
            self.pipeline.observe(current, DOWNSTREAM_GONE.status, DOWNSTREAM_GONE)
        self.pipeline.closed(self.connection)

    def pause_writing(self) -> None:
        self._full = True
        if self.current is not None and self.current.upstream is not None:
            self.current.upstream.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        self.resume_reading("answers")
        if self.current is None and self.queue:
            self._take_next()
        elif self.current is not None and self.current.upstream is not None:
            self.current.upstream.resume_reading()

    # -- events of the parser --

    def on_message_begin(self) -> None:
        self.reading_head = True

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = classify(name)
        if not self.reading_head:
            self._trailer(kind, name, value)
            return
        if kind:
            self._seen |= kind
            if kind == field.HOST:
                self._hosts += 1
                self._host = value
            elif kind == field.CONNECTION:
                self._connection = self._connection + b"," + value if self._connection else value
            elif kind == field.USER_AGENT:
                self._user_agent = value
            elif kind == field.REQUEST_ID:
                self._request_id = value
            elif kind == field.FORWARDED_FOR:
                self._forwarded_for = value
        self._lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        if self._refused is not None or self.closing:
            return
        self.reading_head = False
        parser, seen, lines, host = self.parser, self._seen, self._lines, self._host
        exchange = Exchange(self, parser.get_method(), self._url, host, lines, perf_counter())
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
            exchange.lines = without(lines, _is_closing)
        simple = closes or (usual and not framing and parser.should_keep_alive())
        if not simple and not self._frame(exchange, parser.get_http_version()):
            self._refused = BAD_REQUEST
        elif len(lines) > self.count_limit or (
            self._head_bytes > self.header_limit and sum(map(len, lines)) > self.header_limit
        ):
            self._refused = HEADERS_TOO_LARGE
        self._head_bytes = 0
        self.turns.begun += 1
        if seen & field.NOTED:
            exchange.user_agent, exchange.forwarded_for = self._user_agent, self._forwarded_for
            exchange.client_cert = seen & field.CLIENT_CERT != 0
            exchange.request_id = self._request_id
        if not exchange.request_id:
            exchange.request_id = request_id = self.pipeline.new_request_id()
            exchange.lines += (b"x-request-id", b": ", request_id, b"\r\n")
        if not seen & field.FORWARDED_PROTO:
            exchange.lines += _PROTO_LINE
        self._reset()
        self.reading = exchange
        if self.current is None:
            self.current = exchange
            if self._refused is None:
                self._begin(exchange)
        else:
            self.queue.append(exchange)
            exchange.pending = []
            if len(self.queue) >= QUEUED_REQUESTS:
                self.pause_reading("pipelining")

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        exchange = self.reading
        if exchange is None or exchange.finished:
            return
        exchange.received += len(data)
        if exchange.held is not None:
            exchange.held += data
            exchange.progressed()
            return
        if exchange.body == CHUNKED_BODY:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._forward_body(exchange, data)

    def on_message_complete(self) -> None:
        if self._refused is not None:
            return  # data_received answers it, and must know that this is the one
        exchange, self.reading = self.reading, None
        if exchange is None:
            return
        if exchange.body:
            if self._behind:
                self.reading = exchange  # another parser reads its body
                return
            exchange.since = self.pipeline.context.now
            if exchange.body == CHUNKED_BODY and not exchange.finished:
                self._forward_body(exchange, b"".join((b"0\r\n", *self._trailers, b"\r\n")))
            self._trailers = []
        exchange.request_complete = True
        if exchange.arrived is not None:
            exchange.progressed()
        if exchange.finished and exchange is self.current:
            self._next()

    def _trailer(self, kind: int, name: bytes, value: bytes) -> None:
        """Keep a trailer to pass on; fields that frame, route or identify have no business there
        (RFC 9110 section 6.5.1).
        """
        exchange = self.reading
        if exchange is not None and not kind:
            exchange.received += len(name) + len(value)
            self._trailers += (name, b": ", value, b"\r\n")
            if len(self._trailers) > self.count_limit:
                self._refused = HEADERS_TOO_LARGE

    # -- requests --

    def _frame(self, exchange: Exchange, version: str) -> bool:
        """Decide body, persistence and hop-by-hop fields of a request that names any of them; False: refuse it."""
        lines = exchange.lines
        try:
            framing = request_framing(exchange.method, version, list(zip(lines[0::4], lines[2::4], strict=True)))
        except Ambiguous:
            return False
        if not valid_target(exchange.method, exchange.target, exchange.host):
            return False
        if len(_hosts) < _HOSTS_KNOWN:
            _hosts.add(exchange.host)
        exchange.http10 = version == "1.0"
        exchange.adopt(
            framing, b"" if self._hosts else self.connection.local_text.encode(), tunnels=not self.permit.only_probes
        )
        if exchange.body and self.parser.should_upgrade():
            self._behind = _BEHIND % (
                b"transfer-encoding: chunked"
                if exchange.body == CHUNKED_BODY
                else b"content-length: %d" % framing.length
            )
        return True

    def _begin(self, exchange: Exchange) -> None:
        if self.pipeline.context.draining or self.retiring:
            exchange.keep_alive = False
        self.pipeline.request(exchange)

    def _forward_body(self, exchange: Exchange, data: bytes) -> None:
        if exchange.upstream is not None and exchange.pending is None:
            exchange.upstream.write(data)
            return
        if exchange.pending is None:
            exchange.pending = []
        exchange.pending.append(data)
        exchange.pending_bytes += len(data)
        if exchange.pending_bytes > self.pipeline.context.limits.buffer_bytes:
            self.pause_reading("body")

    def _hold_upgrade(self, rest: bytes) -> None:
        """The client asked for another protocol: what it sends next waits for the answer."""
        rest, self.turns.late = rest + self.turns.late, b""
        if self._behind:
            self._read_behind(rest)
            return
        exchange = self.queue[-1] if self.queue else self.current
        if exchange is None or not exchange.upgrade or exchange.finished:
            if rest:
                self.data_received(rest)
            return
        if rest:
            exchange.pending = [*(exchange.pending or ()), rest]
        self.pause_reading("upgrade")

    def _read_behind(self, rest: bytes) -> None:
        """Read the body behind an Upgrade (a Java client's h2c offer): llhttp believes that there
        is none, and would take it for the next request.
        """
        behind, self._behind = self._behind, b""
        if self.closing:
            return
        self.closing = True  # the head that primes the parser is no news
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(behind)
        self.closing = self.reading_head = False
        self._reset()
        if rest:
            self.data_received(rest)

    def pause_reading(self, why: str) -> None:
        """Stop reading from the client until every reason is gone."""
        if not self.paused:
            self.transport.pause_reading()
        self.paused.add(why)

    def resume_reading(self, why: str) -> None:
        if why in self.paused:
            self.paused.discard(why)
            if not self.paused and not self.transport.is_closing():
                if self.turns.late and not self.closing:
                    self.turns.go_on()
                else:
                    self.transport.resume_reading()

    # -- answers --

    def finish(self, exchange: Exchange) -> None:
        """The answer of *exchange* is written whole: take the next request, or close."""
        if exchange is not self.current:
            return
        if exchange.request_complete:
            self._next()
        elif exchange.keep_alive:
            # The answer came before the request's end: the rest of its body is read and dropped.
            for why in ("body", "upstream"):
                self.resume_reading(why)
        else:
            self._linger()

    def _next(self) -> None:
        """Go on to the next request; one that is refused at once is answered in the same loop, not
        in a call within the call.
        """
        self._step_again = True
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._step_again:
                self._step_again = False
                self._step()
        finally:
            self._stepping = False

    def _step(self) -> None:
        exchange, self.current = self.current, None
        if exchange is None or not exchange.keep_alive or (self.closing and not self.queue):
            self.close()
            return
        if self.paused:
            for why in ("body", "upstream"):
                self.resume_reading(why)
        if self._full:
            self.pause_reading("answers")  # what is not read yet must not grow by the next answer
        elif self.queue:
            self._take_next()
        if exchange.upgrade:
            self._declined(exchange)

    def _take_next(self) -> None:
        following = self.current = self.queue.popleft()
        if self._refused is not None and not self.queue:
            self.refuse(following, self._refused)
            return
        if len(self.queue) < QUEUED_REQUESTS:
            self.resume_reading("pipelining")
        self._begin(following)

    def _declined(self, exchange: Exchange) -> None:
        """The server stayed with HTTP: so does what was held back."""
        held, exchange.pending = exchange.pending, None
        self.resume_reading("upgrade")
        if held:
            self.data_received(b"".join(held))

    def refuse(self, exchange: Exchange, reason: Reason) -> None:
        """Answer *exchange* with the reason's status, or cut the connection when an answer has begun."""
        exchange.finished = True
        exchange.progressed()
        if exchange.answered:
            self.pipeline.observe(exchange, exchange.status, reason)
            reset(self.transport)  # an end without a reset could pass for the answer's own
            return
        exchange.status = reason.status
        exchange.answered = True
        if not exchange.request_complete and exchange.body != NO_BODY:
            exchange.keep_alive = False
        answer = refusal(exchange, reason)
        exchange.sent = len(answer)
        self.write(answer)
        self.pipeline.observe(exchange, reason.status, reason)
        self.finish(exchange)

    def _protocol_error(self, reason: Reason) -> None:
        """What was sent is not HTTP, or not safely so: nothing more is read; it is answered in its
        turn, and the connection closes.
        """
        if self.closing:
            return
        self._refused = reason
        self.closing = True
        exchange = self.reading
        if exchange is None:
            exchange = Exchange(self, b"-", b"-", b"-", [], perf_counter())
            self.queue.append(exchange)
            if self.current is None:
                self.current = self.queue.popleft()
        exchange.keep_alive = False
        if exchange is not self.current:
            return
        if exchange.finished:
            self._linger()
            return
        exchange.give_up(reason)

    def time_out(self) -> None:
        """The client stopped in the middle of a request."""
        self._protocol_error(DOWNSTREAM_TIMEOUT)

    def drain(self) -> None:
        """Ask the client to come back on a new connection, with the answer under way or with the next one."""
        self.retiring = True
        if self.current is not None and not self.current.answered:
            self.current.keep_alive = False

    def close(self) -> None:
        self.closing = True
        self.queue.clear()
        self.transport.close()

    def _linger(self) -> None:
        """Close when the client has read what was said, or soon."""
        self.closing = True
        self.current = self.reading = None
        self.queue.clear()
        for why in tuple(self.paused):
            self.resume_reading(why)
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.pipeline.context.loop.call_later(LINGER_SECONDS, self.transport.close)


def _is_closing(name: bytes) -> bool:
    """Name what ``Connection: close`` keeps to this hop."""
    return name.lower() in _CLOSING
