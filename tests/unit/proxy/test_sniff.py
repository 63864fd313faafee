"""What the first bytes make of a connection: whatever some server may take for an HTTP request is
HTTP, in whatever pieces it comes.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.proxy.sniff import GREETING, LONGEST, FirstLine, Verdict, begins_http2, sniff_declared

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BLANKS = b" \t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"


def read(*pieces: bytes) -> Verdict:
    """Return the first verdict on *pieces* that is final, else the last."""
    line = FirstLine()
    verdict: Verdict = "unlikely"
    for piece in pieces:
        verdict = line.feed(piece)
        if verdict in ("http", "http2", "tcp"):
            return verdict
    return verdict


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"PROPFIND /dav HTTP/1.1\r\nDepth: 1\r\n", "http"),
        (b"FROBNICATE / HTTP/1.1\r\n", "http"),
        (b"get / http/1.1\r\n", "http"),
        (b"GET / HTTP/1.0\n", "http"),
        (b"\r\nGET / HTTP/1.1\r\n", "http"),
        (b"\n\r\n \tGET / HTTP/1.1\r\n", "http"),
        (b"GET\t/\tHTTP/1.1 \t \r\n", "http"),
        (b"GET\xa0/\x85HTTP/1.1\r\n", "http"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n", "http"),
        (b"GET / HTTP/1.1" + b" " * 1000 + b"\r\n", "http"),
        (b"GET / HTTP/9.9\r\n", "http"),
        (b"GET /about\r\nX-Forwarded-Client-Cert: forged\r\n", "http"),
        (b"GET http://server/about\n", "http"),
        (b"get /index.html\r\n", "tcp"),
        (b"GET /" + b"x" * 1000 + b"\r\n", "http"),
        (b"GET /about RTSP/1.0\r\n", "http"),
        (b"POST /about RTSP/1.0\r\n", "http"),
        (b"DESCRIBE rtsp://server/stream RTSP/1.0\r\n", "tcp"),
        (b"POST /about\r\n", "tcp"),
        (PREFACE, "http2"),
        (b"", "unlikely"),
        (b"\r\n", "unlikely"),
        (b"G", "more"),
        (b"GET", "more"),
        (b"GET / HTTP/1.1\r", "more"),
        (b"PRI * HTTP/2.0\r", "more"),
        (b"FROB", "unlikely"),
        (b"FROB / HTTP/1.1", "unlikely"),
        (b"ruok", "unlikely"),
        (b"x" * (LONGEST + 1), "tcp"),
        (b"PING\r\n", "tcp"),
        (b"GET key\r\n", "tcp"),
        (b"*1\r\n$4\r\nPING\r\n", "tcp"),
        (b"INVITE sip:a@b SIP/2.0\r\n", "tcp"),
        (b"CONNECT\naccept-version:1.2\n", "tcp"),
        (b"AMQP\x00\x00\x09\x01", "tcp"),
        (b"\x16\x03\x01\x02\x00\x01", "tcp"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "tcp"),
        (b"<?xml version='1.0'?>", "unlikely"),
        (b"<?xml version='1.0'?>\n", "tcp"),
        (b"GET: /about HTTP/1.1\r\n", "http"),
        (b"HTTP/1.1 200 OK\r\n", "tcp"),
        (b"\r\n\x00", "tcp"),
    ],
)
def test_a_first_line(first: bytes, verdict: Verdict) -> None:
    assert read(first) == verdict


token = st.text("!#$%&'*+-.^_`|~09AZaz\"(),/:;<=>?@[\\]{}", min_size=1, max_size=40).map(str.encode)
blank = st.lists(st.sampled_from(BLANKS), min_size=1, max_size=3).map(bytes)
target = st.binary(min_size=1, max_size=200).filter(lambda value: b"\n" not in value)


@given(
    leading=st.sampled_from([b"", b"\r\n", b"\n\n", b" "]),
    method=token,
    spaces=st.tuples(blank, blank),
    target=target,
    cuts=st.sets(st.integers(0, 300)),
)
def test_whatever_a_server_may_split_at_white_space_is_http_in_any_pieces(
    leading: bytes, method: bytes, spaces: tuple[bytes, bytes], target: bytes, cuts: set[int]
) -> None:
    line = (
        leading
        + method
        + spaces[0]
        + target
        + spaces[1]
        + b"HTTP/1.1\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\n\r\n"
    )
    at = [0, *sorted(cut for cut in cuts if cut < len(line)), len(line)]
    assert read(*(line[begin:end] for begin, end in pairwise(at))) == ("http2" if method == b"PRI" else "http")


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_pieces_never_matter(pieces: list[bytes]) -> None:
    final, whole = read(*pieces), read(b"".join(pieces))
    assert (final if final in ("http", "http2", "tcp") else "open") == (
        whole if whole in ("http", "http2", "tcp") else "open"
    )


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (b"P", "more"),
        (b"POST", "http"),
        (PREFACE[:15], "more"),
        (PREFACE, "http2"),
        (b"\x00", "http"),
        (b"\r\n", "http"),
    ],
)
def test_a_declared_port_is_http_unless_the_client_begins_http2(first: bytes, verdict: Verdict) -> None:
    assert sniff_declared(first) == verdict


def test_a_server_begins_as_http2_does_until_it_has_said_too_much() -> None:
    hello = b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\x64"
    assert all(begins_http2(hello[:end]) for end in range(1, len(hello) + 1))
    assert begins_http2(hello.ljust(GREETING, b"\0"))
    assert not begins_http2(hello.ljust(GREETING + 1, b"\0"))
    assert not begins_http2(b"220 mail")
