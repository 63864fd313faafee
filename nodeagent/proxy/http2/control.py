"""The frames that carry no message: what a peer says of its connection (RFC 9113 sections 6.3 to 6.9).
Theory: ``session.py``.
"""

from __future__ import annotations

from typing import Final

from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame_head
from nodeagent.proxy.http2.sender import RESET_COST, FrameSender
from nodeagent.proxy.http2.stream import Http2Stream
from nodeagent.proxy.http2.user import SessionError

FAULT_COST: Final = 10
BRIEF_SECONDS: Final = 1.0
"""Whoever gives up streams that were open for longer is no flood: a connection has only so many at once."""
WINDOWS_A_COST: Final = 64
"""Streams whose windows one setting may change for as much patience as a frame costs."""


class Control(FrameSender):
    """A sender that hears what its peer says of windows, settings and streams."""

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

    def _read_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise SessionError(wire.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & wire.ACK:
            if payload:
                raise SessionError(wire.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS is not empty")
            if not self.settled:
                raise SessionError(wire.PROTOCOL_ERROR, "the connection does not begin with SETTINGS")
            self.spend(1)
            return
        if len(payload) % 6:
            raise SessionError(wire.FRAME_SIZE_ERROR, "SETTINGS are not made of six bytes each")
        self.spend(1 + len(payload) // 6)
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
        self.spend(len(self.streams) // WINDOWS_A_COST)
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
        if stream is None:
            if not self._late(number, self._own_window):
                self.spend(1)
        else:
            # what a server resets was asked for from here
            if not self._client and self._clock - stream.since < BRIEF_SECONDS:
                self.spend(RESET_COST)
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

    def _fault(self, stream: Http2Stream, code: int) -> None:
        """The peer broke a rule on *stream* alone."""
        self.spend(FAULT_COST)
        self.reset(stream, code)
        self._user.on_reset(stream, code, ours=True)

    def malformed(self, stream: Http2Stream) -> None:
        """The user found that what came on *stream* is no message (RFC 9113 section 8.1.1)."""
        self._fault(stream, wire.PROTOCOL_ERROR)

    def _idle(self, number: int) -> bool:
        """Say whether nobody has opened the stream *number* yet; a server never opens one. What a client
        opened beyond the last one that it was told of is not looked at.
        """
        if not number & 1:
            return True
        return number >= self._next if self._client else self.last < number <= self._final
