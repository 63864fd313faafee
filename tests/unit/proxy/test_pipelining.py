"""Thousands of requests in one read: they are answered in order, few a turn of the loop, and little is kept of them."""

from __future__ import annotations

import asyncio
import socket

import pytest

from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule
from nodeagent.proxy.http1.turns import LARGEST_PORTION, PORTION_BYTES, REQUESTS_A_TURN
from tests.unit.proxy.nodes import STRANGER, Nodes
from tests.unit.proxy.nodes import play as play_nodes
from tests.unit.proxy.stage import Stage, answering, http, ok, play

COUNT = 6000
NUMBERS = answering(lambda head, body: ok(head.split()[1][1:] + b"-" + body + b";"))


def flood(address: tuple[str, int], data: bytes) -> bytes:
    """Send *data* at once and return everything that comes until the server closes."""
    with socket.create_connection(address) as connection:
        connection.settimeout(60)
        connection.sendall(data)
        received = b""
        while more := connection.recv(1 << 20):
            received += more
        return received


@pytest.mark.parametrize("body", [b"", b"x"])
def test_requests_that_come_at_once_are_answered_in_order_and_not_in_one_turn(body: bytes) -> None:
    length = b"Content-Length: 1\r\n" if body else b""
    requests = [
        b"GET /%d HTTP/1.1\r\nHost: a\r\n%b%b\r\n%b"
        % (at, length, b"Connection: close\r\n" if at == COUNT else b"", body)
        for at in range(COUNT + 1)
    ]
    begun, kept = [0], [0]

    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        most = [0, 0]

        def tick() -> None:
            now = sum(connection.requests for connection in stage.context.connections.values())
            for connection in stage.context.connections.values():
                codec = http(connection)
                if codec is not None:
                    kept[0] = max(kept[0], len(codec.queue))
                    most[0] = max(most[0], codec.turns.begun)
            begun[0] = now
            loop.call_soon(tick)

        tick()
        answered = await loop.run_in_executor(None, flood, stage.front.sockets[0].getsockname(), b"".join(requests))
        assert [part.rpartition(b"\r\n\r\n")[2] for part in answered.split(b";")[:-1]] == [
            b"%d-%b" % (at, body) for at in range(COUNT + 1)
        ]
        portion = PORTION_BYTES // len(requests[0])
        assert most[0] <= REQUESTS_A_TURN + portion + 1
        assert kept[0] <= portion + 1

    play(NUMBERS, scene)


def test_a_long_body_between_small_requests_arrives_whole() -> None:
    long = bytes(range(256)).replace(b";", b":") * 4000
    first = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(long), long)
    chunked = b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(long),
        long,
    )
    last = b"GET /c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    small = b"GET /s HTTP/1.1\r\nHost: a\r\n\r\n" * 200
    assert len(long) > 10 * LARGEST_PORTION

    async def scene(stage: Stage) -> None:
        sent = small + first + small + chunked + last
        answered = await asyncio.get_running_loop().run_in_executor(
            None, flood, stage.front.sockets[0].getsockname(), sent
        )
        assert answered.count(b"a-" + long) == 1
        assert answered.count(b"b-%x\r\n" % len(long)) + answered.count(b"b-" + long) >= 1
        assert answered.count(b"s-;") == 400

    play(NUMBERS, scene)


def test_thousands_that_are_refused_behind_one_that_takes_its_time(tls: object) -> None:
    """Each is refused when its turn comes, and none within the call that refused the one before."""
    denied = AuthorizationPolicy("default", "deny", "DENY", (Rule(operations=(Operation(paths=("/no",)),)),))

    async def scene(nodes: Nodes) -> None:
        requests = b"GET /yes HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n" * COUNT
        reader, writer = await nodes.dial(STRANGER)
        writer.write(requests + b"GET /no HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answered = await reader.read(-1)
        assert answered.count(b"HTTP/1.1 403") == COUNT + 1
        assert answered.startswith(b"HTTP/1.1 200")

    play_nodes(NUMBERS, scene, tls, protocol="http", policies=(denied,))  # type: ignore[arg-type]
