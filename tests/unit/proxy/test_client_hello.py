"""What the first bytes of a connection are, for real hellos, hostile ones, and every way to cut them."""

from __future__ import annotations

import os
import ssl
import struct
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.proxy.tls.client_hello import (
    MAX_BYTES,
    MAX_RECORDS,
    NEED_MORE,
    NOT_TLS,
    ClientHello,
    NeedMore,
    NotTls,
    parse,
)


def real_hello(
    sni: str | None = "web.default", alpn: tuple[str, ...] = ("istio-http/1.1", "istio"), *, newest: bool = True
) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_3 if newest else ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=sni).do_handshake()
    return outgoing.read()


def vector(prefix: int, content: bytes) -> bytes:
    return len(content).to_bytes(prefix, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(2, content)


def handshake(
    extensions: bytes | None,
    *,
    version: bytes = b"\x03\x03",
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
) -> bytes:
    body = (
        version
        + bytes(32)
        + vector(1, session)
        + vector(2, suites)
        + vector(1, compression)
        + (b"" if extensions is None else vector(2, extensions))
    )
    return b"\x01" + vector(3, body)


def records(message: bytes, *sizes: int) -> bytes:
    pieces, at = [], 0
    for size in (*sizes, len(message)):
        piece = message[at : at + size]
        at += size
        if piece:
            pieces.append(b"\x16\x03\x01" + vector(2, piece))
    return b"".join(pieces)


ALPN = extension(16, vector(2, vector(1, b"istio") + vector(1, b"h2")))
SNI = extension(0, vector(2, b"\0" + vector(2, b"web")))
HELLO = ClientHello("web", (b"istio", b"h2"))


@pytest.mark.parametrize("newest", [True, False])
def test_real_hellos(newest: bool) -> None:
    assert parse(real_hello(newest=newest)) == ClientHello("web.default", (b"istio-http/1.1", b"istio"))
    assert parse(real_hello(None, (), newest=newest)) == ClientHello(None, ())


def test_every_prefix_of_a_real_hello_needs_more() -> None:
    hello = real_hello()
    assert all(parse(hello[:count]) == NEED_MORE for count in range(len(hello)))
    assert parse(hello + b"\x14\x03\x03\0\x01\x01\x17\x03\x03early data") == parse(hello)


@given(st.lists(st.integers(1, 80), max_size=12))
def test_fragments_over_records_are_put_together(sizes: list[int]) -> None:
    assert parse(records(handshake(SNI + ALPN), *sizes)) == HELLO


def test_a_hello_without_extensions() -> None:
    assert parse(records(handshake(None))) == ClientHello(None, ())
    assert parse(records(handshake(b""))) == ClientHello(None, ())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="http"),
        pytest.param(b"\x80\x2e\x01\x03\x01", id="SSL 2"),
        pytest.param(b"\x15\x03\x01\0\x02\x02\x28", id="an alert"),
        pytest.param(b"\x16\x02", id="record version 2"),
        pytest.param(b"\x16\x03\x05", id="record version 3.5"),
        pytest.param(b"\x16\x03\x01\0\0", id="an empty record"),
        pytest.param(b"\x16\x03\x01\x40\x01", id="a record above 2**14"),
        pytest.param(b"\x16\x03\x01\0\x04\x02", id="a ServerHello"),
        pytest.param(b"\x16\x03\x01\0\x04\x01\x01\0\0", id="a handshake message of 64 KiB"),
        pytest.param(records(handshake(SNI + SNI)), id="an extension twice"),
        pytest.param(records(handshake(SNI) + b"\x01\0\0\0"), id="a second message in the record"),
        pytest.param(records(handshake(None, version=b"\x02\x00")), id="hello version 2"),
        pytest.param(records(handshake(None, session=bytes(33))), id="a session id of 33 bytes"),
        pytest.param(records(handshake(None, suites=b"\x13\x01\x13")), id="half a cipher suite"),
        pytest.param(records(handshake(None, suites=b"")), id="no cipher suite"),
        pytest.param(records(handshake(None, compression=b"")), id="no compression method"),
        pytest.param(records(handshake(extension(0, vector(2, b"\0" + vector(2, b""))))), id="empty server name"),
        pytest.param(
            records(handshake(extension(0, vector(2, b"\0" + vector(2, b"a\nb"))))), id="server name with a line feed"
        ),
        pytest.param(
            records(handshake(extension(0, vector(2, b"\0" + vector(2, "é".encode()))))),
            id="server name that is not ASCII",
        ),
        pytest.param(
            records(handshake(extension(0, vector(2, b"\0" + vector(2, b"a") + b"\0" + vector(2, b"b"))))),
            id="two server names",
        ),
        pytest.param(
            records(handshake(extension(0, vector(2, b"\x01" + vector(2, b"a"))))), id="a name of another type"
        ),
        pytest.param(records(handshake(extension(16, vector(2, vector(1, b""))))), id="empty protocol name"),
        pytest.param(records(handshake(extension(16, vector(2, b"")))), id="no protocol name"),
        pytest.param(
            records(handshake(extension(16, vector(2, vector(1, b"h2")) + b"x"))), id="bytes behind the protocol names"
        ),
        pytest.param(records(handshake(b"\0\x10\0\xff")), id="an extension longer than the list"),
    ],
)
def test_not_tls(data: bytes) -> None:
    assert parse(data) == NOT_TLS


@pytest.mark.parametrize(
    "prefix", [b"", b"\x16", b"\x16\x03", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x02\x00\x01"]
)
def test_too_few_bytes(prefix: bytes) -> None:
    assert parse(prefix) == NEED_MORE


def test_padding_up_to_the_bound_and_not_beyond() -> None:
    def padded(size: int) -> bytes:
        return records(handshake(extension(21, bytes(size))), 8000, 8000)

    assert parse(padded(15000)) == ClientHello(None, ())
    assert parse(padded(17000)) == NOT_TLS
    assert parse(padded(17000)[:100]) == NOT_TLS


def test_more_records_than_any_client_sends() -> None:
    many = records(handshake(SNI + ALPN + extension(21, bytes(50))), *[1] * 200)
    assert parse(many) == NOT_TLS
    assert parse(many[: 6 * (MAX_RECORDS - 1)]) == NEED_MORE


def test_a_trickle_ends_at_the_bound() -> None:
    data = records(handshake(extension(21, bytes(16000))), 4000, 4000, 4000)
    started = process_time()
    verdicts = {type(parse(data[:count])) for count in range(0, len(data), 7)}
    assert verdicts <= {NeedMore, ClientHello}
    assert process_time() - started < 5, "each byte costs what all before it cost"
    assert parse(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf0" + bytes(MAX_BYTES)) == NOT_TLS


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_get_an_answer(data: bytes, record: bool) -> None:
    verdict = parse(b"\x16\x03\x01" + vector(2, data) if record and data else data)
    assert isinstance(verdict, NeedMore | NotTls | ClientHello)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(1, 400))
def test_a_damaged_hello_never_raises_and_never_changes_its_mind(at: int, value: int, cut: int) -> None:
    hello = bytearray(real_or_cached())
    hello[at % len(hello)] = value
    early, late = parse(bytes(hello[:cut])), parse(bytes(hello))
    if early != NEED_MORE:
        assert late == early


_cached = b""


def real_or_cached() -> bytes:
    global _cached
    _cached = _cached or real_hello() + os.urandom(3)
    return _cached
