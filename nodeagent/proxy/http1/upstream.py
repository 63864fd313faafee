"""The client's half of HTTP/1.1: sends a request to an endpoint, parses the answer, hands it
downstream.

A connection serves one exchange at a time and returns to its pool when the answer is complete and
its length was certain. Bytes that nobody asked for close it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httptools

from nodeagent.errors import UPSTREAM_PROTOCOL, UPSTREAM_RESET, Reason
from nodeagent.proxy.http1 import headers as field
from nodeagent.proxy.http1.answers import PHRASES
from nodeagent.proxy.http1.exchange import Exchange, with_fields, without
from nodeagent.proxy.http1.framing import Ambiguous, BodyKind, response_framing
from nodeagent.proxy.http1.headers import classify

if TYPE_CHECKING:
    from nodeagent.proxy.connection import Connection
    from nodeagent.proxy.pool import Pool

_END: Final = b"\r\n\r\n"
_MINOR: Final = len(b"HTTP/1.")
_ONE: Final = 0x31
_SIMPLE: Final = ~field.FRAMING | field.LENGTH | field.CONNECTION
_KEEP_ALIVE: Final = (b"keep-alive", b"Keep-Alive")


class HttpUpstream:
    """The protocol of a connection to an endpoint."""

    def __init__(self, pool: Pool, owner: Connection) -> None:
        """*owner*: the client's connection for whose request it was dialled."""
        self.pool, self.owner = pool, owner
        self.transport: Any = None
        self.write: Any = None
        self.exchange: Exchange | None = None
        self.tls: Any = None
        """The TLS contexts that it was dialled with."""
        self.served = 0
        self.idle_since = 0.0
        self.lost = False
        self._paused = False
        self._switched = False
        self._parser = httptools.HttpResponseParser(self)
        self._lines: list[bytes] = []
        self._parts: list[bytes] = []
        self._trailers: list[bytes] = []
        self._seen = 0
        self._body = BodyKind.NONE
        self._length = 0
        self._in_body = self._chunk_out = self._complete = False
        self._unproductive = 0
        self._whole: list[bytes] | None = None
        self._lengths: list[bytes] = []
        self._connection = b""
        self._sound = self._between = True
        """Sound: both messages ended where they said, and nothing is behind them."""
        self.closes = False
        """The server said that it closes after this answer."""

    def attach(self, transport: Any) -> None:
        """Use *transport*, which is connected (and whose TLS is established)."""
        self.transport, self.write = transport, transport.write

    def begin(self, exchange: Exchange) -> None:
        """Send the request of *exchange*: its head and what of its body has come so far."""
        self.exchange = exchange
        exchange.upstream = self
        exchange.tries += 1
        route = exchange.route
        assert route is not None
        head = exchange.head(route)
        exchange.received += len(head)
        pending = exchange.pending
        if pending is None or exchange.upgrade:
            self.write(head)
        else:
            exchange.pending = None
            exchange.pending_bytes = 0
            self.write(b"".join((head, *pending)))
            exchange.downstream.resume_reading("body")

    def abandon(self) -> None:
        """Nobody waits for this answer any more."""
        self.exchange = None
        self._sound = False
        self.transport.abort()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self._sound = False
            self.transport.abort()
            return
        fresh, self._between = self._between, False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(exchange, data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            if not self._complete:
                self._fail(UPSTREAM_PROTOCOL)
                return
            self._sound = False  # bytes behind a complete answer: the answer stands, the connection does not
        head, self._whole = self._whole, None
        if head is not None:
            if (
                exchange.keep_alive
                and self._complete
                and fresh
                and data[_MINOR] == _ONE
                and data.find(_END) + 4 + self._length == len(data)
            ):
                # The packet is one whole answer that needs no change: it goes on as it came.
                self._parts.clear()
                exchange.sent += len(data)
                exchange.downstream.write(data)
                self._between = True
                self._finish(exchange)
                return
            self._write_head(exchange, exchange.status, without(head, _is_connection))
        if self.exchange is None:
            self._parts.clear()  # refused while it was parsed: nothing of it goes on
            return
        if self._parts:
            self._unproductive = 0
            self._flush(exchange)
        else:
            self._unproductive += len(data)
        if self._complete:
            self._between = True
            self._finish(exchange)
        elif self._unproductive > self.pool.pipeline.context.limits.header_bytes:
            self._fail(UPSTREAM_PROTOCOL)

    def eof_received(self) -> bool:
        self.pool.forget(self)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.pool.forget(self)
        exchange = self.exchange
        if exchange is None:
            return
        if self._in_body and self._body is BodyKind.UNTIL_CLOSE and error is None:
            self._sound = False
            if self._chunk_out:
                self._parts.append(b"0\r\n\r\n")
            self._flush(exchange)
            self._finish(exchange)
            return
        if self.served and exchange.replayable():
            # The endpoint closed an idle connection while the request was on its way (RFC 9112
            # section 9.3.1).
            self.exchange = exchange.upstream = None
            self.pool.retry(exchange)
            return
        self._fail(UPSTREAM_RESET)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.downstream.pause_reading("upstream")

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.downstream.resume_reading("upstream")

    def pause_reading(self) -> None:
        if not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self.lost:
            self._paused = False
            self.transport.resume_reading()

    # -- events of the parser --

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = classify(name)
        if self._in_body:
            if not kind:
                self._trailers += (name, b": ", value, b"\r\n")
            return
        if kind:
            self._seen |= kind
            if kind == field.LENGTH:
                self._lengths.append(value)
            elif kind == field.CONNECTION:
                self._connection = value if not self._connection else self._connection + b"," + value
        self._lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            self._sound = False
            return
        self._in_body = True
        status = self._parser.get_status_code()
        lines, self._lines = self._lines, []
        seen, self._seen = self._seen, 0
        lengths = self._lengths
        connection = self._connection
        if seen & field.FRAMING:
            self._lengths, self._connection = [], b""
        simple = (
            status >= 200
            and len(lengths) == 1
            and not seen & ~_SIMPLE
            and (not seen & field.CONNECTION or connection in _KEEP_ALIVE)
            and status not in (204, 304)
            and self._parser.should_keep_alive()
            and not exchange.http10
            and exchange.method != b"HEAD"
            and not exchange.answer_fields
        )
        if not simple:
            self._head(exchange, status, lines)
            return
        exchange.status = status
        exchange.answered = True
        self._body, self._length = BodyKind.LENGTH, int(lengths[0])
        self._sound, self._chunk_out = True, False
        self._whole = lines

    def _head(self, exchange: Exchange, status: int, lines: list[bytes]) -> None:
        """Decide the framing of an answer in full and write its head anew."""
        try:
            framing = response_framing(
                status,
                exchange.method,
                list(zip(lines[0::4], lines[2::4], strict=True)),
                self._parser.get_http_version(),
            )
        except Ambiguous:
            self._sound = False
            self._fail(UPSTREAM_PROTOCOL)
            return
        if status < 200:
            self._interim(exchange, status, lines)
            return
        exchange.status = status
        exchange.answered = True
        self._body, self._length = framing.kind, framing.length
        self.closes = not framing.keep_alive
        self._sound = framing.kind is not BodyKind.UNTIL_CLOSE
        unbounded = framing.kind in (BodyKind.CHUNKED, BodyKind.UNTIL_CLOSE)
        self._chunk_out = unbounded and not exchange.http10
        if unbounded and exchange.http10:
            exchange.keep_alive = False
        lines = without(lines, lambda name: name.lower() in framing.hop_by_hop)
        self._write_head(
            exchange, status, with_fields(lines, exchange.answer_fields) if exchange.answer_fields else lines
        )
        if framing.kind is BodyKind.NONE:
            self._complete = True

    def _write_head(self, exchange: Exchange, status: int, lines: list[bytes]) -> None:
        if self._chunk_out:
            lines += (b"transfer-encoding", b": ", b"chunked", b"\r\n")
        if not exchange.keep_alive:
            lines += (b"connection", b": ", b"close", b"\r\n")
        elif exchange.http10:
            lines += (b"connection", b": ", b"keep-alive", b"\r\n")
        self._parts[:0] = (b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"")), *lines, b"\r\n")

    def on_body(self, data: bytes) -> None:
        if self._complete or not self._in_body:
            self._sound = False
        elif self._chunk_out:
            self._parts += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            return
        if not exchange.answered:
            self._in_body = False  # an interim answer: the real one follows
            return
        if self._chunk_out:
            self._parts += (b"0\r\n", *self._trailers, b"\r\n")
        self._complete = True

    # -- answers --

    def _interim(self, exchange: Exchange, status: int, lines: list[bytes]) -> None:
        """Pass a 1xx on; 101 ends HTTP on this connection and is passed by :meth:`_switch`."""
        if status == 101:
            # What was offered on in PERMISSIVE mode is no more in STRICT.
            self._switched = exchange.upgrade and not exchange.downstream.permit.only_probes
            exchange.status = status
            if not self._switched:
                self._fail(UPSTREAM_PROTOCOL)
                return
        if not exchange.http10:
            self._parts += (b"HTTP/1.1 %d %b\r\n" % (status, PHRASES.get(status, b"")), *lines, b"\r\n")
            # at once: the answer's head, which may be in the same packet, is put before what is
            # held
            self._flush(exchange)

    def _flush(self, exchange: Exchange) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        if data:
            exchange.sent += len(data)
            exchange.downstream.write(data)

    def _finish(self, exchange: Exchange) -> None:
        """The answer is complete and written."""
        self.exchange = None
        self.served += 1
        head_only = exchange.method == b"HEAD"
        self._in_body = self._complete = False
        if self._trailers:
            self._trailers = []
        sound = self._sound and exchange.request_complete
        exchange.finished = True
        pool = self.pool
        if sound:
            if head_only:
                # The parser waits for the body that a HEAD answer only announces.
                self._parser = httptools.HttpResponseParser(self)
            self.resume_reading()
            pool.release(self)
        else:
            self.transport.close()
        pool.pipeline.observe(exchange, exchange.status, None)
        exchange.downstream.finish(exchange)

    def _switch(self, exchange: Exchange, rest: bytes) -> None:
        """Both sides agreed to leave HTTP (RFC 9110 section 7.8): relay bytes from here on."""
        if not self._switched:
            self._fail(UPSTREAM_PROTOCOL)
            return
        self._flush(exchange)
        self.exchange = None
        exchange.answered = exchange.finished = True
        self.pool.pipeline.carrier.tunnel(exchange, self, rest)

    def _fail(self, reason: Reason) -> None:
        exchange, self.exchange = self.exchange, None
        self._parts.clear()
        if not self.lost:
            self.transport.abort()
        if exchange is not None:
            exchange.refuse(reason)


def _is_connection(name: bytes) -> bool:
    return name.lower() == b"connection"
