"""HTTP/1.1 through the real pipeline where something is slow, early, late, wrong or gone; each
request is counted exactly once.
"""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from nodeagent.config import Timeouts
from nodeagent.proxy.http import patience
from nodeagent.proxy.transport import reset
from nodeagent.telemetry.metrics import HTTP_LABELS
from tests.unit.proxy.stage import Stage, answering, http, ok, play, read_request
from tests.unit.proxy.strict import StrictApp
from tests.unit.proxy.test_http1 import read_answer
from tests.waiting import packet, quiet, steady, until

GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CODE, FLAGS = HTTP_LABELS.index("response_code"), HTTP_LABELS.index("response_flags")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def echo_target(head: bytes, body: bytes) -> bytes:
    return ok(head.split(b" ")[1] + b"|" + body)


def counted(stage: Stage) -> dict[tuple[str, str], int]:
    """Return how many requests the metrics have counted since the last call, by code and flags."""
    found: dict[tuple[str, str], int] = {}
    for part in stage.context.metrics.delta():
        for _, labels, (duration, *_) in part.get("http", ()):
            key = labels[CODE], labels[FLAGS]
            found[key] = found.get(key, 0) + sum(count for _, count in duration[0])
    return found


async def idle(stage: Stage) -> None:
    """Wait until no downstream connection is left; nothing may be counted as active then."""
    await until(lambda: not stage.context.connections)
    assert stage.active() == 0
    assert all(pod.connections == 0 for pod in stage.pods.values())


def says(*parts: bytes, hold: bool = True) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
    """Return an application that reads one request and says *parts*, in packets of their own; then
    closes, or holds the line.
    """

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for part in parts:
            writer.write(part)
            await packet()
        if hold:
            await reader.read()

    return app


# -- answers that are wrong --

WRONG = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: a\r\n b\r\n\r\nabc",
    "NUL": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: a\0b\r\n\r\nabc",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("single", [False, True])
def test_a_wrong_answer_becomes_502_and_nothing_of_it_passes(answer: bytes, single: bool) -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 502 ")
        assert body.startswith(b"upstream_protocol (UPE): ")
        writer.write_eof()
        assert await reader.read() == b"", "nothing follows"
        await idle(stage)
        assert counted(stage) == {("502", "UPE"): 1}

    half = len(answer) // 2
    play(says(answer) if single else says(answer[:half], answer[half:]), scene)


def test_a_broken_chunk_within_an_answer_cuts_it() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read_answer(reader)
        await idle(stage)
        assert counted(stage) == {("200", "UPE"): 1}

    play(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"zz\r\n"), scene)


def test_bytes_behind_an_answer_never_reach_the_next_client() -> None:
    """Response splitting by a compromised application: it cannot answer what it was not asked."""

    async def scene(stage: Stage) -> None:
        for _ in range(3):
            reader, writer = await stage.connect()
            writer.write(GET)
            assert (await read_answer(reader))[1] == b"mine"
            writer.write(GET)
            assert (await read_answer(reader))[1] == b"mine"
            writer.close()
        await idle(stage)
        assert counted(stage) == {("200", "-"): 6}

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b"mine") + ok(b"poison"))
        await packet()
        writer.write(ok(b"poison"))

    play(app, scene)


# -- answers that are cut, early, late --


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 O", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_upstream_gone_before_its_answer_is_503_uc(by_reset: bool, start: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(start)
        await packet()
        if by_reset:
            reset(writer.transport)

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(CLOSE)
        final = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert final.startswith(b"HTTP/1.1 503 ")
        assert b"upstream_reset (UC): the application closed" in final
        await idle(stage)
        assert counted(stage) == {("503", "UC"): 1}

    play(app, scene)


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_upstream_gone_within_its_answer_resets_the_client(by_reset: bool, framing: bytes, version: bytes) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n4\r\nhalf\r\n" % framing)
        await packet()
        if by_reset:
            reset(writer.transport)

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET / HTTP/%b\r\nHost: web\r\n\r\n" % version)
        with pytest.raises(ConnectionResetError):
            raise AssertionError(await reader.read())
        await idle(stage)
        assert counted(stage) == {("200", "UC"): 1}

    play(app, scene)


def test_an_answer_until_close_that_is_reset_is_cut_too() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await packet()
        reset(writer.transport)

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read_answer(reader)

    play(app, scene)


@pytest.mark.parametrize("keeps", [False, True])
def test_an_answer_before_the_requests_end(keeps: bool) -> None:
    """413 while the body is still under way: the client reads it, though more of the body comes than anybody wants."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch")
        await writer.drain()
        await quiet()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        size = 20 << 20
        writer.write(
            b"POST / HTTP/1.1\r\nHost: web\r\n%bContent-Length: %d\r\n\r\n"
            % (b"" if keeps else b"Connection: close\r\n", size)
        )

        async def send() -> None:
            try:
                for _ in range(size >> 18):
                    writer.write(bytes(1 << 18))
                    await writer.drain()
            except ConnectionError:
                assert not keeps

        sending = asyncio.create_task(send())
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert body == b"much"
        await sending
        if keeps:
            writer.write(GET)
            assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 413 ")
        writer.close()
        await idle(stage)
        assert counted(stage) == {("413", "-"): 1 + keeps}

    play(app, scene)


def test_a_refusal_before_the_requests_end_is_read_by_the_client() -> None:
    async def scene(stage: Stage) -> None:
        stage.publish(())
        for _ in range(5):
            reader, writer = await stage.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 9000000\r\n\r\n" + bytes(3_000_000))
            head, _ = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in head
            assert await reader.read() == b""
            writer.close()
        await idle(stage)
        assert counted(stage) == {("503", "UH"): 5}

    play(answering(echo_target), scene)


def test_a_refused_request_without_a_body_keeps_the_connection() -> None:
    async def scene(stage: Stage) -> None:
        endpoints = stage.context.view.resolve("10.96.0.1", 80).endpoints
        stage.publish(())
        reader, writer = await stage.connect()
        for _ in range(3):
            writer.write(GET + GET)
            for _ in range(2):
                head, _ = await read_answer(reader)
                assert head.startswith(b"HTTP/1.1 503 ")
                assert b"close" not in head
        stage.publish(endpoints)
        writer.write(GET)
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()
        await idle(stage)

    play(answering(echo_target), scene)


def test_a_long_upload_does_not_use_up_the_time_for_the_answer() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0.1)  # within timeouts.request from the body's end, not from its beginning
        writer.write(ok(b""))
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.06)  # together longer than timeouts.request
            writer.write(b"x")
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()

    play(app, scene, timeouts={"request": 0.4})


def test_an_endpoint_that_cannot_be_reached_in_time_is_503_and_its_socket_is_not_lost() -> None:
    async def scene(stage: Stage) -> None:
        stock = stage.pods["server"].stock[4]
        stock._ask = lambda count: None  # control is busy
        answer = await stage.exchange(
            b"POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
        )
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connect_timeout (UF,URX): the endpoint does not answer" in answer
        late = socket.socket()
        late.setblocking(False)
        stock.add([late])
        assert (await stage.exchange(CLOSE)).startswith(b"HTTP/1.1 200 ")
        await idle(stage)
        assert counted(stage) == {("503", "UF,URX"): 1, ("200", "-"): 1}

    play(answering(echo_target), scene, timeouts={"connect": 0.2})


def test_a_client_that_stops_in_a_body_is_let_go_and_an_upstream_that_takes_none_is_given_up() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3)  # longer than any timeout here

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408 ")
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % (64 << 20) + bytes(64 << 20))
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 504 ")
        writer.transport.abort()
        await idle(stage)
        assert counted(stage) == {("408", "SI"): 1, ("504", "UT"): 1}

    play(app, scene, timeouts={"request": 0.4, "streamIdle": 0.4})


def test_a_head_in_drops_is_let_go() -> None:
    """Slow loris: bytes keep coming, the head does not end."""

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()

        async def drip() -> None:
            writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nX: ")
            while True:
                writer.write(b"x")
                await packet()

        dripping = asyncio.create_task(drip())
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 408 ")
        dripping.cancel()
        writer.close()
        await idle(stage)
        assert counted(stage) == {("408", "SI"): 1}

    play(answering(echo_target), scene, timeouts={"head": 0.3})


def test_an_answer_that_stands_still_is_cut_where_a_bound_is_set() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read_answer(reader)
        await idle(stage)
        assert len(counted(stage)) == 1

    play(says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"), scene, timeouts={"streamIdle": 0.3})


def test_by_default_nothing_ends_for_the_time_that_it_takes() -> None:
    """A day in a body, a day until the answer, a day in the answer: the network would not cut it either."""
    go = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await go.wait()
        writer.write(ok(b"done")[:-2])
        go.clear()
        await go.wait()
        writer.write(b"ne")

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbo")
        codec = await until(
            lambda: next(
                (codec for codec in map(http, stage.context.connections.values()) if codec and codec.current),
                None,
            )
        )
        exchange = codec.current

        def a_day_passes() -> None:
            patience.enforce(codec, monotonic() + 86400, Timeouts())
            assert codec.current is exchange and not exchange.finished

        a_day_passes()
        writer.write(b"dy")
        await until(lambda: exchange.request_complete and exchange.upstream)
        a_day_passes()
        go.set()
        await until(lambda: exchange.answered)
        a_day_passes()
        go.set()
        assert (await read_answer(reader))[1] == b"done"
        writer.close()

    play(app, scene)


def test_a_drain_does_not_wait_for_clients_that_say_nothing_more() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        assert (await read_answer(reader))[1] == b"done"
        (codec,) = (http(connection) for connection in stage.context.connections.values())
        assert codec is not None

        def idle(seconds: float) -> bool:
            patience.enforce(codec, codec.touched + seconds, Timeouts())
            return not codec.transport.is_closing()

        assert idle(600)
        codec.drain()
        assert idle(patience.RETIRING_SECONDS - 1)
        assert not idle(patience.RETIRING_SECONDS + 1)

    play(answering(lambda head, body: ok(b"done")), scene)


def test_idle_connections_close_on_both_sides() -> None:
    gone = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b""))
        assert await reader.read() == b""
        gone.set()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET)
        await read_answer(reader)
        assert await reader.read() == b""
        await gone.wait()
        await idle(stage)

    play(app, scene, timeouts={"idle": 0.3})


def test_a_busy_pool_is_still_swept_and_shared_later() -> None:
    """A pool whose connections are all busy when the sweep comes must not be forgotten with them."""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.12)  # while sweeps come
            writer.write(ok(b""))

    async def scene(stage: Stage) -> None:
        for number in range(3):
            reader, writer = await stage.connect()
            writer.write(GET)
            await read_answer(reader)
            writer.close()
            # a new snapshot: routes are made anew
            stage.publish(stage.context.view.resolve("10.96.0.1", 80).endpoints)
            assert stage.upstream_connections == 1, number

    play(app, scene)


# -- clients that are gone, or leave halfway --


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nabc", GET, GET * 5, UPGRADE]
)
def test_a_client_gone_at_any_point_leaves_nothing(sent: bytes, by_reset: bool) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            await packet()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(100):
                writer.write(bytes(10_000))
                await writer.drain()

    async def scene(stage: Stage) -> None:
        for wait in (0, 0.01, 0.04):
            _, writer = await stage.connect()
            writer.write(sent)
            await asyncio.sleep(wait)  # at any point
            if by_reset:
                reset(writer.transport)
            else:
                writer.close()
        await idle(stage)
        total = sum(counted(stage).values())
        assert total <= 3 * max(1, sent.count(b"HTTP/1.1"))

    play(app, scene)


def test_a_client_that_ends_its_side_still_gets_every_answer() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % number for number in range(5)))
        writer.write_eof()
        answers = await reader.read()
        assert [answers.count(b"/%d|" % number) for number in range(5)] == [1] * 5
        assert answers.count(b"onnection: close") == 1
        await idle(stage)
        assert counted(stage) == {("200", "-"): 5}

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            answer = echo_target(*await read_request(reader))
            await packet()
            writer.write(answer)

    play(app, scene)


def test_who_pipelines_and_does_not_read_is_not_answered_into_memory() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(ok(bytes(1 << 20)))
            await writer.drain()

    async def scene(stage: Stage) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, stage.front.sockets[0].getsockname())
        reader, writer = await asyncio.open_connection(sock=raw, limit=65536)
        writer.write(GET * 200)

        def held() -> int:
            """Bytes that wait for the client."""
            codecs = [http(connection) for connection in stage.context.connections.values()]
            return sum(codec.transport.get_write_buffer_size() for codec in codecs if codec is not None)  # type: ignore[attr-defined]

        assert await steady(held) < 4 << 20
        for _ in range(200):
            _, body = await read_answer(reader)
            assert len(body) == 1 << 20
        writer.close()
        await idle(stage)
        assert counted(stage) == {("200", "-"): 200}

    play(app, scene)


# -- upgrades --


def test_what_follows_a_declined_upgrade_in_the_same_packet_is_answered() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(UPGRADE + GET + UPGRADE + b"POST /p HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc" + GET)
        for target in (b"/ws|", b"/|", b"/ws|", b"/p|abc", b"/|"):
            assert (await read_answer(reader))[1] == target
        writer.close()
        await idle(stage)

    play(answering(echo_target), scene)


def test_an_upgrade_behind_another_request_waits_its_turn() -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            await packet()
            if b"/ws" in head:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                break
            writer.write(ok(b"first"))
        while data := await reader.read(100):
            writer.write(data.upper())

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(GET + UPGRADE + b"frames, GET / HTTP/1.1\r\n\r\n")
        assert (await read_answer(reader))[1] == b"first"
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(26) == b"FRAMES, GET / HTTP/1.1\r\n\r\n"
        writer.close()
        await idle(stage)

    play(app, scene)


# -- heads, trailers and limits --


@pytest.mark.parametrize("pieces", [1, 30])
def test_the_limit_on_a_head_does_not_depend_on_packets(pieces: int) -> None:
    async def scene(stage: Stage) -> None:
        for size, status in ((7000, b"200"), (9000, b"431")):
            request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nX: " + b"x" * size + b"\r\n\r\n"
            reader, writer = await stage.connect()
            step = len(request) // pieces + 1
            for at in range(0, len(request), step):
                writer.write(request[at : at + step])
                await asyncio.sleep(0.001)  # a packet each
            assert (await reader.read())[9:12] == status
            writer.close()
        await idle(stage)

    play(answering(echo_target), scene, limits={"headerBytes": 8192})


def test_trailers_are_bounded() -> None:
    async def scene(stage: Stage) -> None:
        for trailer in (b"X: " + b"x" * 3_000_000, b"X: y\r\n" * 10_000):
            reader, writer = await stage.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
            await packet()
            try:
                writer.write(trailer)
                assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 431 ")
            except ConnectionResetError:
                pass
            writer.close()
        await idle(stage)
        assert counted(stage) == {("431", "DPE"): 2}

    play(answering(echo_target), scene, limits={"headerBytes": 8192})


def test_an_http10_client_without_a_host_gets_its_request_through_as_http11() -> None:
    app = StrictApp()

    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert dict(app.requests[0].fields)[b"host"] == b"10.96.0.1:80"
        reader, writer = await stage.connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"connection: keep-alive\r\n" in (await read_answer(reader))[0]
        writer.close()

    play(app, scene)


def test_fields_of_the_servers_hop_stay_behind() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for _ in range(3):
            writer.write(GET)
            head, body = await read_answer(reader)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body == b"abc"
            for gone in (b"X-Hop", b"Keep-Alive: ", b"Proxy-Connection"):
                assert gone not in head
        writer.close()
        assert stage.upstream_connections == 1

    answers = iter((
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nConnection: keep-alive\r\nX-Hop: 1\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nProxy-Connection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
    ))  # fmt: skip
    play(answering(lambda head, body: next(answers)), scene)


def test_a_post_meets_no_connection_that_the_server_has_closed() -> None:
    """The end of an idle upstream connection is known before the next request, so a POST, which may
    not be sent twice, does not fail.
    """

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok((await read_request(reader))[1]))

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for number in range(5):
            writer.write(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\n%d" % number)
            head, body = await read_answer(reader)
            assert body == b"%d" % number, head
            await packet()
        writer.close()

    play(app, scene)


# -- much --


@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_megabytes_each_way_in_bounded_memory(chunked: bool) -> None:
    piece, count = bytes(range(256)) * 1024, 200

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An echo that streams; upload and download run at the same time."""
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"chunked" in head) == chunked
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        left = count * len(piece)
        while left:
            if chunked:
                data = await reader.readexactly(int(await reader.readuntil(b"\r\n"), 16))
                await reader.readexactly(2)
            else:
                data = await reader.read(65536)
            left -= len(data)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        if chunked:
            await reader.readexactly(5)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()

        async def send() -> None:
            writer.write(b"POST / HTTP/1.1\r\nHost: web\r\n")
            writer.write(
                b"Transfer-Encoding: chunked\r\n\r\n"
                if chunked
                else b"Content-Length: %d\r\n\r\n" % (count * len(piece))
            )
            for _ in range(count):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
            if chunked:
                writer.write(b"0\r\n\r\n")

        tracemalloc.start()
        sending = asyncio.create_task(send())
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        kept = bytearray()
        matched = 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            kept += await reader.readexactly(size)
            await reader.readexactly(2)
            while len(kept) >= len(piece):
                assert kept[: len(piece)] == piece
                del kept[: len(piece)]
                matched += 1
        await sending
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (matched, len(kept)) == (count, 0)
        assert peak < 16 << 20, "buffers of five parties, not the body"
        writer.close()

    play(app, scene)
