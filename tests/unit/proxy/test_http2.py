"""HTTP/2 through the whole proxy on loopback, opposite a second implementation on either side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from nodeagent.identity.tls import Inside
from nodeagent.mesh.entries import Protocol
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, Dialled
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import MAX_CONCURRENT_STREAMS, goaway, settings
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.streams import MOST_CONNECTIONS, MOST_LEAVING, MOST_STREAMS
from nodeagent.proxy.http2.upstream import TRIES
from nodeagent.telemetry.metrics import REFUSED
from tests.unit.proxy.http2_peers import Apps, Http2App, Http2Client, Message, echo
from tests.unit.proxy.http2_wire import GET, SETTLED, read_frame
from tests.unit.proxy.stage import VIP, Handler, Stage, answering, ok, play, read_request
from tests.waiting import DEADLINE, packet, until


async def connected(stage: Stage, **settings: int) -> Http2Client:
    return await Http2Client.on(await stage.connect(), **settings)


def test_requests_of_one_connection_reach_an_application_of_http1() -> None:
    heads: list[bytes] = []

    def make(head: bytes, body: bytes) -> bytes:
        heads.append(head)
        return ok(body or b"none", b"X-Odd: Yes\r\n")

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        first = await client.get("/one?a=b", more=[(b"te", b"trailers"), (b"cookie", b"a=1"), (b"cookie", b"b=2")])
        assert (first.status, first.body, first.fields[b"x-odd"]) == (200, b"none", b"Yes")
        second = await client.post("/two", b"x" * 300_000, trailers=[(b"sum", b"1")])
        assert second.body == b"x" * 300_000 + b"sum: 1\r\n"
        assert heads[0].startswith(
            b"GET /one?a=b HTTP/1.1\r\nhost: web\r\ncookie: a=1; b=2\r\nx-forwarded-proto: http\r\nx-request-id: "
        )
        assert b"te: " not in heads[0]
        assert b"transfer-encoding: chunked\r\n" in heads[1]
        assert stage.upstream_connections == 1
        await client.close()
        assert [each["protocol"] for each in stage.log.records] == ["HTTP/2", "HTTP/2"]
        assert stage.active() == 0

    play(answering(make), scene)


@pytest.mark.parametrize("protocol", ["http2", "auto"])
def test_streams_share_a_connection_to_an_application_of_http2(protocol: str) -> None:
    apps = Apps(echo)

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = [client.ask(f"/{each}", more=[(b"te", b"trailers")]) for each in range(50)]
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        assert {each.fields[b"x-path"] for each in asked} == {b"/%d" % each for each in range(50)}
        assert {each.fields[b"x-te"] for each in asked} == {b"trailers"}
        assert {each.trailers[b"grpc-status"] for each in asked} == {b"0"}
        whole = await client.post("/body", b"y" * 1_000_000, trailers=[(b"sum", b"2")])
        assert whole.body == b"y" * 1_000_000
        assert whole.trailers == {b"grpc-status": b"0", b"sum": b"2"}
        assert stage.upstream_connections == 1
        await client.close()
        assert stage.active() == 0

    play(apps, scene, protocol=protocol)  # type: ignore[arg-type]


def test_a_client_of_http1_reaches_an_application_of_http2() -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(
            b"POST http://web/a HTTP/1.1\r\nHost: web\r\nConnection: close\r\nX-Upper: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nsum: 3\r\n\r\n"
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nx-path: /a\r\n")
        assert body == b"3\r\none\r\n0\r\ngrpc-status: 0\r\nsum: 3\r\n\r\n"

    play(Apps(echo), scene, protocol="http2")


def test_an_application_that_takes_few_streams_gets_few_a_connection() -> None:
    most = 0
    open_now: dict[Http2App, int] = {}

    async def answer(app: Http2App, message: Message) -> None:
        nonlocal most
        open_now[app] = open_now.get(app, 0) + 1
        most = max(most, open_now[app])
        await asyncio.sleep(0.01)  # so that several are under way
        open_now[app] -= 1
        await app.say(message, b"ok")

    def few(app: Http2App) -> None:
        app.h2.update_settings({3: 4})
        app.send()

    apps = Apps(answer, made=few)

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = [client.ask() for _ in range(40)]
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        assert [each.status for each in asked] == [200] * 40
        await client.close()

    play(apps, scene, protocol="http2")
    assert most <= 4


def test_a_goaway_of_the_application_fails_no_request() -> None:
    """Input: a server that leaves after each tenth request, as if it were replaced. Verdict: all are answered."""
    count = 0

    async def answer(app: Http2App, message: Message) -> None:
        nonlocal count
        count += 1
        await app.say(message, b"ok")
        if count % 10 == 0:
            app.h2.close_connection(last_stream_id=message.number)
            app.send()
            app.writer.close()

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = [await client.post("/", b"body") for _ in range(35)]
        assert [each.status for each in asked] == [200] * 35
        assert stage.upstream_connections == 4
        await client.close()

    play(Apps(answer), scene, protocol="http2")


def test_a_refused_stream_is_sent_again() -> None:
    refused = 0

    async def answer(app: Http2App, message: Message) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            app.h2.reset_stream(message.number, 7)
            app.send()
            return
        await app.say(message, message.body)

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = await client.post("/", b"kept")
        assert (asked.status, asked.body) == (200, b"kept")
        await client.close()
        assert refused == 2

    play(Apps(answer), scene, protocol="http2")


def test_a_stream_that_the_client_resets_is_reset_at_the_application() -> None:
    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message, b"x", end=False)

    apps = Apps(answer)

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        endless = client.ask("/endless")
        await endless.begun.wait()
        client.reset(endless)
        await until(lambda: apps.connections[0].messages[1].reset == 8)
        assert stage.log.records[-1]["response_flags"] == "DC"
        assert stage.active() == 0
        await client.close()

    play(apps, scene, protocol="http2")


def test_a_slow_reader_of_one_stream_stops_that_stream_alone() -> None:
    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message, b"z" * (8_000_000 if message.fields[b":path"] == b"/large" else 10))

    apps = Apps(answer)

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        client.takes = False
        large = client.ask("/large")
        await until(lambda: len(large.body) == 65535)
        assert stage.log.records == []
        client.h2.increment_flow_control_window(1 << 20)
        client.send()
        small = await client.get("/small")
        assert small.body == b"z" * 10
        client.h2.increment_flow_control_window(8_000_000)
        client.h2.increment_flow_control_window(8_000_000, large.number)
        client.send()
        async with asyncio.timeout(DEADLINE):
            await large.ended.wait()
        assert len(large.body) == 8_000_000
        await client.close()

    play(apps, scene, protocol="http2")


def test_a_slow_application_stops_the_client() -> None:
    """The application takes nothing: what the proxy takes from the client meanwhile is bounded by the windows."""
    sent = 0

    async def hush(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)  # for ever: the stage ends it

    async def scene(stage: Stage) -> None:
        nonlocal sent
        client = await connected(stage)
        message = client.ask("/", "POST", end=False)

        async def push() -> None:
            nonlocal sent
            while True:
                await client.body(message.number, b"x" * 10_000, end=False)
                sent += 10_000

        task = asyncio.get_running_loop().create_task(push())
        await until(lambda: sent > 500_000)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)  # long enough for more to go on if it could
        assert sent < 16 << 20
        task.cancel()
        await client.close()

    play(hush, scene, protocol="http")


def test_interim_answers_and_early_ones_pass() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(b"done"))

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        answer = await client.get()
        assert answer.interim == [{b":status": b"103", b"link": b"</a>"}]
        assert answer.body == b"done"
        await client.close()

    play(app, scene)


@pytest.mark.parametrize(
    "more", [[], [(b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/chat")]], ids=["TCP", "WebSocket"]
)
def test_connect_is_refused_as_by_envoy_and_the_connection_stays(more: list[tuple[bytes, bytes]]) -> None:
    """The extended one (RFC 8441) as well, which no setting announces."""

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        number = client.h2.get_next_available_stream_id()
        client.h2.send_headers(number, [(b":method", b"CONNECT"), (b":authority", b"web:80"), *more])
        client.send()
        message = client.messages.setdefault(number, Message(number))
        await message.ended.wait()
        assert message.status == 403
        assert b"WebSockets go over HTTP/1.1" in message.body
        assert (await client.get()).status == 200
        await client.close()
        assert [each["response_code"] for each in stage.log.records] == [403, 200]

    play(answering(lambda head, body: ok(b"ok")), scene)


def test_a_drain_tells_the_client_to_come_back_and_ends_no_request() -> None:
    go = asyncio.Event()

    async def answer(app: Http2App, message: Message) -> None:
        await go.wait()
        await app.say(message, b"ok")

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = client.ask()
        await until(lambda: stage.upstream_connections == 1)
        stage.proxy.revocation.drain()
        await until(lambda: len(client.goaways) == 2)
        assert [each.last_stream_id for each in client.goaways] == [(1 << 31) - 1, asked.number]
        go.set()
        await asked.ended.wait()
        assert (asked.status, asked.body) == (200, b"ok")
        async with asyncio.timeout(DEADLINE):
            await client.task
        assert stage.active() == 0

    play(Apps(answer), scene, protocol="http2")


def test_an_answer_without_a_body_ends_for_a_client_of_http1_too() -> None:
    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message)

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        writer.close()

    play(Apps(answer), scene, protocol="http2")


def test_a_request_without_a_body_says_so_to_a_server_of_http1() -> None:
    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        assert b"content-length: 0\r\n" in (await client.get(method="POST")).body
        assert b"content-length" not in (await client.get()).body
        await client.close()

    play(answering(lambda head, body: ok(head)), scene)


def test_a_client_that_takes_nothing_is_given_up_before_it_costs_much() -> None:
    """Input: streams whose windows never open, each of which asks for 100 kB."""

    async def scene(stage: Stage) -> None:
        client = await connected(stage, initial_window_size=0)
        asked = [client.ask() for _ in range(400)]
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        (connection,) = [each for each in client.goaways if each.error_code]
        assert (connection.error_code, connection.additional_data) == (
            11,
            b"too much waits for windows that do not open",
        )
        await client.task
        await until(lambda: stage.active() == 0)

    play(answering(lambda head, body: ok(b"x" * 100_000)), scene)


async def of_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await reader.read()


async def of_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """It begins at once, as Node.js does."""
    writer.write(SETTLED)
    await reader.read()


async def of_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


@pytest.mark.parametrize("asks", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize(
    ("protocol", "app", "status", "flag"),
    [
        ("http2", of_http1, 502, "UPE"),
        ("http", of_http2, 502, "UPE"),
        ("http2", of_nothing, 503, "UC"),
        ("http", of_nothing, 503, "UC"),
    ],
)
def test_an_application_of_another_version_than_its_port_is_told_from_one_that_is_away(
    asks: str, protocol: Protocol, app: Handler, status: int, flag: str
) -> None:
    """Many requests at once: each is refused, soon, and the log says to look at the port's protocol."""

    async def scene(stage: Stage) -> None:
        if asks == "HTTP/2":
            client = await connected(stage)
            asked = [client.ask(method="POST") for _ in range(20)]
            async with asyncio.timeout(DEADLINE):
                for each in asked:
                    await each.ended.wait()
            assert {each.status for each in asked} == {status}
            told = asked[0].body
            await client.close()
        else:
            told = await stage.exchange(
                b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            assert told.startswith(b"HTTP/1.1 %d " % status)
        assert {each["response_flags"] for each in stage.log.records} == {flag}
        assert (b"is its port declared right?" in told) == (flag == "UPE")

    play(app, scene, protocol=protocol)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", b"EHLO web\r\n"], ids=["TLS", "SMTP"]
)
def test_what_is_no_http_on_a_port_declared_http2_is_carried_as_it_is(said: bytes) -> None:
    """Where policies decide by requests it is refused: test_unparsed_http.py."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(said)))
        await reader.read()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        (connection,) = stage.context.connections.values()
        assert connection.protocol == "tcp"
        writer.close()

    play(app, scene, protocol="http2")


def counts(message: Mapping[str, Any]) -> list[list[object]]:
    return list(message.get("counts", ()))


@pytest.mark.parametrize("said", [b"PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\n", b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_whole_preface_breaks_the_rules_of_http2(said: bytes) -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(said + b"Host: web\r\n\r\n")
        assert b"this is not HTTP/2's preface" in answer
        counted = [each for message in stage.context.metrics.delta() for each in counts(message)]
        assert [REFUSED.name, ("http2_broken",), 1] in counted

    play(Apps(echo), scene, protocol="http2")


def test_a_client_that_names_no_host_asks_for_none_that_is_empty() -> None:
    """Input: HTTP/1.0 without Host, and an empty one, to an application of HTTP/2. Verdict: the address; nothing."""
    seen: list[bytes | None] = []

    async def answer(app: Http2App, message: Message) -> None:
        seen.append(message.fields.get(b":authority"))
        await app.say(message, b"ok")

    async def scene(stage: Stage) -> None:
        for head in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"):
            assert (await stage.exchange(head)).startswith(b"HTTP/1.1 200")
        assert seen == [f"{VIP}:80".encode(), None]

    play(Apps(answer), scene, protocol="http2")


LEAVING = {
    "GOAWAY": settings(()) + goaway(0, 0, b""),
    "no streams": settings(((MAX_CONCURRENT_STREAMS, 0),)),
}


def test_an_endpoint_that_takes_no_streams_is_not_waited_for() -> None:
    """Input: it says so a moment after the connection stands, and refuses what was asked for before."""

    async def deny(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(wire.PREFACE))
        writer.write(LEAVING["no streams"])
        while True:
            each = await read_frame(reader)
            if each.kind == wire.HEADERS:
                writer.write(wire.rst_stream(each.number, wire.REFUSED_STREAM))

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = [client.ask() for _ in range(3)]
        for each in asked:
            await each.ended.wait()
        assert [each.status for each in asked] == [503] * 3
        assert stage.upstream_connections <= 3 * TRIES
        await client.close()

    play(deny, scene, protocol="http2")


@pytest.mark.parametrize("how", LEAVING)
def test_an_endpoint_that_takes_nothing_is_not_dialled_on_and_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: what it says on each connection is there as soon as that is."""
    connect = Dial.connect

    async def slow(dial: Dial, context: Context, inside: Inside) -> Dialled:
        dialled = await connect(dial, context, inside)
        while not dialled.early:
            await packet()
        return dialled

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LEAVING[how])
        await reader.read()

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        assert (await client.get()).status == 503
        assert stage.upstream_connections <= 4
        await client.close()

    monkeypatch.setattr(Dial, "connect", slow)
    play(leave, scene, protocol="http2")


def test_requests_wait_for_the_streams_of_an_endpoint_that_leaves_after_each() -> None:
    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message, b"ok")
        app.h2.close_connection(last_stream_id=message.number)
        app.send()

    def one(app: Http2App) -> None:
        app.h2.update_settings({3: 1})
        app.send()

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = [client.ask() for _ in range(20)]
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        assert [each.status for each in asked] == [200] * 20
        await client.close()

    play(Apps(answer, made=one), scene, protocol="http2")


class Leaver:
    """An application that takes one stream of each connection, says GOAWAY, and answers when all are there."""

    def __init__(self) -> None:
        self.asked: list[tuple[asyncio.StreamWriter, int]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(wire.PREFACE))
        writer.write(SETTLED)
        while True:
            each = await read_frame(reader)
            if each.kind == wire.HEADERS:
                writer.write(goaway(each.number, 0, b""))
                self.asked.append((writer, each.number))

    def answer(self) -> None:
        whole = wire.END_HEADERS | wire.END_STREAM
        for writer, number in self.asked:
            writer.write(wire.frame(wire.HEADERS, whole, number, b"\x88"))
        self.asked.clear()


async def ask_in_turn(client: Http2Client, app: Leaver, count: int) -> list[Message]:
    """Ask for *count* answers, one behind the other."""
    asked = []
    while len(asked) < count:
        asked.append(client.ask())
        await until(lambda: len(app.asked) == len(asked) or asked[-1].ended.is_set())
    return asked


def test_connections_that_leave_are_no_reason_to_wait() -> None:
    """Input: long streams of an endpoint whose connections have a greatest age, more than it has connections."""
    app = Leaver()

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = await ask_in_turn(client, app, MOST_CONNECTIONS + 6)
        assert len(app.asked) == len(asked)
        app.answer()
        for each in asked:
            await each.ended.wait()
        assert {each.status for each in asked} == {200}
        await client.close()

    play(app, scene, protocol="http2")


def test_an_endpoint_that_leaves_too_many_connections_is_asked_no_more() -> None:
    app = Leaver()

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        asked = await ask_in_turn(client, app, MOST_LEAVING + 3)
        assert [each.status for each in asked] == [0] * MOST_LEAVING + [503] * 3
        assert b"streams_exhausted" in asked[-1].body
        app.answer()
        await until(lambda: all(each.ended.is_set() for each in asked))
        (more,) = await ask_in_turn(client, app, 1)
        app.answer()
        await more.ended.wait()
        assert more.status == 200
        await client.close()

    play(app, scene, protocol="http2")


def test_a_pod_has_no_more_requests_under_way_than_it_may() -> None:
    go = asyncio.Event()

    async def answer(app: Http2App, message: Message) -> None:
        await go.wait()
        await app.say(message, b"ok")

    async def scene(stage: Stage) -> None:
        clients = [await connected(stage) for _ in range(2)]
        asked = [clients[each % 2].ask() for each in range(8)]
        await until(lambda: len(stage.log.records) == 2)
        assert {each["response_flags"] for each in stage.log.records} == {"UO"}
        go.set()
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        assert sorted(each.status for each in asked) == [200] * 6 + [503] * 2
        await until(lambda: stage.pods["client"].streams == 0)
        for client in clients:
            await client.close()

    play(Apps(answer), scene, protocol="http2", limits={"streamsPerPod": 6})


def test_a_call_whose_time_is_over_is_ended_though_its_server_knows_no_time() -> None:
    async def never(app: Http2App, message: Message) -> None:
        await asyncio.sleep(3600)  # for ever: the stage ends it

    async def scene(stage: Stage) -> None:
        client = await connected(stage)
        answer = await client.get(more=[(b"content-type", b"application/grpc"), (b"grpc-timeout", b"50m")])
        assert (answer.status, answer.fields[b"grpc-status"]) == (200, b"4")
        assert [each["response_flags"] for each in stage.log.records] == ["DT"]
        await client.close()

    play(Apps(never), scene, protocol="http2")


MANY = 10_000


def test_ten_thousand_streams_of_one_connection_are_open_at_once() -> None:
    """None is answered before all of them have come to the application."""
    whole = wire.END_HEADERS | wire.END_STREAM
    asked: list[tuple[asyncio.StreamWriter, int]] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(wire.PREFACE))
        writer.write(settings(((MAX_CONCURRENT_STREAMS, MANY),)))
        while True:
            each = await read_frame(reader)
            if each.kind == wire.HEADERS:
                asked.append((writer, each.number))
            if len(asked) == MANY:
                for its, number in asked:
                    its.write(wire.frame(wire.HEADERS, whole, number, b"\x88"))
                asked.clear()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        encoder = Encoder()
        numbers = range(1, 2 * MANY, 2)
        writer.write(wire.PREFACE + SETTLED)
        for number in numbers:
            writer.write(wire.frame(wire.HEADERS, whole, number, encoder.encode(GET)))
        answered: list[int] = []
        while len(answered) < MANY:
            each = await read_frame(reader)
            assert each.kind not in (wire.RST_STREAM, wire.GOAWAY)
            if each.flags & wire.END_STREAM and each.kind in (wire.HEADERS, wire.DATA):
                answered.append(each.number)
        assert sorted(answered) == list(numbers)
        assert MANY <= stage.upstream_connections * MOST_STREAMS < 2 * MANY
        assert stage.active() == 0
        writer.close()

    play(app, scene, protocol="http2", limits={"streamsPerConnection": MANY})
