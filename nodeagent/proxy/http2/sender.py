"""What a session sends: heads and control frames at once, bodies as windows let them; and the
patience that it has with its peer. Theory: ``session.py``.
"""

from __future__ import annotations

import collections
from typing import Final

from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame_head
from nodeagent.proxy.http2.held import STANDS_SECONDS, Backlog, HeldBytes, Holder
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.stream import WANTED, Http2Stream
from nodeagent.proxy.http2.user import SessionError, SessionUser
from nodeagent.proxy.pieces import add

CONNECTION_WINDOW: Final = 1 << 23
WIDENED: Final = 1 << 22
"""Bytes that streams whose bytes are taken as they come may send beyond their windows, all together."""
WIDENED_PART: Final = 8
"""On all connections of a pod: this part of what may be held for it."""
QUANTUM: Final = 1 << 16
"""Bytes of one stream before the next one has its turn."""
PUMPED: Final = 1 << 18
"""Bytes of bodies in one write: then it is seen whether the transport takes them."""
HIGH_WATER: Final = 1 << 16
LOW_WATER: Final = 1 << 14
STALLED: Final = 1 << 22
"""Bytes that may wait for a peer that does not take them, heads of its streams among them; then it
opens no more streams, and beyond four times as many it is given up.
"""
SHARES: Final = 64
"""A connection that holds no more than this part of what all of its pod's may is not to blame for the others:
its peer opens streams until they hold all of that, others until they hold half.
"""
PATIENCE: Final = 2000
RESET_COST: Final = 5
ANSWER_WORTH: Final = RESET_COST
"""Of an answer: who takes as many as it gives up is no flood."""
SENT_WORTH: Final = 10
"""Of a DATA frame that goes out: some give back its window in pieces of 4 KiB, the stream's and the connection's."""
FORGIVEN: Final = 100.0
"""What a second gives back."""
REMEMBERED: Final = 256
"""Streams that were reset from here, of which frames may still be under way."""
LATE_BYTES: Final = 1 << 10
"""Of the window's worth that may be, each frame takes so many at least."""


class FrameSender(Holder):
    """The sending half of a session, and the streams that both halves know."""

    def __init__(self, user: SessionUser, held: HeldBytes, most_held: int, *, client: bool, tunnels: bool) -> None:
        self._user = user
        self._held = held
        self._most_held = most_held
        self._client = client
        self._tunnels = tunnels
        self.streams: dict[int, Http2Stream] = {}
        """The open ones, by number."""
        self.last = 0
        """The highest number that the peer opened and that was looked at."""
        self._next = 1
        self.blocked = False
        """The transport takes no more for now."""
        self.unsent = 0
        """Bytes that the transport keeps since then."""
        self.unsent_frames = 0
        """Those of them that are of no body."""
        self._pumped = 0
        """Bytes of bodies in what was taken last."""
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
        self.queued = 0
        """Bytes that wait in all streams."""
        self.owed = 0
        """Bytes that came and that the other halves of their exchanges have not taken."""
        self.head_bytes = 0
        """Bytes of the header blocks by which the peer opened them."""
        self._final = wire.LARGEST_STREAM
        """Streams above it are not looked at: the peer was told."""
        self._encoder = Encoder()
        self._window = wire.DEFAULT_WINDOW
        self._stream_window = wire.DEFAULT_WINDOW
        self._own_window = wire.DEFAULT_WINDOW
        """What the peer may send of a stream that was not widened."""
        self._widened = 0
        self._largest = wire.DEFAULT_FRAME
        self._due = 0
        """Bytes of the connection's window towards us that the peer gets back with the next WINDOW_UPDATE."""
        self._rest = b""
        self._out: list[bytes] = []
        self._ready: collections.deque[Http2Stream] = collections.deque()
        """Streams of which something may go out."""
        self._patience = PATIENCE
        self._clock = 0.0
        """Seconds that sweeps have told of."""
        self._kept_since = 0.0
        """When the transport began to keep bytes, by that clock."""
        held.enter(self, most_held)
        self._gone: dict[int, int] = {}
        """Streams that were reset from here, and bytes of them that the peer may have sent before it knew."""

    def send_head(self, stream: Http2Stream, fields: list[Field], *, ended: bool) -> int:
        """Send a header block, with which the stream's direction may be *ended*; return its bytes."""
        if stream.local_ended:
            return 0
        block = self._encoder.encode(fields)
        wire.write_block(self._out, stream.number, block, wire.END_STREAM if ended else 0, self._largest)
        if ended:
            self._end_local(stream)
        return len(block)

    def give(self, stream: Http2Stream, piece: bytes) -> None:
        """Send *piece* of the body as soon as the peer takes it."""
        if stream.local_ended or stream.closing:
            return
        queue = stream.queue
        if queue is None:
            queue = stream.queue = collections.deque()
        add(queue, piece)
        self._line_up(stream)
        size = len(piece)
        if not stream.queued:
            stream.moved = self._clock
        stream.queued += size
        self.queued += size
        self._held.bytes += size
        if self._held.bytes > self._held.alarm:
            self._held.relieve(self._most_held)
        if self.queued > 4 * STALLED and not self._tunnels and not self._client:
            if self.broken is None:
                self.fail(SessionError(wire.ENHANCE_YOUR_CALM, "too much waits for windows that do not open"))
            return
        # where nothing but its turn is waited for, a write's worth may: many streams wait for long
        stands = self.blocked or min(stream.window, self._window) <= 0 or stream.queued > PUMPED
        if stands and stream.queued > HIGH_WATER and not stream.waits:
            stream.waits = True
            self._user.on_full(stream)

    def party(self) -> str:
        return self._user.party()

    def backlogs(self) -> list[Backlog]:
        since = self._clock - STANDS_SECONDS
        found: list[Backlog] = []
        for stream in self.streams.values():
            size = stream.owed
            if self.blocked or min(stream.window, self._window) <= 0:
                size += stream.queued
            if size or stream.head_bytes:
                stands = size > 0 and stream.moved <= since  # who waits for an answer does not
                found.append(Backlog(self, stream.number, size + stream.head_bytes, stands=stands))
        if self.unsent:
            found.append(Backlog(self, 0, self.unsent, stands=self._kept_since <= since))
        return found

    def give_up(self, stream: int) -> None:
        found = self.streams.get(stream)
        if stream and found is None:
            return
        if found is not None:
            self.reset(found, wire.ENHANCE_YOUR_CALM)
        else:
            self._held.bytes -= self.unsent
            self.unsent = 0
            if self.broken is None:
                self.fail(SessionError(wire.ENHANCE_YOUR_CALM, "too much waits for a transport that takes nothing"))
        self._user.on_given_up(found)

    def finish(self, stream: Http2Stream, trailers: list[Field]) -> None:
        """End the stream's direction behind what waits, with *trailers* where there are any."""
        if stream.local_ended or stream.closing:
            return
        stream.closing = True
        if trailers:
            stream.trailers = trailers
        self._line_up(stream)

    def reset(self, stream: Http2Stream, code: int) -> None:
        """End *stream* now, in both directions."""
        if self._is_gone(stream):
            return
        self._forget(stream)
        self._remember(stream.number, self._own_window + stream.widened)
        self._out.append(wire.rst_stream(stream.number, code))

    def hold(self, stream: Http2Stream, cause: int) -> None:
        """Give the peer no new window for *stream* until every cause is gone."""
        stream.held |= cause

    def release(self, stream: Http2Stream, cause: int) -> None:
        """*cause* is gone: what came meanwhile has been taken."""
        if not stream.held & cause:
            return
        stream.held &= ~cause
        if stream.held & ~WANTED or self._is_gone(stream):
            return
        if not stream.held:
            self._held.bytes -= stream.owed
            self.owed -= stream.owed
            stream.owed = 0
        stream.moved = self._clock
        if stream.taken and not stream.remote_ended:
            self._out.append(wire.window_update(stream.number, stream.taken))
            stream.taken = 0

    def _renew(self, stream: Http2Stream) -> None:
        """Let the peer send as much of *stream* as before, and as much again while there is room: its
        bytes are taken as they come, so that the way to the peer decides how many are under way.
        """
        room = min(WIDENED - self._widened, self._most_held // WIDENED_PART - self._held.widened)
        more = max(min(self._own_window + stream.widened, room), 0)
        stream.widened += more
        self._widened += more
        self._held.widened += more
        self._out.append(wire.window_update(stream.number, stream.taken + more))
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

    def leave(self) -> None:
        """Take no more streams than were looked at by now."""
        if not self.left():
            self._final = self.last
            self._out.append(wire.goaway(self.last, wire.NO_ERROR, b""))

    def take(self) -> bytes:
        """Return what is to be written now; :meth:`waiting` tells whether there is more."""
        before = self.queued
        if self._ready and not self.blocked:
            self._pump()
        self._pumped = before - self.queued
        out = self._out
        if not out:
            return b""
        taken = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return taken

    def written(self, count: int) -> None:
        """The transport was given *count* bytes: if it takes no more, it keeps them."""
        if self.blocked:
            if not self.unsent:
                self._kept_since = self._clock
            self.unsent += count
            self.unsent_frames += count - self._pumped
            self._held.bytes += count
            if self._held.bytes > self._held.alarm:
                self._held.relieve(self._most_held)

    def unblock(self) -> None:
        """The transport has sent what it was given, and takes more."""
        self.blocked = False
        self._held.bytes -= self.unsent
        self.unsent = self.unsent_frames = 0

    def waiting(self) -> bool:
        """Say whether :meth:`take` would return something."""
        return bool(self._out) or (bool(self._ready) and not self.blocked and self._window > 0)

    # -- bodies that go out --

    def _make_ready(self, stream: Http2Stream) -> None:
        """The window of *stream* has changed."""
        if stream.queue and stream.window > 0:
            self._line_up(stream)

    def _line_up(self, stream: Http2Stream) -> None:
        """Give *stream* a turn."""
        if not stream.ready:
            stream.ready = True
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
            stream.ready = False
            if stream.local_ended:
                continue
            room -= self._send(stream)
            if stream.queue and stream.window > 0:
                self._line_up(stream)

    def _send(self, stream: Http2Stream) -> int:
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
            self._held.bytes -= count
            stream.window -= count
            self._window -= count
            last = not queue and stream.closing and stream.trailers is None
            self._out.append(frame_head(count, wire.DATA, wire.END_STREAM if last else 0, stream.number))
            self._out.append(piece)
            self.earn(SENT_WORTH)
            if last:
                self._end_local(stream)
        if not queue and stream.closing and not stream.local_ended:
            self._end(stream)
        sent = before - stream.queued
        if sent:
            stream.moved = self._clock
        self._tell_room(stream)
        return sent

    def _end(self, stream: Http2Stream) -> None:
        if stream.trailers is not None:
            self.send_head(stream, stream.trailers, ended=True)
        else:
            self._out.append(frame_head(0, wire.DATA, wire.END_STREAM, stream.number))
            self._end_local(stream)

    def _tell_room(self, stream: Http2Stream) -> None:
        if stream.waits and stream.queued <= LOW_WATER:
            stream.waits = False
            self._user.on_room(stream)
        elif not stream.waits and stream.queued > HIGH_WATER:
            stream.waits = True
            self._user.on_full(stream)

    def _end_local(self, stream: Http2Stream) -> None:
        """All of this direction is said; of a request that was answered before its end nothing more is
        wanted (RFC 9113 section 8.1).
        """
        stream.local_ended = True
        if stream.remote_ended:
            self._forget(stream)
        elif not self._client and not self._tunnels:
            self.reset(stream, wire.NO_ERROR)

    # -- the streams' end, and patience --

    def earn(self, worth: int) -> None:
        """Something useful happened."""
        self._patience = min(self._patience + worth, PATIENCE)

    def forgive(self, seconds: float) -> None:
        """*seconds* have passed since the last time."""
        self._clock += seconds
        self.earn(int(min(seconds * FORGIVEN, PATIENCE)))

    def spend(self, cost: int) -> None:
        """Something cost work and moved nothing forward. Raises SessionError when that is enough."""
        self._patience -= cost
        if self._patience < 0:
            raise SessionError(wire.ENHANCE_YOUR_CALM, "too many frames that move nothing forward")

    def _is_gone(self, stream: Http2Stream) -> bool:
        return self.streams.get(stream.number) is not stream

    def _forget(self, stream: Http2Stream) -> None:
        """Nothing of *stream* is sent or read any more."""
        if self.streams.pop(stream.number, None) is None:
            return
        self._held.bytes -= stream.owed + stream.queued + stream.head_bytes
        self.owed -= stream.owed
        stream.owed = 0
        self._widened -= stream.widened
        self._held.widened -= stream.widened
        self.queued -= stream.queued
        self.head_bytes -= stream.head_bytes
        stream.queue = None
        stream.queued = 0
        stream.trailers = None
        stream.local_ended = True

    def forget_all(self) -> list[Http2Stream]:
        """The connection is over: return the streams that were open."""
        streams = list(self.streams.values())
        for stream in streams:
            self._forget(stream)
        self._held.bytes -= self.unsent
        self.unsent = 0
        self._held.leave(self)
        return streams

    def _remember(self, number: int, window: int) -> None:
        gone = self._gone
        gone[number] = window
        if len(gone) > REMEMBERED:
            del gone[next(iter(gone))]

    def _late(self, number: int, count: int) -> bool:
        """Take *count* bytes of a stream that is gone; say whether its peer may have sent them before it knew."""
        left = self._gone.get(number, 0)
        if left > 0:
            self._gone[number] = left - max(count, LATE_BYTES)
        return left > 0

    def _return(self, count: int) -> None:
        """*count* bytes of the connection's window came, and are free again: tell the peer, not too often."""
        self._due += count
        if self._due >= CONNECTION_WINDOW // 8:
            self._out.append(wire.window_update(0, self._due))
            self._due = 0

    def fail(self, error: SessionError) -> None:
        """End the connection for *error*."""
        self.broken = error
        self._rest = b""
        self._out.append(wire.goaway(self.last, error.code, error.words.encode()))
