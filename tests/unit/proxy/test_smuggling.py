"""Request smuggling and malformed HTTP: each is refused with 400 and the connection closed, or
reaches the application as exactly one request.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nodeagent.proxy.http2 import frames
from tests.unit.proxy.stage import Stage, play
from tests.unit.proxy.strict import Read, StrictApp

NEXT = b"GET /next HTTP/1.1\r\nHost: web\r\n\r\n"
ADDED = {b"x-request-id", b"x-forwarded-proto", b"x-forwarded-client-cert"}
POST = b"POST / HTTP/1.1\r\nHost: web\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n"

REFUSED = {
    "CL.TE": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n",
    "TE.TE obfuscated": CHUNKED + b"Transfer-Encoding: x\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE.TE twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE identity first": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "TE chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + SMUGGLED,
    "TE empty": POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "TE vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE space before colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "TE after leading space": POST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE behind a bare CR": POST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE behind a bare LF": POST + b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE behind a NUL": POST + b"X: a\0Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CL twice, different": POST + b"Content-Length: 0\r\nContent-Length: 38\r\n\r\n" + SMUGGLED,
    "CL twice, alike": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "CL list": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "CL signed": POST + b"Content-Length: +3\r\n\r\nabc",
    "CL negative": POST + b"Content-Length: -1\r\n\r\n",
    "CL hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "CL with space": POST + b"Content-Length: 3 3\r\n\r\nabc",
    "CL underscore": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    "CL empty": POST + b"Content-Length:\r\n\r\n",
    "CL too big": POST + b"Content-Length: 18446744073709551617\r\n\r\nabc",
    "CL space before colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "CL named by Connection": POST + b"Connection: Content-Length\r\nContent-Length: 38\r\n\r\n" + SMUGGLED,
    "Host named by Connection": POST + b"Connection: host\r\n\r\n",
    "Host missing": b"GET / HTTP/1.1\r\n\r\n",
    "Host twice": b"GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n",
    "Host twice, alike": b"GET / HTTP/1.1\r\nHost: web\r\nhost: web\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: web/admin\r\n\r\n",
    "Host with user": b"GET / HTTP/1.1\r\nHost: web@other\r\n\r\n",
    "Host with space": b"GET / HTTP/1.1\r\nHost: web other\r\n\r\n",
    "Host list": b"GET / HTTP/1.1\r\nHost: web, other\r\n\r\n",
    "URL of another host": b"GET http://other/ HTTP/1.1\r\nHost: web\r\n\r\n",
    "URL with user": b"GET http://web@other/ HTTP/1.1\r\nHost: web\r\n\r\n",
    "URL of another scheme": b"GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n",
    "asterisk without OPTIONS": b"GET * HTTP/1.1\r\nHost: web\r\n\r\n",
    "authority without CONNECT": b"GET web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n",
    "CONNECT": b"CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n" + SMUGGLED,
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: web\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: web\r\n\n" + SMUGGLED,
    "bare CR at the end": b"GET / HTTP/1.1\r\nHost: web\r\n\r\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n\r\n",
    "obs-fold with tab": b"GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n\tb\r\n\r\n",
    "folded first field": b"GET / HTTP/1.1\r\n X: a\r\nHost: web\r\n\r\n",
    "field without colon": b"GET / HTTP/1.1\r\nHost: web\r\nnothing\r\n\r\n",
    "field without name": b"GET / HTTP/1.1\r\nHost: web\r\n: a\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: web\r\nX\0: a\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: web\r\nX: a\0b\r\n\r\n",
    "control character in a value": b"GET / HTTP/1.1\r\nHost: web\r\nX: \x07\r\n\r\n",
    "DEL in a value": b"GET / HTTP/1.1\r\nHost: web\r\nX: \x7f\r\n\r\n",
    "high byte in a name": b"GET / HTTP/1.1\r\nHost: web\r\n\xc3\xa9: a\r\n\r\n",
    "tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: web\r\n\r\n",
    "form feed in the target": b"GET /a\x0cb HTTP/1.1\r\nHost: web\r\n\r\n",
    "NUL in the target": b"GET /a\0b HTTP/1.1\r\nHost: web\r\n\r\n",
    "high byte in the target": b"GET /\xff HTTP/1.1\r\nHost: web\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: web\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with fields": b"GET /\r\nHost: web\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: web\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: web\r\n\r\n",
    "HTTP/1.01": b"GET / HTTP/1.01\r\nHost: web\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\nHost: web\r\n\r\n",
    "unknown method": b"SMUGGLE / HTTP/1.1\r\nHost: web\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: web\r\n\r\n",
    "chunk size in hexadecimal notation": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size signed": CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk size negative": CHUNKED + b"\r\n-1\r\n\r\n0\r\n\r\n",
    "chunk size too big": CHUNKED + b"\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    "chunk size empty": CHUNKED + b"\r\n\r\nabc\r\n0\r\n\r\n",
    "chunk size then space": CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n",
    "chunk size then LF": CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "chunk size underscore": CHUNKED + b"\r\n1_0\r\n0123456789\r\n0\r\n\r\n",
    "chunk longer than said": CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk ends with LF": CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n",
    "chunk does not end": CHUNKED + b"\r\n3\r\nabc0\r\n\r\n",
    "chunk extension with LF": CHUNKED + b"\r\n3;a\nabc\r\n0\r\n\r\n",
    "chunk extension with CR": CHUNKED + b"\r\n3;a\rb\r\nabc\r\n0\r\n\r\n",
    "trailer folded": CHUNKED + b"\r\n0\r\nX: a\r\n b\r\n\r\n",
    "trailer with bare LF": CHUNKED + b"\r\n0\r\nX: a\n\r\n",
    "last chunk with LF": CHUNKED + b"\r\n0\n\n" + SMUGGLED,
    "nonsense": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS on a plaintext port": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(32),
}

PASSED = {
    "plain": (b"GET /a?b=c HTTP/1.1\r\nHost: web\r\n\r\n", b""),
    "empty lines before": (b"\r\n\r\nGET / HTTP/1.1\r\nHost: web\r\n\r\n", b""),
    "space around values": (b"GET / HTTP/1.1\r\nHost:   web \t\r\nX:\ta \r\n\r\n", b""),
    "empty value": (b"GET / HTTP/1.1\r\nHost: web\r\nX:\r\n\r\n", b""),
    "latin-1 value": (b"GET / HTTP/1.1\r\nHost: web\r\nX: caf\xe9\r\n\r\n", b""),
    "repeated field": (b"GET / HTTP/1.1\r\nHost: web\r\nX: a\r\nX: b\r\n\r\n", b""),
    "URL of the host": (b"GET http://WEB/a HTTP/1.1\r\nHost: web\r\n\r\n", b""),
    "OPTIONS asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n", b""),
    "GET with a body": (b"GET / HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "body that looks like a request": (POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, SMUGGLED),
    "leading zeros": (POST + b"Content-Length: 003\r\n\r\nabc", b"abc"),
    "TE in capitals": (POST + b"TRANSFER-ENCODING: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "chunk that looks like a request": (CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), SMUGGLED),
    "chunk extensions": (CHUNKED + b'\r\n3;a=b;c="d e"\r\nabc\r\n0;last\r\n\r\n', b"abc"),
    "chunk size with zeros and capitals": (CHUNKED + b"\r\n00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
    "Connection names a private field": (
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: x-private\r\nX-Private: 1\r\n\r\n",
        b"",
    ),
    "h2c upgrade": (
        (
            b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
            b"h2c\r\nHTTP2-Settings: AAA\r\n\r\n"
        ),
        b"",
    ),
    "upgrade with a body": (
        POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
        b"abc",
    ),
    "upgrade with a request as body": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        SMUGGLED,
    ),
    "upgrade with a chunked body": (
        CHUNKED + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        SMUGGLED,
    ),
    "upgrade with an empty body": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", b""),
}


def statuses(answers: bytes) -> list[bytes]:
    return [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]


@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED.keys())
def test_refused(attack: bytes) -> None:
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(attack + NEXT)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert answer.count(b"\r\n\r\n") == 1, "one answer, then the end"
        assert not app.requests, "nothing whole may reach the application"
        assert [(record["response_code"], record["response_flags"]) for record in stage.log.records] == [(400, "DPE")]

    play(app, scene)


@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED.keys())
def test_refused_behind_a_good_request(attack: bytes) -> None:
    """The good one is answered first; nothing of the bad one is."""
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"GET /good HTTP/1.1\r\nHost: web\r\n\r\n" + attack + NEXT)
        assert statuses(answer) == [b"200", b"400"], answer
        assert [request.target for request in app.requests] == [b"/good"]

    play(app, scene)


@pytest.mark.parametrize(("request_", "body"), PASSED.values(), ids=PASSED.keys())
@pytest.mark.parametrize("split", [False, True])
def test_passed_as_exactly_one(request_: bytes, body: bytes, split: bool) -> None:
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for at in range(0, len(request_), 1 if split else len(request_)):
            writer.write(request_[at : at + (1 if split else len(request_))])
            await asyncio.sleep(0)
        writer.write(NEXT)
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(b"%d" % len(body)) if _ == 0 else 1)
        writer.close()
        assert [request.body for request in app.requests] == [body, b""]
        assert app.requests[1].target == b"/next"
        assert not app.faults

    play(app, scene)


H2C = (
    b"h2c",
    b"H2C",
    b"websocket, h2c",
    b"websocket,\th2c\t",
    b"h2c-14",
    b"HTTP/2.0",
    b"websocket h2c",
    b"a\x0bh2c",
    b'"h2c"',
    b"websocket\r\nUpgrade: h2c",
)


@pytest.mark.parametrize("offer", H2C)
def test_no_request_passes_behind_an_offer_of_h2c(offer: bytes) -> None:
    """The application takes every offer that it can find; what the client goes on with is HTTP/2."""
    seen: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head)
            if b"h2c" in head.lower() or b"http/2" in head.lower():
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
                seen.append(await reader.read())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(
            b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % offer
            + b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            + frames.PREFACE
            + frames.settings(())
        )
        assert statuses(answer) in ([b"200", b"400"], [b"400"]), "HTTP/2's preface is no request"
        assert len(seen) <= 1
        assert not [head for head in seen if b"h2c" in head.lower() or b"http2-settings" in head.lower()]

    play(app, scene)


@pytest.mark.parametrize("taken", [b"h2c", b"websocket, h2c", b"other"])
def test_a_server_goes_over_to_nothing_that_was_not_offered(taken: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % taken)
        assert not await reader.read()

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(
            b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n" + frames.PREFACE
        )
        assert answer.startswith(b"HTTP/1.1 502 "), answer

    play(app, scene)


def test_http2_does_not_begin_behind_a_request_of_http1() -> None:
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"GET /good HTTP/1.1\r\nHost: web\r\n\r\n" + frames.PREFACE + frames.settings(()))
        assert statuses(answer) == [b"200", b"400"], answer
        assert [request.target for request in app.requests] == [b"/good"]

    play(app, scene)


_token = st.text("abcdefghijklmnopqrstuvwxyzABCDEFXYZ-_.!#$%&'*+^`|~0123456789", min_size=1, max_size=12).map(
    lambda text: b"x-" + text.encode()
)
_value = st.binary(max_size=20).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte < 127 or byte > 127).strip(b" \t")
)
_fields = st.lists(st.tuples(_token, _value), max_size=6)
_target = st.text("abcXYZ019/?&=%-._~:@!$'()*+,;", max_size=30).map(lambda text: b"/" + text.encode())
_bodies = st.one_of(
    st.none(),
    st.tuples(st.just("length"), st.lists(st.binary(max_size=2000), max_size=3)),
    st.tuples(st.just("chunked"), st.lists(st.binary(min_size=1, max_size=2000), max_size=5)),
)
_requests = st.tuples(
    st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD"]),
    _target,
    _fields,
    _bodies,
    _fields,
)


def wire(
    method: bytes,
    target: bytes,
    fields: list[tuple[bytes, bytes]],
    body: tuple[str, list[bytes]] | None,
    trailers: list[tuple[bytes, bytes]],
) -> bytes:
    lines = [
        b"%b %b HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, x-gone\r\nX-Gone: 1\r\nTE: trailers\r\n"
        % (method, target)
    ]
    lines += [b"%b: %b\r\n" % one for one in fields]
    if body is None:
        return b"".join([*lines, b"\r\n"])
    kind, pieces = body
    if kind == "length":
        return b"".join([*lines, b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces)), *pieces])
    coded = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return b"".join(
        [
            *lines,
            b"Transfer-Encoding: chunked\r\n\r\n",
            *coded,
            b"0\r\n",
            *(b"%b: %b\r\n" % one for one in trailers),
            b"\r\n",
        ]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(_requests, min_size=1, max_size=5), cuts=st.lists(st.integers(1, 400), max_size=20))
def test_what_the_application_reads_is_what_was_sent(requests: list[tuple], cuts: list[int]) -> None:  # type: ignore[type-arg]
    """Any requests, pipelined, split anywhere: as the strict reader reads them, they are those that
    were sent, without the fields of this hop.
    """
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        rest = b"".join(wire(*one) for one in requests)
        for cut in cuts:
            writer.write(rest[:cut])
            rest = rest[cut:]
            await asyncio.sleep(0)
        writer.write(rest)
        writer.write_eof()
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200 ") == len(requests), answers

    play(app, scene)
    assert not app.faults
    assert [summary(one) for one in app.requests] == [expected(*one) for one in requests]


def summary(read: Read) -> tuple[object, ...]:
    kept = [
        (name, value)
        for name, value in read.fields
        if name not in ADDED | {b"host", b"content-length", b"transfer-encoding"}
    ]
    return read.method, read.target, kept, read.body, read.trailers


def expected(
    method: bytes,
    target: bytes,
    fields: list[tuple[bytes, bytes]],
    body: tuple[str, list[bytes]] | None,
    trailers: list[tuple[bytes, bytes]],
) -> tuple[object, ...]:
    kept = [(name.lower(), value) for name, value in fields]
    kind, pieces = body or ("", [])
    return (
        method,
        target,
        kept,
        b"".join(pieces),
        [(name.lower(), value) for name, value in trailers] if kind == "chunked" else [],
    )


_seeds = st.sampled_from([request for request, _ in PASSED.values()] + list(REFUSED.values()))
_edits = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.sampled_from(
            [
                b"",
                b" ",
                b"\t",
                b"\r",
                b"\n",
                b"\r\n",
                b"\0",
                b":",
                b";",
                b",",
                b"0",
                b"chunked",
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"\xff",
                b"\x0b",
            ]
        ),
        st.integers(0, 2),
    ),
    max_size=4,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=_seeds, edits=_edits)
@example(seed=PASSED["plain"][0], edits=[(24, b"\n", 1)])
def test_a_damaged_request_is_refused_or_read_alike(seed: bytes, edits: list[tuple[int, bytes, int]]) -> None:
    """Whatever arrives, the strict reader at the application finds no fault and reads no more
    requests than were answered.
    """
    damaged = seed
    for at, put, drop in edits:
        damaged = damaged[:at] + put + damaged[at + drop :]
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(damaged + NEXT)
        writer.write_eof()
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200 ") == len(app.requests), (damaged, answers)

    play(app, scene)
    assert not [fault for fault in app.faults if "closed" not in fault], (damaged, app.faults)
    assert all(request.target != b"/smuggled" or SMUGGLED in damaged for request in app.requests)
