"""The codecs of HTTP/2 against a second implementation, the package ``h2``: any row of frames gets
the same verdict from both, with the same error code where RFC 9113 leaves no choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame
from nodeagent.proxy.http2.sender import CONNECTION_WINDOW
from nodeagent.proxy.http2.session import STREAM_WINDOW
from tests.unit.proxy.http2_wire import OK, Asking, Frame, Pairs, Server, frames

LINE: Final = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"))
WEB: Final = (b":authority", b"web")
BLOCK_HEADS: Final[dict[str, Pairs]] = {
    "get": (*LINE, WEB),
    "post of 5": ((b":method", b"POST"), *LINE[1:], WEB, (b"content-length", b"5")),
    "trailers": ((b"grpc-status", b"0"),),
    "nothing": (),
    "no path": (*LINE[:2], WEB),
    "two paths": (*LINE, (b":path", b"/b"), WEB),
    "status": ((b":status", b"200"),),
    "status of 5": ((b":status", b"200"), (b"content-length", b"5")),
    "interim": ((b":status", b"103"),),
    "late pseudo": (*LINE, (b"a", b"b"), WEB),
    "upper": (*LINE, WEB, (b"A", b"b")),
    "connection": (*LINE, WEB, (b"connection", b"close")),
    "te": (*LINE, WEB, (b"te", b"gzip")),
    "hosts": (*LINE, WEB, (b"host", b"other")),
}
"""Heads of messages, and of what is none."""


def block(fields: Pairs) -> bytes:
    """Return *fields* as literals, of which no table needs to know."""
    return b"".join([b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields])


@dataclass(frozen=True)
class Answer:
    """The server answers the request on stream *number*, if there is one."""

    number: int


NUMBERS: Final = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7])
INCREMENTS: Final = st.sampled_from([0, 1, 1000, wire.LARGEST_WINDOW - 1, wire.LARGEST_WINDOW])
FLAGS: Final = st.sampled_from([0, wire.END_STREAM])
WHOLE: Final = wire.END_HEADERS
SETTING: Final = st.tuples(
    st.integers(0, 7), st.sampled_from([0, 1, 2, 100, 16384, 65535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
)


def padded(payload: bytes, padding: int) -> bytes:
    return bytes((padding,)) + payload + bytes(padding)


def number4(value: int) -> bytes:
    return value.to_bytes(4, "big")


def heads(number: int, flags: int, head: str) -> bytes:
    return frame(wire.HEADERS, flags | WHOLE, number, block(BLOCK_HEADS[head]))


def body(number: int, flags: int, size: int) -> bytes:
    return frame(wire.DATA, flags, number, b"x" * size)


HEADERS = st.builds(heads, NUMBERS, FLAGS, st.sampled_from(sorted(BLOCK_HEADS)))
SPLIT = st.builds(
    lambda number, flags, head, at, second: (
        frame(wire.HEADERS, flags, number, block(BLOCK_HEADS[head])[:at])
        + frame(wire.CONTINUATION, WHOLE, second, block(BLOCK_HEADS[head])[at:])
    ),
    NUMBERS,
    FLAGS,
    st.sampled_from(["get", "trailers", "status"]),
    st.integers(0, 10),
    NUMBERS,
)
DATA = st.builds(body, NUMBERS, FLAGS, st.sampled_from([0, 1, 5, 1000]))
PADDED_DATA = st.builds(
    lambda number, flags, payload: frame(wire.DATA, flags | wire.PADDED, number, payload),
    NUMBERS,
    FLAGS,
    st.sampled_from([b"", b"\x00", b"\x01", b"\x05", padded(b"hello", 0), padded(b"hello", 200), b"\x06hello"]),
)
CONTROL = st.one_of(
    st.builds(
        lambda number, payload: frame(wire.RST_STREAM, 0, number, payload),
        NUMBERS,
        st.sampled_from([number4(8), number4(8), number4(0), b"", b"\x00" * 5]),
    ),
    st.builds(lambda number, more: frame(wire.WINDOW_UPDATE, 0, number, number4(more)), NUMBERS, INCREMENTS),
    st.builds(lambda number: frame(wire.WINDOW_UPDATE, 0, number, b"\x00" * 3), NUMBERS),
    st.builds(
        lambda pairs: wire.settings(tuple(pairs)),
        st.lists(SETTING, max_size=3),
    ),
    st.sampled_from(
        [
            frame(wire.SETTINGS, 0, 1, b""),
            frame(wire.SETTINGS, 0, 0, b"\x00" * 5),
            frame(wire.SETTINGS, wire.ACK, 0, b"\x00" * 6),
            frame(wire.PING, 0, 0, b"12345678"),
            frame(wire.PING, wire.ACK, 0, b"12345678"),
            frame(wire.PING, 0, 1, b"12345678"),
            frame(wire.PING, 0, 0, b"1234567"),
            frame(wire.GOAWAY, 0, 1, bytes(8)),
            frame(wire.GOAWAY, 0, 0, bytes(7)),
            frame(wire.PUSH_PROMISE, WHOLE, 1, number4(2) + block(BLOCK_HEADS["get"])),
            frame(wire.CONTINUATION, WHOLE, 1, block(BLOCK_HEADS["trailers"])),
            frame(wire.HEADERS, WHOLE, 1, b"\x80"),
            frame(wire.HEADERS, WHOLE, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
            frame(wire.HEADERS, WHOLE | wire.PADDED, 1, b"\x05"),
            frame(wire.HEADERS, WHOLE | wire.PRIORITISED, 1, b"\x00" * 4),
            frame(wire.PRIORITY, 0, 0, bytes(4) + b"\x10"),
            frame(wire.PRIORITY, 0, 3, bytes(4)),
            frame(wire.PRIORITY, 0, 3, number4(1) + b"\x10"),
            frame(0x42, 0xFF, 1, b"unknown"),
            frame(0x42, 0, 0, b"unknown"),
            wire.frame_head(16385, wire.DATA, 0, 1) + bytes(16385),
        ]
    ),
)
ANSWERS = st.builds(Answer, st.sampled_from([1, 3, 5]))
USUAL = st.one_of(
    st.builds(body, st.sampled_from([1, 1, 3, 5]), FLAGS, st.sampled_from([0, 5])),
    st.builds(wire.window_update, st.sampled_from([0, 1, 3]), st.just(1000)),
    st.builds(wire.rst_stream, st.sampled_from([1, 3]), st.just(wire.CANCEL)),
    st.just(frame(wire.PING, 0, 0, b"12345678")),
)
"""What breaks few rules."""
ASKED = st.one_of(
    st.builds(heads, st.sampled_from([5, 7, 9]), FLAGS, st.sampled_from(["get", "post of 5"])),
    st.just(heads(1, wire.END_STREAM, "trailers")),
)
ANSWERED = st.builds(
    heads, st.sampled_from([1, 3, 5]), FLAGS, st.sampled_from(["status", "status of 5", "interim", "trailers"])
)
UNUSUAL = st.one_of(HEADERS, DATA, SPLIT, PADDED_DATA, CONTROL)
FROM_CLIENTS = st.one_of(ASKED, ASKED, USUAL, USUAL, ANSWERS, UNUSUAL)
FROM_SERVERS = st.one_of(ANSWERED, ANSWERED, USUAL, USUAL, UNUSUAL)


@dataclass(frozen=True)
class Verdict:
    """What one side makes of a frame: fine (neither), a *stream*'s end, or the *connection*'s, by an error code."""

    connection: int | None = None
    stream: int | None = None

    @property
    def code(self) -> int | None:
        """The error's, whatever it ends: a stream's may end the connection (RFC 9113 section 5.4.1)."""
        return self.stream if self.connection is None else self.connection


FINE: Final = Verdict()


def verdict(written: list[Frame]) -> Verdict:
    """Return what a codec that wrote these frames thinks of what it read."""
    ended = [each.code for each in written if each.kind == wire.GOAWAY]
    reset = [each.code for each in written if each.kind == wire.RST_STREAM]
    return Verdict(ended[0] if ended else None, reset[0] if reset else None)


class Oracle:
    """The package ``h2`` in one role, with our windows."""

    def __init__(self, *, client: bool) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding=None))
        self.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = STREAM_WINDOW
        if client:
            self.h2.local_settings[SettingCodes.ENABLE_PUSH] = 0
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW - wire.DEFAULT_WINDOW)
        assert self.feed(b"" if client else wire.PREFACE, wire.settings(())) == FINE

    def feed(self, *pieces: bytes) -> Verdict:
        try:
            self.h2.receive_data(b"".join(pieces))
        except ProtocolError as error:
            return Verdict(connection=int(error.error_code))
        return verdict(frames(self.h2.data_to_send().removeprefix(wire.PREFACE)))


class Servers:
    """Both as the server, which was asked on the streams 1, whose request goes on, and 3."""

    def __init__(self) -> None:
        self.ours = Server()
        self.theirs = Oracle(client=False)
        for step in (heads(1, 0, "get"), heads(3, wire.END_STREAM, "get")):
            assert self.take(step) == (FINE, FINE)

    def take(self, step: bytes | Answer) -> tuple[Verdict, Verdict]:
        if isinstance(step, bytes):
            return verdict(self.ours.feed(step)), self.theirs.feed(step)
        for exchange in self.ours.stages.exchanges:
            if exchange.stream.number == step.number and not exchange.finished:
                exchange.downstream.answer(exchange, 200, [], 0)
                exchange.downstream.end(exchange, [])
                self.theirs.h2.send_headers(step.number, OK, end_stream=True)
                found = verdict(self.ours.settle())
                if found.stream == wire.NO_ERROR:  # nothing more of the request is wanted
                    self.theirs.h2.reset_stream(step.number, wire.NO_ERROR)
                self.theirs.h2.clear_outbound_data_buffer()
                return found, found
        return FINE, FINE


class Clients:
    """Both as the client, which has asked on the streams 1, 3 (HEAD) and 5."""

    def __init__(self) -> None:
        self.ours = Asking()
        self.theirs = Oracle(client=True)
        for number, method in ((1, b"GET"), (3, b"HEAD"), (5, b"GET")):
            self.ours.ask(method)
            head = [(b":method", method), *BLOCK_HEADS["get"][1:]]
            self.theirs.h2.send_headers(number, head, end_stream=True)
        self.ours.settle()
        self.theirs.h2.clear_outbound_data_buffer()

    def take(self, step: bytes | Answer) -> tuple[Verdict, Verdict]:
        if isinstance(step, Answer):
            return FINE, FINE
        return verdict(self.ours.feed(step)), self.theirs.feed(step)


def agrees(step: bytes, found: Verdict, expected: Verdict, *, client: bool) -> bool:
    """Say whether both mean the same, or RFC 9113 leaves the choice, or the oracle is wrong."""
    if found.code == expected.code:
        return True
    (first, *_) = frames(step)
    codes = (found.code, expected.code)
    if codes == (wire.COMPRESSION_ERROR, wire.PROTOCOL_ERROR):
        return True  # section 4.3 says COMPRESSION_ERROR
    if first.kind == wire.SETTINGS:  # section 6.5: an ACK is empty, pairs count in their order
        return expected.code in (wire.PROTOCOL_ERROR, None)
    if first.number == 0 and wire.FRAME_SIZE_ERROR in codes:
        return wire.PROTOCOL_ERROR in codes  # two rules are broken at once
    if expected == FINE and codes[0] == wire.PROTOCOL_ERROR:
        # nobody opened that stream (section 5.1, idle), or the body is not what content-length says (section 8.1.1)
        return first.kind == wire.RST_STREAM or first.number % 2 == 0 or b"content-length" in first.payload
    if found == FINE and first.kind == wire.WINDOW_UPDATE:
        return first.payload == bytes(4)  # of a stream that was passed over, or is over
    if client and found == Verdict(stream=wire.CANCEL) and expected == FINE:  # the answer has no body, and is whole
        return first.kind == wire.HEADERS and not first.flags & wire.END_STREAM
    if client and found == FINE:  # an answer that comes late to a stream that was given up is no reason to lose others
        return first.kind == wire.HEADERS and expected.code == wire.STREAM_CLOSED
    # A stream that was passed over counts as closed (section 5.1.1), or as never to be opened any more.
    return first.kind in (wire.HEADERS, wire.DATA) and set(codes) == {wire.PROTOCOL_ERROR, wire.STREAM_CLOSED}


def compare(both: Servers | Clients, steps: list[bytes | Answer]) -> None:
    """Take *steps* until one ends the connection. What comes on a stream that was reset may be passed
    over or not (section 5.1, closed), so that is not compared.
    """
    reset: set[int] = set()
    for step in steps:
        number = step.number if isinstance(step, Answer) else frames(step)[0].number
        found, expected = both.take(step)
        if isinstance(step, bytes) and number not in reset:
            assert agrees(step, found, expected, client=isinstance(both, Clients)), (frames(step), found, expected)
        if found.connection is not None or expected.connection is not None:
            return
        if found.stream is not None or (isinstance(step, bytes) and step[3] == wire.RST_STREAM):
            reset.add(number)


@settings(deadline=None)
@given(st.lists(FROM_CLIENTS, max_size=12))
def test_what_clients_send(steps: list[bytes | Answer]) -> None:
    compare(Servers(), steps)


@settings(deadline=None)
@given(st.lists(FROM_SERVERS, max_size=12))
def test_what_servers_send(steps: list[bytes | Answer]) -> None:
    compare(Clients(), steps)
