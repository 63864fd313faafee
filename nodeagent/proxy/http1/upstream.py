"""The client's half of HTTP/1.1: sends a request to an endpoint, parses the answer, hands it
downstream.

Theory of operation
===================

A connection serves one exchange at a time and goes back to its pool when the answer is complete and
its length was certain::

                     ask()                   final head                     complete
        ┌──────┐            ┌───────────┐                ┌─────────┐                  sound and the request
    ──▶ │ idle │ ─────────▶ │  waiting  │ ─────────────▶ │ in body │ ──────┬────────  is whole: released, idle
        └──────┘            └───────────┘                └─────────┘       └────────  else: closed
            ▲                 │  ▲    │ 101 that was offered: switched, its bytes are relayed
            │                 └──┘    │
            │           1xx, passed on│ lost, not HTTP/1, too long a head: the exchange is refused
            └── pool.release          ▼ with a reason, once more on a new connection where it may
                                   closed

`_between` says that no byte of an answer has come since the last one ended: only then can a read be
exactly one answer. `_sound` says that both messages ended where they said and nothing is behind
them; bytes that nobody asked for close the connection: they might be taken for the next answer.

An answer whose head is simple (one Content-Length, nothing that ends at this hop but keep-alive, no
policy that changes it) is not told at once: `_simple` keeps its head until the read is parsed whole.
Was the read that one answer and nothing else, its bytes go on as they came (`Downstream.whole`).
Otherwise, and whenever the client's half says no, it is told in parts like any other.

A 1xx, chunks that grow no body and trailers are work that brings the client nothing: beyond a head's
size of it without a byte of a body the answer is refused (`_unproductive`, anew for each exchange).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httptools

from nodeagent.errors import UPSTREAM_PROTOCOL, UPSTREAM_RESET, Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.http import fields as field
from nodeagent.proxy.http.exchange import UNKNOWN, Exchange, Upstream
from nodeagent.proxy.http.fields import NO_FIELDS, Field, classify, joined, with_fields, without
from nodeagent.proxy.http.keeper import Keeper
from nodeagent.proxy.http1.framing import Ambiguous, BodyKind, offered, response_framing
from nodeagent.proxy.http1.wire import chunk, last_chunk, request_head, trimmed
from nodeagent.proxy.transport import Transport

_END: Final = b"\r\n\r\n"
_MINOR: Final = len(b"HTTP/1.")
_ONE: Final = 0x31
_SIMPLE: Final = ~field.FRAMING | field.LENGTH | field.CONNECTION
_KEEP_ALIVE: Final = (b"keep-alive", b"Keep-Alive")


class Http1Upstream(Upstream):
    """The protocol of a connection to an endpoint."""

    def __init__(self, keeper: Keeper, owner: Connection | None, header_bytes: int) -> None:
        """*keeper* has it between exchanges; *owner*: the client's connection for whose request it
        was dialled, None where *keeper* does not ask; *header_bytes*: what an answer may take before
        there is a body.
        """
        self._keeper = keeper
        self._header_limit = header_bytes
        if owner is not None:
            self.owner = owner
        self.transport: Transport
        self.write: Callable[[bytes], None]
        self.exchange: Exchange | None = None
        self.served = 0
        self.lost = False
        self._paused = False
        self._switched = False
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[Field] = []
        self._trailers: list[Field] = []
        self._seen = 0
        self._body = BodyKind.NONE
        self._length = 0
        self._in_body = False
        self._complete = False
        self._told = False
        """The client was told more of the answer in this read."""
        self._unproductive = 0
        self._simple: list[Field] | None = None
        self._keeps = False
        """That head has a Connection field."""
        self._pieces: list[bytes] = []
        self._lengths: list[bytes] = []
        self._connection = b""
        self._sound = True
        self._between = True

    def attach(self, transport: Transport) -> None:
        """Use *transport*, which is connected (and whose TLS is established)."""
        self.transport = transport
        self.write = transport.write

    @property
    def said(self) -> int:
        """The status that the answer under way begins with, whatever is wrong with the rest of it; 0: none (yet)."""
        return 0 if self._between else self._parser.get_status_code()

    # -- the request --

    def ask(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._unproductive = 0
        exchange.upstream = self
        exchange.tries += 1
        head = request_head(exchange)
        exchange.received += len(head)
        pending = exchange.pending
        if pending is None or exchange.upgrade:
            self.write(head)
            return
        exchange.pending = None
        exchange.pending_bytes = 0
        if exchange.length == UNKNOWN:
            pending = [chunk(piece) for piece in pending]
            if exchange.request_complete:
                pending.append(last_chunk(exchange.trailers))
        self.write(b"".join((head, *pending)))
        exchange.downstream.resume(exchange, "body")

    def data(self, exchange: Exchange, piece: bytes) -> None:
        self.write(chunk(piece) if exchange.length == UNKNOWN else piece)

    def end(self, exchange: Exchange) -> None:
        if exchange.length == UNKNOWN:
            self.write(last_chunk(exchange.trailers))

    def abandon(self, exchange: Exchange) -> None:
        if self.exchange is not exchange:
            return
        self.exchange = None
        self._sound = False
        self.transport.abort()

    def pause(self, exchange: Exchange) -> None:
        if self.exchange is exchange and not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def resume(self, exchange: Exchange) -> None:
        if self.exchange is exchange:
            self._resume_reading()

    def close(self) -> None:
        self.transport.close()

    def _resume_reading(self) -> None:
        if self._paused and not self.lost:
            self._paused = False
            self.transport.resume_reading()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self._sound = False
            self.transport.abort()
            return
        fresh, self._between = self._between, False
        self._told = False
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
        if self.exchange is None:
            return  # refused while it was parsed: nothing of it goes on
        fields, self._simple = self._simple, None
        if fields is not None:
            whole = self._complete and fresh and self._is_all(data)
            self._tell(exchange, fields, data if whole else b"")
            return
        if self._complete:
            self._rest(exchange)
            exchange.downstream.end(exchange, self._take_trailers())
        elif self._told:
            self._unproductive = 0
            exchange.downstream.flush(exchange)
        else:
            self._unproductive += len(data)
            if self._unproductive > self._header_limit:
                self._fail(UPSTREAM_PROTOCOL)

    def _is_all(self, data: bytes) -> bool:
        """Say whether *data* is the answer, of HTTP/1.1, and nothing else: it may go on as it came."""
        return data[_MINOR] == _ONE and data.find(_END) + len(_END) + self._length == len(data)

    def _tell(self, exchange: Exchange, fields: list[Field], whole: bytes) -> None:
        """Pass a simple answer on, of which this read brought the head: as it came where it is
        *whole*, and the client's half takes it so.
        """
        downstream = exchange.downstream
        status = exchange.status
        complete = self._complete
        if complete:
            self._rest(exchange)
            if whole and downstream.whole(exchange, status, whole):
                self._pieces.clear()
                return
        self._unproductive = 0
        if self._keeps:
            fields = without(fields, _is_connection)
        downstream.answer(exchange, status, fields, self._length)
        for piece in self._pieces:
            downstream.data(exchange, piece)
        self._pieces.clear()
        if complete:
            downstream.end(exchange, NO_FIELDS)
        else:
            downstream.flush(exchange)

    def eof_received(self) -> bool:
        self._keeper.forget(self)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._keeper.forget(self)
        exchange = self.exchange
        if exchange is None:
            return
        if self._in_body and self._body is BodyKind.UNTIL_CLOSE and error is None:
            self._sound = False
            self._rest(exchange)
            exchange.downstream.end(exchange, NO_FIELDS)
            return
        if (self.served or self.stream is not None) and exchange.replayable():
            # The endpoint closed an idle connection, or a shared one, while the request was on its
            # way (RFC 9112 section 9.3.1).
            self.exchange = None
            exchange.upstream = None
            self._keeper.retry(exchange)
            return
        self._fail(UPSTREAM_RESET)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.downstream.pause(self.exchange, "upstream")

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.downstream.resume(self.exchange, "upstream")

    # -- events of the parser --

    def on_header(self, name: bytes, value: bytes) -> None:
        kind = classify(name)
        value = trimmed(value)
        if self._in_body:
            if not kind and not self._complete:
                self._trailers.append((name, value))
            return
        if kind:
            self._seen |= kind
            if kind == field.LENGTH:
                self._lengths.append(value)
            elif kind == field.CONNECTION:
                self._connection = value if not self._connection else self._connection + b"," + value
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            self._sound = False
            return
        self._in_body = True
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        seen, self._seen = self._seen, 0
        lengths = self._lengths
        connection = self._connection
        if seen & field.FRAMING:
            self._lengths = []
            self._connection = b""
        simple = (
            status >= 200
            and len(lengths) == 1
            and not seen & ~_SIMPLE
            and (not seen & field.CONNECTION or connection in _KEEP_ALIVE)
            and status not in (204, 304)
            and self._parser.should_keep_alive()
            and exchange.method != b"HEAD"
            and not exchange.answer_fields
        )
        if not simple:
            self._head(exchange, status, fields)
            return
        exchange.status = status
        self._body = BodyKind.LENGTH
        self._length = int(lengths[0])
        self._sound = True
        self._keeps = seen & field.CONNECTION != 0
        self._simple = fields

    def _head(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        """Decide the framing of an answer in full."""
        try:
            framing = response_framing(status, exchange.method, fields, self._parser.get_http_version())
        except Ambiguous:
            self._sound = False
            self._fail(UPSTREAM_PROTOCOL)
            return
        if status < 200:
            self._interim(exchange, status, fields)
            return
        self._body = framing.kind
        self._length = framing.length
        self.closes = not framing.keep_alive
        self._sound = framing.kind is not BodyKind.UNTIL_CLOSE
        fields = without(fields, lambda name: name.lower() in framing.hop_by_hop)
        if exchange.answer_fields:
            fields = with_fields(fields, exchange.answer_fields)
        unknown = framing.kind in (BodyKind.CHUNKED, BodyKind.UNTIL_CLOSE)
        exchange.downstream.answer(exchange, status, fields, UNKNOWN if unknown else framing.length)
        self._told = True
        if framing.kind is BodyKind.NONE:
            self._complete = True

    def on_body(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or self._complete or not self._in_body:
            self._sound = False
        elif self._simple is not None:
            self._pieces.append(data)
        else:
            self._told = True
            exchange.downstream.data(exchange, data)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            return
        if not exchange.answered and self._simple is None:
            self._in_body = False  # an interim answer: the real one follows
            return
        self._complete = True

    # -- answers --

    def _interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        """Pass a 1xx on; after 101 there is no HTTP on this connection any more (:meth:`_switch`), and no
        other protocol than one that was offered (RFC 9110 section 7.8).
        """
        if status == 101:
            exchange.status = status
            said = joined(fields, b"upgrade") or b""
            self._switched = offered(exchange.upgrade, said) and exchange.downstream.switches(exchange)
            if not self._switched:
                self._fail(UPSTREAM_PROTOCOL)
                return
        exchange.downstream.interim(exchange, status, fields)

    def _take_trailers(self) -> list[Field]:
        trailers = self._trailers
        if trailers:
            self._trailers = []
        return trailers

    def _rest(self, exchange: Exchange) -> None:
        """The answer of *exchange* is complete: give the connection back, or end it."""
        self.exchange = None
        self.served += 1
        self._in_body = False
        self._complete = False
        self._between = True
        if not self._sound or not exchange.request_complete:
            self.transport.close()
            return
        if exchange.method == b"HEAD":
            # The parser waits for the body that a HEAD answer only announces.
            self._parser = httptools.HttpResponseParser(self)
        self._resume_reading()
        self._keeper.release(self)

    def _switch(self, exchange: Exchange, rest: bytes) -> None:
        """Both sides agreed to leave HTTP (RFC 9110 section 7.8): relay bytes from here on."""
        if not self._switched:
            self._fail(UPSTREAM_PROTOCOL)
            return
        self.exchange = None
        self._keeper.forget(self)
        exchange.downstream.switch(exchange, self.transport, rest)

    def _fail(self, reason: Reason) -> None:
        exchange, self.exchange = self.exchange, None
        self._simple = None
        self._pieces.clear()
        if not self.lost:
            self.transport.abort()
        if exchange is not None:
            exchange.refuse(reason)


def _is_connection(name: bytes) -> bool:
    return name.lower() == b"connection"
