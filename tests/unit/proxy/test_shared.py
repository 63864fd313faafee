"""Shared connections between two agents: when there are any, what passes through them as it would
without, and whom they never bring together.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from nodeagent.errors import CERTIFICATE_ENDED, CONNECT_FAILED, HTTP2_BROKEN, NO_CERTIFICATE
from nodeagent.identity.tls import HTTP_ALPN, Contexts
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.context import Context
from nodeagent.proxy.dial import Dial, DialError, Dialled, Inside
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.patience import RETIRING_SECONDS
from nodeagent.proxy.http1.downstream import Http1Downstream
from nodeagent.proxy.http1.upstream import Http1Upstream
from nodeagent.proxy.http2 import frames as wire
from nodeagent.proxy.http2.frames import frame
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.sender import CONNECTION_WINDOW, PATIENCE, SHARES, WIDENED
from nodeagent.proxy.ledger import Ledger
from nodeagent.proxy.permit import OPEN
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.pool import Pool
from nodeagent.proxy.routing import Routing
from nodeagent.proxy.shared.client import MOST_MOVES, REFUSED_SECONDS, SharedPool, SharedUpstream
from nodeagent.proxy.shared.heads import TAKEN, Carried, connect_block, read_connect
from nodeagent.proxy.shared.lease import Lease
from nodeagent.proxy.shared.link import LEAST_TAKEN, LOST_SECONDS, PING_SECONDS, STREAM_WINDOW, STREAMS, UNSENT
from nodeagent.proxy.shared.server import REFUSALS, WARNED_SECONDS, SharedCarriage, SharedDownstream
from nodeagent.proxy.shared.stream import KEPT, SharedStream
from nodeagent.proxy.tcp import Relay
from nodeagent.proxy.transport import Transport
from nodeagent.vocabulary import SpiffeId
from tests.unit.proxy.http2_wire import SETTLED, Frame, Pipe, Stages, Turns, accepted, context, enrolled, frames
from tests.unit.proxy.nodes import Nodes, Streams
from tests.unit.proxy.nodes import play as play_nodes
from tests.unit.proxy.stage import answering, ok, read_request
from tests.waiting import packet, steady, until

play = partial(play_nodes, sharedConnections=True)

URI = b"URI=spiffe://cluster.local/ns/default/sa/client"


def shared(nodes: Nodes) -> list[Connection]:
    """Return the shared connections that the server's node has open."""
    return [each for each in nodes.far.context.connections.values() if each.protocol == "shared"]


async def get(streams: Streams, path: str = "/", more: str = "") -> tuple[bytes, bytes]:
    """Return head and body of the answer to a request by *streams*."""
    reader, writer = streams
    writer.write(f"GET {path} HTTP/1.1\r\nHost: web\r\n{more}\r\n".encode())
    return await read_request(reader)


class Held:
    """An application whose answers wait for each other: for *count* requests that are there at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.heads: list[bytes] = []
        self.all = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            await self.answer(head, writer)

    async def answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer the request with *head*, when all are there."""
        self.heads.append(head)
        if len(self.heads) >= self.count:
            self.all.set()
        await self.all.wait()
        writer.write(ok(head.split(b" ")[1]))


async def together(nodes: Nodes, count: int) -> list[Streams]:
    """Have *count* clients ask at once, the first a moment before the others; return their connections."""
    first = await nodes.connect()
    asked = [asyncio.ensure_future(get(first, "/0"))]
    await until(lambda: nodes.app_connections)
    others = [await nodes.connect() for _ in range(1, count)]
    asked += [asyncio.ensure_future(get(each, f"/{at}")) for at, each in enumerate(others, 1)]
    answers = await asyncio.gather(*asked)
    assert [body for _, body in answers] == [b"/%d" % at for at in range(count)]
    return [first, *others]


def test_many_clients_share_one_connection_and_each_is_a_connection_of_the_proved_identity(
    tls: dict[str, Contexts],
) -> None:
    app = Held(20)

    async def scene(nodes: Nodes) -> None:
        await together(nodes, 20)
        (link,) = shared(nodes)
        others = [each for each in nodes.far.context.connections.values() if each is not link]
        assert [each.protocol for each in others] == ["http"] * 20
        assert {each.peer.identity for each in others} == {"spiffe://cluster.local/ns/default/sa/client"}
        assert {each.peer.security for each in others} == {"mutual_tls"}
        # the first was alone, the others are streams
        assert len({each.peer_text for each in others}) == 2
        assert all(URI in head for head in app.heads)

    play(app, scene, tls, protocol="http")


def test_who_is_alone_has_a_connection_of_its_own(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for _ in range(3):
            streams = await nodes.connect()
            for _ in range(3):
                assert (await get(streams))[1] == b"ok"
            streams[1].close()
        assert not shared(nodes)
        assert [each.protocol for each in nodes.far.context.connections.values()] == ["http"]

    play(answering(lambda head, body: ok(b"ok")), scene, tls, protocol="http")


@pytest.mark.parametrize("count", [1, 3])
def test_no_server_is_asked_again_over_a_connection_whose_certificate_has_ended(
    tls: dict[str, Contexts], count: int
) -> None:
    """Neither over one of its own nor over a stream; what is under way goes on."""

    async def scene(nodes: Nodes) -> None:
        (client, *_) = await together(nodes, count)
        (pool,) = [each for each in nodes.near.routing.pools() if each.idle()]
        proved: list[Any] = [link.lease for link in pool.shared._links]
        proved += [each for each in pool.idle() if each.stream is None]
        assert len(proved) == (1 if count == 1 else 2)
        before = list(nodes.far.context.connections.values())
        for each in proved:
            assert time.time() < each.expires < time.time() + 3700
            each.expires = 1.0
        await until(lambda: all(each.closed is not None for each in before))
        assert not pool.idle()
        assert (await get(client, "/again"))[1] == b"/again"

    play(Held(count), scene, tls, protocol="http")


def test_nothing_is_shared_where_that_is_switched_off(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        await together(nodes, 5)
        assert not shared(nodes)

    play(Held(5), scene, tls, protocol="http", sharedConnections=False)


def test_a_peer_that_is_no_agent_gets_what_it_knows(tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch) -> None:
    # as a sidecar's Envoy, and as an agent before this version
    tls["server"].server.set_alpn_protocols([HTTP_ALPN])

    async def scene(nodes: Nodes) -> None:
        await together(nodes, 5)
        assert not shared(nodes)
        assert len(nodes.far.context.connections) == 5

    try:
        play(Held(5), scene, tls, protocol="http")
    finally:
        tls["server"].server.set_alpn_protocols(["nodeagent-h2", "istio-h2", HTTP_ALPN, "istio"])


def test_a_policy_judges_each_request_and_its_change_ends_what_it_forbids(tls: dict[str, Contexts]) -> None:
    deny = AuthorizationPolicy("default", "deny", "DENY", (Rule(operations=(Operation(paths=("/shut",)),)),))
    app = Held(3)

    async def scene(nodes: Nodes) -> None:
        clients = await together(nodes, 3)
        app.count = 100
        app.all.clear()
        shut = asyncio.ensure_future(get(clients[1], "/shut"))
        kept = asyncio.ensure_future(get(clients[2], "/kept"))
        await until(lambda: len(app.heads) == 5)
        await nodes.protect((deny,))
        assert b" 403 " in (await shut)[0]
        app.all.set()
        assert b" 200 " in (await kept)[0]
        assert b" 403 " in (await get(clients[1], "/shut"))[0]
        assert b" 200 " in (await get(clients[1], "/open"))[0]
        assert len(shared(nodes)) == 1

    play(app, scene, tls, protocol="http")


RAW = b"HTTP/1.1 200 OK\r\nX-Spelled-So: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nSum: 1\r\n\r\n"


async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An application with what HTTP/2 has no words for."""
    while True:
        head, body = await read_request(reader)
        path = head.split(b" ")[1]
        if path == b"/continue":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok(body))
        elif path == b"/upgrade":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            while piece := await reader.read(65536):
                writer.write(piece)
        elif path == b"/chunked":
            writer.write(RAW)
        elif path == b"/spelling":
            writer.write(ok(head))
        elif path == b"/wait":
            await asyncio.Event().wait()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if head[:4] == b"HEAD" else b"whole"))


def test_what_is_only_in_http1_passes_as_it_is(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        alone = await nodes.connect()
        alone[1].write(b"GET /wait HTTP/1.1\r\nHost: web\r\n\r\n")
        await until(lambda: nodes.app_connections)
        reader, writer = streams = await nodes.connect()
        head, body = await get(streams, "/spelling", "X-Spelled-So: yes\r\n")
        assert b"\r\nX-Spelled-So: yes\r\n" in body
        assert len(shared(nodes)) == 1
        head, body = await get(streams, "/chunked")
        assert b"X-Spelled-So" in head
        assert body == b"abcSum: 1\r\n"
        writer.write(b"HEAD /head HTTP/1.1\r\nHost: web\r\n\r\n")
        assert b"Content-Length: 5" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"POST /continue HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        assert b" 103 " in await reader.readuntil(b"\r\n\r\n")
        assert (await read_request(reader))[1] == b"hi"
        writer.write(b"GET /upgrade HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"u" * 300_000)
        assert await reader.readexactly(300_000) == b"u" * 300_000

    play(speak, scene, tls, protocol="http")


def test_readers_that_stand_still_hold_nobody_else_back(tls: dict[str, Contexts]) -> None:
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            head, _ = await read_request(reader)
            if b"/large" not in head:
                writer.write(ok(b"small"))
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"l" * 100_000)
                sent += 100_000
                await writer.drain()

    async def scene(nodes: Nodes) -> None:
        slow = [await nodes.connect() for _ in range(40)]
        for _, writer in slow:
            writer.write(b"GET /large HTTP/1.1\r\nHost: web\r\n\r\n")
        stood = await steady(lambda: sent)
        assert stood < 40 * 40_000_000
        assert nodes.far.context.pods["server"].held.bytes < 40 * (1 << 20)
        assert len(shared(nodes)) <= 2
        fast = await nodes.connect()
        for _ in range(20):
            assert (await get(fast))[1] == b"small"
        whole = 0
        await slow[7][0].readuntil(b"\r\n\r\n")
        while whole < 50_000_000:
            whole += len(await slow[7][0].read(1 << 18))
        assert whole == 50_000_000

    play(app, scene, tls, protocol="http")


def test_slow_readers_who_fill_what_their_pod_may_hold_cost_no_other_request(tls: dict[str, Contexts]) -> None:
    sent = 0

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            head, _ = await read_request(reader)
            if b"/large" not in head:
                writer.write(ok(b"small"))
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"l" * 100_000)
                sent += 100_000
                await writer.drain()

    async def scene(nodes: Nodes) -> None:
        slow = [await nodes.connect() for _ in range(60)]
        for _, writer in slow:
            writer.write(b"GET /large HTTP/1.1\r\nHost: web\r\n\r\n")
        await steady(lambda: sent)
        links = shared(nodes)
        assert links
        fast = [await nodes.connect() for _ in range(20)]
        for _ in range(5):
            assert [body for _, body in [await get(each) for each in fast]] == [b"small"] * 20
        assert all(each.closed is None and each.reason is None for each in links)

    play(app, scene, tls, protocol="http", limits={"heldBytesPerPod": 16777216})


@pytest.mark.parametrize("end", ["renewed", "released"])
def test_a_drain_moves_clients_over_without_a_failed_request(tls: dict[str, Contexts], end: str) -> None:
    async def scene(nodes: Nodes) -> None:
        stop = False
        answers: list[bytes] = []

        async def asks() -> None:
            streams = await nodes.connect()
            while not stop:
                head, _ = await get(streams)
                answers.append(head.split(b" ")[1])
                if b"onnection: close" in head:
                    streams = await nodes.connect()

        tasks = [asyncio.ensure_future(asks()) for _ in range(16)]
        await until(lambda: len(answers) > 100 and shared(nodes))
        (link,) = shared(nodes)
        # as when the server's worker is told that its certificate was renewed, or drains; or that it is released
        getattr(nodes.far.revocation, end)(link.pod)
        await until(lambda: link.closed is not None)
        count = len(answers)
        await until(lambda: len(answers) > count + 100 and shared(nodes))
        stop = True
        await asyncio.gather(*tasks)
        assert set(answers) == {b"200"}

    play(answering(lambda head, body: ok(b"ok")), scene, tls, protocol="http")


async def says(streams: Streams, word: bytes) -> bool:
    """Say whether an application that echoes answers *word*."""
    reader, writer = streams
    if writer.is_closing():
        return False
    writer.write(word)
    try:
        return await reader.readexactly(len(word)) == word
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def echoing(nodes: Nodes, count: int) -> list[Streams]:
    """Return so many connections to an application that echoes; all but the first are streams."""
    clients = []
    for _ in range(count):
        clients.append(await nodes.connect())
        assert await says(clients[-1], b"hello")
    return clients


def test_a_clients_certificate_that_ends_ends_the_connection_with_all_its_streams(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        alone, *streams = await echoing(nodes, 4)
        (link,) = shared(nodes)
        inside = [each for each in nodes.far.context.connections.values() if each.peer_text == link.peer_text]
        assert {each.expires for each in inside} == {link.expires}
        assert len(inside) == 4
        nodes.refused(nodes.far)
        for each in inside:
            each.expires = 1.0
        await until(lambda: all(each.closed is not None for each in inside))
        assert [await says(each, b"again") for each in (alone, *streams)] == [True, False, False, False]
        assert set(nodes.refused(nodes.far)) == {CERTIFICATE_ENDED.code}

    play(echo, scene, tls, protocol="tcp")


def test_a_connection_shows_no_certificate_that_was_renewed_to_new_streams(tls: dict[str, Contexts]) -> None:
    """Those that it has go on, and it ends behind the last."""

    async def scene(nodes: Nodes) -> None:
        clients = await echoing(nodes, 3)
        (old,) = shared(nodes)
        client = nodes.near.context.pods["client"]
        client.certify(replace(tls["client"]))
        (pool,) = nodes.near.routing.pools()
        await until(lambda: all(link.lease.retired for link in pool.shared._links))
        clients += [await nodes.connect() for _ in range(2)]
        assert [await says(each, b"again") for each in clients] == [True] * 5
        await until(lambda: len(shared(nodes)) == 2)
        for _, writer in clients[:3]:
            writer.close()
        await until(lambda: old.closed is not None)
        assert [await says(each, b"still") for each in clients[3:]] == [True] * 2

    play(echo, scene, tls, protocol="tcp")


def test_an_agent_that_shares_no_more_fails_no_request(tls: dict[str, Contexts]) -> None:
    """As one that was set so, or an older one that takes its place."""

    async def scene(nodes: Nodes) -> None:
        stop = False
        statuses: list[bytes] = []
        failed: list[tuple[bytes, bytes]] = []

        async def asks() -> None:
            streams = await nodes.connect()
            while not stop:
                head, body = await get(streams)
                statuses.append(head.split(b" ")[1])
                if statuses[-1] != b"200":
                    failed.append((head, body))
                if b"onnection: close" in head:
                    streams = await nodes.connect()

        tasks = [asyncio.ensure_future(asks()) for _ in range(16)]
        await until(lambda: len(statuses) > 100 and shared(nodes))
        tls["server"].server.set_alpn_protocols(["istio-h2", HTTP_ALPN, "istio"])
        nodes.far.revocation.renewed(nodes.far.context.pods["server"])
        await until(lambda: not shared(nodes))
        count = len(statuses)
        await until(lambda: len(statuses) > count + 200)
        stop = True
        await asyncio.gather(*tasks)
        assert failed == []
        assert not shared(nodes)

    try:
        play(answering(lambda head, body: ok(b"ok")), scene, tls, protocol="http")
    finally:
        tls["server"].server.set_alpn_protocols(["nodeagent-h2", "istio-h2", HTTP_ALPN, "istio"])


def test_a_lost_connection_costs_only_what_may_not_be_sent_again(tls: dict[str, Contexts]) -> None:
    app = Held(4)

    async def scene(nodes: Nodes) -> None:
        clients = await together(nodes, 4)
        app.count = 100
        app.all.clear()
        # the connection that is nobody else's goes to whoever asks first
        alone = asyncio.ensure_future(get(clients[0], "/alone"))
        await until(lambda: len(app.heads) == 5)
        again = asyncio.ensure_future(get(clients[1], "/again"))
        clients[2][1].write(b"POST /once HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi")
        await until(lambda: len(app.heads) == 7)
        (link,) = shared(nodes)
        assert link.carriage is not None
        link.carriage.reset()
        await until(lambda: len(app.heads) == 8)
        app.all.set()
        assert ((await again)[1], (await alone)[1]) == (b"/again", b"/alone")
        assert b" 503 " in await clients[2][0].readuntil(b"\r\n\r\n")

    play(app, scene, tls, protocol="http")


def test_what_was_not_looked_at_goes_over_another_connection(tls: dict[str, Contexts]) -> None:
    """The server's agent has taken its last stream; what is opened before the other one knows is asked once."""
    app = Held(4)

    async def scene(nodes: Nodes) -> None:
        clients = await together(nodes, 4)
        app.count = 100
        app.all.clear()
        busy = [asyncio.ensure_future(get(each, "/busy")) for each in clients]
        await until(lambda: len(app.heads) == 8)
        (connection,) = shared(nodes)
        carriage = connection.carriage
        assert isinstance(carriage, SharedCarriage)
        carriage.link.session.leave()
        fresh = [await nodes.connect() for _ in range(3)]
        for _, writer in fresh:
            writer.write(b"POST /once HTTP/1.1\r\nHost: web\r\nContent-Length: 70\r\n\r\n" + b"p" * 70)
        await packet()
        carriage.link.soon()
        await until(lambda: len(app.heads) == 11)
        app.all.set()
        assert [(await read_request(reader))[1] for reader, _ in fresh] == [b"/once"] * 3
        assert [(await each)[1] for each in busy] == [b"/busy"] * 4
        await until(lambda: connection.closed is not None)
        assert len(shared(nodes)) == 1

    play(app, scene, tls, protocol="http")


@pytest.mark.parametrize("more", [1000, 40_000, 200_000, 1_000_000])
def test_a_body_that_grows_while_its_stream_goes_elsewhere_comes_whole(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """What the second connection is told must begin where the request does: a body without its head would be
    read as requests.
    """
    dialling, go, connect = asyncio.Event(), asyncio.Event(), Dial.connect
    bodies: list[int] = []
    app = Held(4)

    async def slow(self: Dial, context: Context, inside: Inside, **options: Any) -> Any:
        if self.client:
            return await connect(self, context, inside, **options)
        dialling.set()
        await go.wait()
        return await connect(self, context, inside, **options)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            if b"/grows" in head:
                bodies.append(len(body))
                writer.write(ok(b"took"))
            else:
                await app.answer(head, writer)

    async def scene(nodes: Nodes) -> None:
        clients = await together(nodes, 4)
        app.count = 100
        app.all.clear()
        busy = [asyncio.ensure_future(get(each, "/busy")) for each in clients]
        await until(lambda: len(app.heads) == 8)
        (connection,) = shared(nodes)
        carriage = connection.carriage
        assert isinstance(carriage, SharedCarriage)
        carriage.link.session.leave()
        reader, writer = await nodes.connect()
        monkeypatch.setattr(Dial, "connect", slow)
        writer.write(b"POST /grows HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % (1000 + more) + b"p" * 1000)
        await packet()
        carriage.link.soon()
        await dialling.wait()
        for _ in range(more // 1000):
            writer.write(b"m" * 1000)
            await packet() if more <= 200_000 else None
        go.set()
        _, body = await read_request(reader)
        assert (bodies, body) == ([1000 + more], b"took")
        app.all.set()
        assert [(await each)[1] for each in busy] == [b"/busy"] * 4

    play(serve, scene, tls, protocol="http")


def test_much_both_ways_on_many_streams_comes_through(tls: dict[str, Contexts]) -> None:
    much = bytes(range(256)) * 16384

    async def both(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        writer.write(much)
        writer.write_eof()
        assert await reader.read() == much + b"bye"

    async def scene(nodes: Nodes) -> None:
        await asyncio.gather(*(both(nodes) for _ in range(12)))
        assert shared(nodes)

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Echo, and read on meanwhile."""
        while piece := await reader.read(65536):
            writer.write(piece)
        writer.write(b"bye")

    play(app, scene, tls, protocol="tcp")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.write(b"bye")


def test_tcp_connections_that_follow_each_other_are_streams(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for count in range(30):
            reader, writer = await nodes.connect()
            writer.write(b"%d" % count)
            writer.write_eof()
            assert await reader.read() == b"%dbye" % count
            writer.close()
        (link,) = shared(nodes)
        assert nodes.app_connections == 30
        await until(lambda: list(nodes.far.context.connections.values()) == [link])

    play(echo, scene, tls, protocol="tcp")


class Taking:
    """The server's side of a shared connection without a network: the client's agent is bytes made by hand."""

    def __init__(self, pod: PodState | None = None, identity: str = "client", **limits: int) -> None:
        self.turns = Turns()
        self.pipe = Pipe()
        self.context = context(self.turns, limits)
        self.connection = accepted(pod or enrolled())
        self.connection.peer = replace(self.connection.peer, identity=identity)
        self.connection.transport = self.pipe
        self.taken: list[SharedStream] = []
        ledger = Ledger(self.context, Routing(self.context))
        self.link = SharedDownstream(self.context, ledger, self.connection, self.enter)
        self.encoder = Encoder()
        self.feed(wire.PREFACE + SETTLED)

    def enter(self, stream: SharedStream, carried: Carried) -> None:
        stream.protocol = Reader(stream)
        self.taken.append(stream)

    def feed(self, *pieces: bytes) -> list[Frame]:
        """Let it read *pieces* at once; return the frames that it writes then."""
        if not self.pipe.closed:
            self.link.data_received(b"".join(pieces))
        return self.said()

    def said(self) -> list[Frame]:
        """Return the frames that it writes now."""
        self.turns.run()
        written, self.pipe.written = self.pipe.written, b""
        return frames(written)

    def head(self, number: int) -> bytes:
        """Return the head of the stream *number*."""
        return frame(wire.HEADERS, wire.END_HEADERS, number, self.encoder.encode(connect_block("http", b"10.0.0.1:80")))

    @property
    def held(self) -> int:
        """Bytes that the pod's connections make the proxy hold."""
        return self.connection.pod.held.bytes


class Reader:
    """Who uses a stream: keeps what comes."""

    def __init__(self, stream: SharedStream) -> None:
        self.stream = stream
        self.came = b""
        self.ended = 0
        self.lost = 0
        self.gives_up = False
        """It pauses and leaves at the first byte."""

    def data_received(self, data: bytes) -> None:
        self.came += data
        if self.gives_up:
            self.stream.pause_reading()
            self.stream.abort()

    def eof_received(self) -> bool:
        self.ended += 1
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += 1

    def pause_writing(self) -> None:
        pass

    resume_writing = pause_writing


def reader(stream: SharedStream) -> Reader:
    assert isinstance(stream.protocol, Reader)
    return stream.protocol


def test_nothing_is_held_of_a_stream_that_is_given_up_while_it_is_read() -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    reader(taking.taken[0]).gives_up = True
    taking.feed(frame(wire.DATA, 0, 1, b"d" * 1000))
    assert not taking.link.session.streams
    assert taking.held == 0


@pytest.mark.parametrize("end", ["drain", "idle", "lost"])
def test_what_is_whole_reaches_its_slow_reader_whatever_becomes_of_the_connection(end: str) -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    (stream,) = taking.taken
    slow = reader(stream)
    stream.pause_reading()
    stream.write_eof()
    taking.feed(frame(wire.DATA, wire.END_STREAM, 1, b"d" * 1000))
    assert not taking.link.session.streams
    if end == "drain":
        taking.link.drain()
        taking.feed(frame(wire.PING, wire.ACK, 0, bytes(8)))
        taking.link.sweep(0.0)
    elif end == "idle":
        taking.link.sweep(1e6)
        assert not taking.pipe.written
    else:
        taking.link.connection_lost(None)
    taking.turns.run()
    assert not taking.pipe.closed
    stream.resume_reading()
    taking.turns.run()
    assert (slow.came, slow.ended, slow.lost) == (b"d" * 1000, 1, 0)
    stream.close()
    taking.turns.run()
    assert slow.lost == 1
    taking.link.sweep(1e6)
    taking.feed(frame(wire.PING, wire.ACK, 0, bytes(8)))
    taking.link.sweep(1e6)
    assert taking.pipe.closed == (end != "lost")


def test_a_peer_that_never_ends_a_closed_stream_does_not_keep_it() -> None:
    taking = Taking()
    taking.feed(taking.head(1) + taking.head(3))
    closed, other = taking.taken
    closed.write(b"a" * wire.DEFAULT_WINDOW + b"more")
    closed.close()
    taking.turns.run()
    taking.context.now += 2
    taking.link.sweep(taking.context.now)
    assert set(taking.link.session.streams) == {1, 3}, "the peer has not got all of it"
    taking.feed(frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\0\xff") + frame(wire.WINDOW_UPDATE, 0, 1, b"\0\0\0\xff"))
    taking.link.sweep(taking.context.now)
    assert [(each.kind, each.number, each.code) for each in taking.feed()] == [(wire.RST_STREAM, 1, wire.CANCEL)]
    assert set(taking.link.session.streams) == set(taking.link.streams) == {3}
    other.close()
    taking.link.sweep(taking.context.now)
    assert set(taking.link.session.streams) == {3}, "it has had no time"


@pytest.mark.parametrize("end", ["read", "aborted", "lost"])
def test_what_a_slow_reader_leaves_is_held_also_when_its_stream_has_ended(end: str) -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    (stream,) = taking.taken
    slow = reader(stream)
    stream.pause_reading()
    stream.write_eof()
    taking.feed(*[frame(wire.DATA, 0, 1, b"d" * 10_000)] * 3)
    assert taking.held == 30_000
    taking.feed(frame(wire.DATA, wire.END_STREAM, 1, b"d" * 10_000))
    assert not taking.link.session.streams
    assert taking.held == 40_000
    if end == "lost":
        taking.link.connection_lost(None)
        taking.turns.run()
        assert taking.held == 40_000
    if end == "aborted":
        stream.abort()
    else:
        stream.resume_reading()
    taking.turns.run()
    assert taking.held == 0
    assert len(slow.came) == (0 if end == "aborted" else 40_000)


@pytest.mark.parametrize("ended", [True, False])
def test_what_a_peer_does_not_take_of_a_closed_stream_is_not_kept_for_ever(ended: bool) -> None:
    taking = Taking()
    taking.feed(taking.head(1), frame(wire.DATA, wire.END_STREAM, 1, b"d") if ended else b"")
    (closed,) = taking.taken
    closed.write(b"a" * (wire.DEFAULT_WINDOW + 10 * LEAST_TAKEN))
    closed.close()
    taking.turns.run()
    taking.link.sweep(taking.context.now)
    for taken in (LEAST_TAKEN, LEAST_TAKEN, 1):
        taking.context.now += RETIRING_SECONDS - 1
        taking.feed(wire.window_update(0, taken), wire.window_update(1, taken))
        taking.link.sweep(taking.context.now)
        assert set(taking.link.session.streams) == {1}, "it takes some of it"
    taking.context.now += 2
    taking.feed(wire.window_update(0, 1), wire.window_update(1, 1))
    taking.link.sweep(taking.context.now)
    assert [(each.number, each.code) for each in taking.said() if each.kind == wire.RST_STREAM] == [(1, wire.CANCEL)]
    assert (taking.held, taking.link.idle()) == (0, True)


@pytest.mark.parametrize("code", [wire.CANCEL, wire.NO_ERROR])
def test_what_the_peer_said_to_its_end_comes_before_its_reset(code: int) -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    (stream,) = taking.taken
    slow = reader(stream)
    stream.pause_reading()
    taking.feed(frame(wire.DATA, wire.END_STREAM, 1, b"d" * 1000), wire.rst_stream(1, code))
    assert (slow.came, slow.lost) == (b"", 0)
    stream.resume_reading()
    taking.turns.run()
    assert (slow.came, slow.ended, slow.lost) == (b"d" * 1000, 1, 1)
    assert not taking.link.streams


@pytest.mark.parametrize("use", ["nothing", "asks", "answers"])
def test_who_opens_streams_only_to_reset_them_floods(use: str) -> None:
    taking = Taking()
    said: list[Frame] = []
    for number in range(1, 4001, 2):
        said += taking.feed(taking.head(number), frame(wire.DATA, 0, number, b"d") if use == "asks" else b"")
        if use == "answers" and not taking.pipe.closed:
            taking.taken[-1].write(b"a")
            taking.turns.run()
        said += taking.feed(wire.rst_stream(number, wire.CANCEL))
    calm = [each.code for each in said if each.kind == wire.GOAWAY]
    assert calm == ([] if use == "answers" else [wire.ENHANCE_YOUR_CALM])
    assert taking.pipe.closed == (use != "answers")
    assert len(taking.taken) < 600 or use == "answers"


def test_who_gives_up_after_a_while_is_no_flood() -> None:
    """As many clients at once whose server answers too late."""
    taking = Taking()
    for first in range(1, 60 * 200, 200):
        numbers = range(first, first + 200, 2)
        taking.feed(*[taking.head(number) for number in numbers])
        taking.feed(*[frame(wire.DATA, 0, number, b"ask") for number in numbers])
        taking.context.now += 1.1
        taking.link.sweep(taking.context.now)
        said = taking.feed(*[wire.rst_stream(number, wire.CANCEL) for number in numbers])
        assert wire.GOAWAY not in [each.kind for each in said], first


def test_streams_that_their_pods_limit_refuses_are_soon_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes a record, which is counted and logged."""
    taking = Taking()
    monkeypatch.setattr(taking.link, "_enter", partial(cut_at_once, taking))
    codes: list[int] = []
    for number in range(1, 401, 2):
        said = taking.feed(taking.head(number), frame(wire.DATA, 0, number, b"ask"))
        codes += [each.code for each in said if each.kind == wire.RST_STREAM]
    assert codes == [wire.CANCEL] * REFUSALS + [wire.REFUSED_STREAM] * (200 - REFUSALS)
    assert len(taking.taken) == REFUSALS
    taking.context.now += 1.0
    taking.feed(taking.head(401))
    assert len(taking.taken) == REFUSALS + 1


def cut_at_once(taking: Taking, stream: SharedStream, carried: Carried) -> None:
    """Enter *stream* as where its pod has as many connections as it may."""
    taking.taken.append(stream)
    stream.abort()


def test_what_was_under_way_on_streams_that_were_cut_costs_a_client_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that asks a pod that may have no more connections again and again loses those that it has."""
    taking = Taking()
    taking.feed(taking.head(1))
    monkeypatch.setattr(taking.link, "_enter", partial(cut_at_once, taking))
    for number in range(3, 2003, 2):
        said = taking.feed(
            taking.head(number),
            frame(wire.DATA, 0, number, bytes(16384)),
            frame(wire.DATA, wire.END_STREAM, number, b"end"),
            wire.rst_stream(number, wire.CANCEL),
        )
        assert wire.GOAWAY not in [each.kind for each in said], number
    assert set(taking.link.streams) == {1}


def test_no_more_than_a_window_was_under_way_on_a_stream_that_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    taking = Taking()
    monkeypatch.setattr(taking.link, "_enter", partial(cut_at_once, taking))
    taking.feed(taking.head(1))
    count = 0
    while not taking.pipe.closed:
        taking.feed(frame(wire.DATA, 0, 1, b""))
        count += 1
    assert PATIENCE + 100 < count < PATIENCE + (STREAM_WINDOW >> 10) + 10


def test_a_broken_connection_is_counted_once() -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    taking.feed(frame(wire.DATA, 0, 0, b"on no stream"))
    for _ in range(3):
        taking.link.soon()
        taking.turns.run()
    counts = [each for part in taking.context.metrics.delta() for each in part.get("counts", ())]
    assert [(labels[0], count) for name, labels, count in counts if "refused" in name] == [(HTTP2_BROKEN.code, 1)]


class Sending:
    """The client's side: *count* shared connections of one pool, each to a server's agent that is bytes made by
    hand, within a loop that runs.
    """

    def __init__(self, count: int, **limits: int) -> None:
        self.context = context(asyncio.get_running_loop(), limits)  # type: ignore[arg-type]  # a real one is no Turns
        dial = Dial(enrolled(), "10.0.0.1", 80, SpiffeId("spiffe://cluster.local/ns/default/sa/server"))
        self.pool = SharedPool(self.context, dial, lambda lease: None)
        self.links = [SharedUpstream(self.pool, self.context, Pipe(), Lease(None)) for _ in range(count)]
        self.pool._links.extend(self.links)
        for link in self.links:
            link.data_received(SETTLED)

    def take(self, link: SharedUpstream) -> None:
        """Open a stream on *link*, which its peer takes."""
        link.open("http")
        link.data_received(frame(wire.HEADERS, wire.END_HEADERS, 1, Encoder().encode(TAKEN)))

    async def refuse(self, link: SharedUpstream) -> None:
        """Have the peer refuse the last stream of *link*; what follows has happened."""
        link.data_received(wire.rst_stream(max(link.streams), wire.REFUSED_STREAM))
        await self.turns()

    async def turns(self) -> None:
        """What follows from what was said happens."""
        for _ in range(5):
            await asyncio.sleep(0)


class Asked(Reader):
    """Who uses a stream at the client's side, and notes whether it was asked to pause."""

    def __init__(self, dialled: Dialled) -> None:
        transport = dialled.transport
        assert isinstance(transport, SharedStream)
        self.waits = False
        Reader.__init__(self, transport)
        transport.set_protocol(self)

    def pause_writing(self) -> None:
        self.waits = True

    def resume_writing(self) -> None:
        self.waits = False


class Kept(Pipe):
    """A transport that keeps its protocol too."""

    protocol: Any = None

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol


def test_an_outer_connection_is_none_that_a_client_opened() -> None:
    taking = Taking()
    taking.link.begin()
    assert (taking.context.outer, taking.connection.carriage is not None) == (1, True)
    taking.link.connection_lost(None)
    assert taking.context.outer == 0


def connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> tuple[Dialled, Kept]:
    """Return what is dialled from now on, where no shared connection is asked for, and its transport."""
    own, pipe = Dialled(), Kept()
    own.transport = pipe

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        assert not shared
        return own

    monkeypatch.setattr(Dial, "connect", connect)
    return own, pipe


@pytest.mark.parametrize("ended", ["nothing", "retired", "renewed", "server's certificate"])
@pytest.mark.parametrize("moves", [1, MOST_MOVES + 1])
def test_what_went_over_to_another_connection_is_used_as_long_as_that_one(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch, moves: int, ended: str
) -> None:
    """To another shared one, or one of its own; and not as long as the first, which has left."""

    async def scene() -> None:
        sending = Sending(MOST_MOVES + 1)
        sending.pool._dial.pod.tls = tls["client"]
        for link in sending.links:
            link.lease.tls = tls["client"]
            sending.take(link)
        own, _ = connection_of_its_own(monkeypatch)
        own.expires = 5.0
        stream = sending.links[0].open("http").stream
        assert isinstance(stream, SharedStream)
        for link in sending.links[:moves]:
            link.retire()
            await sending.refuse(link)
        pool = Pool(sending.context, sending.pool._dial)
        upstream = Http1Upstream(pool, accepted(enrolled()), 1000)
        upstream.attach(stream)
        upstream.stream = stream
        lease = stream.lease
        assert lease is not None
        assert lease.expires == (0.0 if moves == 1 else 5.0)
        if ended == "retired":
            lease.retired = True
        elif ended == "renewed":
            sending.pool._dial.pod.tls = tls["server"]
        elif ended == "server's certificate":
            lease.expires = 5.0
            pool.sweep(0.0, 3600)
        pool.release(upstream)
        assert pool.idle() == ([upstream] if ended == "nothing" else [])

    asyncio.run(scene())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_that_nobody_takes_goes_over_a_connection_of_its_own(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Also where who wrote has left meanwhile: what it said arrives."""

    async def scene() -> None:
        sending = Sending(MOST_MOVES + 2)
        for link in sending.links:
            sending.take(link)
        own, pipe = connection_of_its_own(monkeypatch)
        own.early = b"welcome"
        asked = Asked(sending.links[0].open("tcp"))
        asked.stream.write(b"first")
        if leaves:
            asked.stream.close()
        for link in sending.links[: MOST_MOVES + 1]:
            assert not pipe.written
            await sending.refuse(link)
        assert (pipe.written, pipe.ended, pipe.closed) == (b"first", leaves, leaves)
        if not leaves:
            assert not asked.waits
            assert asked.came == b"welcome"
            asked.stream.pause_reading()
            pipe.protocol.data_received(b"more")
            asked.stream.write(b"second")
            assert (pipe.written, asked.came, pipe.reading) == (b"firstsecond", b"welcome", False)
            asked.stream.resume_reading()
            pipe.protocol.eof_received()
            await asyncio.sleep(0)
            assert (asked.came, asked.ended, pipe.reading) == (b"welcomemore", 1, True)
            asked.stream.close()
            assert pipe.closed
        await asyncio.sleep(0)
        assert asked.lost == 1
        assert [len(link.streams) for link in sending.links] == [1] * len(sending.links)

    asyncio.run(scene())


def test_who_writes_much_before_the_peer_has_looked_waits_for_that() -> None:
    async def scene() -> None:
        (link,) = Sending(1).links
        asked = Asked(link.open("tcp"))
        asked.stream.write(b"a" * KEPT)
        assert not asked.waits
        asked.stream.write(b"b")
        assert asked.waits
        link.data_received(frame(wire.HEADERS, wire.END_HEADERS, 1, Encoder().encode(TAKEN)))
        assert not asked.waits
        asked.stream.abort()

    asyncio.run(scene())


@pytest.mark.parametrize("end", ["taken", "aborted", "lost", "late"])
def test_windows_without_the_stream_taken_do_not_let_its_writer_go_on(end: str) -> None:
    """All that is written is kept meanwhile, and counted."""

    async def scene() -> None:
        sending = Sending(1)
        (link,) = sending.links
        held = sending.pool.held
        link.data_received(wire.settings(((wire.INITIAL_WINDOW_SIZE, 1000),)))
        asked = Asked(link.open("tcp"))
        asked.stream.write(b"a" * (2 * KEPT))
        await sending.turns()
        more = (2 * KEPT).to_bytes(4, "big")
        link.data_received(frame(wire.WINDOW_UPDATE, 0, 0, more) + frame(wire.WINDOW_UPDATE, 0, 1, more))
        await sending.turns()
        assert link.session.queued == 0
        assert (asked.waits, held.bytes) == (True, 2 * KEPT)
        if end == "taken":
            link.data_received(frame(wire.HEADERS, wire.END_HEADERS, 1, Encoder().encode(TAKEN)))
            assert not asked.waits
        elif end == "aborted":
            asked.stream.abort()
        elif end == "lost":
            link.connection_lost(None)
        else:
            sending.context.now += sending.context.timeouts.connect
            link.age()
            assert link.streams
            sending.context.now += 0.1
            link.age()
            assert not link.streams
        await sending.turns()
        assert (held.bytes, asked.lost) == (0, int(end != "taken"))

    asyncio.run(scene())


def test_a_peer_that_reads_nothing_is_asked_for_no_stream_after_the_other() -> None:
    """Whoever opens and gives up, again and again, makes heads and resets that its transport keeps."""

    async def scene() -> None:
        (link,) = Sending(1).links
        link.pause_writing()
        count = 0
        while link.free():
            link.open("tcp").transport.abort()
            link._flush()
            count += 1
            assert count < UNSENT
        assert link.session.unsent_frames > UNSENT
        link.resume_writing()
        assert link.free()

    asyncio.run(scene())


class Slow(Kept):
    """A transport that asks for a pause within the first write, as uvloop's do, and then no more."""

    def write(self, data: bytes) -> None:
        if not self.written:
            self.protocol.pause_writing()
        Kept.write(self, data)


class Switching(Stages):
    """Stages whose exchange becomes a relay."""

    def tunnel(self, exchange: Exchange, client: Transport, endpoint: Transport, early: bytes, rest: bytes) -> None:
        Relay(client, endpoint, lambda *counts: None, context(Turns(), {}).busy_poll).start(early, rest)


def test_who_leaves_http_for_an_endpoint_that_takes_nothing_waits() -> None:
    """What was said behind the request was too much for it: nothing more is read."""
    pipe, endpoint, stages = Kept(), Slow(), Switching()
    codec = Http1Downstream(stages, context(Turns(), {}), accepted(enrolled()), OPEN, pipe)
    asks = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    codec.data_received(asks + bytes(100_000))
    (exchange,) = stages.exchanges
    assert not pipe.reading
    codec.switch(exchange, endpoint, b"")
    assert (endpoint.written, pipe.reading) == (bytes(100_000), False)
    endpoint.protocol.resume_writing()
    assert pipe.reading


class Deaf(Kept):
    """Takes what it is told first, and no more; it can be closed."""

    told = 0

    def write(self, data: bytes) -> None:
        if not self.told:
            self.protocol.pause_writing()
        self.told += len(data)

    def close(self) -> None:
        if not self.closed:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        Kept.close(self)

    abort = close


def test_who_begins_with_more_than_its_endpoint_takes_waits(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = Deaf()

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        dialled = Dialled()
        dialled.transport = deaf
        return dialled

    async def scene(nodes: Nodes) -> None:
        monkeypatch.setattr(Dial, "connect", connect)
        _, writer = await nodes.connect()
        writer.write(bytes(30_000_000))
        assert 0 < await steady(lambda: deaf.told) < 1_000_000
        writer.transport.abort()
        (connection,) = nodes.near.context.connections.values()
        assert connection.carriage is not None
        connection.carriage.reset()

    play(echo, scene, tls)


def test_who_takes_over_a_stream_whose_writer_waits_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused before it was used: all that is written is kept meanwhile."""
    dialling = asyncio.Event()

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        await dialling.wait()
        raise DialError(CONNECT_FAILED)

    async def scene() -> None:
        monkeypatch.setattr(Dial, "connect", connect)
        sending = Sending(1)
        dialled = sending.links[0].open("tcp")
        await sending.refuse(sending.links[0])
        asked = Asked(dialled)
        assert asked.waits
        dialling.set()
        await sending.turns()
        assert asked.lost == 1

    asyncio.run(scene())


def test_who_moves_to_a_connection_that_takes_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        sending = Sending(1)
        own, _ = connection_of_its_own(monkeypatch)
        own.transport = pipe = Slow()
        asked = Asked(sending.links[0].open("tcp"))
        asked.stream.write(b"a" * KEPT)
        await sending.refuse(sending.links[0])
        assert pipe.written == b"a" * KEPT
        assert asked.waits
        pipe.protocol.resume_writing()
        assert not asked.waits
        asked.stream.abort()

    asyncio.run(scene())


def test_a_stream_that_is_given_up_while_another_connection_is_looked_for_goes_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        sending = Sending(1)
        _, pipe = connection_of_its_own(monkeypatch)
        asked = Asked(sending.links[0].open("tcp"))
        asked.stream.write(b"said")
        sending.links[0].data_received(wire.rst_stream(1, wire.REFUSED_STREAM))
        asked.stream.abort()
        await sending.turns()
        assert (pipe.written, pipe.closed, asked.lost) == (b"", True, 1)

    asyncio.run(scene())


def test_a_peer_that_takes_no_stream_gets_connections_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        own, _ = connection_of_its_own(monkeypatch)
        sending = Sending(1)
        sending.links[0].open("http")
        await sending.refuse(sending.links[0])
        assert await sending.pool.connect("http", accompanied=True) is own
        sending.context.now += REFUSED_SECONDS
        stream = (await sending.pool.connect("http", accompanied=True)).stream
        assert stream is not None
        assert stream.lease is sending.links[0].lease

    asyncio.run(scene())


def test_a_peer_that_leaves_each_connection_at_once_is_not_dialled_without_end(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon that stops, and is to serve what comes meanwhile."""
    asked: list[bool] = []

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        asked.append(shared)
        dialled = Dialled()
        dialled.transport = Kept()
        dialled.shared = shared
        dialled.early = SETTLED + wire.goaway(wire.LARGEST_STREAM, wire.NO_ERROR, b"") if shared else b""
        return dialled

    async def scene() -> None:
        monkeypatch.setattr(Dial, "connect", connect)
        sending = Sending(0)
        sending.pool._dial.pod.tls = tls["client"]
        async with asyncio.timeout(60):
            assert (await sending.pool.connect("tcp", accompanied=True)).stream is None
        assert asked == [True, False]

    asyncio.run(scene())


def test_a_connection_that_takes_no_more_closes_behind_a_last_stream_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        sending = Sending(1)
        (link,) = sending.links
        connection_of_its_own(monkeypatch)
        link.open("tcp")
        link.retire()
        await sending.turns()
        assert not link.transport.is_closing()
        await sending.refuse(link)
        assert link.transport.is_closing()

    asyncio.run(scene())


def test_who_waits_for_a_connection_that_cannot_be_made_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one who waits dial the next to be shared, so that all the others wait once more."""
    fails = asyncio.Event()
    asked: list[bool] = []

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        asked.append(shared)
        if shared:
            await fails.wait()
            raise DialError(CONNECT_FAILED)
        return Dialled()

    async def scene() -> None:
        monkeypatch.setattr(Dial, "connect", connect)
        sending = Sending(0)
        all_of = [asyncio.ensure_future(sending.pool.connect("tcp", accompanied=True)) for _ in range(4)]
        await sending.turns()
        fails.set()
        first, *others = await asyncio.gather(*all_of, return_exceptions=True)
        assert isinstance(first, DialError)
        assert [type(each) for each in others] == [Dialled] * 3
        assert asked == [True, False, False, False]

    asyncio.run(scene())


def test_a_peer_that_takes_no_stream_by_its_own_word_is_believed_a_while_later() -> None:
    """It said so when one was under way already."""

    async def scene() -> None:
        sending = Sending(1)
        (link,) = sending.links
        link.open("http")
        link.data_received(wire.settings(((wire.MAX_CONCURRENT_STREAMS, 0),)))
        await sending.refuse(link)
        for _ in range(2):
            assert not link.free()
            sending.context.now += REFUSED_SECONDS + 0.1
            sending.pool.sweep(sending.context.now, 3600)

    asyncio.run(scene())


def test_a_connection_whose_pod_has_no_certificate_any_more_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled = Dialled()
    dialled.transport, dialled.shared = Kept(), True

    async def connect(self: Dial, context: Context, inside: Inside, *, shared: bool = False) -> Dialled:
        return dialled

    async def scene() -> None:
        monkeypatch.setattr(Dial, "connect", connect)
        with pytest.raises(DialError, match=NO_CERTIFICATE.code):
            await Sending(0).pool.connect("tcp", accompanied=True)
        assert dialled.transport.is_closing()

    asyncio.run(scene())


def test_a_peer_that_refused_a_stream_is_asked_for_as_many_as_it_says_a_while_later() -> None:
    async def scene() -> None:
        sending = Sending(2)
        link = sending.links[0]
        sending.take(link)
        link.open("http")
        await sending.refuse(link)
        assert not link.free()
        sending.context.now += REFUSED_SECONDS + 0.1
        sending.pool.sweep(sending.context.now, 3600)
        assert link.free()

    asyncio.run(scene())


# -- ends --


def test_a_pod_that_is_released_takes_no_more_streams_and_keeps_those_it_has() -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    taking.connection.carriage = SharedCarriage(taking.link)
    taking.connection.carriage.depart()
    said = taking.feed(taking.head(3))
    (goaway,) = [each for each in said if each.kind == wire.GOAWAY]
    assert int.from_bytes(goaway.payload[:4], "big") == 1
    taking.feed(frame(wire.DATA, 0, 1, b"on"))
    assert [reader(each).came for each in taking.taken] == [b"on"]
    taking.feed(frame(wire.PING, wire.ACK, 0, bytes(8)), frame(wire.DATA, wire.END_STREAM, 1, b""))
    assert not taking.pipe.closed
    taking.taken[0].close()
    taking.turns.run()
    assert taking.pipe.closed


def test_a_pod_that_was_released_during_the_handshake_takes_no_stream() -> None:
    taking = Taking()
    taking.connection.pod.gone = True
    taking.link.begin()
    assert wire.GOAWAY in [each.kind for each in taking.feed(taking.head(1))]
    assert not taking.taken


@pytest.mark.parametrize("streams", [0, 1])
def test_a_peer_that_vanished_keeps_no_worker_that_drains(streams: int) -> None:
    """Its pod's network went before a FIN could leave it."""
    taking = Taking()
    if streams:
        taking.feed(taking.head(1))
    taking.link.drain()
    for _ in range(4):
        taking.context.now += WARNED_SECONDS / 3
        assert not taking.pipe.closed
        taking.link.sweep(taking.context.now)
        taking.said()
    assert taking.pipe.closed == (streams == 0)
    for each in [reader(stream) for stream in taking.taken]:
        taking.context.now += LOST_SECONDS
        taking.link.sweep(taking.context.now)
        assert taking.pipe.closed
        taking.link.connection_lost(None)
        taking.turns.run()
        assert each.lost == 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_peer_that_says_nothing_is_asked_whether_it_is_there(answers: bool) -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    for _ in range(10):
        taking.context.now += PING_SECONDS + 1
        taking.link.sweep(taking.context.now)
        if wire.PING in [each.kind for each in taking.said()] and answers:
            taking.feed(frame(wire.PING, wire.ACK, 0, bytes(8)))
    assert taking.pipe.closed != answers


def test_a_drain_does_not_close_before_the_peer_knows() -> None:
    """What the client's agent opened before it read the GOAWAY would meet a closed connection."""
    taking = Taking()
    taking.link.drain()
    taking.context.now += 2.0
    taking.link.sweep(taking.context.now)
    taking.feed(taking.head(1), frame(wire.PING, wire.ACK, 0, bytes(8)))
    assert len(taking.taken) == 1
    taking.link.sweep(taking.context.now)
    assert not taking.pipe.closed


# -- what is held --


class Full(Kept):
    """A transport that takes no more after the first write."""

    def __init__(self, link: SharedDownstream) -> None:
        Kept.__init__(self)
        self.link: SharedDownstream | None = link

    def write(self, data: bytes) -> None:
        Kept.write(self, data)
        if self.link is not None:
            self.link.pause_writing()


def test_bodies_that_the_transport_keeps_are_held_and_stop_no_reading() -> None:
    """Two agents that both had much to say, and read nothing until it is said, would wait for each other."""
    taking = Taking()
    taking.feed(wire.settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),)), wire.window_update(0, 1 << 20), taking.head(1))
    full = taking.link.transport = taking.pipe = Full(taking.link)
    taking.taken[0].write(bytes(300_000))
    taking.said()
    assert taking.pipe.reading
    assert taking.held >= 300_000
    for _ in range(100):
        taking.feed(*[frame(wire.PING, 0, 0, bytes(8)) for _ in range(200)])
        taking.link.session.earn(1000)
    assert not taking.pipe.reading
    assert taking.held > 1 << 18
    full.link = None
    taking.link.resume_writing()
    assert taking.pipe.reading
    assert taking.held == 0


def test_what_a_lost_transport_kept_is_not_held() -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    taking.link.transport = taking.pipe = Full(taking.link)
    taking.taken[0].write(b"kept")
    taking.said()
    assert taking.held
    taking.link.connection_lost(None)
    assert taking.held == 0


HELD = 16 << 20


def closed_windows(taking: Taking) -> None:
    """Let the peer take nothing of any stream."""
    taking.feed(wire.settings(((wire.INITIAL_WINDOW_SIZE, 0),)), wire.window_update(0, 1 << 30))


def test_who_fills_what_all_may_hold_ends_no_stream_of_others() -> None:
    """It does so on many connections that hold little each, and then sits still."""
    pod = enrolled()
    good = Taking(pod, "good", heldBytesPerPod=HELD)
    good.feed(good.head(1), good.head(3))
    slow, fast = good.taken
    slow.pause_reading()
    good.feed(frame(wire.DATA, 0, 1, bytes(16384)))
    good.context.now += 5.0
    good.link.sweep(good.context.now)
    good.feed(frame(wire.PING, wire.ACK, 0, bytes(8)))
    mean = [Taking(pod, "mean", heldBytesPerPod=HELD) for _ in range(2 * SHARES)]
    answer = bytes(HELD // SHARES - 1000)
    for each in mean:
        closed_windows(each)
        each.feed(each.head(1))
        each.taken[0].write(answer)
        assert pod.held.bytes <= HELD
    for at in range(20):
        fast.write(b"answer")
        assert [each.kind for each in good.said()] == [wire.DATA], at
        mean[-1].taken[0].write(bytes(100_000))
    assert set(good.link.streams) == {1, 3}
    assert 0 < len([each for each in mean if each.link.streams]) < SHARES
    assert (reader(slow).lost, pod.held.bytes <= HELD) == (0, True)


def test_what_stands_still_gives_way_before_what_moves_though_it_is_less() -> None:
    taking = Taking(heldBytesPerPod=HELD)
    closed_windows(taking)
    taking.feed(taking.head(1), taking.head(3), taking.head(5))
    stands, moves, comes = taking.taken
    reads = reader(stands)
    stands.write(bytes(3 << 20))
    moves.write(bytes(6 << 20))
    taking.context.now += 5.0
    taking.link.sweep(taking.context.now)
    taking.feed(wire.window_update(3, 1))
    comes.write(bytes(8 << 20))
    said = taking.said()
    assert [(each.number, each.code) for each in said if each.kind == wire.RST_STREAM] == [(1, wire.ENHANCE_YOUR_CALM)]
    assert reads.lost == 1
    assert set(taking.link.streams) == {3, 5}
    assert taking.held <= HELD


def test_what_only_waits_for_its_turn_never_gives_way() -> None:
    taking = Taking(heldBytesPerPod=HELD)
    taking.feed(wire.settings(((wire.INITIAL_WINDOW_SIZE, 1 << 30),)), wire.window_update(0, 1 << 30), taking.head(1))
    for _ in range(2 * HELD >> 16):
        taking.taken[0].write(bytes(1 << 16))
    assert taking.held == 2 * HELD
    assert sum(len(each.payload) for each in taking.said() if each.kind == wire.DATA) == 2 * HELD
    assert (set(taking.link.streams), taking.held) == ({1}, 0)


def test_a_peer_whose_transports_keep_too_much_is_cut() -> None:
    pod = enrolled()
    mean = [Taking(pod, "mean", heldBytesPerPod=HELD) for _ in range(80)]
    for each in mean:
        window = wire.settings(((wire.INITIAL_WINDOW_SIZE, 1 << 20),))
        each.feed(window, wire.window_update(0, 1 << 20), each.head(1))
        each.link.transport = each.pipe = Full(each.link)
        each.taken[0].write(bytes(250_000))
        each.said()
    mean[-1].taken[0].write(b"more")
    for each in mean:
        each.said()
    cut = [each for each in mean if each.pipe.closed]
    for each in cut:
        user = reader(each.taken[0])
        each.link.connection_lost(None)
        each.turns.run()
        assert user.lost == 1
    assert 13 < len(cut) < 30
    assert pod.held.bytes <= HELD


def test_who_holds_much_opens_no_more_streams_behind_half_of_what_all_may_hold() -> None:
    pod = enrolled()
    much, little = Taking(pod, "much", heldBytesPerPod=HELD), Taking(pod, "little", heldBytesPerPod=HELD)
    closed_windows(much)
    much.feed(much.head(1))
    much.taken[0].write(bytes(HELD // 2 + 1))
    assert [each.code for each in much.feed(much.head(3)) if each.kind == wire.RST_STREAM] == [wire.REFUSED_STREAM]
    little.feed(little.head(1))
    assert set(little.link.streams) == {1}


def test_small_pieces_that_wait_are_kept_as_few() -> None:
    taking = Taking()
    taking.feed(taking.head(1))
    (stream,) = taking.taken
    stream.pause_reading()
    said = b"".join(b"%03d" % at for at in range(1000))
    for at in range(0, len(said), 60):
        taking.feed(*(frame(wire.DATA, 0, 1, said[index : index + 3]) for index in range(at, at + 60, 3)))
    assert len(stream._came) < 4
    stream.resume_reading()
    taking.turns.run()
    assert reader(stream).came == said


def test_small_pieces_that_wait_for_the_peers_window_are_kept_as_few() -> None:
    taking = Taking()
    taking.feed(wire.settings(((wire.INITIAL_WINDOW_SIZE, 0),)), taking.head(1))
    (stream,) = taking.taken
    said = b"".join(b"%03d" % at for at in range(1000))
    for at in range(0, len(said), 3):
        stream.write(said[at : at + 3])
    assert len(stream.stream.queue or ()) < 4
    assert taking.held == len(said)
    sent = taking.feed(wire.window_update(1, 1 << 20))
    assert b"".join(each.payload for each in sent if each.kind == wire.DATA) == said


def test_windows_grow_with_what_is_taken_and_no_reader_holds_another_back() -> None:
    """Not even when those whose windows have grown stand still, and all others do."""
    taking = Taking()
    connection = CONNECTION_WINDOW
    windows = dict.fromkeys(range(1, 2 * STREAMS, 2), STREAM_WINDOW)
    taking.feed(*[taking.head(number) for number in windows])

    def sends(number: int) -> int:
        """Send as much as the windows let, then take new ones; return how much that was."""
        nonlocal connection
        reader(taking.taken[number // 2]).came = b""
        size = min(windows[number], connection)
        pieces = [frame(wire.DATA, 0, number, bytes(min(size - at, 16384))) for at in range(0, size, 16384)]
        windows[number] -= size
        connection -= size
        for each in taking.feed(*pieces):
            if each.kind == wire.WINDOW_UPDATE and each.number:
                windows[each.number] += int.from_bytes(each.payload, "big")
            elif each.kind == wire.WINDOW_UPDATE:
                connection += int.from_bytes(each.payload, "big")
        return size

    bursts = [sends(1) for _ in range(12)]
    assert bursts[0] == STREAM_WINDOW
    assert 8 * STREAM_WINDOW < bursts[-1] <= STREAM_WINDOW + WIDENED
    for stream in taking.taken[:-1]:
        stream.pause_reading()
    assert [sends(number) for number in list(windows)[1:-1]] == [STREAM_WINDOW] * (STREAMS - 2)
    sends(1)
    assert [sends(list(windows)[-1]) for _ in range(50)] == [STREAM_WINDOW] * 50
    assert not taking.pipe.closed


@pytest.mark.parametrize(
    "block",
    [
        [],
        [(b":method", b"GET"), (b":path", b"/"), (b"inside", b"http")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")],
        [(b":method", b"CONNECT"), (b"inside", b"udp")],
        [(b":method", b"CONNECT"), (b"inside", b"http"), (b"inside", b"tcp")],
    ],
)
def test_a_head_that_begins_no_connection(block: list[tuple[bytes, bytes]]) -> None:
    assert read_connect(block) is None


def test_a_head_says_what_is_inside() -> None:
    assert read_connect(connect_block("http", b"10.0.0.1:80")) == "http"
    assert read_connect(connect_block("tcp", b"[fd00::1]:80")) == "tcp"
