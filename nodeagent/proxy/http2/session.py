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
window is given as bytes come, but not for a stream that is held: the other half of its exchange
keeps what came, and the connection's window counts it until it is taken, so that the windows bound
what one connection makes the proxy hold.

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

import collections
from typing import Final

from mypy_extensions import trait

from nodeagent.proxy.http.exchange import UNKNOWN
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame_head
from nodeagent.proxy.http2.hpack.decoder import Decoder
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.hpack.errors import CompressionError, ListTooLarge
from nodeagent.proxy.http2.stream import Stream

STREAM_WINDOW: Final = 1 << 18
CONNECTION_WINDOW: Final = 1 << 22
QUANTUM: Final = 1 << 16
"""Bytes of one stream before the next one has its turn."""
PUMPED: Final = 1 << 18
"""Bytes of bodies in one write: then it is seen whether the transport takes them."""
HIGH_WATER: Final = 1 << 16
LOW_WATER: Final = 1 << 14
STALLED: Final = 1 << 22
"""Bytes that may wait for a peer that does not take them; then it opens no more streams, and beyond
four times as many it is given up.
"""
HEADS_A_TURN: Final = 64
FRAMES_A_TURN: Final = 1024
"""What of one read is worked off before others have the loop."""
PATIENCE: Final = 2000
RESET_COST: Final = 5
FAULT_COST: Final = 10
FORGIVEN: Final = 100.0
"""What a second gives back."""
REMEMBERED: Final = 256
"""Streams that were reset from here, of which frames may still be under way."""
TOO_LARGE: Final[list[Field]] = []
"""In the place of a head whose fields were too many or too long."""


class SessionError(Exception):
    """The peer broke a rule that ends the connection; ``code`` is RFC 9113 section 7's."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


@trait
class SessionUser:
    """The codec on top of a session."""

    def on_head(self, stream: Stream, fields: list[Field]) -> None:
        """A header block of *stream* is whole: its head, or, behind ``head_read``, its trailers.
        *fields* is TOO_LARGE itself where it exceeds its bounds.
        """
        raise NotImplementedError

    def on_data(self, stream: Stream, piece: bytes) -> None:
        """*piece*, which is not empty, came of the body."""
        raise NotImplementedError

    def on_end(self, stream: Stream) -> None:
        """The peer has said all of *stream*."""
        raise NotImplementedError

    def on_reset(self, stream: Stream, code: int, *, ours: bool) -> None:
        """*stream* ended before its time and is forgotten; *ours*: since the peer broke a rule."""
        raise NotImplementedError

    def on_full(self, stream: Stream) -> None:
        """Much waits for the peer to take it."""
        raise NotImplementedError

    def on_room(self, stream: Stream) -> None:
        """It has taken most of it."""
        raise NotImplementedError

    def on_goaway(self, code: int) -> None:
        """The peer takes no new streams."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """The peer has said what it takes."""
        raise NotImplementedError


class Session:
    """The state of one connection."""

    def __init__(self, user: SessionUser, *, client: bool, streams: int, header_bytes: int, header_count: int) -> None:
        """*streams*: how many the peer may have open at once (a server's); *header_bytes*,
        *header_count*: what a head may take.
        """
        self._user = user
        self._client = client
        self._most_streams = streams
        self._header_limit = header_bytes
        self._decoder = Decoder(wire.DEFAULT_TABLE, header_bytes, header_count)
        self._encoder = Encoder()
        self.streams: dict[int, Stream] = {}
        """The open ones, by number."""
        self.last = 0
        """The highest number that the peer opened and that was looked at."""
        self._next = 1
        self.blocked = False
        """The transport takes no more for now."""
        self.behind = False
        """What is read already waits for the next turn: feed nothing, but call with no bytes."""
        self.broken: SessionError | None = None
        """Nothing is read any more."""
        self.leaving = False
        """The peer takes no new streams."""
        self.peer_streams = wire.LARGEST_STREAM
        """How many streams the peer takes at once (a client asks)."""
        self.settled = False
        """The peer's first SETTINGS are here."""
        self.pinged = 0
        """PINGs that wait for their answer."""
        self._final = wire.LARGEST_STREAM
        """Streams above it are not looked at: the peer was told."""
        self._window = wire.DEFAULT_WINDOW
        self._stream_window = wire.DEFAULT_WINDOW
        self._largest = wire.DEFAULT_FRAME
        self.queued = 0
        """Bytes that wait in all streams."""
        self._outstanding = 0
        self._due = 0
        self._rest = b""
        self._preface = not client
        self._out: list[bytes] = []
        self._ready: collections.deque[Stream] = collections.deque()
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._block_stream = 0
        self.ends = False
        """The header block that is read, or told, ends its stream."""
        self._heads = 0
        self._patience = PATIENCE
        self._gone: dict[int, None] = {}
        self._begin()

    def _begin(self) -> None:
        own = [(wire.INITIAL_WINDOW_SIZE, STREAM_WINDOW), (wire.MAX_HEADER_LIST_SIZE, self._header_limit)]
        if self._client:
            own.append((wire.ENABLE_PUSH, 0))
            self._out.append(wire.PREFACE)
        else:
            own.append((wire.MAX_CONCURRENT_STREAMS, self._most_streams))
        self._out.append(wire.settings(tuple(own)))
        self._out.append(wire.window_update(0, CONNECTION_WINDOW - wire.DEFAULT_WINDOW))

    # -- what the peer sent --

    def feed(self, data: bytes) -> None:
        """Read *data*. Afterwards ``broken`` or ``behind`` may be set."""
        if self.broken is not None:
            return
        buffer = self._rest + data if self._rest else data
        self.behind = False
        try:
            at = self._read_preface(buffer) if self._preface else 0
            self._rest = buffer[self._read_frames(buffer, at) :]
        except SessionError as error:
            self.fail(error)

    def fail(self, error: SessionError) -> None:
        """End the connection for *error*."""
        self.broken = error
        self._rest = b""
        self._out.append(wire.goaway(self.last, error.code, error.words.encode()))

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

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Read a frame that seldom comes."""
        if kind == wire.SETTINGS:
            self._read_settings(flags, number, payload)
        elif kind == wire.PING:
            self._read_ping(flags, number, payload)
        elif kind == wire.GOAWAY:
            self._read_goaway(number, payload)
        elif kind == wire.PRIORITY:
            self._read_priority(number, payload)
        elif kind == wire.PUSH_PROMISE:
            raise SessionError(wire.PROTOCOL_ERROR, "PUSH_PROMISE was not allowed")
        else:
            self.spend(1)

    # -- bodies --

    def _read_data(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise SessionError(wire.PROTOCOL_ERROR, "DATA on stream 0")
        count = len(payload)
        self._outstanding += count
        if self._outstanding > CONNECTION_WINDOW:
            raise SessionError(wire.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        if flags & wire.PADDED:
            payload = unpadded(payload)
        stream = self.streams.get(number)
        if stream is None or stream.remote_ended:
            self._return(count)
            self._closed(stream, number)
            return
        stream.taken += count
        if stream.taken > STREAM_WINDOW:
            self._return(count)
            self._fault(stream, wire.FLOW_CONTROL_ERROR)
            return
        ended = flags & wire.END_STREAM != 0
        if not stream.head_read or (stream.expected != UNKNOWN and not self._fits(stream, len(payload), ended=ended)):
            self._return(count)
            self._fault(stream, wire.PROTOCOL_ERROR)
            return
        if payload:
            self._patience = min(self._patience + 1, PATIENCE)
            self._user.on_data(stream, payload)
        elif not ended:
            self.spend(1)
        if stream.held:
            stream.owed += count
        else:
            self._return(count)
            if stream.taken >= STREAM_WINDOW // 2 and not ended:
                self._out.append(wire.window_update(number, stream.taken))
                stream.taken = 0
        if ended and not self._is_gone(stream):
            self._ended(stream)

    def _fits(self, stream: Stream, count: int, *, ended: bool) -> bool:
        """Say whether *count* more bytes are what its content-length lets follow (RFC 9113 section 8.1.1)."""
        stream.read += count
        return stream.read == stream.expected if ended else stream.read <= stream.expected

    def _return(self, count: int) -> None:
        """*count* bytes of the connection's window are free again: tell the peer, not too often."""
        self._due += count
        if self._due >= CONNECTION_WINDOW // 4:
            self._outstanding -= self._due
            self._out.append(wire.window_update(0, self._due))
            self._due = 0

    def _closed(self, stream: Stream | None, number: int) -> None:
        """DATA came on a stream that ended."""
        if stream is not None:
            self._fault(stream, wire.STREAM_CLOSED)
        elif self._idle(number):
            raise SessionError(wire.PROTOCOL_ERROR, "DATA on a stream that nobody opened")
        elif number in self._gone or number > self._final:
            self.spend(1)
        else:
            self.spend(FAULT_COST)
            self._out.append(wire.rst_stream(number, wire.STREAM_CLOSED))

    def _ended(self, stream: Stream) -> None:
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
        self._heads += 1
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

    def _opened(self, number: int) -> Stream | None:
        """Return the stream that the peer opens, None where it may not, or not now."""
        if self._client or not number & 1:
            if self._client and not self._idle(number):
                self.spend(1)  # of one that was reset meanwhile
                return None
            raise SessionError(wire.PROTOCOL_ERROR, f"stream {number} is not the peer's to open")
        if number <= self.last:
            if number in self._gone:
                self.spend(1)
                return None
            raise SessionError(wire.STREAM_CLOSED, f"HEADERS on stream {number}, which has ended")
        if number > self._final:
            self.spend(1)
            return None
        self.last = number
        if len(self.streams) >= self._most_streams or self.queued > STALLED:
            self.spend(1)
            self._remember(number)
            self._out.append(wire.rst_stream(number, wire.REFUSED_STREAM))
            return None
        stream = self.streams[number] = Stream(number, self._stream_window)
        return stream

    # -- control frames --

    def _read_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise SessionError(wire.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & wire.ACK:
            if payload:
                raise SessionError(wire.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS is not empty")
            if not self.settled:
                raise SessionError(wire.PROTOCOL_ERROR, "the connection does not begin with SETTINGS")
            return
        if len(payload) % 6:
            raise SessionError(wire.FRAME_SIZE_ERROR, "SETTINGS are not made of six bytes each")
        self.spend(1)
        for at in range(0, len(payload), 6):
            key = payload[at] << 8 | payload[at + 1]
            self._set(key, int.from_bytes(payload[at + 2 : at + 6], "big"))
        self.settled = True
        self._out.append(frame_head(0, wire.SETTINGS, wire.ACK, 0))
        self._user.on_settings()

    def _set(self, key: int, value: int) -> None:
        if key == wire.HEADER_TABLE_SIZE:
            self._encoder.resize(min(value, wire.DEFAULT_TABLE))
        elif key == wire.INITIAL_WINDOW_SIZE:
            self._set_window(value)
        elif key == wire.MAX_CONCURRENT_STREAMS:
            self.peer_streams = value
        elif key == wire.MAX_FRAME_SIZE and not wire.DEFAULT_FRAME <= value <= wire.LARGEST_FRAME:
            raise SessionError(wire.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of its range")
        elif key == wire.ENABLE_PUSH and (value > 1 or (self._client and value)):
            raise SessionError(wire.PROTOCOL_ERROR, "ENABLE_PUSH is out of its range")

    def _set_window(self, value: int) -> None:
        """The windows of all streams change by as much as their beginning (RFC 9113 section 6.9.2)."""
        if value > wire.LARGEST_WINDOW:
            raise SessionError(wire.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is out of its range")
        more = value - self._stream_window
        self._stream_window = value
        for stream in self.streams.values():
            stream.window += more
            if stream.window > wire.LARGEST_WINDOW:
                raise SessionError(wire.FLOW_CONTROL_ERROR, "a window grew beyond its range")
            self._make_ready(stream)

    def _read_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise SessionError(wire.FRAME_SIZE_ERROR, "WINDOW_UPDATE has not four bytes")
        more = int.from_bytes(payload, "big") & wire.LARGEST_WINDOW
        self.spend(1)
        if not number:
            self._window += more
            if not more or self._window > wire.LARGEST_WINDOW:
                code = wire.FLOW_CONTROL_ERROR if more else wire.PROTOCOL_ERROR
                raise SessionError(code, "WINDOW_UPDATE by nothing, or beyond a window's range")
            return
        stream = self.streams.get(number)
        if stream is None:
            if self._idle(number):
                raise SessionError(wire.PROTOCOL_ERROR, "WINDOW_UPDATE of a stream that nobody opened")
            return
        stream.window += more
        if not more:
            self._fault(stream, wire.PROTOCOL_ERROR)
        elif stream.window > wire.LARGEST_WINDOW:
            self._fault(stream, wire.FLOW_CONTROL_ERROR)
        else:
            self._make_ready(stream)

    def _read_rst_stream(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise SessionError(wire.FRAME_SIZE_ERROR, "RST_STREAM has not four bytes")
        if not number or self._idle(number):
            raise SessionError(wire.PROTOCOL_ERROR, "RST_STREAM of a stream that nobody opened")
        stream = self.streams.get(number)
        self.spend(RESET_COST if stream is not None else 1)
        if stream is not None:
            self._forget(stream)
            self._user.on_reset(stream, int.from_bytes(payload, "big"), ours=False)

    def _read_ping(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise SessionError(wire.FRAME_SIZE_ERROR, "PING has not eight bytes")
        if number:
            raise SessionError(wire.PROTOCOL_ERROR, "PING on a stream")
        self.spend(1)
        if not flags & wire.ACK:
            self._out.append(frame_head(8, wire.PING, wire.ACK, 0))
            self._out.append(payload)
        elif self.pinged:
            self.pinged -= 1

    def _read_goaway(self, number: int, payload: bytes) -> None:
        if number:
            raise SessionError(wire.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise SessionError(wire.FRAME_SIZE_ERROR, "GOAWAY is shorter than eight bytes")
        self.spend(1)
        self.leaving = True
        last = int.from_bytes(payload[:4], "big") & wire.LARGEST_STREAM
        if self._client:
            for stream in [each for each in self.streams.values() if each.number > last]:
                self._forget(stream)
                self._user.on_reset(stream, wire.REFUSED_STREAM, ours=False)
        self._user.on_goaway(int.from_bytes(payload[4:8], "big"))

    def _read_priority(self, number: int, payload: bytes) -> None:
        """Priorities have no meaning here (RFC 9113 section 5.3.2)."""
        if not number:
            raise SessionError(wire.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise SessionError(wire.FRAME_SIZE_ERROR, "PRIORITY has not five bytes")
        self.spend(1)

    # -- what breaks rules --

    def spend(self, cost: int) -> None:
        """Something cost work and moved nothing forward. Raises SessionError when that is enough."""
        self._patience -= cost
        if self._patience < 0:
            raise SessionError(wire.ENHANCE_YOUR_CALM, "too many frames that move nothing forward")

    def earn(self, worth: int) -> None:
        """Something useful happened."""
        self._patience = min(self._patience + worth, PATIENCE)

    def forgive(self, seconds: float) -> None:
        """*seconds* have passed since the last time."""
        self.earn(int(min(seconds * FORGIVEN, PATIENCE)))

    def _fault(self, stream: Stream, code: int) -> None:
        """The peer broke a rule on *stream* alone."""
        self.spend(FAULT_COST)
        self.reset(stream, code)
        self._user.on_reset(stream, code, ours=True)

    def malformed(self, stream: Stream) -> None:
        """The user found that what came on *stream* is no message (RFC 9113 section 8.1.1)."""
        self._fault(stream, wire.PROTOCOL_ERROR)

    def _idle(self, number: int) -> bool:
        """Say whether nobody has opened the stream *number* yet; a server never opens one."""
        if not number & 1:
            return True
        return number >= self._next if self._client else number > self.last

    def _is_gone(self, stream: Stream) -> bool:
        return self.streams.get(stream.number) is not stream

    def _forget(self, stream: Stream) -> None:
        """Nothing of *stream* is sent or read any more."""
        if self.streams.pop(stream.number, None) is None:
            return
        self._return(stream.owed)
        stream.owed = 0
        self.queued -= stream.queued
        stream.queue = None
        stream.queued = 0
        stream.trailers = None
        stream.local_ended = True

    def _remember(self, number: int) -> None:
        gone = self._gone
        gone[number] = None
        if len(gone) > REMEMBERED:
            del gone[next(iter(gone))]

    # -- what is sent --

    def can_open(self, most: int) -> bool:
        """Say whether one more stream may be opened; *most*: whatever the peer takes."""
        return (
            not self.leaving
            and self.broken is None
            and len(self.streams) < min(self.peer_streams, most)
            and self._next < wire.LARGEST_STREAM
        )

    def open(self) -> Stream:
        """Open a stream; its head is to be sent at once."""
        stream = self.streams[self._next] = Stream(self._next, self._stream_window)
        self._next += 2
        return stream

    def send_head(self, stream: Stream, fields: list[Field], *, ended: bool) -> int:
        """Send a header block, with which the stream's direction may be *ended*; return its bytes."""
        if stream.local_ended:
            return 0
        block = self._encoder.encode(fields)
        wire.write_block(self._out, stream.number, block, wire.END_STREAM if ended else 0, self._largest)
        if ended:
            self._end_local(stream)
        return len(block)

    def give(self, stream: Stream, piece: bytes) -> None:
        """Send *piece* of the body as soon as the peer takes it."""
        if stream.local_ended or stream.closing:
            return
        queue = stream.queue
        if queue is None:
            queue = stream.queue = collections.deque()
        if not queue:
            self._ready.append(stream)
        queue.append(piece)
        stream.queued += len(piece)
        self.queued += len(piece)
        if self.queued > 4 * STALLED and self.broken is None and not self._client:
            self.fail(SessionError(wire.ENHANCE_YOUR_CALM, "too much waits for windows that do not open"))
            return
        if stream.queued > HIGH_WATER and not stream.waits and (self.blocked or min(stream.window, self._window) <= 0):
            stream.waits = True
            self._user.on_full(stream)

    def finish(self, stream: Stream, trailers: list[Field]) -> None:
        """End the stream's direction behind what waits, with *trailers* where there are any."""
        if stream.local_ended or stream.closing:
            return
        stream.closing = True
        if trailers:
            stream.trailers = trailers
        if not stream.queue:
            self._ready.append(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """End *stream* now, in both directions."""
        if self._is_gone(stream):
            return
        self._forget(stream)
        self._remember(stream.number)
        self._out.append(wire.rst_stream(stream.number, code))

    def hold(self, stream: Stream, cause: int) -> None:
        """Give the peer no new window for *stream* until every cause is gone."""
        stream.held |= cause

    def release(self, stream: Stream, cause: int) -> None:
        """*cause* is gone: what came meanwhile has been taken."""
        if not stream.held & cause:
            return
        stream.held &= ~cause
        if stream.held or self._is_gone(stream):
            return
        self._return(stream.owed)
        stream.owed = 0
        if stream.taken and not stream.remote_ended:
            self._out.append(wire.window_update(stream.number, stream.taken))
            stream.taken = 0

    def ping(self) -> None:
        """Ask whether the peer is there: ``pinged`` goes down when it answers."""
        self.pinged += 1
        self._out.append(frame_head(8, wire.PING, 0, 0))
        self._out.append(bytes(8))

    def warn(self) -> None:
        """Say that no new streams will be taken, and take those that are under way (RFC 9113 section 6.8)."""
        self._out.append(wire.goaway(wire.LARGEST_STREAM, wire.NO_ERROR, b""))

    def left(self) -> bool:
        """Say whether the peer was told which of its streams is the last."""
        return self._final != wire.LARGEST_STREAM

    def in_head(self) -> bool:
        """Say whether a header block, or a frame, has begun and is not whole."""
        return self._block_stream != 0 or bool(self._rest)

    def leave(self) -> None:
        """Take no more streams than were looked at by now."""
        if not self.left():
            self._final = self.last
            self._out.append(wire.goaway(self.last, wire.NO_ERROR, b""))

    def take(self) -> bytes:
        """Return what is to be written now; :meth:`waiting` tells whether there is more."""
        if self._ready and not self.blocked:
            self._pump()
        out = self._out
        if not out:
            return b""
        taken = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return taken

    def waiting(self) -> bool:
        """Say whether :meth:`take` would return something."""
        return bool(self._out) or (bool(self._ready) and not self.blocked and self._window > 0)

    # -- bodies that go out --

    def _make_ready(self, stream: Stream) -> None:
        """The window of *stream* has changed."""
        if stream.queue and stream.window > 0 and stream not in self._ready:
            self._ready.append(stream)

    def _pump(self) -> None:
        """Send what waits, as far as windows reach: streams take turns."""
        ready = self._ready
        room = PUMPED
        while ready and room > 0:
            stream = ready[0]
            if stream.queue and self._window <= 0:
                break
            ready.popleft()
            if stream.local_ended:
                continue
            room -= self._send(stream)
            if stream.queue and stream.window > 0:
                ready.append(stream)

    def _send(self, stream: Stream) -> int:
        """Send one turn's worth of what waits in *stream*; return its bytes."""
        queue = stream.queue
        before = stream.queued
        quantum = min(QUANTUM, stream.window, self._window)
        while queue and quantum > 0:
            piece = queue.popleft()
            limit = min(quantum, self._largest)
            if len(piece) > limit:
                queue.appendleft(piece[limit:])
                piece = piece[:limit]
            count = len(piece)
            quantum -= count
            stream.queued -= count
            self.queued -= count
            stream.window -= count
            self._window -= count
            last = not queue and stream.closing and stream.trailers is None
            self._out.append(frame_head(count, wire.DATA, wire.END_STREAM if last else 0, stream.number))
            self._out.append(piece)
            if last:
                self._end_local(stream)
        self.earn(3)
        if not queue and stream.closing and not stream.local_ended:
            self._end(stream)
        self._tell_room(stream)
        return before - stream.queued

    def _end(self, stream: Stream) -> None:
        if stream.trailers is not None:
            self.send_head(stream, stream.trailers, ended=True)
        else:
            self._out.append(frame_head(0, wire.DATA, wire.END_STREAM, stream.number))
            self._end_local(stream)

    def _tell_room(self, stream: Stream) -> None:
        if stream.waits and stream.queued <= LOW_WATER:
            stream.waits = False
            self._user.on_room(stream)
        elif not stream.waits and stream.queued > HIGH_WATER:
            stream.waits = True
            self._user.on_full(stream)

    def _end_local(self, stream: Stream) -> None:
        """All of this direction is said; of a request that was answered before its end nothing more is
        wanted (RFC 9113 section 8.1).
        """
        stream.local_ended = True
        if stream.remote_ended:
            self._forget(stream)
        elif not self._client:
            self.reset(stream, wire.NO_ERROR)


def unpadded(payload: bytes) -> bytes:
    """Return what stands in a padded *payload* (RFC 9113 section 6.1). Raises SessionError."""
    if not payload or payload[0] >= len(payload):
        raise SessionError(wire.PROTOCOL_ERROR, "a frame is all padding")
    return payload[1 : len(payload) - payload[0]]
