"""The daemon's HTTP server against well-meaning and hostile clients, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.errors import ConfigError, KernelError
from nodeagent.telemetry.http_request import BadRequestError, parse
from nodeagent.telemetry.http_server import EVERYWHERE, LOCALHOST, HttpServer, Response, ServerLimits, serve, serve_unix
from tests.waiting import DEADLINE, packet, steady, until

QUICK = ServerLimits(connections=8, request_seconds=0.3, idle_seconds=0.3, answer_seconds=0.5)


async def hello(query: Mapping[str, str]) -> Response:
    return Response.json(dict(query))


async def fails(query: Mapping[str, str]) -> Response:
    raise KernelError("the map is gone: was bpffs unmounted?")


async def broken(query: Mapping[str, str]) -> Response:
    raise ZeroDivisionError("secret")


async def stream(query: Mapping[str, str]) -> Response:
    return Response(pieces(int(query.get("n", "3"))))


def pieces(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield b"" if number == 1 else b"%d," % number * 10_000


ROUTES = {
    ("GET", "/hello"): hello,
    ("POST", "/reload"): hello,
    ("GET", "/fails"): fails,
    ("GET", "/broken"): broken,
    ("GET", "/stream"): stream,
}
GET = b"GET /hello?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    def runner(test: Callable[[], Awaitable[Any]]) -> Any:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(asyncio.wait_for(test(), DEADLINE))  # type: ignore[arg-type]

    return runner


async def exchange(server: HttpServer, data: bytes, *, end: bool = False) -> bytes:
    """Send *data* and return everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        if end:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


def test_a_connection_is_kept_and_answers_in_order(run: Any) -> None:
    async def test() -> bytes:
        server = await serve(ROUTES, limits=QUICK)
        answer = await exchange(
            server, GET + GET.replace(b"a=1", b"a=2") + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        await server.close()
        return answer

    answer = run(test)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b'{"a":"1"}') < answer.index(b'{"a":"2"}')
    assert answer.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\n",
            404,
            b"no such path; there is: /broken /fails /hello /reload /stream",
        ),
        (b"POST /hello HTTP/1.1\r\nHost: x\r\n", 405, b"/hello does not take POST"),
        (b"GET /reload HTTP/1.1\r\nHost: x\r\n", 405, b"/reload does not take GET"),
        (b"DELETE /hello HTTP/1.1\r\nHost: x\r\n", 405, b"DELETE"),
        (b"BREW /hello HTTP/1.1\r\nHost: x\r\n", 400, b"not a valid HTTP/1.1 request"),
        (b"GET /fails HTTP/1.1\r\nHost: x\r\n", 500, b"was bpffs unmounted?"),
        (b"GET /broken HTTP/1.1\r\nHost: x\r\n", 500, b"internal error"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, b"not a valid HTTP/1.1 request"),
        (b"PRI * HTTP/2.0\r\n", 405, b"PRI"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n", 400, b"not a valid HTTP/1.1 request"),
        (b"GET /hello?%ff%fe HTTP/1.1\r\nHost: x\r\n", 200, b"{}"),
        (b"GET /hello?" + b"a=1&" * 100 + b" HTTP/1.1\r\nHost: x\r\n", 400, b"fields"),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n", 431, b"at most 8192 bytes"),
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", 400, b"upgraded"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", 411, b"Content-Length"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n", 413, b"at most 65536 bytes"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400, b"not a valid"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n", 400, b"not a valid"),
        (
            b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            400,
            b"not a valid",
        ),
    ],
)
def test_wrong_requests_get_an_answer_that_says_why(run: Any, request_bytes: bytes, status: int, says: bytes) -> None:
    async def test() -> bytes:
        server = await serve(ROUTES, limits=QUICK)
        answer = await exchange(server, request_bytes + b"\r\n")
        await server.close()
        return answer

    head, _, body = run(test).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"%d" % status
    assert says in body
    assert b"secret" not in body


def test_a_body_is_read_and_the_connection_goes_on(run: Any) -> None:
    async def test() -> bytes:
        server = await serve(ROUTES, limits=QUICK)
        body = b"GET /fails HTTP/1.1\r\n\r\n" + b"x" * 40_000
        answer = await exchange(
            server, b"POST /reload?now=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) + GET
        )
        await server.close()
        return answer

    answer = run(test)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'{"now":"1"}' in answer


def test_streams_are_chunked_for_those_who_know_chunks(run: Any) -> None:
    async def test() -> tuple[bytes, bytes, bytes]:
        server = await serve(ROUTES, limits=QUICK)
        new = await exchange(server, b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        old = await exchange(server, b"GET /stream HTTP/1.0\r\n\r\n")
        head = await exchange(server, b"HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await server.close()
        return new, old, head

    new, old, head = run(test)
    body = b"0," * 10_000 + b"2," * 10_000
    assert (
        new.partition(b"\r\n\r\n")[2]
        == b"4e20\r\n" + body[:20_000] + b"\r\n4e20\r\n" + body[20_000:] + b"\r\n0\r\n\r\n"
    )
    assert old.partition(b"\r\n\r\n")[2] == body
    assert b"chunked" not in old.partition(b"\r\n\r\n")[0]
    assert head.endswith(b"\r\n\r\n") and b"Transfer-Encoding: chunked" in head


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /hello HTTP/1.1\r\nHost: ", b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx"],
)
def test_silent_and_slow_clients_are_let_go(run: Any, sent: bytes) -> None:
    async def test() -> None:
        server = await serve(ROUTES, limits=QUICK)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        async with asyncio.timeout(DEADLINE):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()
        await server.close()

    run(test)


def test_a_byte_at_a_time_does_not_extend_the_bound(run: Any) -> None:
    async def test() -> None:
        server = await serve(ROUTES, limits=QUICK)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(DEADLINE):
            try:
                while not writer.is_closing():  # uvloop's closed transport takes no more writing
                    writer.write(b"G")
                    await writer.drain()
                    await packet()
            except ConnectionError:
                pass
        await server.close()

    run(test)


def test_a_client_that_does_not_read_is_let_go_and_costs_little_memory(run: Any) -> None:
    made = 0

    def endless() -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 65536

    async def flood(query: Mapping[str, str]) -> Response:
        return Response(endless())

    async def test() -> None:
        server = await serve({("GET", "/flood"): flood}, limits=QUICK)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await steady(lambda: made) < 200  # what the kernel's buffers hold
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()
        await server.close()

    run(test)


def ended(reader: asyncio.StreamReader) -> bool:
    return reader.at_eof() or reader.exception() is not None


def test_many_idle_connections_do_not_keep_a_probe_out(run: Any) -> None:
    """Beyond the bound the connection that has waited longest goes: a pod cannot make the node
    unready by holding connections.
    """

    async def test() -> None:
        server = await serve(ROUTES, limits=ServerLimits(connections=8))
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
        assert b"200 OK" in await exchange(server, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await until(lambda: sum(ended(reader) for reader, _ in idle) >= 43, "all but the bound's are closed")
        assert sum(ended(reader) for reader, _ in idle) == 43
        for _, writer in idle:
            writer.close()
        await server.close()

    run(test)


def test_pipelined_requests_do_not_pile_up(run: Any) -> None:
    """10,000 requests at once: they are answered one by one, others are served meanwhile."""

    made = 0

    async def counted(query: Mapping[str, str]) -> Response:
        nonlocal made
        made += 1
        return await hello(query)

    async def test() -> None:
        server = await serve({**ROUTES, ("GET", "/hello"): counted}, limits=ServerLimits())
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET * 10_000)
        count = 0
        assert b"200 OK" in await exchange(server, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert made < 10_000, "the other's turn came when all had been answered"
        while count < 10_000:
            count += (await reader.readuntil(b"}\n")).count(b"HTTP/1.1 200 OK")
        writer.close()
        await server.close()

    run(test)


def test_all_addresses_of_both_families(run: Any) -> None:
    async def test() -> tuple[list[int], int]:
        server = await serve(ROUTES, hosts=EVERYWHERE)
        port, found = server.port, []
        for host in ("127.0.0.1", "::1", "127.0.0.2"):
            _, writer = await asyncio.open_connection(host, port)
            found.append(writer.get_extra_info("peername")[1])
            writer.close()
        await server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        return found, port

    found, port = run(test)
    assert found == [port] * 3


def test_localhost_is_localhost_only(run: Any) -> None:
    async def test() -> None:
        server = await serve(ROUTES, hosts=LOCALHOST)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.2", server.port)
        await server.close()

    run(test)


def test_a_port_in_use_is_an_error_that_says_so(run: Any) -> None:
    async def test() -> None:
        first = await serve(ROUTES)
        with pytest.raises(
            ConfigError, match=f"127.0.0.1 port {first.port}: Address already in use: does another agent run here"
        ):
            await serve(ROUTES, port=first.port)
        await first.close()
        again = await serve(ROUTES, port=first.port)
        await again.close()

    run(test)


def test_the_unix_socket_is_the_owners_and_replaces_a_dead_one(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    socket.socket(socket.AF_UNIX).bind(str(path))  # what a killed agent leaves

    async def test() -> None:
        first = await serve_unix(ROUTES, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        second = await serve_unix(ROUTES, path)
        await first.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"}\n")
        writer.close()
        await second.close()

    run(test)
    assert not path.exists()


def test_a_unix_socket_that_cannot_be_made(run: Any, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="runtimeDirectory"):
            await serve_unix(ROUTES, tmp_path / "no" / "admin.sock")
        with pytest.raises(ConfigError, match="too long"):
            await serve_unix(ROUTES, tmp_path / ("x" * 200))

    run(test)


def test_closing_lets_nobody_hang(run: Any) -> None:
    async def test() -> None:
        server = await serve(ROUTES)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await reader.readuntil(b"}\n")
        await asyncio.wait_for(server.close(), DEADLINE)
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.close()

    run(test)


def test_curl_understands_it(run: Any) -> None:
    async def test() -> bytes:
        server = await serve(ROUTES)
        url = f"http://127.0.0.1:{server.port}"
        first = ["-sS", "--max-time", "60", f"{url}/stream?n=50", "-o", "/dev/null", "-w", "%{size_download} "]
        command = ["curl", *first, "--next", "-sS", "-X", "POST", f"{url}/reload?a=b"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        await server.close()
        return output

    size, body = run(test).split(b" ", 1)
    assert int(size) == sum(map(len, pieces(50)))
    assert json.loads(body) == {"a": "b"}


ANY = st.binary(max_size=60)
NEARLY = st.tuples(
    st.sampled_from([b"GET ", b"POST /", b"HEAD /?"]),
    ANY,
    st.sampled_from([b" HTTP/1.1\r\nHost: x", b" HTTP/1.0\r\n"]),
    ANY,
)


@settings(max_examples=300)
@given(st.binary(max_size=200) | NEARLY.map(b"".join))
def test_no_head_can_do_more_than_be_refused(head: bytes) -> None:
    try:
        request = parse(head + b"\r\n\r\n", 100)
    except BadRequestError as refusal:
        request, status = None, refusal.status
    else:
        status = 200
    assert status in (200, 400, 405, 411, 413)
    if request:
        assert request.method in ("GET", "HEAD", "POST")
        assert 0 <= request.length <= 100
