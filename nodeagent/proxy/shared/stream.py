"""One stream of a shared connection: a transport (``proxy/transport.py``) to whoever uses it."""

from __future__ import annotations

import collections
from typing import Final

from nodeagent.proxy.context import Context
from nodeagent.proxy.http2.held import STANDS_SECONDS, Backlog, HeldBytes, Holder
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.pieces import add
from nodeagent.proxy.shared.heads import Carried
from nodeagent.proxy.shared.lease import Lease, Leased
from nodeagent.proxy.transport import Receiver, Transport

KEPT: Final = 1 << 16
"""All that is written is kept until the peer has taken the stream, to be said over another connection if
it does not; beyond so many bytes the writer is asked to wait for that.
"""
LINGER_SECONDS: Final = 1.0
"""How long a peer that has all of a stream closed here may take to end its direction."""


class StreamOwner:
    """What a stream runs on: a shared connection, or in the end one of its own."""

    context: Context
    transport: Transport

    def party(self) -> str:
        """Return who is at the other end."""
        raise NotImplementedError

    def give(self, shared: SharedStream, piece: bytes) -> None:
        """Send *piece*."""
        raise NotImplementedError

    def finish(self, shared: SharedStream) -> None:
        """End this direction behind what was given."""
        raise NotImplementedError

    def closed(self, shared: SharedStream, *, ended: bool) -> None:
        """Nothing is read of *shared* any more, whose direction is finished; *ended*: the peer's is too."""
        raise NotImplementedError

    def cut(self, shared: SharedStream) -> None:
        """End both directions now."""
        raise NotImplementedError

    def hold(self, shared: SharedStream) -> None:
        """Its reader pauses."""
        raise NotImplementedError

    def release(self, shared: SharedStream) -> None:
        """It goes on."""
        raise NotImplementedError

    def forget(self, shared: SharedStream) -> None:
        """*shared* is told nothing any more."""
        raise NotImplementedError


class SharedStream(Leased, Holder):
    """A connected byte stream. What its protocol is told, it is told as asyncio's transports do:
    ``connection_lost`` once, and not within a call of the protocol's own.
    """

    def __init__(self, owner: StreamOwner, stream: Http2Stream, carried: Carried, held: HeldBytes) -> None:
        """*held*: what the connections of this agent's pod make it hold."""
        self._owner = owner
        self._held = held
        self.stream = stream
        self.carried = carried
        self.protocol: Receiver | None = None
        self.moved = 0
        """How often it went over to another connection."""
        self._reading = True
        self._since = owner.context.now
        """When the connection was asked to carry it."""
        self._full = False
        """The connection takes nothing more for now."""
        self._untaken = False
        """The peer has to take the stream before more is kept."""
        self._waits = False
        """For one or the other its writer was asked to pause."""
        self._came: collections.deque[bytes] = collections.deque()
        """What came while the protocol did not read: a window of the stream at most."""
        self._whole = 0
        """Bytes of it, when the peer has said all: its session may know nothing of the stream any more."""
        self._counted = 0
        """Bytes that count as held by the stream itself: those, and what is kept until the peer has taken it."""
        self._moved = 0.0
        """When the first of them came, or some were taken."""
        self._eof_sent = False
        self._eof_received = False
        self._eof_told = False
        self._closing = False
        self._closed_at = 0.0
        self._error: Exception | None = None

    # -- as a transport --

    def write(self, data: bytes) -> None:
        if not self._closing and not self._eof_sent:
            self._give(data)

    def _give(self, data: bytes) -> None:
        stream = self.stream
        kept = stream.kept
        if kept is not None:
            add(kept, data)
            stream.kept_bytes += len(data)
            self._count(len(data))
            if stream.kept_bytes > KEPT:
                self.wait()
        self._owner.give(self, data)

    def write_eof(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self._owner.finish(self)

    def close(self) -> None:
        if self._closing:
            return
        self.write_eof()
        self._closed_at = self._owner.context.now
        self._owner.closed(self, ended=self._eof_received)
        self._stop()
        self._owner.release(self)

    def abort(self) -> None:
        self._unkeep()
        self._owner.cut(self)
        if not self._closing:
            self._stop()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._owner.hold(self)

    def resume_reading(self) -> None:
        if self._closing or self._reading:
            return
        self._reading = True
        if self._came or self._eof_received:
            self._owner.context.loop.call_soon(self._go_on)
        else:
            self._owner.release(self)

    def get_extra_info(self, name: str) -> object:
        return None if name == "socket" else self._owner.transport.get_extra_info(name)

    def set_protocol(self, protocol: Receiver) -> None:
        self.protocol = protocol
        if self._waits:
            protocol.pause_writing()  # only the one before was asked to

    # -- what the connection tells --

    def came(self, piece: bytes) -> None:
        """The peer sent *piece*."""
        protocol = self.protocol
        if self._closing or protocol is None:
            if not self.stream.queued:
                # nobody reads any more: as a closed socket answers
                self._owner.cut(self)
        elif self._reading and not self._came:
            protocol.data_received(piece)
        else:
            add(self._came, piece)

    def ended(self) -> None:
        """The peer sends no more."""
        self._eof_received = True
        self._whole = sum([len(piece) for piece in self._came])
        self._count(self._whole)
        if self._closing:
            self._owner.forget(self)
        elif self._reading and not self._came:
            self._tell_end()

    def taken(self) -> None:
        """The peer has looked at the stream: nothing of it need be said again."""
        self._unkeep()
        self._untaken = False
        self._tell_writer()

    def full(self) -> None:
        """Much waits for the connection to take it."""
        self._full = True
        self._tell_writer()

    def room(self) -> None:
        """It has taken most of it."""
        self._full = False
        self._tell_writer()

    def lose(self, error: Exception | None) -> None:
        """The stream is gone, by *error*: told at once, but behind what the peer said to its end."""
        self._unkeep()
        self._owner.forget(self)
        if self._closing:
            return
        self._error = error
        if self._eof_told or not self._eof_received:
            self._stop()

    def untaken(self) -> bool:
        """Say whether the peer's agent should have looked at it."""
        return self.movable() and self._owner.context.now - self._since > self._owner.context.timeouts.connect

    def overdue(self) -> bool:
        """Say whether its peer should have ended its direction."""
        waited = self._owner.context.now - self._closed_at
        return self._closing and waited > LINGER_SECONDS and not self.stream.queued

    def wait(self) -> None:
        """More is written when a peer has taken it; what is written meanwhile is kept."""
        self._untaken = True
        self._tell_writer()

    def movable(self) -> bool:
        """Say whether all that was written is there to be said once more."""
        return self.stream.kept is not None

    def move(self, owner: StreamOwner, stream: Http2Stream, lease: Lease) -> None:
        """Go on as *stream* of *owner*, by its *lease*: the peer has not looked at the one before, and it is
        movable.
        """
        kept = b"".join(self.stream.kept or ())
        self._unkeep()
        self.moved += 1
        self._owner = owner
        self.stream = stream
        self.lease = lease
        self._since = owner.context.now
        self._full = self._untaken = False
        if kept:
            self._give(kept)
        if self._eof_sent:
            owner.finish(self)
        if self._closing:
            owner.closed(self, ended=False)
            return
        if not self._reading:
            owner.hold(self)
        self._tell_writer()

    # -- what it holds --

    def party(self) -> str:
        return self._owner.party()

    def backlogs(self) -> list[Backlog]:
        stands = self._owner.context.now - self._moved >= STANDS_SECONDS
        return [Backlog(self, self.stream.number, self._counted, stands=stands)]

    def give_up(self, stream: int) -> None:
        if self._counted:
            self._error = ConnectionResetError("too much is held for the peer of this stream")
            self.abort()

    def _count(self, more: int) -> None:
        """The stream itself holds *more* bytes; fewer, where that is negative."""
        if not more:
            return
        before = self._counted
        self._counted = now = before + more
        self._held.bytes += more
        if more < 0 or not before:
            self._moved = self._owner.context.now
        if not now:
            self._held.leave(self)
        elif not before:
            self._held.enter(self, self._owner.context.limits.held_bytes_per_pod)

    # -- parts --

    def _unkeep(self) -> None:
        """What was written need not be said again, or is nobody's any more."""
        stream = self.stream
        if stream.kept is not None:
            self._count(-stream.kept_bytes)
            stream.kept = None
            stream.kept_bytes = 0

    def _tell_writer(self) -> None:
        """Ask the writer to pause, or to go on, where that is not what it was asked last."""
        waits = self._full or self._untaken
        protocol = self.protocol
        if waits != self._waits and protocol is not None:
            self._waits = waits
            (protocol.pause_writing if waits else protocol.resume_writing)()

    def _go_on(self) -> None:
        """Pass on what came while the protocol did not read."""
        came = self._came
        while came and self._reading and not self._closing and self.protocol is not None:
            piece = came.popleft()
            if self._whole:
                self._whole -= len(piece)
                self._count(-len(piece))
            self.protocol.data_received(piece)
        if came or not self._reading or self._closing:
            return
        self._owner.release(self)
        if self._eof_received:
            self._tell_end()
            if self._error is not None and not self._closing:
                self._stop()

    def _tell_end(self) -> None:
        if self._eof_told:
            return
        self._eof_told = True
        if self.protocol is not None and not self.protocol.eof_received():
            self.close()

    def _stop(self) -> None:
        """Nothing is passed on any more; tell the protocol so in the loop's next turn."""
        self._closing = True
        self._came.clear()
        self._count(-self._whole)
        self._whole = 0
        self._owner.context.loop.call_soon(self._tell_lost)

    def _tell_lost(self) -> None:
        protocol = self.protocol
        self.protocol = None
        if protocol is not None:
            protocol.connection_lost(self._error)
