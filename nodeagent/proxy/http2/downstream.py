"""The server's half of HTTP/2: each stream of a client's connection is an exchange.

A head is checked as a whole before anybody sees it (``heads.py``); one that is no message resets
its stream. What several exchanges are told in one turn of the loop is one write.

Theory of operation
===================

A stream's exchange is given to the line when its head is whole. Its answer may begin, and end,
before the request has: the session then tells the client that nothing more is wanted. The stream
lives as long as bytes wait in it; the exchange is finished, counted and logged when its answer is
complete, as it is where HTTP/1 gives the transport the last byte.

    on_head ──▶ line.request ──▶ answer, data …, end      the client gets HEADERS, DATA …
       │                    └──▶ cut                      RST_STREAM
       └ malformed, or the client resets: gone            counted as the client's

The connection ends in one of three ways. Asked to (`drain`), it says GOAWAY twice: first that
streams should go elsewhere, then, once the client has answered a PING, which is the last that was
taken; it closes behind the last answer. A rule that concerns all streams was broken: GOAWAY says
which, and the proxy lingers, as for HTTP/1. Or it is lost.

While the transport takes no more, bodies wait in their streams; heads and control frames gather
here, and beyond UNSENT bytes of them nothing is read either; answers before the answer, of which an
endpoint may have any number, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from nodeagent.errors import (
    CONNECT_REFUSED,
    DOWNSTREAM_GONE,
    DOWNSTREAM_TIMEOUT,
    HEADERS_TOO_LARGE,
    HTTP2_BROKEN,
    HTTP2_MALFORMED,
    STREAMS_PER_POD,
    Reason,
)
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http import fields as field
from nodeagent.proxy.http import patience
from nodeagent.proxy.http.exchange import Downstream, Exchange
from nodeagent.proxy.http.fields import Field, size
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.exchange import Http2Exchange
from nodeagent.proxy.http2.heads import Malformed, RequestHead, answer_block, read_request, read_trailers, trailer_block
from nodeagent.proxy.http2.sender import ANSWER_WORTH
from nodeagent.proxy.http2.session import Session
from nodeagent.proxy.http2.stream import BODY, CAUSES, WANTED, Http2Stream
from nodeagent.proxy.http2.user import TOO_LARGE, SessionError, SessionUser
from nodeagent.proxy.permit import Permit
from nodeagent.proxy.transport import Transport, reset

LINGER_SECONDS: Final = 1.0
"""What the client still sends is read and dropped so long: a close with unread bytes is a reset,
which can overtake the GOAWAY.
"""
UNSENT: Final = 1 << 18
WARNED_SECONDS: Final = 1.0
"""How long a client may take to answer a PING behind the first GOAWAY."""
HEADS: Final = 16
"""Heads of one client that are remembered: each holds the fields of one header block."""
_TE: Final = ((b"te", b"trailers"),)


class Http2Downstream(Downstream, SessionUser):
    """The protocol of an accepted connection that speaks HTTP/2; ``transport`` is plain or a TlsStream."""

    def __init__(
        self, line: Line, context: Context, connection: Connection, permit: Permit, transport: Transport
    ) -> None:
        self.line = line
        self.context = context
        self.connection = connection
        self.permit = permit
        self.transport = transport
        limits = context.limits
        self.session = Session(self, connection.pod.held, limits, client=False)
        self._heads: dict[int, RequestHead] = {}
        self.touched = context.now
        self.head_since = context.now
        self._swept_at = context.now
        self._scheduled = False
        self._reading = True
        self._lingering = False
        self._closed = False
        """Nothing that still comes counts."""
        self._warned = 0.0
        """Since when the client knows that it should go elsewhere."""
        if context.draining:
            self.drain()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        self.touched = self.context.now
        session = self.session
        session.feed(data)
        if session.behind:
            self._fall_behind()
        self._flush()

    def _fall_behind(self) -> None:
        """The client has had its share of this turn."""
        self._pause_reading()
        self.context.loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        if self._closed:
            return
        self.session.feed(b"")
        if self.session.behind:
            self.context.loop.call_soon(self._catch_up)
        else:
            self._resume_reading()
        self._flush()

    def eof_received(self) -> bool:
        return False  # a stream ends by itself; who ends the connection waits for nothing more

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        for stream in self.session.forget_all():
            self._gone(stream, DOWNSTREAM_GONE)
        self.line.closed(self.connection)

    def pause_writing(self) -> None:
        self.session.blocked = True

    def resume_writing(self) -> None:
        self.session.unblock()
        self._resume_reading()
        self._flush()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.session.unsent_frames > UNSENT or self.session.behind:
            return
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # -- writing --

    def _soon(self) -> None:
        """Write what this turn of the loop says, at its end."""
        if not self._scheduled:
            self._scheduled = True
            self.context.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        session = self.session
        data = session.take()
        if self.transport.is_closing():
            return
        if data:
            self.transport.write(data)
            session.written(len(data))
        if session.unsent_frames > UNSENT:
            self._pause_reading()
        if session.broken is not None:
            self._break(session.broken)
        elif session.waiting():
            self._soon()
        elif self._closed or self.retiring:
            self._end_if_done()

    def _end_if_done(self) -> None:
        """Close a connection that takes no more requests behind its last answer."""
        if not self.session.streams and (self._closed or self.session.left()):
            self._linger()

    # -- requests --

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        if stream.head_read:
            self._take_trailers(stream, fields)
            return
        stream.head_read = True
        if fields is TOO_LARGE:
            self._make(stream, b"-", b"-", b"-", []).refuse(HEADERS_TOO_LARGE)
            return
        try:
            head = self._head(fields, ended=self.session.ends)
        except Malformed:
            self.session.malformed(stream)
            return
        exchange = self._make(stream, head.method, head.target, head.authority, head.fields)
        exchange.length = stream.expected = head.length
        seen = head.seen
        if seen & field.NOTED:
            exchange.user_agent = head.user_agent
            exchange.forwarded_for = head.forwarded_for
            exchange.client_cert = seen & field.CLIENT_CERT != 0
            exchange.request_id = head.request_id
            exchange.content_type = head.content_type
        if head.te:
            exchange.own = _TE
        if not exchange.request_id:
            exchange.request_id = self.line.new_request_id()
            exchange.fields = [*head.fields, (b"x-request-id", exchange.request_id)]
        if exchange.method == b"CONNECT":
            exchange.refuse(CONNECT_REFUSED)
        elif self.connection.pod.streams > self.context.limits.streams_per_pod:
            exchange.refuse(STREAMS_PER_POD)
        else:
            self.line.request(exchange)

    def _head(self, fields: list[Field], *, ended: bool) -> RequestHead:
        """Return the head in *fields*. A block that is seen again is told as the same list (``hpack/decoder.py``),
        and what it says is remembered from the second time on. Raises Malformed.
        """
        if not self.session.repeated():
            return read_request(fields, ended=ended, local=self.connection.local_text.encode())
        key = id(fields) if ended else -id(fields)
        head = self._heads.get(key)
        if head is None or head.block is not fields:
            head = read_request(fields, ended=ended, local=self.connection.local_text.encode())
            if len(self._heads) >= HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head

    def _make(
        self, stream: Http2Stream, method: bytes, target: bytes, authority: bytes, fields: list[Field]
    ) -> Http2Exchange:
        exchange = Http2Exchange(self, method, target, authority, fields, perf_counter())
        exchange.stream = stream
        self.connection.pod.streams += 1
        exchange.moved_at = self.context.now
        stream.exchange = exchange
        return exchange

    def _take_trailers(self, stream: Http2Stream, fields: list[Field]) -> None:
        exchange = stream.exchange
        if exchange is None or exchange.finished:
            return
        try:
            trailers = read_trailers(fields)
        except Malformed:
            self.session.malformed(stream)
            return
        if fields is TOO_LARGE:
            exchange.give_up(HEADERS_TOO_LARGE)
        elif trailers:
            exchange.trailers = trailers
            exchange.received += size(trailers)

    def on_data(self, stream: Http2Stream, piece: bytes) -> None:
        exchange = stream.exchange
        if exchange is None or exchange.finished:
            return
        assert isinstance(exchange, Http2Exchange)
        exchange.moved_at = self.context.now
        exchange.data(piece)
        if exchange.pending_bytes:
            self.session.hold(stream, BODY if exchange.arrived is None else WANTED)

    def on_end(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        if exchange is None:
            return
        if exchange.length:
            exchange.since = self.context.now
        exchange.complete()

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        self._gone(stream, HTTP2_MALFORMED if ours else DOWNSTREAM_GONE)

    def party(self) -> str:
        peer = self.connection.peer
        return peer.identity or peer.address

    def on_given_up(self, stream: Http2Stream | None) -> None:
        self.context.loop.call_soon(self._given_up, stream)

    def _given_up(self, stream: Http2Stream | None) -> None:
        if stream is not None:
            self._gone(stream, HTTP2_BROKEN)
        self._flush()
        if stream is None:
            self.reset()

    def _gone(self, stream: Http2Stream, reason: Reason) -> None:
        """Nobody waits for the answer on *stream* any more."""
        exchange = stream.exchange
        if exchange is None and reason is HTTP2_MALFORMED:
            exchange = self._make(stream, b"-", b"-", b"-", [])
        if exchange is not None and exchange.gone():
            self._observe(exchange, 0, reason)

    def pause(self, exchange: Exchange, why: str) -> None:
        assert isinstance(exchange, Http2Exchange)
        self.session.hold(exchange.stream, CAUSES[why])

    def resume(self, exchange: Exchange, why: str) -> None:
        assert isinstance(exchange, Http2Exchange)
        cause = CAUSES[why]
        if cause & WANTED and exchange.pending_bytes:
            self.session.hold(exchange.stream, WANTED)
            cause = BODY
        self.session.release(exchange.stream, cause)
        if self.session.waiting():
            self._soon()

    # -- answers --

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        assert isinstance(exchange, Http2Exchange)
        if status != 101 and not exchange.finished and self.session.unsent_frames <= UNSENT:
            exchange.sent += self.session.send_head(exchange.stream, answer_block(status, fields), ended=False)
            self._soon()

    def invite(self, exchange: Exchange) -> None:
        self.interim(exchange, 100, [])

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        assert isinstance(exchange, Http2Exchange)
        exchange.begins(status, fields)
        session = self.session
        exchange.sent += session.send_head(exchange.stream, answer_block(status, fields), ended=length == 0)
        session.earn(ANSWER_WORTH)
        self._soon()

    def data(self, exchange: Exchange, piece: bytes) -> None:
        assert isinstance(exchange, Http2Exchange)
        exchange.passes(piece)
        exchange.sent += len(piece)
        self.session.give(exchange.stream, piece)

    def flush(self, exchange: Exchange) -> None:
        self._soon()

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        assert isinstance(exchange, Http2Exchange)
        exchange.ends(trailers)
        if exchange.arrived is not None:
            exchange.progressed()
        self.session.finish(exchange.stream, trailer_block(trailers) if trailers else trailers)
        self._observe(exchange, exchange.status, exchange.reason)
        self._soon()

    def elsewhere(self, exchange: Exchange) -> bool:
        return self.line.elsewhere(exchange)

    def declines(self, exchange: Exchange, reason: Reason) -> bool:
        assert isinstance(exchange, Http2Exchange)
        if self.connection.direction != "inbound" or self.connection.peer.security != "mutual_tls":
            return False
        exchange.finished = True
        exchange.reason = reason
        self._observe(exchange, 0, reason)
        self.session.reset(exchange.stream, wire.REFUSED_STREAM)
        self._soon()
        return True

    def cut(self, exchange: Exchange) -> None:
        assert isinstance(exchange, Http2Exchange)
        self._observe(exchange, exchange.status, exchange.reason)
        self.session.reset(exchange.stream, wire.INTERNAL_ERROR)
        self._soon()

    def on_full(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        if exchange is not None and not exchange.finished and exchange.upstream is not None:
            exchange.upstream.pause(exchange)

    def on_room(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        if exchange is not None and not exchange.finished and exchange.upstream is not None:
            exchange.upstream.resume(exchange)

    def on_goaway(self, code: int) -> None:
        """The client opens no more streams, and leaves when it has its answers."""

    def on_settings(self) -> None:
        """What the client takes counts from now on; the session knows."""

    def _observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        """*exchange* is finished."""
        self.connection.pod.streams -= 1
        self.line.observe(exchange, status, reason)

    # -- the connection's end --

    def under_way(self) -> Sequence[Exchange]:
        return [stream.exchange for stream in self.session.streams.values() if stream.exchange is not None]

    def reading_head(self) -> bool:
        return self.session.in_head()

    def held_back(self, exchange: Exchange) -> bool:
        assert isinstance(exchange, Http2Exchange)
        return exchange.stream.held & ~WANTED != 0

    def moved(self, exchange: Exchange) -> float:
        assert isinstance(exchange, Http2Exchange)
        return exchange.moved_at

    def move(self, exchange: Exchange, now: float) -> None:
        assert isinstance(exchange, Http2Exchange)
        self.touched = exchange.moved_at = now

    def time_out(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            exchange.give_up(DOWNSTREAM_TIMEOUT)
            return
        self.session.fail(SessionError(wire.PROTOCOL_ERROR, "a header block did not end in time"))
        self._flush()

    def drain(self) -> None:
        if self.retiring:
            return
        self.retiring = True
        self._warned = self.context.now
        self.session.warn()
        self.session.ping()
        self._soon()

    def sweep(self, now: float) -> None:
        session = self.session
        session.forgive(now - self._swept_at)
        self._swept_at = now
        if self.retiring and not session.left() and (not session.pinged or now - self._warned > WARNED_SECONDS):
            session.leave()
            self._soon()
        patience.enforce(self, now, self.context.timeouts)

    def reset(self) -> None:
        reset(self.transport)

    def close(self) -> None:
        self.session.leave()
        self._linger()

    def _break(self, error: SessionError) -> None:
        """The client broke a rule of the whole connection: it was told; what was under way is lost."""
        if self._closed:
            return
        self._closed = True
        self.line.broke(self.connection, HTTP2_BROKEN, error.words)
        for stream in self.session.forget_all():
            self._gone(stream, HTTP2_BROKEN)
        self._linger()

    def _linger(self) -> None:
        """Close when the client has read what was said, or soon."""
        self._closed = True
        if not self._lingering and not self.transport.is_closing():
            self._lingering = True
            data = self.session.take()
            if data:
                self.transport.write(data)
            self.transport.write_eof()
            self._resume_reading()
            self.context.loop.call_later(LINGER_SECONDS, self.transport.close)
