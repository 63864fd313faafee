"""One request and its answer, and the two halves between which it passes.

Theory of operation
===================

An exchange is made by the codec towards the client when a request's head is whole. It goes down the
line (``line.py``: authorize, route), and the pool of its route gives it to a codec towards the
endpoint. From then on the two halves call each other through it, in this order::

       client ──▶ Downstream                                     Upstream ──▶ endpoint
                  line.request(exchange) ─ authorize, route ───▶ ask(exchange)
                  Exchange.data(piece)   ── waits, or ─────────▶ data(exchange, piece)
                  Exchange.complete()    ── waits, or ─────────▶ end(exchange)
                  interim(exchange, 103, fields) ◀────────────── any number of times
                  answer(exchange, status, fields, length) ◀──── once; `answered`
                  data(exchange, piece) ◀─────────────────────── any number of times
                  flush(exchange) ◀───────────────────────────── at the end of each read
                  end(exchange, trailers) ◀───────────────────── once; `finished`: counted, logged

Both directions are open at once: an answer may begin, and end, before its request has. Bodies are
pieces of bytes without framing; their length is the head's word (`length`): 0, a number, or UNKNOWN,
and then a codec for HTTP/1 writes chunks and one for HTTP/2 need not care. What came before the
endpoint was there waits in `pending`. An exchange ends in one of four ways, each of them once:

    * `Downstream.end`: answered whole, by the endpoint or on the proxy's own account (`refuse`);
    * `Downstream.cut`: what began as an answer cannot be completed; the client must see that;
    * `gone`: the client did not wait. `Upstream.abandon` ends what the endpoint still does for it;
    * `Downstream.switch`: both sides left HTTP, and bytes are relayed from there on.

Who cannot take more says so by `pause` and `resume` at the other half, for this exchange alone: a
codec for HTTP/1, which carries one at a time, stops reading its connection; one for HTTP/2 withholds
the stream's window. A connection of either side may carry many exchanges: each call names its own.

The short way: an HTTP/1 upstream that read one whole answer which needs no change offers the bytes
as they stand (`Downstream.whole`); an HTTP/1 downstream passes them on, any other says no, and gets
the answer in parts.

The halves are plain base classes whose methods the codecs override, because that is the cheapest
joint that mypyc has. Nanoseconds a call of ``data``, compiled, with CPython 3.11, of which a call of
the class itself takes 12.5: base class 12.9, trait 14.7, ``isinstance`` over a union 14.6, bound
method kept in a slot 24.8, Protocol 28.1 (which mypyc calls by name, as Python would). A trait would
be for a class that is both halves; none is. The base classes may be inherited from by plain Python,
as tests do; that costs nothing here, since they have no slots of their own that the hot path reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from nodeagent.errors import Reason
from nodeagent.proxy.carriage import Carriage
from nodeagent.proxy.http.answers import refusal
from nodeagent.proxy.http.fields import NO_FIELDS, Field, is_client_cert, joined, without
from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.pieces import add

if TYPE_CHECKING:
    from nodeagent.identity.tls import Contexts
    from nodeagent.policy.claims import Claims
    from nodeagent.proxy.connection import Connection
    from nodeagent.proxy.grpc.call import Call
    from nodeagent.proxy.permit import Permit
    from nodeagent.proxy.shared.lease import Leased
    from nodeagent.proxy.transport import Transport

UNKNOWN: Final = -1
"""The length of a body that ends where its sender says so, once it is there."""

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 section 9.2.2: may be sent again when a kept-alive upstream closed before a byte of the answer."""


class Exchange:
    """The state of one request on a downstream connection; made by the downstream codec, finished once."""

    # What most requests never change stays on the class: making an exchange is part of every
    # request's cost.
    protocol = "HTTP/1.1"
    """As the access log and authorizers name what the client speaks."""
    length = 0
    """Bytes of the request's body; UNKNOWN: as many as come before :meth:`complete`."""
    upgrade = b""
    """Protocols to which the client offers to go over (RFC 9110 section 7.8)."""
    own: tuple[Field, ...] = ()
    """Fields that concern the client's connection alone: policies may see them, they do not go on."""
    trailers: list[Field] = NO_FIELDS
    request_complete = False
    answered = False
    finished = False
    client_cert = False
    """The client says something of certificates itself."""
    forwarded_for = b""
    user_agent = b""
    request_id = b""
    content_type = b""
    deciding: asyncio.Task[None] | None = None
    """What asks others whether it may be forwarded."""
    call: Call | None = None
    """The gRPC call that it is."""
    pending: list[bytes] | None = None
    """What of the body has come and waits for the endpoint; None: it goes on as it comes."""
    pending_bytes = 0
    received = 0
    sent = 0
    enough = 0
    arrived: asyncio.Future[None] | None = None
    answer_fields: tuple[tuple[str, str, str], ...] = ()
    """What policies want changed in the answer's head, as ``fields.with_fields`` takes it."""
    status = 0
    swept = 0
    """How much was sent when the last sweep came by."""
    claims: Claims | None = None
    """What its tokens proved, where policies ask for them."""
    reason: Reason | None = None
    """Why the answer is the proxy's own, or was cut short."""
    tries = 0
    missed = 0
    """Endpoints that did not look at it."""
    since = 0.0
    """When the request was complete and permitted, by the context's clock."""
    route: Hop | None = None
    upstream: Upstream | None = None

    def __init__(
        self,
        downstream: Downstream,
        method: bytes,
        target: bytes,
        authority: bytes,
        fields: list[Field],
        started: float,
    ) -> None:
        self.downstream = downstream
        self.method = method
        self.target = target
        self.authority = authority
        """The host that is asked for, with its port where the client gave one; Host says the same."""
        self.fields = fields
        self.started = started
        """By perf_counter, in seconds."""

    # -- the head --

    def header(self, name: str) -> str | None:
        """Return the value of the field *name* (lower case), several lines joined with a comma (RFC
        9110 section 5.3); None without it.
        """
        wanted = name.encode("latin-1", "replace")
        value = joined(self.onward(), wanted)
        if value is None and self.own:
            value = joined(self.own, wanted)
        if value is None and self.route is not None and self.route.forwarded:
            value = joined(self.route.forwarded, wanted)
        return value.decode("latin-1") if value is not None else None

    def lines(self, name: str) -> list[str]:
        """Return the value of each line of the field *name* (lower case)."""
        wanted = name.encode("latin-1", "replace")
        return [value.decode("latin-1") for own, value in self.seen() if own.lower() == wanted]

    def seen(self) -> tuple[Field, ...]:
        """Return the fields as policies and authorizers see them: what goes on, what is of the client's
        connection alone, and of its certificate what was proved, not what it says.
        """
        proved = self.route.forwarded if self.route is not None else NO_FIELDS
        return (*self.onward(), *self.own, *proved)

    def onward(self) -> list[Field]:
        """Return the fields as they go on.

        What a client says of certificates itself is left out wherever the request goes, as Istio
        does (SANITIZE).
        """
        return without(self.fields, is_client_cert) if self.client_cert else self.fields

    # -- the request's body --

    def data(self, piece: bytes) -> None:
        """Take a *piece* of the body: it goes on, or waits."""
        self.received += len(piece)
        if self.call is not None:
            self.call.asked(piece)
        pending = self.pending
        upstream = self.upstream
        if pending is None and upstream is not None:
            upstream.data(self, piece)
            return
        if pending is None:
            pending = self.pending = []
        add(pending, piece)
        self.pending_bytes += len(piece)
        if self.arrived is not None:
            self.progressed()

    def complete(self) -> None:
        """Note that the request is whole, ``trailers`` included."""
        self.request_complete = True
        if self.arrived is not None:
            self.progressed()
        upstream = self.upstream
        if self.length and self.pending is None and upstream is not None and not self.finished:
            upstream.end(self)

    def hold(self, enough: int) -> asyncio.Future[None]:
        """Keep the body as it comes until :meth:`let_go`.

        The future is done when *enough* bytes of it are there, when it is complete, or when nobody
        waits for its answer any more.
        """
        if self.pending is None:
            self.pending = []
        self.enough = enough
        self.arrived = asyncio.get_running_loop().create_future()
        # what came before anybody waited may have filled what is kept otherwise
        self.downstream.resume(self, "body")
        self.progressed()
        return self.arrived

    def progressed(self) -> None:
        """Tell who waits for the body how far it is."""
        waiter = self.arrived
        if waiter is None or waiter.done():
            return
        if self.finished or self.request_complete or self.pending_bytes >= self.enough:
            waiter.set_result(None)

    def let_go(self) -> bytes:
        """Return what was held of the body; it goes on with the rest."""
        self.arrived = None
        return b"".join(self.pending or ())

    def drop(self) -> None:
        """Forget what waits of the body: nobody wants it, or somebody has it."""
        self.pending = None
        self.pending_bytes = 0

    # -- the answer, of which the codec towards the client tells --

    def begins(self, status: int, fields: list[Field]) -> None:
        """Note that the answer begins with *status* and *fields*."""
        self.status = status
        self.answered = True
        if self.call is not None:
            self.call.told(fields)

    def passes(self, piece: bytes) -> None:
        """Note that a *piece* of the answer's body goes on."""
        if self.call is not None:
            self.call.replied(piece)

    def ends(self, trailers: list[Field]) -> None:
        """Note that the answer is complete, with *trailers*."""
        self.finished = True
        if trailers and self.call is not None:
            self.call.told(trailers)

    # -- how it ends --

    def replayable(self) -> bool:
        """Say whether the request may be sent once more: nothing was answered and nothing of a body was lost."""
        return self.tries < 2 and not self.answered and not self.length and self.method in IDEMPOTENT

    def give_up(self, reason: Reason) -> None:
        """Wait for the endpoint no longer, and answer with *reason*."""
        if not self.finished and self.upstream is not None:
            self.upstream.abandon(self)
        self.refuse(reason)

    def unreached(self, reason: Reason) -> None:
        """No connection to its endpoint could be made, for *reason*: let another one serve it, or whoever
        asks know that none has looked at it, or refuse it.
        """
        downstream = self.downstream
        if not self.finished and not downstream.elsewhere(self) and not downstream.declines(self, reason):
            self.refuse(reason)

    def refuse(self, reason: Reason) -> None:
        """Answer on the proxy's own account, or let the client see that an answer which began has no end."""
        if self.finished:
            return
        if self.call is not None:
            reason = self.call.why(reason, perf_counter() - self.started)
        self.reason = reason
        downstream = self.downstream
        if self.answered:
            self.finished = True
            self.progressed()
            downstream.cut(self)
            return
        own = self.call.refusal(reason) if self.call is not None else None
        status, fields, body = refusal(self.method, reason) if own is None else (200, own, b"")
        downstream.answer(self, status, fields, len(body))
        if body:
            downstream.data(self, body)
        downstream.end(self, NO_FIELDS)

    def gone(self) -> bool:
        """Note that the client does not wait any more; say whether it had something to wait for."""
        if self.finished:
            return False
        self.finished = True
        self.progressed()
        if self.upstream is not None:
            self.upstream.abandon(self)
        if self.deciding is not None:
            self.deciding.cancel()
        return True


@mypyc_attr(allow_interpreted_subclasses=True)
class Downstream(Carriage):
    """The half towards the client: a codec of one accepted connection."""

    connection: Connection
    permit: Permit
    """What let the connection in; it may change while the connection is open."""
    touched = 0.0
    """When the client sent something, or an answer to it grew; by the context's clock."""
    head_since = 0.0
    """Since when a request's head is being read."""
    retiring = False
    """The client was asked to come back on a new connection (:meth:`drain`)."""
    swept = 0
    """How many requests were answered when the last sweep came by."""

    def allow(self, permit: Permit) -> None:
        self.permit = permit

    # -- answers --

    def interim(self, exchange: Exchange, status: int, fields: list[Field]) -> None:
        """Pass on an answer before the answer (1xx, RFC 9110 section 15.2), if the client can take
        one, with *fields* as the server put them; after 101 follows :meth:`switch`.
        """
        raise NotImplementedError

    def answer(self, exchange: Exchange, status: int, fields: list[Field], length: int) -> None:
        """Begin the answer: its *status*, its end-to-end *fields*, and how many bytes of a body
        follow; 0: none, whatever the fields announce (RFC 9110 section 9.3.2), and :meth:`end` is
        called in the same turn; UNKNOWN: until then.
        """
        raise NotImplementedError

    def data(self, exchange: Exchange, piece: bytes) -> None:
        """Go on with the answer's body."""
        raise NotImplementedError

    def flush(self, exchange: Exchange) -> None:
        """Send what was said of the answer so far: nothing more is known for now."""
        raise NotImplementedError

    def end(self, exchange: Exchange, trailers: list[Field]) -> None:
        """The answer is complete: send the rest, finish the exchange, count it, and go on to the
        next. The caller's last word: its own connection is free for others by then.
        """
        raise NotImplementedError

    def whole(self, exchange: Exchange, status: int, message: bytes) -> bool:
        """Take *message*, a whole HTTP/1.1 answer that needs no change, in the place of answer,
        data and end. False: it is to be told in parts.
        """
        return False

    def cut(self, exchange: Exchange) -> None:
        """Let the client see that the answer ended too early: the exchange is finished, ``reason`` says why."""
        raise NotImplementedError

    def elsewhere(self, exchange: Exchange) -> bool:
        """Let another endpoint serve *exchange*, at which its own has not looked; False: there is none."""
        raise NotImplementedError

    def declines(self, exchange: Exchange, reason: Reason) -> bool:
        """Tell a peer that can ask another endpoint that *exchange* was not looked at, for *reason*, and
        finish it; False: it is to be answered.
        """
        return False

    def switches(self, exchange: Exchange) -> bool:
        """Say whether the client may leave HTTP now, as it offered to (RFC 9110 section 7.8)."""
        return False

    def switch(self, exchange: Exchange, endpoint: Transport, rest: bytes) -> None:
        """The server agreed to leave HTTP, and that was passed on: relay bytes between the client
        and the transport *endpoint*, of which *rest* was read already.
        """
        raise NotImplementedError

    def invite(self, exchange: Exchange) -> None:
        """Tell a client that asks before it sends its body (RFC 9110 section 10.1.1) to go on."""
        raise NotImplementedError

    def pause(self, exchange: Exchange, why: str) -> None:
        """Take no more of the request's body from the client until *why*, and every other cause, is gone."""
        raise NotImplementedError

    def resume(self, exchange: Exchange, why: str) -> None:
        """*why* is gone."""
        raise NotImplementedError

    # -- the connection --

    def under_way(self) -> Sequence[Exchange]:
        """Return the exchanges whose answers are awaited, or given."""
        raise NotImplementedError

    def reading_head(self) -> bool:
        """Say whether a request's head has begun and is not whole."""
        raise NotImplementedError

    def held_back(self, exchange: Exchange) -> bool:
        """Say whether it is the proxy that does not take more of the request (:meth:`pause`)."""
        raise NotImplementedError

    def moved(self, exchange: Exchange) -> float:
        """Return when *exchange* went forward last, by the context's clock."""
        return self.touched

    def move(self, exchange: Exchange, now: float) -> None:
        """Its answer grew since the last sweep."""
        self.touched = now

    def time_out(self, exchange: Exchange | None) -> None:
        """The client stopped in the middle of *exchange*, or of a head."""
        raise NotImplementedError

    def drain(self) -> None:
        """Ask the client to come back on a new connection, with the answer under way or with the next one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection: nothing is under way."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class Upstream:
    """The half towards the endpoint: a codec of one connection to it."""

    owner: Connection
    """The client's connection for whose request it was dialled."""
    tls: Contexts | None = None
    """The TLS contexts that it was dialled with."""
    expires = 0.0
    """When the certificate that its server showed ends, Unix seconds; 0: it showed none."""
    idle_since = 0.0
    """When its keeper took it back, by the context's clock."""
    closes = False
    """The server said that it closes after this answer."""
    stream: Leased | None = None
    """What it is, where a connection between agents that many share carries it."""

    def ask(self, exchange: Exchange) -> None:
        """Send the request's head, what of its body waits, and its end if that is there."""
        raise NotImplementedError

    def data(self, exchange: Exchange, piece: bytes) -> None:
        """Go on with the request's body."""
        raise NotImplementedError

    def end(self, exchange: Exchange) -> None:
        """The request's body, of which there was one, is complete; ``trailers`` may follow."""
        raise NotImplementedError

    def abandon(self, exchange: Exchange) -> None:
        """Nobody waits for this answer any more."""
        raise NotImplementedError

    def pause(self, exchange: Exchange) -> None:
        """The client does not take more of this answer for now."""
        raise NotImplementedError

    def resume(self, exchange: Exchange) -> None:
        """It does again."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection, over which nothing is under way."""
        raise NotImplementedError
