"""What of an HTTP/2 header block passes, and what a reader of HTTP/1 would make of the rest."""

from __future__ import annotations

import pytest

from nodeagent.proxy.http.exchange import UNKNOWN
from nodeagent.proxy.http.fields import Field
from nodeagent.proxy.http2.heads import (
    Malformed,
    bracketed,
    read_answer,
    read_request,
    read_trailers,
    trailer_block,
)
from nodeagent.proxy.http2.hpack.secret import NeverIndexed

LINE: tuple[Field, ...] = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"web"))


def block(*more: Field, **changed: bytes | None) -> list[Field]:
    """Return a request's header block with *more* fields; *changed*: pseudo-headers by name, None: left out."""
    line = []
    for name, value in LINE:
        told = changed.get(name[1:].decode(), value)
        if told is not None:
            line.append((name, told))
    return [*line, *more]


@pytest.mark.parametrize(
    ("given", "ended", "length", "fields"),
    [
        (block(), True, 0, [(b"host", b"web"), (b"x-forwarded-proto", b"http")]),
        (block(authority=None), True, 0, [(b"host", b"10.0.0.1:80"), (b"x-forwarded-proto", b"http")]),
        (block((b"host", b"WEB")), True, 0, [(b"host", b"WEB"), (b"x-forwarded-proto", b"http")]),
        (
            block((b"content-length", b"7"), (b"x-forwarded-proto", b"https")),
            False,
            7,
            [(b"host", b"web"), (b"content-length", b"7"), (b"x-forwarded-proto", b"https")],
        ),
        (
            block((b"cookie", b"a=1"), (b"te", b"trailers"), (b"cookie", b"b=2")),
            False,
            UNKNOWN,
            [(b"host", b"web"), (b"cookie", b"a=1; b=2"), (b"x-forwarded-proto", b"http")],
        ),
        (
            block(method=b"POST"),
            True,
            0,
            [(b"host", b"web"), (b"x-forwarded-proto", b"http"), (b"content-length", b"0")],
        ),
    ],
)
def test_a_request_is_taken_as_http1_would_write_it(
    given: list[Field], ended: bool, length: int, fields: list[Field]
) -> None:
    head = read_request(given, ended=ended, local=b"10.0.0.1:80")
    assert (head.length, head.fields) == (length, fields)
    assert head.target == b"/a"


@pytest.mark.parametrize(
    "given",
    [
        block(method=None),
        block(method=b"GET /x HTTP/1.1\r\n"),
        block(method=b"delete"),
        block(method=b"Get"),
        block(path=None),
        block(path=b""),
        block(path=b"a"),
        block(path=b"*"),
        block(path=b"/a HTTP/1.1"),
        block(path=b"/a\r\nx: y"),
        block(scheme=None),
        block(authority=b"web,other"),
        block(authority=b"user@web"),
        block((b":path", b"/b")),
        block((b"x", b"y"), (b":path", b"/b")),
        block((b":protocol", b"websocket")),
        block((b":status", b"200")),
        block((b"host", b"other")),
        block((b"host", b"web"), (b"host", b"web")),
        block((b"X-Upper", b"1")),
        block((b"x y", b"1")),
        block((b"x:y", b"1")),
        block((b"", b"1")),
        block((b"x", b"1\r\ny: 2")),
        block((b"x", b"1\n")),
        block((b"x", b"\x00")),
        block((b"connection", b"close")),
        block((b"keep-alive", b"1")),
        block((b"proxy-connection", b"close")),
        block((b"transfer-encoding", b"chunked")),
        block((b"upgrade", b"h2c")),
        block((b"te", b"gzip")),
        block((b"content-length", b"1")),
        block((b"content-length", b"0"), (b"content-length", b"0")),
        block((b"content-length", b"+0")),
        block((b"content-length", b"0, 0")),
    ],
)
def test_what_two_readers_could_take_for_different_things_is_no_request(given: list[Field]) -> None:
    with pytest.raises(Malformed):
        read_request(given, ended=True, local=b"10.0.0.1:80")


@pytest.mark.parametrize(
    ("given", "method", "ended", "length", "unsaid"),
    [
        ([(b":status", b"200")], b"GET", False, UNKNOWN, False),
        ([(b":status", b"200")], b"GET", True, 0, True),
        ([(b":status", b"200"), (b"content-length", b"3")], b"GET", False, 3, False),
        ([(b":status", b"200"), (b"content-length", b"3")], b"HEAD", True, 0, False),
        ([(b":status", b"204")], b"GET", True, 0, False),
        ([(b":status", b"304"), (b"content-length", b"3")], b"GET", True, 0, False),
    ],
)
def test_an_answers_length_is_its_heads_word(
    given: list[Field], method: bytes, ended: bool, length: int, unsaid: bool
) -> None:
    head = read_answer(given, method, ended=ended)
    assert (head.length, head.unsaid) == (length, unsaid)


@pytest.mark.parametrize(("status", "kept"), [(b"103", False), (b"204", False), (b"304", True), (b"200", True)])
def test_where_no_body_can_be_no_length_is_told(status: bytes, kept: bool) -> None:
    told = (b"content-length", b"0")
    assert read_answer([(b":status", status), told], b"GET", ended=True).fields == ([told] if kept else [])


@pytest.mark.parametrize(
    "given",
    [
        [],
        [(b"x", b"y")],
        [(b":status", b"2x0")],
        [(b":status", b"0200")],
        [(b":status", b"000")],
        [(b":status", b"099")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"x", b"1\r\n")],
        [(b":status", b"200"), (b"content-length", b"3")],
        [(b":status", b"200"), (b"content-length", b"0"), (b"content-length", b"0")],
    ],
)
def test_what_is_no_answer(given: list[Field]) -> None:
    with pytest.raises(Malformed):
        read_answer(given, b"GET", ended=True)


def test_trailers_that_frame_route_or_identify_do_not_pass() -> None:
    given = [(b"grpc-status", b"0"), (b"content-length", b"1"), (b"host", b"a"), (b"x-forwarded-client-cert", b"URI=x")]
    assert read_trailers(given) == [(b"grpc-status", b"0")]
    for wrong in ((b"Upper", b"1"), (b":status", b"200"), (b"x", b"\n")):
        with pytest.raises(Malformed):
            read_trailers([wrong])
    assert trailer_block([(b"Sum", b"1"), (b"Connection", b"close")]) == [(b"sum", b"1")]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (b"web:80", b"web:80"),
        (b"[fd00::1]:80", b"[fd00::1]:80"),
        (b"fd00:10:96::5:80", b"[fd00:10:96::5]:80"),
        (b"fd00::", b"[fd00::]"),
        (b"a:b:c", b"a:b:c"),
    ],
)
def test_an_address_has_brackets(given: bytes, written: bytes) -> None:
    assert bracketed(given) == written


PADDED = (b"%b ", b" %b", b"\t%b", b"%b \t ")


@pytest.mark.parametrize("padded", PADDED)
def test_white_space_around_a_value_is_no_part_of_it(padded: bytes) -> None:
    """Of requests, answers and trailers alike: grpcio sends it in metadata and in grpc-message."""
    head = read_request(
        block(
            (b"host", padded % b"web"),
            (b"te", padded % b"trailers"),
            (b"content-length", padded % b"7"),
            (b"user-agent", padded % b"grpc"),
            (b"cookie", padded % b"a=1"),
            (b"cookie", NeverIndexed(padded % b"b=2")),
            (b"x", padded % b"a  b"),
            (b"empty", padded % b""),
            authority=None,
        ),
        ended=False,
        local=b"",
    )
    assert (head.authority, head.te, head.length, head.user_agent) == (b"web", True, 7, b"grpc")
    told = dict(head.fields)
    assert (told[b"cookie"], told[b"x"], told[b"empty"]) == (b"a=1; b=2", b"a  b", b"")
    assert type(told[b"cookie"]) is NeverIndexed
    answer = read_answer(
        [(b":status", b"200"), (b"content-length", padded % b"7"), (b"x-build", padded % b"7")], b"GET", ended=False
    )
    assert (answer.length, dict(answer.fields)[b"x-build"]) == (7, b"7")
    assert read_trailers([(b"grpc-message", padded % b"no user named:")]) == [(b"grpc-message", b"no user named:")]
    (secret,) = read_trailers([(b"secret", NeverIndexed(padded % b"s"))])
    assert (secret[1], type(secret[1])) == (b"s", NeverIndexed)
