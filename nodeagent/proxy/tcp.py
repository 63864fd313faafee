"""A relay of bytes between two transports: half-close, back-pressure and resets pass through."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from nodeagent.proxy.busy_poll import BusyPoll
from nodeagent.proxy.sniff import FirstLine
from nodeagent.proxy.transport import Transport, reset


class Side:
    """One half of a relay: the protocol of one transport, which writes to the other's."""

    __slots__ = ("count", "ended", "lost", "other", "relay", "taken", "transport")

    def __init__(self, relay: Relay, transport: Transport) -> None:
        self.relay = relay
        self.transport = transport
        self.other: Side = self
        self.count = 0
        self.taken = 0
        self.ended = False
        self.lost = False

    def connection_made(self, transport: Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.other.transport.write(data)
        self.relay.busy_poll.event(perf_counter())

    def eof_received(self) -> bool:
        self.ended = True
        if self.other.ended:
            self.other.transport.close()
            self.transport.close()
        elif not self.other.lost:
            self.other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.other.lost:
            if error is not None or not self.ended:
                reset(self.other.transport)
            else:
                self.other.transport.close()
        self.relay.side_lost(error)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.lost:
            self.other.transport.resume_reading()


class WatchedSide(Side):
    """The client's side while its first line, part of which has gone on, may still become that of
    an HTTP request: nobody parsed it, so the connection ends then. Once the server has spoken it is
    something else.
    """

    __slots__ = ("line", "refuse")

    def __init__(self, relay: Relay, transport: Transport, line: FirstLine, refuse: Callable[[], None]) -> None:
        Side.__init__(self, relay, transport)
        self.line: FirstLine | None = line
        self.refuse = refuse

    def data_received(self, data: bytes) -> None:
        if self.line is not None:
            verdict = "tcp" if self.other.count else self.line.feed(data)
            if verdict in ("http", "http2"):
                self.refuse()
                return
            if verdict == "tcp":
                self.line = None
        Side.data_received(self, data)


class Relay:
    """Two sides joined. ``closed(received, sent, error)`` runs once, when both are gone; bytes as
    the downstream sees them.
    """

    def __init__(
        self,
        downstream: Transport,
        upstream: Transport,
        closed: Callable[[int, int, Exception | None], None],
        busy_poll: BusyPoll,
    ) -> None:
        self.downstream = Side(self, downstream)
        self.upstream = Side(self, upstream)
        self.downstream.other = self.upstream
        self.upstream.other = self.downstream
        self._closed = closed
        self.busy_poll = busy_poll
        self._error: Exception | None = None

    def watch(self, line: FirstLine, refuse: Callable[[], None]) -> None:
        """Look at what goes on from downstream, of which *line* has seen the beginning, until it is
        certain not to be HTTP; *refuse* if it is.
        """
        side = WatchedSide(self, self.downstream.transport, line, refuse)
        self.downstream = side
        self.upstream.other = side
        side.other = self.upstream

    def start(self, early: bytes = b"", answer: bytes = b"") -> None:
        """Join the transports; *early* was already read from downstream, *answer* from upstream."""
        self.upstream.transport.set_protocol(self.upstream)
        downstream = self.downstream
        downstream.transport.set_protocol(downstream)
        if early:
            Side.data_received(downstream, early)
        if answer:
            self.upstream.data_received(answer)

    def take(self) -> tuple[int, int]:
        """Return the bytes (received from downstream, sent to it) since the last call."""
        downstream = self.downstream
        upstream = self.upstream
        taken = downstream.count - downstream.taken, upstream.count - upstream.taken
        downstream.taken = downstream.count
        upstream.taken = upstream.count
        return taken

    def side_lost(self, error: Exception | None) -> None:
        self._error = self._error or error
        if self.downstream.lost and self.upstream.lost:
            self._closed(self.downstream.count, self.upstream.count, self._error)
