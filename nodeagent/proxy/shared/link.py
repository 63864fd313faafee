"""A shared connection as both agents have it: an HTTP/2 session whose streams carry connections.

Theory of operation
===================

The client's agent dials the server pod's own address and port, as for a connection of one client,
and offers SHARED_ALPN besides what Istio's sidecars know; only an agent picks it. Then::

    client's agent                                    server's agent
    HEADERS :method CONNECT, inside: http | tcp ────▶ a connection of the proved identity is accepted
    DATA, behind it without waiting             ◀───▶ HEADERS :status 200; DATA
    END_STREAM: this direction ends, the other goes on, as by FIN
    RST_STREAM: both end at once, as by RST
    GOAWAY: idle streams close, new ones go elsewhere; what is under way stays

What is inside stays as it is: an HTTP/1.1 connection keeps its fields' spelling, chunks, 1xx,
trailers and upgrades, and is used for one request after the other without another head here.

Writes of one turn of the loop leave as one, at its end: many frames, few records, one system call.

**Slow readers.** A stream whose reader pauses gets no new window: its peer may send what is left
of the one it has, which waits here: STREAM_WINDOW, and more where what came was taken at once, as the
way may be long (``http2/session.py``). The connection's window is given back all the same, so that
readers who stand still, be it all but one, never hold back another one. Where all that a pod's
connections hold is too much, streams of the peer that makes it hold most are reset, no other's.

**Nothing is lost on the way.** What is said is kept until the peer's agent has taken the stream; it
has as long as a connection of its own may take, and the writer waits meanwhile. One
that it does not take goes over another shared connection, and after some over one of its own
(``own.py``), where it is said anew: so an agent that drains, or whose pod is released, costs none.

**Ends.** What a peer said to a stream's end reaches its reader, however slow, whatever becomes of
the connection or the other direction. A stream that is closed here, all of it sent, is reset when
its peer does not end it within LINGER_SECONDS, as nobody else counts it any more. So is one of which
the peer takes hardly anything for RETIRING_SECONDS: less than LEAST_TAKEN.
"""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.context import Context
from nodeagent.proxy.http.fields import NO_FIELDS, Field
from nodeagent.proxy.http.patience import RETIRING_SECONDS
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.held import HeldBytes
from nodeagent.proxy.http2.session import Session
from nodeagent.proxy.http2.stream import DOWNSTREAM, Http2Stream
from nodeagent.proxy.http2.user import SessionUser
from nodeagent.proxy.shared.stream import SharedStream, StreamOwner
from nodeagent.proxy.transport import Transport

STREAMS: Final = 128
"""On one connection; more are more connections."""
STREAM_WINDOW: Final = 1 << 17
PING_SECONDS: Final = 30.0
LOST_SECONDS: Final = 60.0
"""A peer that says nothing is asked whether it is there after the first, and given up the second later:
a pod's network may vanish before a FIN has left it. As long as an agent may be without a processor.
"""
NEVER: Final = -1.0
LEAST_TAKEN: Final = 1 << 12
"""Bytes that a peer takes at least in RETIRING_SECONDS of a stream that is closed here, unless fewer are left."""
UNSENT: Final = 1 << 18
"""Bytes of control frames that may wait for a transport that takes none; then nothing is read either."""


class Link(StreamOwner, SessionUser):
    """The protocol of a shared connection; each side adds how streams begin."""

    def __init__(self, context: Context, held: HeldBytes, transport: Transport, *, client: bool) -> None:
        """*held*: what the connections of this agent's pod make it hold."""
        self.context = context
        self.transport = transport
        self.held = held
        self.session = Session(self, held, context.limits, client=client, window=STREAM_WINDOW, tunnels=STREAMS)
        self.streams: dict[int, SharedStream] = {}
        self.lost = False
        self.idle_since = context.now
        """When its last stream ended, by the context's clock."""
        self._touched = context.now
        """When the peer said something."""
        self._asked = NEVER
        """When it was asked whether it is there, and has said nothing since."""
        self._swept_at = context.now
        self._stuck: dict[int, tuple[int, float]] = {}
        """Streams that nobody here uses any more: bytes that waited, and when that was."""
        self._scheduled = False
        self._broken = False
        self._reading = True

    # -- what streams ask for --

    def give(self, shared: SharedStream, piece: bytes) -> None:
        self.session.give(shared.stream, piece)
        self.soon()

    def finish(self, shared: SharedStream) -> None:
        self.session.finish(shared.stream, NO_FIELDS)
        self.soon()

    def closed(self, shared: SharedStream, *, ended: bool) -> None:
        if ended:
            self.forget(shared)

    def cut(self, shared: SharedStream) -> None:
        self.session.reset(shared.stream, wire.CANCEL)
        self.forget(shared)

    def hold(self, shared: SharedStream) -> None:
        self.session.hold(shared.stream, DOWNSTREAM)

    def release(self, shared: SharedStream) -> None:
        self.session.release(shared.stream, DOWNSTREAM)
        if self.session.waiting():
            self.soon()

    def forget(self, shared: SharedStream) -> None:
        self.streams.pop(shared.stream.number, None)
        self.idle_since = self.context.now
        self.soon()

    def soon(self) -> None:
        """Write what this turn of the loop says, at its end."""
        if not self._scheduled:
            self._scheduled = True
            self.context.loop.call_soon(self._flush)

    def idle(self) -> bool:
        """Say whether no stream is open, nor has anything left that its reader has not taken."""
        return not self.session.streams and not self.streams

    def emptied(self) -> None:
        """It is idle."""
        raise NotImplementedError

    # -- writing --

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
        if session.broken is not None:
            self._break(session.broken.words)
        elif session.waiting():
            self.soon()
        elif self.idle():
            self.emptied()

    def _break(self, words: str) -> None:
        """End it, once."""
        if not self._broken:
            self._broken = True
            self.broke(words)
            self.transport.close()

    def broke(self, words: str) -> None:
        """The peer broke a rule, was told so by *words*, and nothing of it is read any more."""
        raise NotImplementedError

    def end(self) -> None:
        """Close the connection, which has no streams."""
        if not self.lost and not self.transport.is_closing():
            self.session.leave()
            rest = self.session.take()
            if rest:
                self.transport.write(rest)
            self.transport.close()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        self._touched = self.context.now
        self._asked = NEVER
        self._feed(data)
        if self.session.behind:
            self._pause_reading()
            self.context.loop.call_soon(self._catch_up)

    def _feed(self, data: bytes) -> None:
        session = self.session
        session.feed(data)
        if session.broken is not None or session.waiting():
            self.soon()

    def _catch_up(self) -> None:
        """Go on with what came, of which the last turn had its share."""
        if self.lost:
            return
        self._feed(b"")
        if self.session.behind:
            self.context.loop.call_soon(self._catch_up)
        else:
            self._resume_reading()

    def eof_received(self) -> bool:
        return False  # each stream has an end of its own

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        # one that both sides have ended is whole, it only waits for its reader
        streams = [each for number, each in self.streams.items() if number in self.session.streams]
        self.streams.clear()
        self.session.forget_all()
        for stream in streams:
            stream.lose(error or ConnectionResetError("the shared connection was lost"))

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
        if self.session.unsent_frames > UNSENT or self.session.behind or self._reading or self.transport.is_closing():
            return
        self._reading = True
        self.transport.resume_reading()

    # -- events of the session --

    def on_head(self, stream: Http2Stream, fields: list[Field]) -> None:
        raise NotImplementedError

    def on_data(self, stream: Http2Stream, piece: bytes) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.came(piece)

    def on_end(self, stream: Http2Stream) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.ended()
            self.session.release(stream, DOWNSTREAM)  # what it holds, it counts itself now

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.lose(ConnectionResetError("the other agent reset the stream"))

    def on_given_up(self, stream: Http2Stream | None) -> None:
        if stream is not None:
            self.on_reset(stream, wire.ENHANCE_YOUR_CALM, ours=True)
            self.soon()
        else:
            self.context.loop.call_soon(self._cut)

    def _cut(self) -> None:
        """End it now: its transport takes nothing."""
        if not self.lost and self.session.broken is not None:
            self._flush()
            self.transport.abort()

    def on_full(self, stream: Http2Stream) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.full()

    def on_room(self, stream: Http2Stream) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.room()

    def on_goaway(self, code: int) -> None:
        """The peer opens no more streams, or takes none."""

    def on_settings(self) -> None:
        """The peer has said what it takes; the session knows."""

    # -- time --

    def ask(self) -> None:
        """Ask the peer whether it is there."""
        self._asked = self.context.now
        self.session.ping()
        self.soon()

    def age(self) -> None:
        """Give the peer back what patience the time since the last sweep earns, reset the streams that it
        should have taken or ended, and see whether one that says nothing is still there.
        """
        now = self.context.now
        self.session.forgive(now - self._swept_at)
        self._swept_at = now
        for stream in [each for each in self.streams.values() if each.overdue() or each.untaken()]:
            self.cut(stream)
            stream.lose(ConnectionResetError("the other agent did not take the stream"))
        self._cut_stuck(now)
        if self._asked != NEVER:
            if now - self._asked > LOST_SECONDS:
                self.transport.abort()
        elif now - self._touched > PING_SECONDS:
            self.ask()

    def _cut_stuck(self, now: float) -> None:
        """Reset what was closed here, and stands still, or almost."""
        stuck: dict[int, tuple[int, float]] = {}
        for stream in list(self.session.streams.values()):
            shared = self.streams.get(stream.number)
            if shared is not None and not shared.is_closing():
                continue
            count, since = self._stuck.get(stream.number, (stream.queued, now))
            moves = count - stream.queued >= LEAST_TAKEN
            if not moves and now - since > RETIRING_SECONDS:
                self.session.reset(stream, wire.CANCEL)
                if shared is not None:
                    shared.lose(None)
                self.idle_since = now
                self.soon()
            else:
                stuck[stream.number] = (stream.queued, now) if moves else (count, since)
        self._stuck = stuck
