"""RFC 9112 section 6: where messages end, and everything that two readers could see differently."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.proxy.http1 import framing
from nodeagent.proxy.http1.framing import (
    HOP_BY_HOP,
    Ambiguous,
    BodyKind,
    origin_form,
    request_framing,
    response_framing,
    valid_host,
)

HOST = (b"Host", b"web.default")
Fields = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([HOST, (b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")], id="CL.TE"),
        pytest.param([HOST, (b"transfer-encoding", b"chunked"), (b"content-length", b"0")], id="TE.CL"),
        pytest.param([HOST, (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], id="TE.TE"),
        pytest.param(
            [HOST, (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"identity")], id="TE, then identity"
        ),
        pytest.param([HOST, (b"Transfer-Encoding", b"gzip, chunked")], id="another coding before chunked"),
        pytest.param([HOST, (b"Transfer-Encoding", b"chunked, chunked")], id="chunked twice in one field"),
        pytest.param([HOST, (b"Transfer-Encoding", b"xchunked")], id="xchunked"),
        pytest.param([HOST, (b"Transfer-Encoding", b"\x0bchunked")], id="vertical tab before chunked"),
        pytest.param([HOST, (b"Transfer-Encoding", b"chunked;q=1")], id="chunked with a parameter"),
        pytest.param([HOST, (b"Transfer-Encoding", b"")], id="empty TE"),
        pytest.param([HOST, (b"Transfer-Encoding", b"identity")], id="identity"),
        pytest.param([HOST, (b"Content-Length", b"5"), (b"Content-Length", b"6")], id="two lengths"),
        pytest.param([HOST, (b"Content-Length", b"5"), (b"Content-Length", b"5")], id="the same length twice"),
        pytest.param([HOST, (b"Content-Length", b"5, 5")], id="a list of lengths"),
        pytest.param([HOST, (b"Content-Length", b"+5")], id="sign"),
        pytest.param([HOST, (b"Content-Length", b"-1")], id="negative"),
        pytest.param([HOST, (b"Content-Length", b"0x5")], id="hexadecimal"),
        pytest.param([HOST, (b"Content-Length", b"5 5")], id="inner space"),
        pytest.param([HOST, (b"Content-Length", b"")], id="empty length"),
        pytest.param([HOST, (b"Content-Length", b"\xd9\xa5")], id="a digit that is not ASCII"),
        pytest.param([HOST, (b"Content-Length", b"9" * 19)], id="more than 2**63"),
        pytest.param([], id="no Host"),
        pytest.param([HOST, (b"host", b"other")], id="two Hosts"),
        pytest.param([HOST, HOST], id="the same Host twice"),
        pytest.param([(b"Host", b"a, b")], id="folded Hosts"),
        pytest.param([(b"Host", b"a b")], id="space in Host"),
        pytest.param([(b"Host", b"user@web")], id="user info in Host"),
        pytest.param([(b"Host", b"web/path")], id="path in Host"),
        pytest.param([(b"Host", b"web:80:80")], id="two ports in Host"),
        pytest.param([HOST, (b"Content-Length ", b"5")], id="space before the colon"),
        pytest.param([HOST, (b"", b"x")], id="no name"),
        pytest.param([HOST, (b"x\x00y", b"x")], id="NUL in a name"),
        pytest.param([HOST, (b"x:y", b"x")], id="colon in a name"),
        pytest.param([HOST, ("é".encode(), b"x")], id="a name that is not ASCII"),
        pytest.param([HOST, (b"x", b"a\r\nb: c")], id="CR LF in a value"),
        pytest.param([HOST, (b"x", b"a\nb")], id="LF in a value"),
        pytest.param([HOST, (b"x", b"a\rb")], id="CR in a value"),
        pytest.param([HOST, (b"x", b"a\0b")], id="NUL in a value"),
        pytest.param(
            [HOST, (b"Connection", b"close, Content-Length"), (b"Content-Length", b"5")],
            id="Connection names Content-Length",
        ),
        pytest.param([HOST, (b"Connection", b"host")], id="Connection names Host"),
    ],
)
def test_refused(fields: Fields) -> None:
    with pytest.raises(Ambiguous):
        request_framing(b"POST", "1.1", fields)


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        pytest.param("1.0", [(b"Transfer-Encoding", b"chunked")], id="TE in 1.0"),
        pytest.param("1.0", [HOST, HOST], id="two Hosts in 1.0"),
        pytest.param("2.0", [HOST], id="2.0"),
        pytest.param("0.9", [HOST], id="0.9"),
        pytest.param("", [HOST], id="no version"),
    ],
)
def test_refused_for_its_version(version: str, fields: Fields) -> None:
    with pytest.raises(Ambiguous):
        request_framing(b"GET", version, fields)


def test_a_request_without_a_method_is_refused() -> None:
    with pytest.raises(Ambiguous):
        request_framing(b"", "1.1", [HOST])


@pytest.mark.parametrize(
    ("version", "fields", "kind", "length", "keep_alive"),
    [
        ("1.1", [HOST], BodyKind.NONE, 0, True),
        ("1.1", [HOST, (b"Content-Length", b"12")], BodyKind.LENGTH, 12, True),
        ("1.1", [HOST, (b"Content-Length", b"12\t ")], BodyKind.LENGTH, 12, True),
        ("1.1", [HOST, (b"content-length", b"0")], BodyKind.LENGTH, 0, True),
        ("1.1", [HOST, (b"TRANSFER-ENCODING", b"Chunked")], BodyKind.CHUNKED, 0, True),
        ("1.1", [HOST, (b"Connection", b"Close")], BodyKind.NONE, 0, False),
        ("1.1", [HOST, (b"Connection", b"keep-alive"), (b"Connection", b"close")], BodyKind.NONE, 0, False),
        ("1.1", [HOST, (b"Connection", b"keep-alive, close")], BodyKind.NONE, 0, False),
        ("1.0", [], BodyKind.NONE, 0, False),
        ("1.0", [HOST, (b"Connection", b"Keep-Alive")], BodyKind.NONE, 0, True),
        ("1.0", [(b"Content-Length", b"3")], BodyKind.LENGTH, 3, False),
    ],
)
def test_requests(version: str, fields: Fields, kind: BodyKind, length: int, keep_alive: bool) -> None:
    framed = request_framing(b"POST", version, fields)
    assert (framed.kind, framed.length, framed.keep_alive) == (kind, length, keep_alive)
    assert framed.hop_by_hop >= HOP_BY_HOP


def test_connection_names_the_fields_of_this_hop() -> None:
    framed = request_framing(
        b"GET", "1.1", [HOST, (b"Connection", b"X-One,  x-TWO"), (b"connection", b"keep-alive,"), (b"X-One", b"1")]
    )
    assert framed.hop_by_hop == HOP_BY_HOP | {b"x-one", b"x-two", b"keep-alive"}
    assert framed.keep_alive


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")], b"websocket"),
        ([(b"Connection", b"keep-alive, upgrade"), (b"Upgrade", b"a/1, b"), (b"upgrade", b"c")], b"a/1, b, c"),
        ([(b"Upgrade", b"websocket")], b""),
        ([(b"Connection", b"upgrade")], b""),
        ([(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"x")], b""),
        ([(b"Connection", b"upgrade"), (b"Upgrade", b"H2C, websocket")], b"websocket"),
        ([(b"Connection", b"upgrade"), (b"Upgrade", b"h2c-14, HTTP/2.0, h2, http-draft-04/2.0, a")], b"a"),
        ([(b"Connection", b"upgrade"), (b"Upgrade", b'foo h2c, "h2c", x/y/h2c, ;h2c, a\x0bh2c, b')], b"b"),
    ],
)
def test_upgrade(fields: Fields, upgrade: bytes) -> None:
    framed = request_framing(b"GET", "1.1", [HOST, *fields])
    assert framed.upgrade == upgrade
    assert b"upgrade" in framed.hop_by_hop


def test_http_1_0_cannot_upgrade() -> None:
    assert request_framing(b"GET", "1.0", [(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")]).upgrade == b""


@pytest.mark.parametrize(
    ("status", "method", "fields", "kind", "length", "keep_alive"),
    [
        (200, b"GET", [(b"Content-Length", b"5")], BodyKind.LENGTH, 5, True),
        (200, b"GET", [(b"Transfer-Encoding", b"chunked")], BodyKind.CHUNKED, 0, True),
        (200, b"GET", [], BodyKind.UNTIL_CLOSE, 0, False),
        (200, b"GET", [(b"Connection", b"keep-alive")], BodyKind.UNTIL_CLOSE, 0, False),
        (200, b"HEAD", [(b"Content-Length", b"5")], BodyKind.NONE, 0, True),
        (200, b"HEAD", [(b"Transfer-Encoding", b"chunked")], BodyKind.NONE, 0, True),
        (200, b"HEAD", [], BodyKind.NONE, 0, True),
        (204, b"GET", [], BodyKind.NONE, 0, True),
        (204, b"GET", [(b"Connection", b"close")], BodyKind.NONE, 0, False),
        (304, b"GET", [(b"Content-Length", b"5")], BodyKind.NONE, 0, True),
        (100, b"POST", [], BodyKind.NONE, 0, True),
        (500, b"POST", [(b"Content-Length", b"0"), (b"Connection", b"close")], BodyKind.LENGTH, 0, False),
    ],
)
def test_responses(status: int, method: bytes, fields: Fields, kind: BodyKind, length: int, keep_alive: bool) -> None:
    framed = response_framing(status, method, fields)
    assert (framed.kind, framed.length, framed.keep_alive) == (kind, length, keep_alive)


@pytest.mark.parametrize("status", [100, 103, 204])
def test_a_length_where_none_may_be_is_dropped(status: int) -> None:
    assert b"content-length" in response_framing(status, b"GET", [(b"Content-Length", b"0")]).hop_by_hop
    assert b"content-length" not in response_framing(304, b"GET", [(b"Content-Length", b"9")]).hop_by_hop


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"5"), (b"Content-Length", b"5")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Content-Length", b"1e3")],
        [(b"Set-Cookie", b"a\nb")],
    ],
)
def test_ambiguous_responses_are_refused(fields: Fields) -> None:
    with pytest.raises(Ambiguous):
        response_framing(200, b"GET", fields)


def test_a_response_in_http_1_0() -> None:
    assert not response_framing(200, b"GET", [(b"Content-Length", b"5")], "1.0").keep_alive
    assert response_framing(200, b"GET", [(b"Content-Length", b"5"), (b"Connection", b"keep-alive")], "1.0").keep_alive
    with pytest.raises(Ambiguous):
        response_framing(200, b"GET", [(b"Transfer-Encoding", b"chunked")], "1.0")


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"/a?b", b"/a?b"), (b"*", b"*"), (b"http://web/a", b"/a"), (b"http://web", b"/"), (b"http://web?a", b"/?a")],
)
def test_what_of_a_target_a_server_gets(target: bytes, path: bytes) -> None:
    assert origin_form(target) == path


@pytest.mark.parametrize(
    "value", [b"", b"web", b"web:80", b"10.0.0.1:8080", b"[fd00::1]", b"[::1]:80", b"a_b.c-d~e:", b"x%20y"]
)
def test_hosts(value: bytes) -> None:
    assert valid_host(value)


_NAMES = st.one_of(
    st.sampled_from(
        [
            b"Host",
            b"Content-Length",
            b"content-length",
            b"Transfer-Encoding",
            b"Connection",
            b"Upgrade",
            b"TE",
            b"X-A",
            b"Accept",
        ]
    ),
    st.binary(max_size=6),
)
_VALUES = st.one_of(
    st.sampled_from(
        [
            b"web",
            b"5",
            b"0",
            b"007",
            b"chunked",
            b"Chunked",
            b"close",
            b"keep-alive",
            b"upgrade",
            b"h2c",
            b"websocket",
            b"x, close",
            b"gzip",
            b"",
        ]
    ),
    st.binary(max_size=8).map(lambda value: value.strip(b" \t")),
)
_FIELDS = st.lists(st.tuples(_NAMES, _VALUES), max_size=6)


class _Reader:
    """What an independent, strict parser (llhttp) makes of a message."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = 0

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1


@given(_FIELDS, st.sampled_from(["1.0", "1.1"]), st.sampled_from([b"GET", b"POST"]))
def test_what_is_accepted_is_read_alike_by_a_strict_parser(fields: Fields, version: str, method: bytes) -> None:
    try:
        framed = request_framing(method, version, fields)
    except Ambiguous:
        return
    body = b"x" * min(framed.length, 100)
    wire = {BodyKind.NONE: b"", BodyKind.LENGTH: body, BodyKind.CHUNKED: b"3\r\nabc\r\n0\r\n\r\n"}[framed.kind]
    # As the proxy writes it: fields of this hop are dropped, the body is framed anew.
    kept = [(name, value) for name, value in fields if name.lower() not in framed.hop_by_hop]
    if framed.kind is BodyKind.CHUNKED:
        kept.append((b"transfer-encoding", b"chunked"))
    head = b"".join(b"%b: %b\r\n" % field for field in kept)
    if any((byte < 0x20 and byte != 9) or byte == 0x7F for _, value in kept for byte in value) or framed.length > 100:
        return  # llhttp refuses more control characters than must be refused
    reader = _Reader()
    httptools.HttpRequestParser(reader).feed_data(b"%b / HTTP/%b\r\n%b\r\n%b" % (method, version.encode(), head, wire))
    assert reader.complete == 1
    assert reader.body == (b"abc" if framed.kind is BodyKind.CHUNKED else body)


@given(_FIELDS, st.sampled_from(["1.0", "1.1"]))
def test_remembered_shapes_change_no_decision(fields: Fields, version: str) -> None:
    def decide() -> object:
        try:
            return request_framing(b"POST", version, fields)
        except Ambiguous as error:
            return str(error)

    framing._shapes.clear()
    assert decide() == decide()


def test_what_is_remembered_is_bounded() -> None:
    for number in range(3 * framing._SHAPES):
        request_framing(b"GET", "1.1", [HOST, (b"x-%d" % number, b"")])
    assert len(framing._shapes) <= framing._SHAPES
