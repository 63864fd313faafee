"""The server's half of HTTP/1.1: keeps a client's requests in order, and writes their answers.

It never forwards bytes that it did not parse: a request's head is written anew, its body is
re-framed. What is ambiguous is refused with 400 and the connection is closed.

Theory of operation
===================

One exchange at a time is `current`: it has been given to the line, and its answer is written. What
is read meanwhile belongs to `reader.reading`, the same exchange or one behind it (`queue`)::

                      head whole                     answer's head             answer's end
        ┌─────────┐  line.request   ┌────────────┐  answer()   ┌────────────┐  end()    request read whole?
    ──▶ │  idle   │ ──────────────▶ │   asked    │ ──────────▶ │  answering │ ─────┬──── yes: next of `queue`,
        └─────────┘                 └────────────┘             └────────────┘      │     else idle
             ▲                         │ refuse: an answer          │ cut: reset   │
             │                         │ of our own                 ▼              └──── no: the rest is read and
             │                         └──▶ answering ──▶       connection lost          dropped, then next; or
             └───────────────────────────────────────────────────────────────┘           linger where it closes

Reading stops for any of the causes in `turns.paused`, and goes on when all are gone:

    pipelining  as many requests wait as may (QUEUED_REQUESTS)
    body        what waits of a body for its endpoint is more than is kept
    upstream    the endpoint does not take more of the body
    answers     the client does not read what is written
    upgrade     another protocol was offered: what follows waits for the answer
    turn        it has had its share of this turn of the loop

The connection closes after an answer that says so: the client asked for it (`keep_alive`), the proxy
drains, a refused request has a body that will not be read, or what follows cannot be understood.
`closed` (of the reader) is set as soon as nothing that still comes counts. A close while the client
is sending would be a reset that overtakes the answer, so that the proxy ends its own side first and
reads on for a while: it lingers.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from time import perf_counter
from typing import Final

import httptools

from nodeagent.errors import DOWNSTREAM_GONE, DOWNSTREAM_TIMEOUT, HELD_PER_POD, Reason
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.http import patience
from nodeagent.proxy.http.exchange import UNKNOWN, Downstream, Exchange
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http.line import Line
from nodeagent.proxy.http1.answers import AnswerWriter, interim_head
from nodeagent.proxy.http1.backlog import ClientBacklog
from nodeagent.proxy.http1.exchange import Http1Exchange
from nodeagent.proxy.http1.requests import RequestReader, RequestSink
from nodeagent.proxy.http1.turns import PORTION_BYTES, Turns
from nodeagent.proxy.permit import Permit
from nodeagent.proxy.transport import Transport, reset

QUEUED_REQUESTS: Final = 1
"""Pipelined requests taken before reading stops; they are answered in order, one upstream at a time."""
LINGER_SECONDS: Final = 1.0
"""What the client still sends is read and dropped so long: a close with unread bytes is a reset,
which can overtake the answer (RFC 9112 section 9.6).
"""


class Http1Downstream(Downstream, RequestSink):
    """The protocol of an accepted connection that speaks HTTP/1.x; ``transport`` is plain or a TlsStream."""

    def __init__(
        self, line: Line, context: Context, connection: Connection, permit: Permit, transport: Transport
    ) -> None:
        self.line = line
        self.context = context
        self.connection = connection
        self.permit = permit
        self.transport = transport
        self.write = transport.write
        self.reader = RequestReader(self, self, line, context)
        self.answers = AnswerWriter()
        self.turns = Turns(transport, context.loop, self.reader, self.parse)
        self.backlog = ClientBacklog(connection, context, self._give_way)
        self.current: Http1Exchange | None = None
        self.queue: collections.deque[Http1Exchange] = collections.deque()
        self.touched = context.now
        self.head_since = context.now
        self._full = False
        self._stepping = False
        self._step_again = False

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        if self.reader.closed:
            return
        self.touched = self.context.now
        turns = self.turns
        if len(data) <= PORTION_BYTES and not turns.late:
            self.parse(data)
        else:
            turns.come(data)
        current = self.current
        if self.backlog.bytes or turns.late or (current is not None and current.pending_bytes):
            self._weigh()

    def parse(self, data: bytes) -> None:
        """Parse the next portion of what came."""
        reader = self.reader
        try:
            wrong = reader.feed(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._hold_upgrade(data[upgrade.args[0] :])
            wrong = reader.excess()
        if wrong is not None:
            self._protocol_error(wrong)
        if self.backlog.bytes:
            self._weigh()

    def _weigh(self) -> None:
        """Count what waits here."""
        waiting = len(self.turns.late)
        if self.current is not None:
            waiting += self.current.pending_bytes
        for exchange in self.queue:
            waiting += exchange.pending_bytes
        self.backlog.count(waiting)

    def _give_way(self) -> None:
        """The pod's connections hold too much, and this one's client brought most: what waits here is dropped."""
        current = self.current
        if current is not None and not current.finished:
            current.give_up(HELD_PER_POD)
            current.drop()
        if self.reader.closed:
            self.turns.late = b""
        self._weigh()
        if self.backlog.bytes:
            self.reset()

    def eof_received(self) -> bool:
        # A client may half-close after its last request and still read the answers.
        if self.current is None:
            return False
        if not self.reader.closed:
            if self.reader.reading is not None:
                return False
            self.reader.closed = True
            (self.queue[-1] if self.queue else self.current).keep_alive = False
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.reader.closed = True
        current, self.current = self.current, None
        self.queue.clear()
        self.turns.late = b""
        self.backlog.count(0)
        if current is not None and current.gone():
            self.line.observe(current, DOWNSTREAM_GONE.status, DOWNSTREAM_GONE)
        self.line.closed(self.connection)

    def pause_writing(self) -> None:
        self._full = True
        current = self.current
        if current is not None and not current.finished and current.upstream is not None:
            current.upstream.pause(current)

    def resume_writing(self) -> None:
        self._full = False
        self.turns.resume("answers")
        current = self.current
        if current is None:
            if self.queue:
                self._take_next()
        elif not current.finished and current.upstream is not None:
            current.upstream.resume(current)

    # -- requests --

    def began(self, exchange: Http1Exchange) -> None:
        self.turns.begun += 1
        if self.current is None:
            self.current = exchange
            if self.reader.refused is None:
                self._begin(exchange)
        else:
            self.queue.append(exchange)
            exchange.pending = []
            if len(self.queue) >= QUEUED_REQUESTS:
                self.turns.pause("pipelining")

    def completed(self, exchange: Http1Exchange) -> None:
        if exchange is self.current:
            self._next()

    def _begin(self, exchange: Http1Exchange) -> None:
        if self.context.draining or self.retiring:
            exchange.keep_alive = False
        self.line.request(exchange)

    def _hold_upgrade(self, rest: bytes) -> None:
        """The client asked for another protocol: what it sends next waits for the answer."""
        rest += self.turns.late
        self.turns.late = b""
        if self.reader.behind:
            if not self.reader.closed:
                self.reader.read_behind()
                if rest:
                    self.data_received(rest)
            return
        exchange = self.queue[-1] if self.queue else self.current
        if exchange is None or not exchange.upgrade or exchange.finished:
            if rest:
                self.data_received(rest)
            return
        if rest:
            exchange.pending = [*(exchange.pending or ()), rest]
            exchange.pending_bytes += len(rest)
        self.turns.pause("upgrade")

    def pause(self, exchange: Exchange, why: str) -> None:
        self.turns.pause(why)

    def resume(self, exchange: Exchange, why: str) -> None:
        self.turns.resume(why)
        if self.backlog.bytes:
            self._weigh()

    # -- answers --

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        current = self.current
        if current is None or current is not exchange or current.http10:
            return
        if self._full and status != 101:
            if status == 100:
                self.invite(exchange)  # it may be waited for; what a server puts into it is not
            return
        self._send(exchange, interim_head(status, fields))

    def invite(self, exchange: Exchange) -> None:
        current = self.current
        if current is not None and current is exchange and not current.http10:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        current = self.current
        if current is None or current is not exchange:
            return
        current.begins(status, fields)
        if current.reason is not None and current.length and not current.request_complete:
            current.keep_alive = False
        if length == UNKNOWN and current.http10:
            current.keep_alive = False  # the body ends with the connection
        chunked = length == UNKNOWN and not current.http10
        self.answers.head(status, fields, current.persistence(), chunked=chunked)

    def data(self, exchange: Exchange, piece: bytes) -> None:
        if self.current is exchange:
            exchange.passes(piece)
            self.answers.data(piece)

    def flush(self, exchange: Exchange) -> None:
        if self.current is not exchange:
            return
        data = self.answers.take()
        if data:
            self._send(exchange, data)

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        exchange.ends(trailers)
        if self.current is not exchange:
            self._ended(exchange, b"")
            return
        self.answers.end(trailers)
        self._ended(exchange, self.answers.take())

    def whole(self, exchange: Exchange, status: int, message: bytes) -> bool:
        current = self.current
        if current is None or current is not exchange or current.http10 or not current.keep_alive:
            return False
        if current.call is not None:
            return False  # what is in it is counted
        current.status = status
        current.answered = True
        self._ended(exchange, message)
        return True

    def _ended(self, exchange: Exchange, rest: bytes) -> None:
        """The answer of *exchange* ends with *rest*: take the next request, or close."""
        exchange.finished = True
        if exchange.arrived is not None:
            exchange.progressed()
        if rest:
            self._send(exchange, rest)
        self.line.observe(exchange, exchange.status, exchange.reason)
        current = self.current
        if current is None or current is not exchange:
            return
        if current.request_complete:
            self._next()
        elif current.keep_alive:
            # The answer came before the request's end: the rest of its body is read and dropped.
            for why in ("body", "upstream"):
                self.turns.resume(why)
        else:
            self._linger()

    def _send(self, exchange: Exchange, data: bytes) -> None:
        exchange.sent += len(data)
        self.write(data)

    def cut(self, exchange: Exchange) -> None:
        self.line.observe(exchange, exchange.status, exchange.reason)
        reset(self.transport)  # an end without a reset could pass for the answer's own

    def elsewhere(self, exchange: Exchange) -> bool:
        return self.line.elsewhere(exchange)

    def switches(self, exchange: Exchange) -> bool:
        # What was offered on in PERMISSIVE mode is no more in STRICT.
        return exchange.upgrade != b"" and not self.permit.only_probes

    def switch(self, exchange: Exchange, endpoint: Transport, rest: bytes) -> None:
        exchange.answered = True
        exchange.finished = True
        self.turns.resume("upgrade")  # before the relay, which may want to pause again
        early = b"".join(exchange.pending or ())
        exchange.drop()
        self.backlog.count(0)
        self.line.tunnel(exchange, self.transport, endpoint, early, rest)

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
        if exchange is None or not exchange.keep_alive or (self.reader.closed and not self.queue):
            self.close()
            return
        if self.turns.paused:
            for why in ("body", "upstream"):
                self.turns.resume(why)
        if self._full:
            self.turns.pause("answers")  # what is not read yet must not grow by the next answer
        elif self.queue:
            self._take_next()
        if exchange.upgrade:
            self._declined(exchange)
        if self.backlog.bytes:
            self._weigh()

    def _take_next(self) -> None:
        following = self.current = self.queue.popleft()
        if self.reader.refused is not None and not self.queue:
            following.refuse(self.reader.refused)
            return
        if len(self.queue) < QUEUED_REQUESTS:
            self.turns.resume("pipelining")
        self._begin(following)

    def _declined(self, exchange: Exchange) -> None:
        """The server stayed with HTTP: so does what was held back."""
        held = exchange.pending
        exchange.drop()
        self.turns.resume("upgrade")
        if held:
            self.data_received(b"".join(held))

    # -- the connection's end --

    def under_way(self) -> Sequence[Exchange]:
        return () if self.current is None else (self.current,)

    def reading_head(self) -> bool:
        return self.reader.reading_head

    def held_back(self, exchange: Exchange) -> bool:
        return bool(self.turns.paused)

    def time_out(self, exchange: Exchange | None) -> None:
        self._protocol_error(DOWNSTREAM_TIMEOUT)

    def _protocol_error(self, reason: Reason) -> None:
        """What was sent is not HTTP, or not safely so: nothing more is read; it is answered in its
        turn, and the connection closes.
        """
        reader = self.reader
        if reader.closed:
            return
        reader.refused = reason
        reader.closed = True
        exchange = reader.reading
        if exchange is None:
            exchange = Http1Exchange(self, b"-", b"-", b"-", [], perf_counter())
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

    def drain(self) -> None:
        self.retiring = True
        if self.current is not None and not self.current.answered:
            self.current.keep_alive = False

    def sweep(self, now: float) -> None:
        patience.enforce(self, now, self.context.timeouts)

    def reset(self) -> None:
        reset(self.transport)

    def close(self) -> None:
        self.reader.closed = True
        self.queue.clear()
        self.transport.close()

    def _linger(self) -> None:
        """Close when the client has read what was said, or soon."""
        self.reader.closed = True
        self.reader.reading = None
        self.current = None
        self.queue.clear()
        for why in tuple(self.turns.paused):
            self.turns.resume(why)
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.context.loop.call_later(LINGER_SECONDS, self.transport.close)
