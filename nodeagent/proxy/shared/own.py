"""A connection of its own for a stream that no shared one took. Theory: ``link.py``."""

from __future__ import annotations

from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dialled
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.shared.lease import Lease
from nodeagent.proxy.shared.stream import SharedStream, StreamOwner
from nodeagent.proxy.transport import reset


class OwnConnection(StreamOwner):
    """The protocol of that connection, which tells the stream what comes."""

    def __init__(self, context: Context, shared: SharedStream, dialled: Dialled, lease: Lease) -> None:
        """*shared*: movable, see ``SharedStream``; *lease*: *dialled*'s."""
        self.context = context
        self.transport = dialled.transport
        self._shared = shared
        self._dialled = dialled
        self._lease = lease
        self._party = shared.party()

    def party(self) -> str:
        return self._party

    def begin(self) -> None:
        """Say all that the stream was given."""
        dialled = self._dialled
        self.transport.set_protocol(self)
        self._shared.move(self, Http2Stream(0, 0), self._lease)
        if dialled.early:
            self.data_received(dialled.early)
        if dialled.lost:
            self.connection_lost(None)
        elif dialled.ended:
            self.eof_received()

    # -- what the stream asks for --

    def give(self, shared: SharedStream, piece: bytes) -> None:
        self.transport.write(piece)

    def finish(self, shared: SharedStream) -> None:
        self.transport.write_eof()

    def closed(self, shared: SharedStream, *, ended: bool) -> None:
        self.transport.close()

    def cut(self, shared: SharedStream) -> None:
        reset(self.transport)

    def hold(self, shared: SharedStream) -> None:
        self.transport.pause_reading()

    def release(self, shared: SharedStream) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def forget(self, shared: SharedStream) -> None:
        """It has no other."""

    # -- events of the transport --

    def data_received(self, data: bytes) -> None:
        self._shared.came(data)

    def eof_received(self) -> bool:
        self._shared.ended()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._shared.lose(error)

    def pause_writing(self) -> None:
        self._shared.full()

    def resume_writing(self) -> None:
        self._shared.room()
