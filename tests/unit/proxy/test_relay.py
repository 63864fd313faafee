"""Bytes through the relay, plain and through mTLS between two nodes: every byte, in both
directions, with both kinds of end.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
from collections.abc import Awaitable, Callable

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.proxy.transport import reset
from tests.unit.proxy.http2_wire import SETTLED
from tests.unit.proxy.nodes import Nodes, Streams, play
from tests.waiting import packet, quiet, steady

Reach = Callable[[Nodes], Awaitable[Streams]]
WAYS = pytest.mark.parametrize("reach", [pytest.param(Nodes.dial, id="plain"), pytest.param(Nodes.connect, id="mtls")])
pytestmark = WAYS


async def pour(writer: asyncio.StreamWriter, data: bytes, seed: int) -> None:
    """Write *data* in random pieces, now and then pausing, and end this direction."""
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size = dice.choice((1, 2, 100, 1460, 16384, 65537, 300_000))
        writer.write(data[at : at + size])
        at += size
        if dice.random() < 0.1:
            await asyncio.sleep(0)
        await writer.drain()
    writer.write_eof()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(70_000):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("seed", range(3))
def test_random_pieces_in_both_directions_at_once(reach: Reach, tls: dict[str, Contexts], seed: int) -> None:
    up, down = random.Random(seed).randbytes(3_000_000), random.Random(-seed).randbytes(3_000_001)
    seen: list[str] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sending = asyncio.create_task(pour(writer, down, seed))
        seen.append(hashlib.sha256(await reader.read()).hexdigest())
        await sending

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        sending = asyncio.create_task(pour(writer, up, seed + 1))
        assert await reader.read() == down
        await sending
        await nodes.settled()
        assert seen == [hashlib.sha256(up).hexdigest()]

    play(app, scene, tls, protocol="tcp")


def test_the_client_ends_first_and_reads_on(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        for _ in range(20):
            writer.write(question * 10_000)
            await writer.drain()
            await packet()

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"question" * 200_000
        writer.close()

    play(app, scene, tls, protocol="tcp")


def test_the_server_ends_first_and_reads_on(reach: Reach, tls: dict[str, Contexts]) -> None:
    heard = asyncio.Event()
    got = b""

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        writer.write(b"hello and goodbye")
        writer.write_eof()
        got = await reader.read()
        heard.set()

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        assert await reader.read() == b"hello and goodbye", "the server speaks first"
        for number in range(50):
            writer.write(bytes([number]) * 50_000)
            await writer.drain()
        writer.write_eof()
        await heard.wait()
        assert got == b"".join(bytes([number]) * 50_000 for number in range(50))

    play(app, scene, tls, protocol="tcp")


def test_the_server_ends_while_it_reads_slowly(reach: Reach, tls: dict[str, Contexts]) -> None:
    """Bytes that wait in the relay when the other direction ends must not be lost with it."""
    data = random.Random(5).randbytes(12_000_000)
    heard = asyncio.Event()
    got: list[bytes] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)  # every buffer on the way is full
        writer.write_eof()
        await quiet()
        while piece := await reader.read(200_000):
            got.append(piece)
            await asyncio.sleep(0)
        heard.set()

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        await pour(writer, data, 1)
        assert await reader.read() == b""
        await heard.wait()
        assert b"".join(got) == data

    play(app, scene, tls, protocol="tcp")


def test_a_reset_by_the_client_reaches_the_server(reach: Reach, tls: dict[str, Contexts]) -> None:
    outcome: list[object] = []
    done = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            outcome.append(await reader.read())
        except ConnectionResetError as error:
            outcome.append(type(error))
        done.set()

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        assert await reader.read(1) == b"x"
        reset(writer.transport)
        await done.wait()
        assert outcome == [ConnectionResetError]

    play(app, scene, tls, protocol="tcp")


def test_a_reset_by_the_server_reaches_the_client(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset(writer.transport)

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()

    play(app, scene, tls, protocol="tcp")


@pytest.mark.parametrize("upwards", [True, False])
def test_who_reads_slowly_holds_the_sender_back(reach: Reach, tls: dict[str, Contexts], upwards: bool) -> None:
    piece, count = b"p" * 262_144, 400
    sent = 0
    go = asyncio.Event()
    total: list[int] = []

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
            sent += 1
        writer.write_eof()

    async def receive(reader: asyncio.StreamReader) -> None:
        await go.wait()
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        total.append(size)

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (receive(reader) if upwards else send(writer))

    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        writer.transport.set_write_buffer_limits(65536)
        near = asyncio.create_task(send(writer) if upwards else receive(reader))
        await steady(lambda: sent)
        assert sent < count // 2, "kernel buffers hold some; the proxy must not hold the rest"
        go.set()
        await near
        writer.close()
        await nodes.settled()
        assert total == [count * len(piece)]

    play(app, scene, tls, protocol="tcp")


def test_a_server_that_begins_as_http2_and_does_not_end_is_held_back(reach: Reach, tls: dict[str, Contexts]) -> None:
    """Its client keeps silent on a port that nobody declared: a server of HTTP/2 would wait for it."""
    piece, count = b"p" * 262_144, 400
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SETTLED)
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
            sent += 1
        writer.write_eof()

    async def scene(nodes: Nodes) -> None:
        reader, _ = await reach(nodes)
        await steady(lambda: sent)
        assert sent < count // 2, "kernel buffers hold some; the proxy must not hold the rest"
        assert await reader.readexactly(len(SETTLED)) == SETTLED
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        assert size == count * len(piece)

    play(app, scene, tls, protocol="auto")


def test_a_thousand_at_once(reach: Reach, tls: dict[str, Contexts]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    opened = 0
    all_open = asyncio.Event()

    async def one(nodes: Nodes, number: int) -> None:
        reader, writer = await reach(nodes)
        word = b"%d " % number * 50
        writer.write(word)
        assert await reader.readexactly(len(word)) == word
        nonlocal opened
        opened += 1
        if opened == 1000:
            all_open.set()
        await all_open.wait()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    async def scene(nodes: Nodes) -> None:
        await asyncio.gather(*(one(nodes, number) for number in range(1000)))
        await nodes.settled()
        assert nodes.app_connections == 1000

    try:
        play(echo, scene, tls, protocol="tcp")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_closed_port_is_a_reset_and_is_counted(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.app.close()
        await asyncio.sleep(0)
        reader, _ = await reach(nodes)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await nodes.settled()
        taken = {kind: series for part in nodes.far.context.metrics.delta() for kind, series in part.items()}
        assert [count for count in taken["counts"] if count[1] == ("connect_failed",)]
        assert [values[:2] for _, labels, values in taken["tcp"] if labels[-1] == "UF"] == [[1, 1]], (
            "opened and closed under its flag"
        )

    play(echo, scene, tls, protocol="tcp")


def test_a_client_that_is_gone_at_once_leaves_nothing(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for _ in range(50):
            _, writer = await reach(nodes)
            reset(writer.transport)
        for _ in range(20):
            _, writer = await reach(nodes)
            writer.write(b"hello")
            writer.close()
            await asyncio.sleep(0)
        await nodes.settled()

    play(echo, scene, tls, protocol="tcp")


def test_a_relay_may_stand_still_for_a_day(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        for proxy in (nodes.near, nodes.far):
            for connection in list(proxy.context.connections.values()):
                assert connection.carriage is not None
                connection.carriage.sweep(proxy.context.now)
                connection.carriage.sweep(proxy.context.now + 86400)
                connection.carriage.sweep(proxy.context.now + 2 * 86400)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"

    play(echo, scene, tls, protocol="tcp")


def test_a_relay_that_stands_still_is_closed_where_a_bound_is_set(reach: Reach, tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await reach(nodes)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        await nodes.settled()

    play(echo, scene, tls, protocol="tcp", timeouts={"streamIdle": 0.3})
