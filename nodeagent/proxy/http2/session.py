"""One HTTP/2 connection as both roles have it, without I/O (RFC 9113).

Theory of operation
===================

What the peer sent goes in by :meth:`Session.feed`, which tells the :class:`SessionUser` of heads,
bodies and ends; what is to be sent is said by the other methods, and comes out by
:meth:`Session.take`: control frames and heads at once, bodies as far as windows reach. So all that
one turn of the loop says is one write, and often one TLS record.

    feed ──▶ SETTINGS, PING, WINDOW_UPDATE …    answered here
         ──▶ HEADERS (+ CONTINUATION)           on_head, and on_end where it ends the stream
         ──▶ DATA                               on_data, on_end
         ──▶ RST_STREAM, or a broken rule       on_reset: the stream is gone
         ──▶ GOAWAY                             on_reset of what the peer did not look at; on_goaway

Of a stream's two directions each ends once: ``remote_ended`` and ``local_ended``; with both it is
forgotten. A rule that concerns one stream resets that one, any other ends the connection: the
GOAWAY is in what :meth:`take` returns, and ``broken`` says why.

**Towards us** a peer may send STREAM_WINDOW bytes of a stream and CONNECTION_WINDOW of all. New
window is given as bytes come, but a stream's not while it is held: the other half of its exchange
keeps what came. The connection's is given back all the same, else streams that stand still would
own what the one that they wait for needs. So a connection makes the proxy hold the windows of its
streams at most, and what all connections of a pod do is bounded together (``held.py``).

A window comes back as late as the way to the peer is long, and no stream moves faster than one a
round trip. So that of a stream whose bytes are taken as they come doubles each time that half of it
came, as long as all such streams of the connection have no more than WIDENED together, and
those of the pod no more than their part.

**Towards the peer** a stream's bytes wait in it until its window, the connection's and the
transport (``blocked``) let them go: streams take turns, QUANTUM bytes each. One whose queue grows
beyond HIGH_WATER asks the other half to pause (on_full) until there is room (on_room).

**Patience.** Whatever costs work and moves no exchange forward uses up ``_patience``: resets,
pings, settings, empty frames, window updates. Bodies and answers earn it back, and so does time
(:meth:`forgive`). A peer that has none left floods (CVE-2019-9511 to 9518, CVE-2023-44487,
CVE-2025-8671), and is told ENHANCE_YOUR_CALM. Header blocks are bounded while they come
(CVE-2024-27316).
"""

from __future__ import annotations

from typing import Final

from nodeagent.config import Limits
from nodeagent.proxy.http.exchange import UNKNOWN
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.control import FAULT_COST, Control
from nodeagent.proxy.http2.held import HeldBytes
from nodeagent.proxy.http2.hpack.decoder import Decoder
from nodeagent.proxy.http2.hpack.errors import CompressionError, ListTooLarge
from nodeagent.proxy.http2.sender import CONNECTION_WINDOW, PATIENCE, SHARES, STALLED
from nodeagent.proxy.http2.stream import WANTED, Http2Stream
from nodeagent.proxy.http2.user import TOO_LARGE, SessionError, SessionUser

STREAM_WINDOW: Final = 1 << 18
HEADS_A_TURN: Final = 64
HEAD_BYTES: Final = 1024
"""A header block counts as one head for each of them, and one."""
FRAMES_A_TURN: Final = 1024
"""What of one read is worked off before others have the loop."""


class Session(Control):
    """The state of one connection."""

    def __init__(
        self,
        user: SessionUser,
        held: HeldBytes,
        limits: Limits,
        *,
        client: bool,
        window: int = STREAM_WINDOW,
        tunnels: int = 0,
    ) -> None:
        """*held*: what all connections of the client's pod make the proxy hold; *window*: bytes that the
        peer may send of a stream. *tunnels*: so many streams, each a connection (CONNECT), whose
        directions end each by itself (``proxy/shared/``).
        """
        Control.__init__(self, user, held, limits.held_bytes_per_pod, client=client, tunnels=tunnels > 0)
        self._own_window = window
        self._most_streams = tunnels or limits.streams_per_connection
        self._header_limit = limits.header_bytes
        self._decoder = Decoder(wire.DEFAULT_TABLE, limits.header_bytes, limits.header_count)
        self.behind = False
        """What is read already waits for the next turn: feed nothing, but call with no bytes."""
        self.ends = False
        """The header block that is read, or told, ends its stream."""
        self._preface = not client
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._block_stream = 0
        self._heads = 0
        self._begin()

    def _begin(self) -> None:
        own = [(wire.INITIAL_WINDOW_SIZE, self._own_window), (wire.MAX_HEADER_LIST_SIZE, self._header_limit)]
        if self._client:
            own.append((wire.ENABLE_PUSH, 0))
            self._out.append(wire.PREFACE)
        else:
            own.append((wire.MAX_CONCURRENT_STREAMS, self._most_streams))
        self._out.append(wire.settings(tuple(own)))
        self._out.append(wire.window_update(0, CONNECTION_WINDOW - wire.DEFAULT_WINDOW))

    def feed(self, data: bytes) -> None:
        """Read *data*. Afterwards ``broken`` or ``behind`` may be set."""
        self.behind = False
        if self.broken is not None:
            return
        buffer = self._rest + data if self._rest else data
        try:
            at = self._read_preface(buffer) if self._preface else 0
            self._rest = buffer[self._read_frames(buffer, at) :]
        except SessionError as error:
            self.fail(error)

    def _read_preface(self, buffer: bytes) -> int:
        preface = wire.PREFACE
        if not preface.startswith(buffer[: len(preface)]):
            raise SessionError(wire.PROTOCOL_ERROR, "this is not HTTP/2's preface")
        if len(buffer) < len(preface):
            return 0
        self._preface = False
        return len(preface)

    def _read_frames(self, buffer: bytes, at: int) -> int:
        """Read whole frames from *at* on; return where the rest begins."""
        if self._preface:
            return 0
        size = len(buffer)
        count = 0
        self._heads = 0
        while size - at >= wire.FRAME_HEAD:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if length > wire.DEFAULT_FRAME:
                raise SessionError(wire.FRAME_SIZE_ERROR, "a frame is larger than was allowed")
            start = at + wire.FRAME_HEAD
            end = start + length
            if end > size:
                break
            if self._heads >= HEADS_A_TURN or count >= FRAMES_A_TURN:
                self.behind = True
                break
            number = (buffer[at + 5] & 0x7F) << 24 | buffer[at + 6] << 16 | buffer[at + 7] << 8 | buffer[at + 8]
            self._frame(buffer[at + 3], buffer[at + 4], number, buffer[start:end])
            at = end
            count += 1
        return at

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block_stream and (kind != wire.CONTINUATION or number != self._block_stream):
            raise SessionError(wire.PROTOCOL_ERROR, "a header block was interrupted")
        if not self.settled and kind != wire.SETTINGS:
            raise SessionError(wire.PROTOCOL_ERROR, "the connection does not begin with SETTINGS")
        if kind == wire.DATA:
            self._read_data(flags, number, payload)
        elif kind == wire.HEADERS:
            self._read_headers(flags, number, payload)
        elif kind == wire.CONTINUATION:
            self._read_continuation(flags, number, payload)
        elif kind == wire.WINDOW_UPDATE:
            self._read_window_update(number, payload)
        elif kind == wire.RST_STREAM:
            self._read_rst_stream(number, payload)
        else:
            self._control(kind, flags, number, payload)

    # -- bodies --

    def _read_data(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise SessionError(wire.PROTOCOL_ERROR, "DATA on stream 0")
        count = len(payload)
        self._return(count)
        if flags & wire.PADDED:
            payload = unpadded(payload)
        stream = self.streams.get(number)
        if stream is None or stream.remote_ended:
            self._closed(stream, number, count)
            return
        stream.taken += count
        if stream.taken > self._own_window + stream.widened:
            self._fault(stream, wire.FLOW_CONTROL_ERROR)
            return
        ended = flags & wire.END_STREAM != 0
        if not stream.head_read or (stream.expected != UNKNOWN and not self._fits(stream, len(payload), ended=ended)):
            self._fault(stream, wire.PROTOCOL_ERROR)
            return
        if payload:
            self._patience = min(self._patience + 1, PATIENCE)
            self._user.on_data(stream, payload)
        elif not ended:
            self.spend(1)
        if self._is_gone(stream):
            return
        self._account(stream, count, ended=ended)
        if ended and not self._is_gone(stream):
            self._ended(stream)

    def _account(self, stream: Http2Stream, count: int, *, ended: bool) -> None:
        """*count* bytes came: the peer gets the stream's window back where nobody holds it, or wants more."""
        if stream.held:
            self._owe(stream, count)
            if stream.held != WANTED or self._is_gone(stream):
                return
        if stream.taken >= (self._own_window + stream.widened) // 2 and not ended:
            self._renew(stream)

    def _owe(self, stream: Http2Stream, count: int) -> None:
        """*count* bytes wait for the other half of the exchange."""
        if not stream.owed:
            stream.moved = self._clock
        stream.owed += count
        self.owed += count
        self._held.bytes += count
        if self._held.bytes > self._held.alarm:
            self._held.relieve(self._most_held)

    def _fits(self, stream: Http2Stream, count: int, *, ended: bool) -> bool:
        """Say whether *count* more bytes are what its content-length lets follow (RFC 9113 section 8.1.1)."""
        stream.read += count
        return stream.read == stream.expected if ended else stream.read <= stream.expected

    def _closed(self, stream: Http2Stream | None, number: int, count: int) -> None:
        """DATA of *count* bytes came on a stream that ended."""
        if stream is not None:
            self._fault(stream, wire.STREAM_CLOSED)
        elif self._idle(number):
            raise SessionError(wire.PROTOCOL_ERROR, "DATA on a stream that nobody opened")
        elif number in self._gone or number > self._final:
            if not self._late(number, count):
                self.spend(1)
        else:
            self.spend(FAULT_COST)
            self._out.append(wire.rst_stream(number, wire.STREAM_CLOSED))

    def _ended(self, stream: Http2Stream) -> None:
        """The peer has said all of *stream*."""
        stream.remote_ended = True
        self._user.on_end(stream)
        if stream.local_ended:
            self._forget(stream)

    # -- heads --

    def _read_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise SessionError(wire.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & wire.PADDED:
            payload = unpadded(payload)
        if flags & wire.PRIORITISED:
            if len(payload) < 5:
                raise SessionError(wire.FRAME_SIZE_ERROR, "HEADERS are shorter than their priority")
            payload = payload[5:]
        self.ends = flags & wire.END_STREAM != 0
        if flags & wire.END_HEADERS:
            self._block_done(number, payload)
            return
        self._block_stream = number
        self._block.append(payload)
        self._block_bytes = len(payload)

    def _read_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if not self._block_stream:
            raise SessionError(wire.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self.spend(1)
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > self._header_limit:
            raise SessionError(wire.ENHANCE_YOUR_CALM, "a header block is longer than any head may be")
        if flags & wire.END_HEADERS:
            block = b"".join(self._block)
            self._block.clear()
            self._block_stream = 0
            self._block_done(number, block)

    def _block_done(self, number: int, block: bytes) -> None:
        """Decode *block*, whatever becomes of it: the table is the connection's."""
        self._heads += 1 + len(block) // HEAD_BYTES
        try:
            fields = self._decoder.decode(block)
        except CompressionError as error:
            raise SessionError(wire.COMPRESSION_ERROR, str(error)) from None
        except ListTooLarge:
            fields = TOO_LARGE
        stream = self.streams.get(number)
        if stream is None:
            stream = self._opened(number)
            if stream is None:
                return
            if not self._tunnels:  # of theirs nothing is kept
                stream.head_bytes = len(block)
                self.head_bytes += len(block)
                self._held.bytes += len(block)
        elif stream.remote_ended:
            self._fault(stream, wire.STREAM_CLOSED)
            return
        elif stream.head_read and not self.ends:
            self._fault(stream, wire.PROTOCOL_ERROR)  # trailers end a stream; of interim answers the user knows
            return
        ended = self.ends
        self._user.on_head(stream, fields)
        if ended and not self._is_gone(stream):
            if stream.expected not in (UNKNOWN, stream.read):
                self._fault(stream, wire.PROTOCOL_ERROR)
                return
            self._ended(stream)

    def _opened(self, number: int) -> Http2Stream | None:
        """Return the stream that the peer opens, None where it may not, or not now."""
        if self._client or not number & 1:
            if self._client and not self._idle(number):
                if not self._late(number, 0):
                    self.spend(1)
                return None
            raise SessionError(wire.PROTOCOL_ERROR, f"stream {number} is not the peer's to open")
        if number <= self.last:
            if number in self._gone:
                if not self._late(number, 0):
                    self.spend(1)
                return None
            raise SessionError(wire.STREAM_CLOSED, f"HEADERS on stream {number}, which has ended")
        if number > self._final:
            self.spend(1)
            return None
        self.last = number
        if len(self.streams) >= self._most_streams or self._stalls():
            self.spend(1)
            self._remember(number, self._own_window)
            self._out.append(wire.rst_stream(number, wire.REFUSED_STREAM))
            return None
        stream = self.streams[number] = Http2Stream(number, self._stream_window)
        stream.since = self._clock
        return stream

    def refuse(self, stream: Http2Stream) -> None:
        """Do not take *stream*, which was just opened: it may go elsewhere. Raises SessionError."""
        self.spend(1)
        self.reset(stream, wire.REFUSED_STREAM)

    def repeated(self) -> bool:
        """Say whether the head that is told now was told before, as the same list."""
        return self._decoder.repeated

    def _stalls(self) -> bool:
        """Say whether so much waits already that the peer may open no more streams."""
        if self.queued + self.head_bytes > STALLED:
            return True
        most = self._most_held
        held = self._held.bytes
        own = self.queued + self.unsent + self.owed + self.head_bytes
        return held > most // 2 and (held > most or own > most // SHARES)

    # -- a client's streams --

    def can_open(self, most: int) -> bool:
        """Say whether one more stream may be opened; *most*: whatever the peer takes."""
        return (
            not self.leaving
            and self.broken is None
            and len(self.streams) < min(self.peer_streams, most)
            and self._next < wire.LARGEST_STREAM
        )

    def open(self) -> Http2Stream:
        """Open a stream; its head is to be sent at once."""
        stream = self.streams[self._next] = Http2Stream(self._next, self._stream_window)
        self._next += 2
        return stream

    def in_head(self) -> bool:
        """Say whether a header block, or a frame, has begun and is not whole."""
        return self._block_stream != 0 or bool(self._rest)


def unpadded(payload: bytes) -> bytes:
    """Return what stands in a padded *payload* (RFC 9113 section 6.1). Raises SessionError."""
    if not payload:
        raise SessionError(wire.FRAME_SIZE_ERROR, "a padded frame does not say how much of it is padding")
    if payload[0] >= len(payload):
        raise SessionError(wire.PROTOCOL_ERROR, "a frame is all padding")
    return payload[1 : len(payload) - payload[0]]
