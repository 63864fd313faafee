"""HTTP/2 peers that break rules, or keep all and mean no good: what each of them gets, and what it
can make the proxy hold.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from nodeagent.errors import HTTP2_BROKEN, REQUEST_TIMEOUT
from nodeagent.proxy.http import fields
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2 import heads
from nodeagent.proxy.http2.frames import frame, rst_stream, settings, window_update
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.hpack.secret import NeverIndexed
from nodeagent.proxy.http2.sender import STALLED
from nodeagent.proxy.http2.session import FRAMES_A_TURN, HEADS_A_TURN, STREAM_WINDOW
from nodeagent.proxy.http2.user import SessionError
from nodeagent.proxy.permit import OPEN
from tests.unit.proxy.http2_wire import (
    GET,
    INTERIM,
    OK,
    POST,
    SETTLED,
    Asking,
    Frame,
    Pairs,
    Pipe,
    Server,
    Stages,
    Turns,
    accepted,
    context,
    enrolled,
    frames,
)

PING: Final = frame(wire.PING, 0, 0, bytes(8))


def odd() -> Iterator[int]:
    return itertools.count(1, 2)


def only(written: list[Frame], kind: int) -> list[Frame]:
    return [each for each in written if each.kind == kind]


def goaway(written: list[Frame]) -> int | None:
    """Return the code with which the connection ended, None if it did not."""
    found = only(written, wire.GOAWAY)
    return found[0].code if found else None


# -- floods --


def rapid_reset(server: Server) -> Iterator[bytes]:
    """CVE-2023-44487."""
    for number in odd():
        yield server.head(number, GET) + rst_stream(number, wire.CANCEL)


def reset_by_update(server: Server) -> Iterator[bytes]:
    """CVE-2025-8671: the proxy is brought to reset the stream itself."""
    for number in odd():
        yield server.head(number, GET) + window_update(number, 0)


def reset_by_window(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, GET) + window_update(number, wire.LARGEST_WINDOW)


def reset_by_data(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, GET) + frame(wire.DATA, 0, number, b"x")


def reset_by_head(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, GET) + server.head(number, GET)


def reset_by_priority(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, GET) + frame(wire.PRIORITY, 0, number, number.to_bytes(4, "big") + b"\0")


def malformed(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, ())


def too_many_streams(server: Server) -> Iterator[bytes]:
    for number in odd():
        yield server.head(number, GET)


def empty_data(server: Server) -> Iterator[bytes]:
    yield server.head(1, POST, end=False)
    while True:
        yield frame(wire.DATA, 0, 1, b"")


def padding(server: Server) -> Iterator[bytes]:
    yield server.head(1, POST, end=False)
    while True:
        yield frame(wire.DATA, wire.PADDED, 1, b"\x05" + bytes(5))


def updates_of_streams(server: Server) -> Iterator[bytes]:
    yield server.head(1, GET)
    while True:
        yield window_update(1, 1)


def continuations(server: Server) -> Iterator[bytes]:
    """CVE-2024-27316, without any bytes of fields."""
    yield frame(wire.HEADERS, 0, 1, b"")
    while True:
        yield frame(wire.CONTINUATION, 0, 1, b"")


def resets_of_the_dead(server: Server) -> Iterator[bytes]:
    yield server.head(1, GET)
    while True:
        yield rst_stream(1, wire.CANCEL)


def again(data: bytes) -> Callable[[Server], Iterator[bytes]]:
    return lambda server: itertools.repeat(data)


FLOODS: Final[dict[str, Callable[[Server], Iterator[bytes]]]] = {
    "rapid reset": rapid_reset,
    "made to reset by WINDOW_UPDATE 0": reset_by_update,
    "made to reset by a window beyond its range": reset_by_window,
    "made to reset by DATA behind the end": reset_by_data,
    "made to reset by HEADERS behind the end": reset_by_head,
    "priorities": reset_by_priority,
    "malformed heads": malformed,
    "streams beyond the limit": too_many_streams,
    "empty DATA": empty_data,
    "padding alone": padding,
    "WINDOW_UPDATE of a stream": updates_of_streams,
    "empty CONTINUATION": continuations,
    "RST_STREAM of what is gone": resets_of_the_dead,
    "PING": again(PING),
    "answers to no PING": again(frame(wire.PING, wire.ACK, 0, bytes(8))),
    "SETTINGS": again(SETTLED),
    "acknowledged SETTINGS": again(frame(wire.SETTINGS, wire.ACK, 0, b"")),
    "SETTINGS of windows": again(settings(((wire.INITIAL_WINDOW_SIZE, 1), (wire.INITIAL_WINDOW_SIZE, 2)))),
    "SETTINGS of tables": again(settings(((wire.HEADER_TABLE_SIZE, 0), (wire.HEADER_TABLE_SIZE, 4096)))),
    "WINDOW_UPDATE of the connection": again(window_update(0, 1)),
    "frames of unknown kinds": again(frame(0x2A, 0, 0, b"grease")),
    "GOAWAY": again(wire.goaway(0, 0, b"")),
}
MOST: Final = 4096
"""Frames, or pairs of them, after which every flood has ended."""


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_the_connection(flood: str) -> None:
    server = Server(streamsPerConnection=100)
    most = 0
    for count, piece in enumerate(FLOODS[flood](server)):
        assert count < MOST, f"still there after {count}"
        written = server.feed(piece)
        most = max(most, len(written))
        if (code := goaway(written)) is not None:
            assert code == wire.ENHANCE_YOUR_CALM
            break
    assert most < 8, "few bytes make the proxy say much"
    assert server.pipe.ended
    ((reason, words),) = server.stages.broken
    assert reason.code == "http2_broken"
    assert words


# -- what is no flood --


def test_a_download_whose_every_frame_is_acknowledged_twice_goes_on() -> None:
    server = Server()
    server.feed(window_update(0, 1 << 30), server.head(1, GET))
    (exchange,) = server.stages.exchanges
    exchange.downstream.answer(exchange, 200, [], 1 << 30)
    server.settle()
    for _ in range(4000):
        exchange.downstream.data(exchange, bytes(32768))
        server.settle()
        for _ in range(2):
            written = server.feed(window_update(1, 16384), window_update(0, 16384))
            assert goaway(written) is None


def test_a_client_that_reads_little_at_a_time_goes_on() -> None:
    """Some give back each piece that they have read: 4 KiB at a time, as often as there are."""
    server = Server()
    server.feed(window_update(0, 1 << 30), server.head(1, GET))
    (exchange,) = server.stages.exchanges
    exchange.downstream.answer(exchange, 200, [], 1 << 30)
    server.settle()
    for _ in range(2000):
        exchange.downstream.data(exchange, bytes(16384))
        server.settle()
        for _ in range(4):
            assert goaway(server.feed(window_update(1, 4096), window_update(0, 4096))) is None


def test_an_upload_in_single_bytes_goes_on() -> None:
    server = Server()
    server.feed(server.head(1, POST, end=False))
    for _ in range(10_000):
        assert goaway(server.feed(frame(wire.DATA, 0, 1, b"x"))) is None


def test_calls_of_which_every_second_is_cancelled_go_on() -> None:
    server = Server()
    for number in range(1, 20_000, 2):
        server.feed(server.head(number, GET))
        exchange = server.stages.exchanges[-1]
        if number % 4 == 1:
            exchange.downstream.answer(exchange, 200, [], 0)
            exchange.downstream.end(exchange, [])
            written = server.settle()
        else:
            written = server.feed(rst_stream(number, wire.CANCEL))
        assert goaway(written) is None


def test_a_ping_a_request_is_fine() -> None:
    server = Server()
    for number in range(1, 20_000, 2):
        written = server.feed(server.head(number, GET), PING)
        assert goaway(written) is None
        exchange = server.stages.exchanges[-1]
        exchange.downstream.answer(exchange, 200, [], 0)
        exchange.downstream.end(exchange, [])
        server.settle()


def test_an_endpoint_that_refuses_all_that_it_is_asked_for_long_is_no_flood() -> None:
    """What it resets the proxy asked for itself."""
    asking = Asking()
    for number in range(1, 4000, 2):
        asking.ask()
        asking.settle()
        assert goaway(asking.feed(rst_stream(number, wire.CANCEL))) is None


def test_an_answer_before_each_answer_is_fine() -> None:
    asking = Asking()
    for number in range(1, 4000, 2):
        exchange = asking.ask()
        asking.settle()
        assert goaway(asking.feed(asking.head(number, INTERIM, end=False), asking.head(number, OK))) is None
        assert exchange.finished


def test_an_endpoint_that_never_comes_to_its_answer_is_left() -> None:
    asking = Asking()
    asking.ask()
    asking.settle()
    for count in itertools.count():
        assert count < 1000
        if goaway(asking.feed(asking.head(1, INTERIM, end=False))) == wire.ENHANCE_YOUR_CALM:
            break


# -- rules that have one answer --

STREAM: Final = "stream"
CONNECTION: Final = "connection"
RULES: Final[dict[str, tuple[bytes, str, int]]] = {
    "4.1 a frame larger than allowed": (
        wire.frame_head(16385, wire.DATA, 0, 1) + bytes(16385),
        CONNECTION,
        wire.FRAME_SIZE_ERROR,
    ),
    "4.3 a block that does not decode": (
        frame(wire.HEADERS, wire.END_HEADERS, 5, b"\x80"),
        CONNECTION,
        wire.COMPRESSION_ERROR,
    ),
    "5.1 DATA of an idle stream": (frame(wire.DATA, 0, 7, b"x"), CONNECTION, wire.PROTOCOL_ERROR),
    "5.1 RST_STREAM of an idle stream": (rst_stream(7, 0), CONNECTION, wire.PROTOCOL_ERROR),
    "5.1 WINDOW_UPDATE of an idle stream": (window_update(7, 1), CONNECTION, wire.PROTOCOL_ERROR),
    "5.1 CONTINUATION of an idle stream": (
        frame(wire.CONTINUATION, wire.END_HEADERS, 7, b""),
        CONNECTION,
        wire.PROTOCOL_ERROR,
    ),
    "5.1 DATA behind the end": (frame(wire.DATA, 0, 3, b"x"), STREAM, wire.STREAM_CLOSED),
    "5.1.1 a stream of the server's": (
        frame(wire.HEADERS, wire.END_HEADERS, 8, b"\x82"),
        CONNECTION,
        wire.PROTOCOL_ERROR,
    ),
    "6.1 DATA on stream 0": (frame(wire.DATA, 0, 0, b"x"), CONNECTION, wire.PROTOCOL_ERROR),
    "6.1 padding beyond the frame": (frame(wire.DATA, wire.PADDED, 1, b"\x05x"), CONNECTION, wire.PROTOCOL_ERROR),
    "4.2 padding that does not say how long it is": (
        frame(wire.DATA, wire.PADDED, 1, b""),
        CONNECTION,
        wire.FRAME_SIZE_ERROR,
    ),
    "6.2 HEADERS on stream 0": (frame(wire.HEADERS, wire.END_HEADERS, 0, b"\x82"), CONNECTION, wire.PROTOCOL_ERROR),
    "6.4 RST_STREAM of three bytes": (frame(wire.RST_STREAM, 0, 1, bytes(3)), CONNECTION, wire.FRAME_SIZE_ERROR),
    "6.4 RST_STREAM on stream 0": (rst_stream(0, 0), CONNECTION, wire.PROTOCOL_ERROR),
    "6.5 SETTINGS of a stream": (frame(wire.SETTINGS, 0, 1, b""), CONNECTION, wire.PROTOCOL_ERROR),
    "6.5 SETTINGS of five bytes": (frame(wire.SETTINGS, 0, 0, bytes(5)), CONNECTION, wire.FRAME_SIZE_ERROR),
    "6.5 an ACK with SETTINGS": (frame(wire.SETTINGS, wire.ACK, 0, bytes(6)), CONNECTION, wire.FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH of 2": (settings(((wire.ENABLE_PUSH, 2),)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.5.2 a window of 2 GiB": (settings(((wire.INITIAL_WINDOW_SIZE, 1 << 31),)), CONNECTION, wire.FLOW_CONTROL_ERROR),
    "6.5.2 frames of 1 KiB": (settings(((wire.MAX_FRAME_SIZE, 1024),)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.5.2 frames of 16 MiB": (settings(((wire.MAX_FRAME_SIZE, 1 << 24),)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE": (frame(wire.PUSH_PROMISE, wire.END_HEADERS, 1, bytes(4)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.7 PING of a stream": (frame(wire.PING, 0, 1, bytes(8)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.7 PING of nine bytes": (frame(wire.PING, 0, 0, bytes(9)), CONNECTION, wire.FRAME_SIZE_ERROR),
    "6.8 GOAWAY of a stream": (frame(wire.GOAWAY, 0, 1, bytes(8)), CONNECTION, wire.PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE by nothing": (window_update(1, 0), STREAM, wire.PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE of all by nothing": (window_update(0, 0), CONNECTION, wire.PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE of three bytes": (frame(wire.WINDOW_UPDATE, 0, 1, bytes(3)), CONNECTION, wire.FRAME_SIZE_ERROR),
    "6.9.1 a window beyond its range": (window_update(1, wire.LARGEST_WINDOW), STREAM, wire.FLOW_CONTROL_ERROR),
    "6.9.1 all windows beyond their range": (
        window_update(0, wire.LARGEST_WINDOW),
        CONNECTION,
        wire.FLOW_CONTROL_ERROR,
    ),
    "6.10 a block that is interrupted": (
        frame(wire.HEADERS, 0, 5, b"\x82") + frame(wire.PING, 0, 0, bytes(8)),
        CONNECTION,
        wire.PROTOCOL_ERROR,
    ),
    "6.10 a block that another stream goes on with": (
        frame(wire.HEADERS, 0, 5, b"\x82") + frame(wire.CONTINUATION, wire.END_HEADERS, 7, b"\x84"),
        CONNECTION,
        wire.PROTOCOL_ERROR,
    ),
    "6.10 CONTINUATION of nothing": (
        frame(wire.CONTINUATION, wire.END_HEADERS, 1, b"\x82"),
        CONNECTION,
        wire.PROTOCOL_ERROR,
    ),
    "8.1 trailers that do not end the stream": (
        frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x00\x01a\x01b"),
        STREAM,
        wire.PROTOCOL_ERROR,
    ),
}
"""Sections of RFC 9113: what a client sends (stream 1 goes on, 3 has ended), and what ends by which code."""


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_has_one_answer(rule: str) -> None:
    data, ends, code = RULES[rule]
    server = Server()
    server.feed(server.head(1, POST, end=False), server.head(3, GET))
    written = server.feed(data)
    if ends == CONNECTION:
        assert goaway(written) == code
        assert server.pipe.ended
    else:
        assert goaway(written) is None
        assert [each.code for each in only(written, wire.RST_STREAM)] == [code]
        assert goaway(server.feed(server.head(5, GET))) is None
        assert len(server.stages.exchanges) == 3


def test_a_block_of_a_stream_that_is_over_still_changes_the_table() -> None:
    server = Server()
    server.feed(server.head(1, GET))
    server.feed(frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x40\x01a\x01b"))
    server.feed(frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 3, b"\x82\x86\x84\x01\x03web\xbe"))
    assert (b"a", b"b") in server.stages.exchanges[1].fields


def test_what_does_not_begin_with_settings_is_no_connection() -> None:
    server = Server(hello=wire.PREFACE)
    assert goaway(server.feed(PING)) == wire.PROTOCOL_ERROR


# -- heads that are none --

LINE: Final[Pairs] = GET[:3]
NO_MESSAGES: Final[dict[str, Pairs]] = {
    "no fields": (),
    "no method": GET[1:],
    "no scheme": (GET[0], *GET[2:]),
    "no path": (*GET[:2], GET[3]),
    "an empty path": (*GET[:2], (b":path", b""), GET[3]),
    "an empty method": ((b":method", b""), *GET[1:]),
    "two methods": (GET[0], *GET),
    "two methods, the first empty": ((b":method", b""), *GET),
    "two schemes": (GET[1], *GET),
    "two paths": (GET[2], *GET),
    "two paths, the second empty": (*GET, (b":path", b"")),
    "two authorities": (GET[3], *GET),
    "two authorities, the first empty": ((b":authority", b""), *GET),
    "a pseudo-header behind a field": (*LINE, (b"a", b"b"), GET[3]),
    "a pseudo-header of answers": (*GET, (b":status", b"200")),
    "an unknown pseudo-header": (*GET, (b":protocol", b"websocket")),
    "upper case": (*GET, (b"Accept", b"*/*")),
    "an empty name": (*GET, (b"", b"b")),
    "a name with a space": (*GET, (b"a b", b"c")),
    "a name with a colon": (*GET, (b"a:b", b"c")),
    "a name with a line's end": (*GET, (b"a\r\nhost: other\r\nb", b"c")),
    "a name beyond ASCII": (*GET, ("ä".encode(), b"c")),
    "a value with a line's end": (*GET, (b"a", b"b\r\nhost: other")),
    "a value with a line feed": (*GET, (b"a", b"b\nc: d")),
    "a value with a carriage return": (*GET, (b"a", b"b\rc")),
    "a value with NUL": (*GET, (b"a", b"b\0c")),
    "a value with a line's end behind it": (*GET, (b"a", b"b\r\n")),
    "a host of white space": (*LINE, (b"host", b" ")),
    "te that is not trailers, behind a space": (*GET, (b"te", b" gzip")),
    "two lengths, one behind a space": (*GET, (b"content-length", b"0"), (b"content-length", b" 0")),
    "a path with a space": (*GET[:2], (b":path", b"/a HTTP/1.1"), GET[3]),
    "a path with a line's end": (*GET[:2], (b":path", b"/\r\nhost: other"), GET[3]),
    "a path that is an URL": (*GET[:2], (b":path", b"http://other/"), GET[3]),
    "a path that is a star": (*GET[:2], (b":path", b"*"), GET[3]),
    "a method with a space": ((b":method", b"GET / HTTP/1.1\r\nx:"), *GET[1:]),
    "an authority with a user": (*LINE, (b":authority", b"me@web")),
    "an authority with a line's end": (*LINE, (b":authority", b"web\r\na: b")),
    "an authority with a path": (*LINE, (b":authority", b"web/other")),
    "connection": (*GET, (b"connection", b"close")),
    "keep-alive": (*GET, (b"keep-alive", b"5")),
    "proxy-connection": (*GET, (b"proxy-connection", b"close")),
    "transfer-encoding": (*GET, (b"transfer-encoding", b"chunked")),
    "upgrade": (*GET, (b"upgrade", b"h2c")),
    "te that is not trailers": (*GET, (b"te", b"trailers, gzip")),
    "a host that is another one": (*GET, (b"host", b"other")),
    "an empty authority": (*LINE, (b":authority", b"")),
    "an empty host": (*LINE, (b"host", b"")),
    "two hosts": (*LINE, (b"host", b"web"), (b"host", b"web")),
    "a length that is none": (*GET, (b"content-length", b"+5")),
    "two lengths": (*GET, (b"content-length", b"0"), (b"content-length", b"0")),
    "a length and no body": (*GET, (b"content-length", b"5")),
}


@pytest.mark.parametrize("what", NO_MESSAGES)
def test_what_is_no_message_resets_its_stream_alone(what: str) -> None:
    server = Server()
    server.feed(server.head(1, GET))
    written = server.feed(server.head(3, NO_MESSAGES[what]))
    assert goaway(written) is None
    assert [(each.number, each.code) for each in only(written, wire.RST_STREAM)] == [(3, wire.PROTOCOL_ERROR)]
    assert len(server.stages.exchanges) == 1
    ((_, status, reason),) = server.stages.ended
    assert status == 0
    assert reason is not None
    assert reason.code == "http2_malformed"


@pytest.mark.parametrize(
    "fields",
    [
        (*GET, (b"te", b"trailers")),
        (*LINE, (b"host", b"web")),
        (*GET, (b"host", b"WEB")),
        (*GET, (b"content-length", b"0")),
        (*GET, (b"a", b"")),
        (*GET, (b"a", b"\x80\xff")),
        ((b":method", b"OPTIONS"), GET[1], (b":path", b"*"), GET[3]),
        (GET[3], GET[2], GET[1], GET[0]),
    ],
)
def test_what_is_a_message(fields: Pairs) -> None:
    server = Server()
    assert server.feed(server.head(1, fields)) == []
    assert len(server.stages.exchanges) == 1


@pytest.mark.parametrize(
    ("length", "pieces", "ended"),
    [
        (b"5", [b"123456"], False),
        (b"5", [b"1234"], True),
        (b"5", [b"12345", b"6"], True),
        (b"0", [b"1"], True),
        (b"5", [], True),
    ],
)
def test_a_body_of_another_length_than_announced_is_no_message(length: bytes, pieces: list[bytes], ended: bool) -> None:
    server = Server()
    server.feed(server.head(1, (*POST, (b"content-length", length)), end=False))
    body = b"".join([frame(wire.DATA, 0, 1, piece) for piece in pieces])
    written = server.feed(body, frame(wire.DATA, wire.END_STREAM, 1, b"") if ended else b"")
    assert [each.code for each in only(written, wire.RST_STREAM)] == [wire.PROTOCOL_ERROR]
    ((exchange, status, reason),) = server.stages.ended
    assert exchange.finished
    assert status == 0
    assert reason is not None
    assert reason.code == "http2_malformed"


def test_trailers_say_nothing_that_frames_or_routes() -> None:
    server = Server()
    trailers = [(b"content-length", b"3"), (b"host", b"other"), (b"x-forwarded-client-cert", b"By=me"), (b"sum", b"3")]
    server.feed(server.head(1, POST, end=False), frame(wire.DATA, 0, 1, b"abc"), server.head(1, trailers))
    (exchange,) = server.stages.exchanges
    assert exchange.trailers == [(b"sum", b"3")]


@pytest.mark.parametrize(
    "trailers",
    [
        [(b":path", b"/")],
        [(b"Sum", b"3")],
        [(b"transfer-encoding", b"chunked")],
        [(b"connection", b"close")],
        [(b"sum", b"3\r\n\r\nGET / HTTP/1.1")],
    ],
)
def test_trailers_that_are_none_reset_the_stream(trailers: Pairs) -> None:
    server = Server()
    written = server.feed(server.head(1, POST, end=False), server.head(1, trailers))
    assert [each.code for each in only(written, wire.RST_STREAM)] == [wire.PROTOCOL_ERROR]


# -- what a peer can make the proxy hold --


def test_a_bomb_of_fields_is_refused_and_the_connection_goes_on() -> None:
    """Many numbers of one large field: 4 KiB that would become 8 MiB."""
    server = Server()
    block = b"\x40\x01a\x7f\x81\x0f" + b"b" * 2048 + b"\xbe" * 4096
    written = server.feed(frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, block))
    (head, *_) = only(written, wire.HEADERS)
    assert b"431" in head.payload
    ((_, status, reason),) = server.stages.ended
    assert status == 431
    assert reason is not None
    assert reason.code == "headers_too_large"
    server.encoder = Server().encoder
    assert server.feed(frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 3, b"\x82\x86\x84\x41\x03web")) == []


def test_a_head_beyond_every_bound_ends_the_connection_while_it_comes() -> None:
    server = Server(headerBytes=65536)
    written = server.feed(frame(wire.HEADERS, 0, 1, b"\x00\x01a\x7f\xff\xff\x03"))
    for _ in range(5):
        written += server.feed(frame(wire.CONTINUATION, 0, 1, bytes(16384)))
    assert goaway(written) == wire.ENHANCE_YOUR_CALM


def test_what_is_sent_beyond_the_window_ends_its_stream() -> None:
    server = Server()
    server.feed(server.head(1, POST, end=False))
    server.stages.exchanges[0].downstream.pause(server.stages.exchanges[0], "upstream")
    resets: list[Frame] = []
    for _ in range(17):
        resets += only(server.feed(frame(wire.DATA, 0, 1, bytes(16384))), wire.RST_STREAM)
    assert [each.code for each in resets] == [wire.FLOW_CONTROL_ERROR]


@pytest.mark.parametrize("size", [fields.KNOWN_BYTES, fields.KNOWN_BYTES + 1])
def test_only_short_names_hosts_and_paths_are_remembered(size: int) -> None:
    """Each worker remembers thousands of them, whoever sent them."""
    kept = (heads._kinds, fields._known, heads._hosts, heads._targets, heads._lower)
    for each in kept:
        each.clear()  # one that is full begins anew
    long = b"%d" % size + b"x" * (size - 3)
    server = Server()
    line = (*POST[:2], (b":path", b"/" + long[1:]), (b":authority", long))
    server.feed(server.head(1, (*line, (long, b"value"))))
    heads.write_fields([], [(long, b"value")])
    assert [long in each or b"/" + long[1:] in each for each in kept] == [size <= fields.KNOWN_BYTES] * len(kept)


def test_no_peer_fills_a_table_for_the_others() -> None:
    kept = (heads._kinds, fields._known, heads._hosts, heads._targets)
    for number in range(fields.KNOWN + 10):
        block = [*POST[:2], (b":path", b"/%d" % number), (b":authority", b"web%d" % number), (b"x%d" % number, b"1")]
        heads.read_request(block, ended=True, local=b"")
        assert max(map(len, kept)) <= fields.KNOWN
    last = b"%d" % (fields.KNOWN + 9)
    assert [last in each or b"/" + last in each or b"web" + last in each or b"x" + last in each for each in kept] == [
        True
    ] * len(kept)
    assert [heads.kind_of(name) for name in (b"cookie", b"te", b"host")] == [heads.COOKIE, heads.TE, fields.HOST]


def test_a_cookie_is_as_secret_as_its_crumbs() -> None:
    server = Server()
    crumbs = ((b"cookie", b"theme=dark; and=more"), (b"cookie", NeverIndexed(b"id=7")))
    server.feed(server.head(1, (*GET, *crumbs)))
    (exchange,) = server.stages.exchanges
    (cookie,) = [value for name, value in exchange.fields if name == b"cookie"]
    assert cookie == b"theme=dark; and=more; id=7"
    assert type(cookie) is NeverIndexed


def test_who_asks_and_reads_no_answer_is_not_read_any_more() -> None:
    """Not even where the last turn of what was read brings no answer."""
    server = Server()
    server.stages.at_once = True
    server.codec.pause_writing()
    numbers = odd()
    while server.pipe.reading:
        asked = [server.head(next(numbers), GET) for _ in range(2 * HEADS_A_TURN)]
        server.feed(*asked, frame(wire.PRIORITY, 0, 1, bytes(5)))
        assert len(server.stages.exchanges) < 100_000, "what it does not read grows without a bound"
    server.codec.resume_writing()
    assert server.pipe.reading


def test_answers_before_the_answer_are_not_kept_for_who_reads_none() -> None:
    server = Server()
    server.feed(server.head(1, GET))
    (exchange,) = server.stages.exchanges
    server.codec.pause_writing()
    for _ in range(300):
        exchange.downstream.interim(exchange, 103, [(b"link", random.randbytes(6000).hex().encode())])
        server.turns.run()
    kept = len(server.pipe.written)
    assert kept < 1 << 19
    server.codec.resume_writing()
    exchange.refuse(REQUEST_TIMEOUT)
    assert [each.kind for each in server.settle()][-2:] == [wire.HEADERS, wire.DATA]


def test_http1_leaves_them_out_too_but_for_what_is_waited_for() -> None:
    turns, pipe, stages = Turns(), Pipe(), Stages()
    codec = Http1Downstream(stages, context(turns, {}), accepted(enrolled()), OPEN, pipe)
    codec.data_received(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\n")
    (exchange,) = stages.exchanges
    codec.pause_writing()
    for status in (103, 100):
        codec.interim(exchange, status, [(b"link", bytes(12_000))])
    assert pipe.written == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_heads_of_open_streams_are_bounded() -> None:
    server = Server()
    refused: list[Frame] = []
    for number in itertools.islice(odd(), 300):
        head = server.encoder.encode((*GET, *[(b"a%d" % each, b"b" * 1000) for each in range(50)]))
        block = wire.frame_head(16384, wire.HEADERS, wire.END_STREAM, number) + head[:16384]
        for at in range(16384, len(head), 16384):
            end = wire.END_HEADERS if at + 16384 >= len(head) else 0
            block += frame(wire.CONTINUATION, end, number, head[at : at + 16384])
        refused += only(server.feed(block), wire.RST_STREAM)
    assert {each.code for each in refused} == {wire.REFUSED_STREAM}
    assert sum(fields.size(each.fields) for each in server.stages.exchanges) < 2 * STALLED


HELD: Final = 16 << 20


def give(server: Server, exchange: Exchange, size: int) -> list[Frame]:
    """Answer *exchange* with *size* more bytes."""
    for _ in range(0, size, 65536):
        exchange.downstream.data(exchange, bytes(65536))
    exchange.downstream.flush(exchange)
    return server.settle()


def asked_much(server: Server, number: int, size: int) -> list[Frame]:
    """Let a request be answered with *size* bytes of which the client takes nothing."""
    written = server.feed(settings(((wire.INITIAL_WINDOW_SIZE, 0),)), server.head(number, GET))
    if only(written, wire.RST_STREAM):
        return written
    exchange = server.stages.exchanges[-1]
    exchange.downstream.answer(exchange, 200, [], size)
    return give(server, exchange, size)


def test_what_nobody_takes_is_bounded_for_a_connection() -> None:
    server = Server()
    codes = [goaway(asked_much(server, number, 4 << 20)) for number in (1, 3, 5, 7, 9)]
    assert set(codes) == {None}
    session = server.codec.session
    assert server.pod.held.bytes - session.head_bytes == session.queued <= 2 * STALLED
    assert goaway(give(server, server.stages.exchanges[0], 4 * STALLED)) == wire.ENHANCE_YOUR_CALM
    assert server.pod.held.bytes == 0


def test_what_nobody_takes_is_bounded_for_a_pod() -> None:
    pod = enrolled()
    other = Server(heldBytesPerPod=HELD)
    servers = [Server(pod, heldBytesPerPod=HELD) for _ in range(20)]
    assert [goaway(asked_much(server, 1, 1 << 20)) for server in servers] == [None] * 20
    codes = [each.code for server in servers for each in only(server.settle(), wire.RST_STREAM)]
    assert set(codes) == {wire.ENHANCE_YOUR_CALM}
    assert len(given_up(servers)) >= 4
    assert HELD - HELD // 4 < pod.held.bytes <= HELD
    holds = next(server for server in servers if server.codec.session.queued)
    assert [each.code for each in only(asked_much(holds, 3, 1 << 20), wire.RST_STREAM)] == [wire.REFUSED_STREAM]
    assert not only(asked_much(other, 1, 1 << 20), wire.RST_STREAM)
    for server in servers:
        server.codec.connection_lost(None)
    assert pod.held.bytes == 0


def given_up(servers: list[Server]) -> list[Exchange]:
    """Return the exchanges that ended since too much was held."""
    ends = [end for server in servers for end in server.stages.ended]
    return [exchange for exchange, _, reason in ends if reason is HTTP2_BROKEN]


def test_bodies_that_no_endpoint_takes_are_bounded_for_a_pod() -> None:
    pod = enrolled()
    servers = [Server(pod, heldBytesPerPod=HELD) for _ in range(20)]
    for server in servers:
        server.feed(*[server.head(number, POST, end=False) for number in range(1, 33, 2)])
        for exchange in server.stages.exchanges:
            exchange.downstream.pause(exchange, "upstream")
    most = 0
    for server, number in itertools.product(servers, range(1, 33, 2)):
        written = server.feed(*[frame(wire.DATA, 0, number, bytes(16384)) for _ in range(15)])
        assert goaway(written) is None
        most = max(most, pod.held.bytes)
        for each in servers:
            each.settle()
    assert given_up(servers)
    assert HELD // 2 < most <= HELD


@pytest.mark.parametrize("seen", ["by nobody", "by an authorizer", "by an authorizer that had enough"])
def test_all_of_a_body_that_waits_is_counted_from_its_first_byte(seen: str) -> None:
    """Whether it waits for its endpoint, or for who decides by it and wants more or not."""
    server = Server()
    server.feed(server.head(1, POST, end=False))
    (exchange,) = server.stages.exchanges
    session = server.codec.session
    server.feed(frame(wire.DATA, 0, 1, b"x" * 1000))

    async def wait() -> None:
        if seen != "by nobody":
            exchange.hold(1 << 20)
        server.feed(*[frame(wire.DATA, 0, 1, bytes(16384)) for _ in range(3)])
        if seen.endswith("enough"):
            exchange.let_go()
        server.feed(*[frame(wire.DATA, 0, 1, bytes(16384)) for _ in range(7)])

    asyncio.run(wait())
    assert session.owed == exchange.pending_bytes == 1000 + 10 * 16384
    assert server.pod.held.bytes == session.owed + session.head_bytes
    renewed = session.streams[1].taken < STREAM_WINDOW // 2
    assert renewed == (seen == "by an authorizer"), "only he gets more"
    assert server.codec.held_back(exchange) == (seen != "by an authorizer"), "else its client is waited for"
    exchange.pending = None
    exchange.pending_bytes = 0
    exchange.downstream.resume(exchange, "body")
    assert server.pod.held.bytes == session.head_bytes
    assert session.streams[1].taken == 0
    server.lose()
    assert server.pod.held.bytes == 0


def test_heads_of_open_streams_are_bounded_for_a_pod() -> None:
    """A pod's clients open no more streams; those with few are spared the longest."""
    pod = enrolled()
    servers = [Server(pod, heldBytesPerPod=HELD) for _ in range(20)]
    large = (b"x", "\u20ac".encode() * 16_000)
    for number in itertools.islice(odd(), 60):
        for server in servers:
            block = server.encoder.encode((*GET, large))
            pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
            frames = [
                frame(wire.HEADERS, wire.END_STREAM, number, pieces[0]),
                *[frame(wire.CONTINUATION, 0, number, piece) for piece in pieces[1:-1]],
                frame(wire.CONTINUATION, wire.END_HEADERS, number, pieces[-1]),
            ]
            assert goaway(server.feed(*frames)) is None
    assert HELD // 2 < pod.held.bytes == sum(server.codec.session.head_bytes for server in servers) <= HELD
    assert {bool(server.codec.session.streams) for server in servers} == {True}
    for server in servers:
        server.lose()
    assert pod.held.bytes == 0


def test_a_client_whose_transport_keeps_too_much_is_cut() -> None:
    pod = enrolled()
    servers = [Server(pod, heldBytesPerPod=HELD) for _ in range(80)]
    for server in servers:
        server.feed(settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),)), window_update(0, 1 << 20), server.head(1, GET))
        (exchange,) = server.stages.exchanges
        exchange.downstream.answer(exchange, 200, [], 1 << 20)
        exchange.downstream.data(exchange, bytes(250_000))
        write = server.pipe.write

        def full(data: bytes, server: Server = server, write: Callable[[bytes], None] = write) -> None:
            write(data)
            server.codec.pause_writing()

        server.pipe.write = full  # type: ignore[method-assign]
        server.settle()
    exchange.downstream.data(exchange, b"more")
    for server in servers:
        server.settle()
    cut = [server for server in servers if server.pipe.closed]
    assert 13 < len(cut) < 30
    assert [len(server.stages.broken) for server in cut] == [1] * len(cut)
    assert pod.held.bytes <= HELD


def test_a_body_in_single_bytes_that_waits_for_an_endpoint_is_kept_as_few() -> None:
    server = Server()
    server.feed(server.head(1, POST, end=False))
    (exchange,) = server.stages.exchanges
    for _ in range(1000):
        server.feed(frame(wire.DATA, 0, 1, b"x"))
    assert exchange.pending == [b"x" * 1000]
    assert exchange.pending_bytes == 1000


def test_what_has_been_taken_is_not_held() -> None:
    server = Server()
    asked_much(server, 1, 1 << 20)
    server.feed(server.head(3, POST, end=False))
    exchange = server.stages.exchanges[1]
    exchange.downstream.pause(exchange, "upstream")
    server.feed(frame(wire.DATA, 0, 3, bytes(10_000)))
    heads = server.codec.session.head_bytes
    assert server.pod.held.bytes == heads + (1 << 20) + 10_000
    exchange.pending = None
    exchange.pending_bytes = 0
    exchange.downstream.resume(exchange, "body")
    exchange.downstream.resume(exchange, "upstream")
    assert server.pod.held.bytes == heads + (1 << 20)
    server.feed(settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),)), window_update(0, 1 << 20))
    assert server.pod.held.bytes == heads
    server.lose()
    assert server.pod.held.bytes == 0


# -- endpoints that mean no good --

FROM_ENDPOINTS: Final[dict[str, tuple[bytes, int]]] = {
    "PING": (PING, wire.ENHANCE_YOUR_CALM),
    "SETTINGS": (SETTLED, wire.ENHANCE_YOUR_CALM),
    "acknowledged SETTINGS": (frame(wire.SETTINGS, wire.ACK, 0, b""), wire.ENHANCE_YOUR_CALM),
    "GOAWAY that names no stream": (wire.goaway(wire.LARGEST_STREAM, 0, b""), wire.ENHANCE_YOUR_CALM),
    "WINDOW_UPDATE": (window_update(0, 1), wire.ENHANCE_YOUR_CALM),
    "frames of unknown kinds": (frame(0x2A, 0, 0, b"grease"), wire.ENHANCE_YOUR_CALM),
    "heads of streams that are over": (frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x88"), wire.ENHANCE_YOUR_CALM),
    "PUSH_PROMISE": (frame(wire.PUSH_PROMISE, wire.END_HEADERS, 3, bytes(4)), wire.PROTOCOL_ERROR),
    "a stream of its own": (frame(wire.HEADERS, wire.END_HEADERS, 2, b"\x88"), wire.PROTOCOL_ERROR),
    "an answer that nobody asked for": (frame(wire.HEADERS, wire.END_HEADERS, 99, b"\x88"), wire.PROTOCOL_ERROR),
}
"""What an endpoint sends again and again, stream 1 being over, and the code by which it is left."""


@pytest.mark.parametrize("what", FROM_ENDPOINTS)
def test_an_endpoint_that_floods_is_left(what: str) -> None:
    data, code = FROM_ENDPOINTS[what]
    asking = Asking()
    asking.ask()
    asking.settle()
    asking.feed(asking.head(1, OK))
    waiting = asking.ask(b"POST")
    asking.settle()
    for count in itertools.count():
        assert count < MOST
        if (found := goaway(asking.feed(data))) is not None:
            break
    assert found == code
    assert asking.pipe.closed
    assert waiting.finished
    assert waiting.reason is not None
    assert waiting.reason.code == "upstream_protocol"


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b":status", b"2000"),),
        ((b":status", b"abc"),),
        (*OK, *OK),
        (*OK, (b"Server", b"x")),
        (*OK, (b"transfer-encoding", b"chunked")),
        (*OK, (b"connection", b"close")),
        (*OK, (b"a", b"b\r\nset-cookie: c")),
        (*OK, (b"content-length", b"5")),
        (*OK, (b"content-length", b"0"), (b"content-length", b"0")),
        ((b":status", b"101"),),
        INTERIM,
        GET,
    ],
)
def test_an_answer_that_is_none_is_a_bad_gateway(fields: Pairs) -> None:
    asking = Asking()
    exchange = asking.ask()
    asking.settle()
    written = asking.feed(asking.head(1, fields))
    assert [each.code for each in only(written, wire.RST_STREAM)] == [wire.PROTOCOL_ERROR]
    assert goaway(written) is None
    assert asking.client.told[0] == "answer 502"
    assert exchange.finished


@pytest.mark.parametrize(
    ("length", "pieces"), [(b"5", [b"123456"]), (b"5", [b"1234", b""]), (b"0", [b"1"]), (b"5", [b""])]
)
def test_an_answer_of_another_length_than_announced_is_cut(length: bytes, pieces: list[bytes]) -> None:
    asking = Asking()
    asking.ask()
    asking.settle()
    last = len(pieces) - 1
    body = [frame(wire.DATA, wire.END_STREAM if at == last else 0, 1, piece) for at, piece in enumerate(pieces)]
    written = asking.feed(asking.head(1, (*OK, (b"content-length", length)), end=False), *body)
    assert [each.code for each in only(written, wire.RST_STREAM)] == [wire.PROTOCOL_ERROR]
    assert asking.client.told[-1] == "cut"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (b"GET", (*OK, (b"content-length", b"0"))),
        (b"HEAD", OK),
        (b"GET", ((b":status", b"204"),)),
        (b"GET", ((b":status", b"304"), (b"content-length", b"9"))),
    ],
)
def test_an_answer_without_a_body_is_whole_though_its_stream_goes_on(method: bytes, fields: Pairs) -> None:
    asking = Asking()
    exchange = asking.ask(method)
    asking.settle()
    written = asking.feed(asking.head(1, fields, end=False))
    assert [each.code for each in only(written, wire.RST_STREAM)] == [wire.CANCEL]
    assert (exchange.finished, asking.client.told[-1]) == (True, "end")
    assert asking.codec.streams == {}
    assert asking.feed(frame(wire.DATA, wire.END_STREAM, 1, b"")) == []
    asking.ask(method)
    asking.settle()
    ended = asking.feed(asking.head(3, fields, end=False), frame(wire.DATA, wire.END_STREAM, 3, b""))
    assert only(ended, wire.RST_STREAM) == [], "as many servers end it"


def test_trailers_of_a_broken_answer_are_not_anothers() -> None:
    """Input: an answer that is shorter than announced, with trailers; a whole one on another stream."""
    asking = Asking()
    ends: list[list[fields.Field]] = []
    asking.client.end = lambda exchange, trailers: ends.append(trailers)  # type: ignore[method-assign]
    for _ in range(2):
        asking.ask()
    asking.settle()
    short = asking.head(1, (*OK, (b"content-length", b"5")), end=False)
    asking.feed(short, asking.head(1, ((b"grpc-status", b"7"),)), asking.head(3, OK))
    assert asking.client.told == ["answer 200", "cut", "answer 200"]
    assert ends == [[]]


def test_what_is_behind_a_broken_rule_is_not_waited_for() -> None:
    """Input: more than one turn's frames, and between them one that ends the connection."""
    asking = Asking()
    asking.codec.data_received(PING * (FRAMES_A_TURN + 10))
    assert asking.codec.session.behind
    asking.codec.session.fail(SessionError(wire.ENHANCE_YOUR_CALM, "enough"))
    asking.settle()


def test_only_heads_that_come_again_are_remembered() -> None:
    server = Server()
    fields = (*GET, (b"a", b"b" * 1000))
    block = frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, Encoder().encode(fields))
    assert server.feed(block) == []
    assert server.codec._heads == {}
    for number in (3, 5, 7):
        assert server.feed(block[:8] + bytes((number,)) + block[9:]) == []
    (head,) = server.codec._heads.values()
    assert [each.fields[:-1] for each in server.stages.exchanges] == [head.fields] * 4


def test_large_heads_take_several_turns() -> None:
    server = Server()
    head = frame(wire.HEADERS, 0, 1, bytes(16384))
    rest = frame(wire.CONTINUATION, 0, 1, bytes(16384)) * 2 + frame(wire.CONTINUATION, wire.END_HEADERS, 1, bytes(9000))
    heads = [(head + rest).replace(b"\0\0\0\x01\0", number.to_bytes(4, "big") + b"\0") for number in (1, 3, 5, 7)]
    server.codec.data_received(b"".join(heads))
    assert [each.number for each in frames(server.pipe.written) if each.kind == wire.HEADERS] == [1, 3]
    assert [each.number for each in server.settle() if each.kind == wire.HEADERS] == [1, 3, 5, 7]
