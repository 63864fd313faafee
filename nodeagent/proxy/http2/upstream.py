"""The client's half of HTTP/2: exchanges of one pool share a connection to an endpoint, a stream
each.

Theory of operation
===================

Who keeps the connection (``streams.py``) asks :meth:`Http2Upstream.free` before it gives an
exchange to it, and hears of every stream that ends. An endpoint may leave a stream before it looked
at it, by REFUSED_STREAM or a GOAWAY that names a lower one: such an exchange is sent once more on
another connection, whatever its method (RFC 9113 section 8.7), as long as what was sent of its body
is kept: KEPT bytes at most, until the answer begins, and of all requests of a pod no more than a
part of what it may hold.

While the endpoint's transport takes no more, bodies wait in their streams; heads and control frames
gather here, and beyond UNSENT bytes of them the endpoint is asked for nothing more and not read.

An answer that ends before its request does ends the stream: nothing more of the request is wanted.
While the endpoint is silent and is waited for, its kernel is asked whether it is there
(``transport.py: watch``), never it itself: servers of gRPC take more than one PING in five minutes
for a flood, and an answer may take as long as it takes.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from nodeagent.errors import UPSTREAM_PROTOCOL, UPSTREAM_RESET, Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http.exchange import Exchange, Upstream
from nodeagent.proxy.http.fields import NO_FIELDS, Field, with_fields
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.heads import AnswerHead, Malformed, read_answer, read_trailers, request_block, trailer_block
from nodeagent.proxy.http2.session import Session
from nodeagent.proxy.http2.stream import DOWNSTREAM, Http2Stream
from nodeagent.proxy.http2.user import TOO_LARGE, SessionUser
from nodeagent.proxy.pieces import add
from nodeagent.proxy.transport import Transport, watch

KEPT: Final = 1 << 16
KEPT_PART: Final = 8
"""On all connections of a pod: this part of what may be held for it. Beyond that requests are sent once."""
TRIES: Final = 4
"""How often an exchange that no endpoint looked at is sent."""
REFUSED_SECONDS: Final = 1.0
"""How long an endpoint that refused a stream is asked for no more at once than there were, whatever it says."""
_EMPTY: Final = (b"content-length", b"0")
HEADS: Final = 16
"""Heads of one endpoint that are remembered: each holds the fields of one header block."""
UNSENT: Final = 1 << 18
"""Bytes that are of no body and that the endpoint does not take: beyond them it is asked for nothing more, and
nothing is read either, which would have to be answered.
"""
HEADS_A_TURN: Final = 1 << 20
"""Bytes of heads that one turn of the loop asks it by, before it is seen whether it takes them."""
INTERIM_COST: Final = 20
"""Of the session's patience: an answer before the answer brings the client nothing."""
INTERIM_FREE: Final = 2
"""Of them for each answer."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamKeeper:
    """Who gives exchanges to connections (``streams.py``)."""

    def freed(self, upstream: Http2Upstream) -> None:
        """A stream of *upstream* has ended, or more may be opened."""
        raise NotImplementedError

    def forget(self, upstream: Http2Upstream) -> None:
        """*upstream* takes no more exchanges."""
        raise NotImplementedError

    def retry(self, exchange: Exchange) -> None:
        """Forward *exchange*, at which no endpoint has looked, once more."""
        raise NotImplementedError


class Http2Upstream(Upstream, SessionUser):
    """The protocol of a connection to an endpoint."""

    def __init__(
        self, keeper: StreamKeeper, owner: Connection, context: Context, transport: Transport, most: int
    ) -> None:
        """*owner*: the client's connection for whose exchange it was dialled; *most*: how many
        streams it carries at once, whatever the endpoint takes.
        """
        self._keeper = keeper
        self._context = context
        self.owner = owner
        self.transport = transport
        self._held = owner.pod.held
        self._most_kept = context.limits.held_bytes_per_pod // KEPT_PART
        self.session = Session(self, self._held, context.limits, client=True)
        self.streams: dict[Exchange, Http2Stream] = {}
        self.lost = False
        self.used = False
        """It has carried an exchange."""
        self._most = self._allowed = most
        self._refused_at = 0.0
        self._scheduled = False
        self._reading = True
        self._heads_out = 0
        """Bytes of heads that wait for this turn's write."""
        self._news = False
        """The endpoint has said in this read how many streams it takes."""
        self._heads: dict[int, AnswerHead] = {}
        self._trailers = NO_FIELDS
        """Of the answer whose end is told next."""
        self._read: list[Exchange] = []
        """Whose answers grew in this read."""
        self._empty: list[Exchange] = []
        """Whose answers began in this read, and have no body, though their streams go on."""
        self.idle_since = context.now

    def begin(self) -> None:
        """Send what begins the connection, also where nothing is asked yet."""
        watch(self.transport)
        self._soon()

    def free(self) -> bool:
        """Say whether another exchange may be given to it."""
        # an endpoint says at once how many it takes; some end the connection over one too many
        session = self.session
        most = self._allowed if session.settled else 1
        takes = session.unsent_frames <= UNSENT and self._heads_out <= HEADS_A_TURN
        return takes and not self.lost and not self.closes and session.can_open(most)

    def takes(self) -> bool:
        """Say whether it takes exchanges, if not now: a server that takes no stream at all is about to leave."""
        return not self.lost and not self.closes and self.session.peer_streams > 0

    # -- requests --

    def ask(self, exchange: Exchange) -> None:
        session = self.session
        stream = session.open()
        self.used = True
        stream.exchange = exchange
        self.streams[exchange] = stream
        exchange.upstream = self
        exchange.tries += 1
        whole = exchange.length == 0
        size = session.send_head(stream, request_block(exchange), ended=whole)
        exchange.received += size
        self._heads_out += size
        pending = exchange.pending
        exchange.pending = None
        exchange.pending_bytes = 0
        if not whole:
            stream.kept = []
            for piece in pending or ():
                self._give(stream, piece)
            if exchange.request_complete:
                self.end(exchange)
        if pending is not None:
            exchange.downstream.resume(exchange, "body")
        self._soon()

    def data(self, exchange: Exchange, piece: bytes) -> None:
        stream = self.streams.get(exchange)
        if stream is not None:
            self._give(stream, piece)
            self._soon()

    def _give(self, stream: Http2Stream, piece: bytes) -> None:
        kept = stream.kept
        if kept is not None:
            size = len(piece)
            if stream.kept_bytes + size > KEPT or self._held.kept + size > self._most_kept:
                self._unkeep(stream)
            else:
                add(kept, piece)
                stream.kept_bytes += size
                self._held.kept += size
        self.session.give(stream, piece)

    def _unkeep(self, stream: Http2Stream) -> None:
        """*stream* is sent once, or another one is in its place."""
        if stream.kept is not None:
            self._held.kept -= stream.kept_bytes
            stream.kept = None
            stream.kept_bytes = 0

    def end(self, exchange: Exchange) -> None:
        stream = self.streams.get(exchange)
        if stream is not None:
            trailers = exchange.trailers
            self.session.finish(stream, trailer_block(trailers) if trailers else NO_FIELDS)
            self._soon()

    def abandon(self, exchange: Exchange) -> None:
        stream = self.streams.pop(exchange, None)
        if stream is not None:
            self._unkeep(stream)
            self.session.reset(stream, wire.CANCEL)
            self._soon()
            self._free_again()

    def pause(self, exchange: Exchange) -> None:
        stream = self.streams.get(exchange)
        if stream is not None:
            self.session.hold(stream, DOWNSTREAM)

    def resume(self, exchange: Exchange) -> None:
        stream = self.streams.get(exchange)
        if stream is not None:
            self.session.release(stream, DOWNSTREAM)
            self._soon()

    def close(self) -> None:
        self.closes = True
        if not self.lost:
            self.session.leave()
            self._flush()
            self.transport.close()

    # -- writing --

    def _soon(self) -> None:
        """Write what this turn of the loop says, at its end."""
        if not self._scheduled:
            self._scheduled = True
            self._context.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self.lost:
            return
        session = self.session
        data = session.take()
        if data:
            self.transport.write(data)
            session.written(len(data))
            if session.unsent_frames > UNSENT:
                self._pause_reading()
        much = self._heads_out > HEADS_A_TURN
        self._heads_out = 0
        if session.broken is not None:
            self._end()
            return
        if session.waiting():
            self._soon()
        if much:
            self._keeper.freed(self)

    def _end(self) -> None:
        """Close the connection, which is broken, and keep nothing for who takes nothing."""
        (self.transport.abort if self.session.blocked else self.transport.close)()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        session = self.session
        if session.unsent_frames > UNSENT or session.behind or self._reading or self.transport.is_closing():
            return
        self._reading = True
        self.transport.resume_reading()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        session = self.session
        session.feed(data)
        if session.behind:
            self._pause_reading()
            self._context.loop.call_soon(self._catch_up)
        self._told()

    def _catch_up(self) -> None:
        """Go on with what came, of which the last turn had its share."""
        if self.lost or self.session.broken is not None:
            return
        self.session.feed(b"")
        if self.session.behind:
            self._context.loop.call_soon(self._catch_up)
        else:
            self._resume_reading()
        self._told()

    def _told(self) -> None:
        """Pass on what this turn brought."""
        session = self.session
        read = self._read
        self._read = []
        if self._empty:
            self._end_empty()
        for exchange in read:
            if not exchange.finished:
                exchange.downstream.flush(exchange)
        if session.broken is not None:
            self._lose(UPSTREAM_PROTOCOL)
        elif self._news:
            self._news = False
            self._keeper.freed(self)
        if session.waiting():
            self._soon()

    def _end_empty(self) -> None:
        """End answers that are whole: an end of their streams, which tells nothing more, may never come."""
        empty = self._empty
        self._empty = []
        for exchange in empty:
            stream = self.streams.pop(exchange, None)
            if stream is not None:
                self.session.reset(stream, wire.CANCEL)
                exchange.downstream.end(exchange, NO_FIELDS)
                self._free_again()

    def eof_received(self) -> bool:
        self._keeper.forget(self)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._lose(UPSTREAM_RESET)

    def _lose(self, reason: Reason) -> None:
        """No exchange gets an answer on this connection any more."""
        self._keeper.forget(self)
        streams = list(self.streams.values())
        self.streams.clear()
        self.session.forget_all()
        for stream in streams:
            exchange = stream.exchange
            assert exchange is not None, "a stream is opened for an exchange"
            if not exchange.replayable() or not self._again(exchange, stream):
                self._unkeep(stream)
                exchange.refuse(reason)

    def pause_writing(self) -> None:
        self.session.blocked = True

    def resume_writing(self) -> None:
        full = self.session.unsent_frames > UNSENT
        self.session.unblock()
        self._resume_reading()
        self._flush()
        if full and not self.lost:
            self._keeper.freed(self)

    # -- events of the session --

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        exchange = stream.exchange
        assert exchange is not None, "a stream is opened for an exchange"
        try:
            if fields is TOO_LARGE:
                raise Malformed("the answer's head is too large")
            if stream.head_read:
                self._trailers = read_trailers(fields)
                return
            head = self._head(fields, exchange.method, ended=self.session.ends)
            if head.status == 101 or (head.status < 200 and self.session.ends):
                raise Malformed("an interim answer ends the stream, or leaves HTTP/2")
        except Malformed:
            self.session.malformed(stream)
            return
        if head.status < 200:
            self.session.spend(INTERIM_COST)
            exchange.downstream.interim(exchange, head.status, head.fields)
            return
        self.session.earn(INTERIM_COST * INTERIM_FREE)
        stream.head_read = True
        self._unkeep(stream)
        stream.expected = head.length
        answer = head.fields
        if head.unsaid and exchange.protocol != "HTTP/2":
            answer = [*answer, _EMPTY]  # else an HTTP/1 client waits for a body that ends with the connection
        if exchange.answer_fields:
            answer = with_fields(answer, exchange.answer_fields)
        exchange.downstream.answer(exchange, head.status, answer, head.length)
        if not head.length and not self.session.ends:
            self._empty.append(exchange)
        self._read.append(exchange)

    def _head(self, fields: list[Field], method: bytes, *, ended: bool) -> AnswerHead:
        """Return the head in *fields*. A block that is seen again is told as the same list (``hpack/decoder.py``),
        and what it says to the usual methods is remembered from the second time on. Raises Malformed.
        """
        if method == b"HEAD" or not self.session.repeated():
            return read_answer(fields, method, ended=ended)
        key = id(fields) if ended else -id(fields)
        head = self._heads.get(key)
        if head is None or head.block is not fields:
            head = read_answer(fields, method, ended=ended)
            if len(self._heads) >= HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head

    def on_data(self, stream: Http2Stream, piece: bytes) -> None:
        exchange = stream.exchange
        assert exchange is not None, "a stream is opened for an exchange"
        exchange.downstream.data(exchange, piece)
        self._read.append(exchange)

    def on_end(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        assert exchange is not None, "a stream is opened for an exchange"
        del self.streams[exchange]
        if not stream.local_ended:
            self.session.reset(stream, wire.NO_ERROR)
        trailers = self._trailers
        self._trailers = NO_FIELDS
        exchange.downstream.end(exchange, trailers)
        self._free_again()

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        exchange = stream.exchange
        assert exchange is not None, "a stream is opened for an exchange"
        self._trailers = NO_FIELDS
        if self.streams.pop(exchange, None) is None:
            return
        refused = code == wire.REFUSED_STREAM and not ours
        if refused:
            self._allowed = max(1, len(self.streams))
            self._refused_at = self._context.now
        if refused and self._again(exchange, stream):
            self._free_again()
            return
        self._unkeep(stream)
        if ours or code == wire.PROTOCOL_ERROR:
            exchange.refuse(UPSTREAM_PROTOCOL)
        else:
            exchange.refuse(UPSTREAM_RESET)
        self._free_again()

    def party(self) -> str:
        return str(self.transport.get_extra_info("peername"))

    def on_given_up(self, stream: Http2Stream | None) -> None:
        self._context.loop.call_soon(self._given_up, stream)

    def _given_up(self, stream: Http2Stream | None) -> None:
        if stream is not None:
            self.on_reset(stream, wire.ENHANCE_YOUR_CALM, ours=True)
        if not self.transport.is_closing():
            self._soon()

    def on_full(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        if exchange is not None:
            exchange.downstream.pause(exchange, "upstream")

    def on_room(self, stream: Http2Stream) -> None:
        exchange = stream.exchange
        if exchange is not None:
            exchange.downstream.resume(exchange, "upstream")

    def on_goaway(self, code: int) -> None:
        self.closes = True
        self._free_again()

    def on_settings(self) -> None:
        self._news = True

    # -- the end of streams, and of the connection --

    def _free_again(self) -> None:
        if not self.streams:
            self.idle_since = self._context.now
            if self.closes:
                self.close()
        self._keeper.freed(self)

    def _again(self, exchange: Exchange, stream: Http2Stream) -> bool:
        """Send *exchange* once more, of which the endpoint saw nothing; False: not all of it is there any more."""
        if exchange.answered or exchange.finished or exchange.tries >= TRIES:
            return False
        if exchange.length:
            if stream.kept is None:
                return False
            exchange.pending = stream.kept
            exchange.pending_bytes = stream.kept_bytes
            self._unkeep(stream)
        exchange.upstream = None
        if exchange.tries < 2 or not exchange.downstream.elsewhere(exchange):
            self._keeper.retry(exchange)
        return True

    def sweep(self, now: float, seconds: float) -> None:
        """*seconds* have passed since the last time; *now* is monotonic."""
        self.session.forgive(seconds)
        if self._allowed < self._most and now - self._refused_at > REFUSED_SECONDS:
            self._allowed = self._most
            self._keeper.freed(self)
