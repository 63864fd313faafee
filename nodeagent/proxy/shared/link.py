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
of STREAM_WINDOW, which waits here. The connection's window is that of all streams together, so that
readers who stand still, be it all but one, never hold back another one. Where all that a pod's
connections hold is too much, the stream whose bytes exceed it is reset, no other.

**Ends.** What a peer said to a stream's end reaches its reader, however slow, whatever becomes of
the connection or the other direction. A stream that is closed here, all of it sent, is reset when
its peer does not end it within LINGER_SECONDS, as nobody else counts it any more.
"""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.context import Context
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2.held import HeldBytes
from nodeagent.proxy.http2.session import Session
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.http2.user import SessionUser
from nodeagent.proxy.shared.stream import SharedStream, StreamOwner
from nodeagent.proxy.transport import Transport

STREAMS: Final = 128
"""On one connection; more are more connections."""
STREAM_WINDOW: Final = 1 << 17
UNSENT: Final = 1 << 18
"""Bytes of control frames that may wait for a transport that takes none; then nothing is read either."""


class Link(StreamOwner, SessionUser):
    """The protocol of a shared connection; each side adds how streams begin."""

    def __init__(self, context: Context, held: HeldBytes, transport: Transport, *, client: bool) -> None:
        """*held*: what the connections of this agent's pod make it hold."""
        self.context = context
        self.transport = transport
        self.session = Session(self, held, context.limits, client=client, window=STREAM_WINDOW, tunnels=STREAMS)
        self.streams: dict[int, SharedStream] = {}
        self.lost = False
        self.touched = context.now
        """When the peer said something, by the context's clock."""
        self._swept_at = context.now
        self._scheduled = False
        self._broken = False
        self._reading = True
        self._unsent = 0

    # -- what streams ask for --

    def soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.context.loop.call_soon(self._flush)

    def forget(self, stream: SharedStream) -> None:
        self.streams.pop(stream.stream.number, None)
        self.soon()

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
            if session.blocked:
                self._unsent += len(data)
                if self._unsent > UNSENT:
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
            self.transport.write(self.session.take())
            self.transport.close()

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        self.touched = self.context.now
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
        self.session.blocked = False
        self._unsent = 0
        self._resume_reading()
        self._flush()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._unsent > UNSENT or self.session.behind or self._reading or self.transport.is_closing():
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

    def on_reset(self, stream: Http2Stream, code: int, *, ours: bool) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None:
            shared.lose(ConnectionResetError("the other agent reset the stream"))

    def on_full(self, stream: Http2Stream) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None and shared.protocol is not None:
            shared.protocol.pause_writing()

    def on_room(self, stream: Http2Stream) -> None:
        shared = self.streams.get(stream.number)
        if shared is not None and shared.protocol is not None:
            shared.protocol.resume_writing()

    def on_goaway(self, code: int) -> None:
        """The peer opens no more streams, or takes none."""

    def on_settings(self) -> None:
        """The peer has said what it takes; the session knows."""

    # -- time --

    def age(self) -> None:
        """Give the peer back what patience the time since the last sweep earns, and reset the streams that
        it should have ended.
        """
        now = self.context.now
        self.session.forgive(now - self._swept_at)
        self._swept_at = now
        for stream in [each for each in self.streams.values() if each.overdue()]:
            stream.abort()
