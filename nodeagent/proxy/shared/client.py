"""The client's side of shared connections: those of one pool, and when sharing helps. Theory: ``link.py``.

A connection of its own costs a handshake, and its records are its own; a stream costs nine bytes a
write. So who is alone at an endpoint gets a connection of its own, which nothing beats, and whoever
comes while another one is there, or was a moment ago, a stream. The first who would share asks
whether the peer is an agent, by ALPN: one that is not gets what it would have got before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Final

from nodeagent.errors import NO_CERTIFICATE, UPSTREAM_RESET
from nodeagent.identity.tls import Contexts
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, DialError, Dialled
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.shared.heads import Carried, connect_block, is_taken
from nodeagent.proxy.shared.lease import Lease
from nodeagent.proxy.shared.link import STREAMS, UNSENT, Link
from nodeagent.proxy.shared.own import OwnConnection
from nodeagent.proxy.shared.stream import SharedStream
from nodeagent.proxy.transport import Transport
from nodeagent.vocabulary import host_port

MOST_CONNECTIONS: Final = 64
UNBLOCKED_CONNECTIONS: Final = 4
"""So many are dialled because the others' transports take nothing right now."""
RECENT_SECONDS: Final = 1.0
"""Who comes so soon after another one shares."""
ASK_SECONDS: Final = 60.0
"""How long a peer that was no agent is not asked again."""
REFUSED_SECONDS: Final = 1.0
"""How long a peer that took no stream is asked for none."""
MOST_MOVES: Final = 3
"""A stream that is refused more often gets a connection of its own."""


class SharedUpstream(Link):
    """The protocol of a shared connection to an endpoint's agent."""

    def __init__(self, pool: SharedPool, context: Context, transport: Transport, lease: Lease) -> None:
        Link.__init__(self, context, pool.held, transport, client=True)
        self.lease = lease
        self._pool = pool
        self._said: int | None = None
        """How many streams the peer takes by its own word, while it is not believed; None: it is."""
        self._refused_at = 0.0

    def free(self) -> bool:
        """Say whether one more stream may be opened."""
        takes = self.session.unsent_frames <= UNSENT
        return takes and not self.lease.retired and not self.lost and self.session.can_open(STREAMS)

    def open(self, carried: Carried) -> Dialled:
        """Return a connection to the endpoint that is a new stream."""
        dialled = Dialled()
        stream = dialled.stream = SharedStream(self, self._open(carried), carried, self.held)
        stream.lease = self.lease
        stream.protocol = dialled
        dialled.transport = stream
        self.streams[stream.stream.number] = stream
        return dialled

    def adopt(self, stream: SharedStream) -> None:
        """Carry *stream*, at which no peer has looked."""
        anew = self._open(stream.carried)
        self.streams[anew.number] = stream
        stream.move(self, anew, self.lease)

    def _open(self, carried: Carried) -> Http2Stream:
        stream = self.session.open()
        stream.kept = []
        self.session.send_head(stream, connect_block(carried, self._pool.authority), ended=False)
        self.soon()
        return stream

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        if stream.head_read:
            return
        if not is_taken(fields):
            self.session.malformed(stream)
            return
        stream.head_read = True
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.taken()

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        shared = self.streams.get(stream.number)
        if code == wire.REFUSED_STREAM and not ours and shared is not None:
            if not self.session.leaving:
                self._refused()
            if shared.movable():
                self.forget(shared)
                self._pool.again(shared)
                return
        Link.on_reset(self, stream, code, ours=ours)

    def _refused(self) -> None:
        """The peer takes no more streams than there are, whatever it said; none at all: it takes none now."""
        if self._said is None:
            self._said = self.session.peer_streams
        self._refused_at = self.context.now
        self.session.peer_streams = min(self._said, max(1, len(self.session.streams)))
        if not self.session.streams:
            self._pool.refused()

    def party(self) -> str:
        return self._pool.authority.decode()

    def emptied(self) -> None:
        if self.lease.retired:
            self.end()

    def retire(self) -> None:
        """Take no new streams; close behind the last one."""
        if not self.lease.retired:
            self.lease.retired = True
            self._pool.retire(self)
            if self.idle():
                self.end()

    def on_goaway(self, code: int) -> None:
        self.retire()

    def broke(self, words: str) -> None:
        self.retire()

    def eof_received(self) -> bool:
        self.retire()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.retire()
        self._pool.gone(self)
        Link.connection_lost(self, error)

    def sweep(self, now: float, idle: float, tls: Contexts | None) -> None:
        """Close it where nobody uses it for *idle* seconds at *now* (monotonic), retire it where *tls*
        has been renewed, or its peer's certificate has ended, and see whether a peer that says nothing is still there.
        """
        if self._said is not None and now - self._refused_at > REFUSED_SECONDS:
            self.session.peer_streams = self._said
            self._said = None
        ended = self.lease.tls is not tls or 0.0 < self.lease.expires < time()
        if ended or (self.idle() and (self.context.draining or now - self.idle_since > idle)):
            self.retire()
        if not self.lost:
            self.age()


class SharedPool:
    """The shared connections of one pool, that is of one identity to one endpoint."""

    def __init__(self, context: Context, dial: Dial, retired: Callable[[Lease], None]) -> None:
        """*retired* hears of each that takes no new streams: what is idle on it shall be closed."""
        self._context = context
        self._dial = dial
        self._retired = retired
        self.authority = host_port(dial.address, dial.port).encode()
        self.held = dial.pod.held
        direct = not dial.bound and dial.tunnel is None
        self._allowed = dial.expected is not None and direct and context.settings.shared_connections
        self._links: list[SharedUpstream] = []
        self._dialling: asyncio.Future[DialError | None] | None = None
        """Tells those who wait for it how what is dialled now failed, or that it did not."""
        self._dialled_at = -RECENT_SECONDS
        self._refused_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, carried: Carried, *, accompanied: bool) -> Dialled:
        """Return a connection to the endpoint: a stream where sharing helps and the peer can, else one
        of its own. *accompanied*: another one is there. Raises DialError.
        """
        now = self._context.now
        recent = now - self._dialled_at <= RECENT_SECONDS
        self._dialled_at = now
        if not self._possible() or not (accompanied or recent or self._links):
            return await self._dial.connect(self._context, carried)
        return await self._shared(carried)

    def _possible(self) -> bool:
        return self._allowed and self._context.now >= self._refused_until

    async def _shared(self, carried: Carried) -> Dialled:
        """Raises DialError."""
        link = await self._link(carried)
        if isinstance(link, SharedUpstream):
            return link.open(carried)
        return link if link is not None else await self._dial.connect(self._context, carried)

    async def _link(self, carried: Carried) -> SharedUpstream | Dialled | None:
        """Return what takes one more stream; or a connection of its own that was dialled before it was
        known that the peer is no agent; None: nothing does. Raises DialError.
        """
        while self._possible():
            link = self._free()
            if link is not None or len(self._links) >= MOST_CONNECTIONS:
                return link
            if self._dialling is not None:
                failed = await asyncio.shield(self._dialling)
                if failed is not None:
                    self._not_linked(failed)
                    return None
                continue
            own = await self._dial_more(carried)
            if own is not None:
                return own
        return None

    def _free(self) -> SharedUpstream | None:
        """Return the connection that takes the next stream; None: one more is to be dialled."""
        blocked = None
        for link in self._links:
            if not link.free():
                continue
            if not link.session.blocked:
                return link
            blocked = link
        return blocked if len(self._links) >= UNBLOCKED_CONNECTIONS else None

    async def _dial_more(self, carried: Carried) -> Dialled | None:
        """Dial a connection to be shared, for which others may wait meanwhile; return what it is where the
        peer is no agent. Raises DialError.
        """
        waiting = self._dialling = self._context.loop.create_future()
        tls = self._dial.contexts()
        failed: DialError | None = None
        try:
            dialled = await self._dial.connect(self._context, carried, shared=True)
            if dialled.shared and not self._take(dialled, tls).free():
                self.refused()  # it is about to leave: the next one would, too
        except DialError as error:
            failed = error
            raise
        finally:
            self._dialling = None
            waiting.set_result(failed)
        if dialled.shared:
            return None
        self._refused_until = self._context.now + ASK_SECONDS
        return dialled

    def _not_linked(self, error: DialError) -> None:
        """Another one's dial failed by *error*: whoever waited for it dials his own, not the next in turn."""

    def _take(self, dialled: Dialled, tls: Contexts | None) -> SharedUpstream:
        """Use the shared connection that *dialled* is, and return it. Raises DialError."""
        tls = tls if tls is not None else self._dial.contexts()
        if tls is None or dialled.lost or dialled.ended:
            dialled.transport.abort()
            raise DialError(NO_CERTIFICATE if tls is None else UPSTREAM_RESET)
        link = self._linked(dialled.transport, Lease(tls, dialled.expires))
        dialled.transport.set_protocol(link)
        self._links.append(link)
        if dialled.early:
            link.data_received(dialled.early)
        return link

    def _linked(self, transport: Transport, lease: Lease) -> SharedUpstream:
        return SharedUpstream(self, self._context, transport, lease)

    # -- what connections tell --

    def retire(self, link: SharedUpstream) -> None:
        """*link* takes no new streams."""
        self._retired(link.lease)

    def gone(self, link: SharedUpstream) -> None:
        """*link* is closed."""
        self._links.remove(link)

    def refused(self) -> None:
        """The peer takes no streams for now: what is new gets connections of its own."""
        self._refused_until = max(self._refused_until, self._context.now + REFUSED_SECONDS)

    def again(self, stream: SharedStream) -> None:
        """Carry *stream*, which its peer has not looked at, over another connection."""
        stream.wait()
        task = self._context.loop.create_task(self._carry_again(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_again(self, stream: SharedStream) -> None:
        tls = self._dial.contexts()
        try:
            link = await self._link(stream.carried) if stream.moved < MOST_MOVES else None
            if link is None:
                link = await self._dial.connect(self._context, stream.carried)
        except DialError as error:
            stream.lose(ConnectionResetError(f"no other connection took the stream: {error.reason.code}"))
            return
        if not stream.movable():  # it was aborted
            if isinstance(link, Dialled):
                link.transport.abort()
        elif isinstance(link, SharedUpstream):
            link.adopt(stream)
        else:
            OwnConnection(self._context, stream, link, Lease(tls, link.expires)).begin()

    def sweep(self, now: float, idle: float) -> None:
        """Close what idled for *idle* seconds at *now* (monotonic), and what may not be used any more."""
        if self._links:
            tls = self._dial.contexts()
            for link in list(self._links):
                link.sweep(now, idle, tls)
