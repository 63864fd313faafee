"""HTTP/1.1 through the real pipeline, on loopback."""

from __future__ import annotations

import asyncio
import re
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.mesh.entries import Endpoint, Protocol
from nodeagent.vocabulary import Address, PodUid, host_port
from tests.unit.proxy.stage import VIP6, Stage, answering, ok, play, read_request
from tests.waiting import packet, quiet, steady, until

GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"


def echo_target(head: bytes, body: bytes) -> bytes:
    return ok(head.split(b" ")[1] + b"|" + body)


def show_head(head: bytes, body: bytes) -> bytes:
    return ok(head)


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return (head, body) of the next answer; trailers are appended to the body."""
    head = await reader.readuntil(b"\r\n\r\n")
    if re.search(rb"(?i)transfer-encoding: chunked", head):
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            body += line
        return head, body
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head, await reader.readexactly(int(length[1])) if length else b""


def test_kept_alive_on_both_sides() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for number in range(5):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % number)
            assert (await read_answer(reader))[1] == b"/%d|" % number
        writer.close()
        assert stage.upstream_connections == 1
        assert [record["response_code"] for record in stage.log.records] == [200] * 5
        assert stage.active() == 0

    play(answering(echo_target), scene)


@pytest.mark.parametrize("said", [b"Connection: close\r\n", b""])
def test_without_pooling_the_server_is_told_and_closes_first(said: bytes) -> None:
    """Whoever closes first keeps the port for a minute: the client's pod would have none left after
    half a minute of load.
    """
    waited: list[bool] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        assert head.lower().count(b"connection: close\r\n") == 1
        writer.write(ok(head.split(b" ")[1], said))
        try:
            await asyncio.wait_for(reader.read(1), 0.1)
            waited.append(False)
        except TimeoutError:
            waited.append(True)

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for number in range(3):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % number)
            head, body = await read_answer(reader)
            assert body == b"/%d" % number
            assert b"connection" not in head.lower(), "what the server said concerns its own connection"
        await until(lambda: len(waited) == 3)
        assert stage.upstream_connections == 3
        writer.close()

    play(app, scene, limits={"idleUpstreamConnections": 0})


@pytest.mark.parametrize("late", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
def test_a_server_that_says_it_closes_and_does_not_is_closed(late: bytes) -> None:
    ended: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b"one", b"Connection: close\r\n"))
        if late:
            await quiet()
            writer.write(late)
        try:
            ended.append(await reader.read(1))
        except ConnectionError:
            ended.append(b"")

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for number in (1, 2):
            writer.write(GET)
            assert (await read_answer(reader))[1] == b"one"
            await until(lambda number=number: len(ended) == number, seconds=60)
        assert ended == [b"", b""]
        assert stage.upstream_connections == 2
        writer.close()

    play(app, scene)


def test_servers_that_never_close_do_not_collect_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.proxy.pool._LEAVING", 2)
    monkeypatch.setattr("nodeagent.proxy.pool.LINGER_SECONDS", 3600.0)
    still = [0]

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        still[0] += 1
        writer.write(ok(b"one", b"Connection: close\r\n"))
        await reader.read(1)
        still[0] -= 1

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for _ in range(5):
            writer.write(GET)
            assert (await read_answer(reader))[1] == b"one"
        await until(lambda: still == [2])
        writer.close()

    play(app, scene)


def test_pipelined_requests_are_answered_in_order_with_their_bodies() -> None:
    async def scene(stage: Stage) -> None:
        request = b"".join(
            b"POST /%d HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nb%02d" % (number, number)
            for number in range(20)
        )
        answers = await stage.exchange(request + CLOSE)
        assert re.findall(rb"/(\d+)\|b(\d\d)", answers) == [(b"%d" % number, b"%02d" % number) for number in range(20)]

    play(answering(echo_target), scene)


def test_chunked_both_ways_with_trailers() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await read_request(reader)
        assert b"transfer-encoding: chunked" in head.lower()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 7):
            writer.write(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]))
            await asyncio.sleep(0)
        writer.write(b"0\r\nX-Check: 42\r\n\r\n")
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: 7\r\nHost: evil\r\n\r\n")
        _, body = await read_answer(reader)
        assert body == b"hello worldX-Sum: 7\r\nX-Check: 42\r\n", "a trailer that routes must not pass"
        writer.close()

    play(app, scene)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
    ],
)
def test_answers_without_a_body_keep_both_connections(method: bytes, answer: bytes) -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for _ in range(3):
            writer.write(method + b" / HTTP/1.1\r\nHost: web\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split(b" ")[1] == answer.split(b" ")[1]
        writer.close()
        assert stage.upstream_connections == 1

    play(answering(lambda head, body: answer), scene)


def test_expect_continue_and_early_hints_pass() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        writer.write(ok(await reader.readexactly(4)))
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert b" 103 " in await reader.readuntil(b"\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"body")
        assert (await read_answer(reader))[1] == b"body"
        writer.close()

    play(app, scene)


@pytest.mark.parametrize("idle", [256, 0])
def test_an_upgrade_becomes_a_tunnel(idle: int) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b"connection: upgrade" in head
        assert b"connection: close" not in head
        assert b"upgrade: websocket" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.write(b"bye")

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(7) == b"hiFIRST"
        writer.write(b"more")
        assert await reader.readexactly(4) == b"MORE"
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()

    play(app, scene, limits={"idleUpstreamConnections": idle})


def test_a_declined_upgrade_stays_http_and_h2c_is_never_offered() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(
            b"GET /1 HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
            b"h2c\r\nHTTP2-Settings: x\r\n\r\n"
        )
        head = (await read_answer(reader))[1].lower()
        assert b"upgrade" not in head
        assert b"http2-settings" not in head
        writer.write(b"GET /2 HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b"GET /2 " in (await read_answer(reader))[1]
        writer.write(GET)
        assert b"GET / " in (await read_answer(reader))[1]
        writer.close()

    play(answering(show_head), scene)


def test_http10_clients_and_answers_until_close() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nuntil the end")
        reader, writer = await stage.connect()
        for _ in range(2):
            writer.write(GET)
            assert (await read_answer(reader))[1] == b"until the end", (
                "an HTTP/1.1 client gets it chunked and keeps its connection"
            )
        writer.close()

    play(app, scene)


def test_what_upstream_sees_of_the_head() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(
            b"GET /a?b HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: "
            b"5\r\nTE: trailers\r\nX-Keep: 2\r\n"
            b"traceparent: 00-aa-bb-01\r\nX-Forwarded-Client-Cert: By=spiffe://evil;URI=spiffe://cluster.local/ns/kube-system/sa/admin\r\n\r\n"
        )
        head = (await read_answer(reader))[1].decode()
        assert head.startswith("GET /a?b HTTP/1.1\r\nHost: web\r\n")
        for gone in ("X-Drop", "Keep-Alive", "TE:", "evil", "admin"):
            assert gone not in head
        assert "X-Keep: 2" in head
        assert "traceparent: 00-aa-bb-01" in head
        assert "x-forwarded-proto: http\r\n" in head
        assert (
            "x-forwarded-client-cert: By=spiffe://cluster.local/ns/default/sa/server;URI=spiffe://cluster.local/ns/default/sa/client\r\n"
            in head
        )
        request_id = re.search(r"x-request-id: ([0-9a-f-]{36})\r\n", head)
        assert request_id
        assert stage.log.records[0]["request_id"] == request_id[1]
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nX-Request-Id: mine\r\n\r\n")
        assert b"X-Request-Id: mine\r\n" in (await read_answer(reader))[1]
        writer.close()

    play(answering(show_head), scene)


REFUSED = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\xff: b\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n",
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
]


@pytest.mark.parametrize("request_", REFUSED)
def test_what_is_ambiguous_is_refused_and_never_reaches_upstream(request_: bytes) -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(request_ + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert answer.count(b"HTTP/1.1 4") == 1
        assert b"HTTP/1.1 2" not in answer
        assert stage.upstream_connections == 0
        assert stage.log.records[-1]["response_flags"] == "DPE"

    play(answering(show_head), scene)


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\n0\n\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
    ],
)
def test_a_chunk_that_is_not_one_ends_the_request(body: bytes) -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert stage.active() == 0

    play(answering(show_head), scene)


def test_limits_on_heads() -> None:
    async def scene(stage: Stage) -> None:
        many = b"".join(b"X-%d: 1\r\n" % number for number in range(60))
        assert (await stage.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n" + many + b"\r\n")).startswith(b"HTTP/1.1 431 ")
        reader, writer = await stage.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(3):
            await packet()
            writer.write(b"a" * 3000)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 "), "a head that never ends is not collected for ever"
        writer.close()
        assert stage.upstream_connections == 0

    play(answering(show_head), scene, limits={"headerCount": 50, "headerBytes": 8192})


def test_failures_have_a_status_a_flag_and_a_hint() -> None:
    async def scene(stage: Stage) -> None:
        stage.publish(())
        answer = await stage.exchange(CLOSE)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"no_endpoints (UH): the Service has no ready endpoint" in answer
        stage.publish((Endpoint(Address("127.0.0.1"), 1, PodUid("server")),))
        answer = await stage.exchange(CLOSE)
        assert b"connect_failed (UF): 127.0.0.1:1: Connection refused: nothing listens" in answer
        assert [record["response_flags"] for record in stage.log.records] == ["UH", "UF"]
        assert stage.active() == 0

    play(answering(show_head), scene)


@pytest.mark.parametrize("protocol", ["http", "tcp"])
@pytest.mark.parametrize(
    "family", [4, 6], ids=["the Service has no endpoint of its family", "nothing listens at the endpoint"]
)
def test_an_endpoint_is_reached_at_its_other_address_where_nothing_listens_at_the_first(
    protocol: Protocol, family: int
) -> None:
    """A Service with two ClusterIPs, an application on IPv4 alone, a client that took IPv6: the
    proxy took its connection, and with it its choice.
    """

    async def scene(stage: Stage) -> None:
        stage.addresses = ("::1", "127.0.0.1") if family == 6 else ("127.0.0.1",)
        stage.asked = VIP6
        stage.publish((Endpoint(Address(stage.addresses[0]), stage.endpoint_port, PodUid("server")),))
        reader, writer = await stage.connect()
        writer.write(CLOSE)
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()
        stage.back.close()
        for pool in stage.proxy.routing.pools():
            pool.sweep(float("inf"), 0)
        answer = await stage.exchange(CLOSE)
        where = " and ".join(host_port(address, stage.endpoint_port) for address in stage.addresses)
        assert (
            f"connect_failed (UF): {where}: Connection refused:".encode() in answer
            if protocol == "http"
            else not answer
        )

    play(answering(show_head), scene, protocol=protocol)


def test_a_slow_application_is_given_up() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        assert await reader.read() == b""

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(CLOSE)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert stage.log.records[0]["response_flags"] == "UT"
        assert stage.active() == 0

    play(app, scene, timeouts={"request": 0.2})


def test_a_client_that_stops_in_a_head_is_let_go() -> None:
    async def scene(stage: Stage) -> None:
        assert (await stage.exchange(b"GET / HTTP/1.1\r\nHo")).startswith(b"HTTP/1.1 408 ")
        await until(lambda: not stage.context.connections)

    play(answering(show_head), scene, timeouts={"head": 0.2})


def test_a_kept_connection_that_upstream_closed_is_replaced_once() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok((await read_request(reader))[0]))
        await read_request(reader)  # and close without a word

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for _ in range(3):
            writer.write(GET)
            assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n")
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 503 "), "a POST is not sent twice"
        writer.close()
        assert stage.active() == 0

    play(app, scene)


def test_an_answer_cut_short_is_not_passed_off_as_whole() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await read_answer(reader)
        writer.close()
        assert stage.log.records[0]["response_flags"] == "UC"

    play(app, scene)


def test_a_client_that_leaves_takes_its_upstream_along() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        try:
            await reader.read()
        except ConnectionError:
            pass
        gone.set()

    async def scene(stage: Stage) -> None:
        _, writer = await stage.connect()
        writer.write(GET)
        await asked.wait()
        # A FIN alone may be half a close: the client may still read. A reset is an end.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await gone.wait()
        await until(lambda: not stage.context.connections)
        assert stage.log.records[0]["response_flags"] == "DC"
        assert stage.active() == 0

    play(app, scene)


def test_a_slow_reader_holds_the_sender_back() -> None:
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * 262144))
        for number in range(200):
            writer.write(bytes([number]) * 262144)
            await writer.drain()
            sent += 262144

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        reader._limit = 65536  # type: ignore[attr-defined]
        writer.write(GET)
        await steady(lambda: sent)
        assert sent < 30 << 20, "the kernel's buffers on two connections and little more"
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"52428800" in head
        for number in range(200):
            assert await reader.readexactly(262144) == bytes([number]) * 262144
        writer.close()

    play(app, scene)


def test_a_slow_application_holds_the_client_back() -> None:
    start = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await start.wait()
        for number in range(200):
            assert await reader.readexactly(262144) == bytes([number]) * 262144
        writer.write(ok(b"all"))
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % (200 * 262144))
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(200):
                writer.write(bytes([number]) * 262144)
                await writer.drain()
                sent += 1

        task = asyncio.create_task(send())
        await steady(lambda: sent)
        assert sent < 120
        start.set()
        await task
        assert (await read_answer(reader))[1] == b"all"
        writer.close()

    play(app, scene)


_names = st.from_regex(r"\AX-[A-Za-z0-9-]{1,12}\Z")
_values = st.from_regex(r"\A[!-~]([ -~]{0,30}[!-~])?\Z")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    headers=st.lists(st.tuples(_names, _values), max_size=8),
    body=st.binary(max_size=300),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 40), max_size=12),
)
def test_however_a_request_is_cut_upstream_reads_what_was_sent(
    headers: list[tuple[str, str]], body: bytes, chunked: bool, cuts: list[int]
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def record(head: bytes, got: bytes) -> bytes:
        seen.append((head, got))
        return ok(b"")

    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % len(body)
    coded = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if chunked else body
    request = b"POST /x HTTP/1.1\r\nHost: web\r\n" + lines + framing + b"\r\n" + coded

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        rest = request
        for cut in cuts:
            writer.write(rest[:cut])
            rest = rest[cut:]
            await asyncio.sleep(0.001)  # a packet each
        writer.write(rest)
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200")
        writer.close()

    play(answering(record), scene)
    [(head, got)] = seen
    assert got == body
    fields = [line for line in head.split(b"\r\n")[1:-2] if line[:2] == b"X-"]
    assert b"\r\n".join(fields) == lines.strip(b"\r\n")


@pytest.mark.parametrize(
    "fields",
    ["", "Close: x\r\n", "Connection: \r\n", "connection: close\r\n", "X-Forwarded-Proto: https\r\nCLOSE: y\r\n"],
)
def test_the_short_way_of_a_closing_request_says_what_the_long_one_says(fields: str) -> None:
    async def scene(stage: Stage) -> None:
        host = f"host-{len(fields)}"  # one that was not met yet takes the long way
        request = (
            f"GET / HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: 1\r\nConnection: close\r\n{fields}X: y\r\n\r\n".encode()
        )
        long, short = [await stage.exchange(request) for _ in range(2)]
        assert long == short
        head, body = short.split(b"\r\n\r\n", 1)
        assert b"connection: close" in head.lower()
        names = [line.partition(b":")[0].lower() for line in body.split(b"\r\n")[1:] if line]
        assert not {b"connection", b"close"}.intersection(names)
        assert {b"host", b"x", b"x-request-id", b"x-forwarded-proto"} <= set(names)

    play(answering(lambda head, body: ok(head)), scene)
