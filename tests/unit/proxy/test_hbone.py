"""HBONE towards a pod: a proxy of an ambient mesh, which the ``h2`` package plays, brings connections at
port 15008; what is none is refused, for a reason.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.istio import TUNNEL_PORT
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule, RuleSource
from nodeagent.proxy.hbone.heads import LONGEST, Asked, read_connect
from nodeagent.proxy.pods import PodState
from nodeagent.proxy.shared.server import REFUSALS
from nodeagent.proxy.transport import Transport
from nodeagent.redirect.original import Original
from nodeagent.vocabulary import Direction
from tests.unit.proxy.http2_peers import Http2Client, Message
from tests.unit.proxy.nodes import CLIENT, SERVER, STRANGER, Nodes, Streams
from tests.unit.proxy.nodes import play as play_nodes
from tests.unit.proxy.stage import answering, ok
from tests.waiting import until

play = partial(play_nodes, hbone=True)
URI = b"URI=spiffe://cluster.local/ns/default/sa/client"
GET = b"GET /%s HTTP/1.1\r\nHost: web\r\n\r\n"
show_head = answering(lambda head, body: ok(head))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An application that says everything back, in words of its own first."""
    writer.write(b"hello ")
    while data := await reader.read(65536):
        writer.write(data)
    writer.write_eof()


class AtTunnelPort:
    """Has what comes to a listener come to the port of HBONE."""

    def of(self, transport: Transport, pod: PodState, direction: Direction) -> Original:
        return Original(SERVER, TUNNEL_PORT, None)


@asynccontextmanager
async def tunnel_port(nodes: Nodes) -> Any:
    """Open the port of HBONE of the server's pod; yield where that is."""
    pod = nodes.far.context.pods["server"]
    accepted = partial(nodes.far.accepted, pod, "inbound", AtTunnelPort())
    server = await asyncio.get_running_loop().create_server(accepted, SERVER, 0)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


class Ztunnel:
    """The proxy of an ambient mesh on the client's node."""

    def __init__(self, nodes: Nodes, at: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self.nodes = nodes
        self.at = at
        self._context = context

    async def raw(self, source: str = CLIENT, context: ssl.SSLContext | None = None) -> Streams:
        return await asyncio.open_connection(
            *self.at,
            local_addr=(source, 0),
            ssl=context or self._context,
            server_hostname="" if context or self._context else None,
        )

    async def client(self, source: str = CLIENT) -> Http2Client:
        return await Http2Client.on(await self.raw(source))

    async def ask(self, client: Http2Client, authority: str | None = None, **fields: str) -> Message:
        """Have *client* open a stream, and wait for its answer."""
        head = {":method": "CONNECT", ":authority": authority or f"{SERVER}:{self.nodes.port}", **fields}
        number = client.h2.get_next_available_stream_id()
        message = client.messages[number] = Message(number)
        client.h2.send_headers(number, list(head.items()))
        client.send()
        await message.begun.wait()
        return message


Scene = Callable[[Nodes, Ztunnel], Awaitable[None]]


def run(
    app: Any, scene: Scene, tls: dict[str, Contexts], *, context: ssl.SSLContext | None = None, **more: Any
) -> None:
    """Run *scene* with a ztunnel that shows the client's certificate, or has *context*."""
    tunnel = tls["client"].tunnel
    assert tunnel is not None

    async def played(nodes: Nodes) -> None:
        async with AsyncExitStack() as stack:
            at = await stack.enter_async_context(tunnel_port(nodes))
            await scene(nodes, Ztunnel(nodes, at, context or tunnel.client))

    play(app, played, tls, **more)


async def gone(nodes: Nodes, client: Http2Client) -> None:
    client.writer.close()
    await nodes.settled()


# -- what is carried --


@pytest.mark.parametrize("protocol", ["http", "auto"])
@pytest.mark.parametrize("strict", [False, True])
def test_http_inside_is_seen_request_by_request_under_the_proved_identity(
    tls: dict[str, Contexts], protocol: Any, strict: bool
) -> None:
    denied = AuthorizationPolicy("default", "no", "DENY", (Rule(operations=(Operation(paths=("/no",)),)),))

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        message = await ztunnel.ask(client, baggage="k8s.namespace.name=evil", forwarded=f"for={STRANGER}")
        assert message.status == 200
        await client.body(message.number, GET % b"yes", end=False)
        await until(lambda: URI in message.body)
        await client.body(message.number, GET % b"no", end=False)
        await until(lambda: b"RBAC: access denied" in message.body)
        outer, inner = sorted(nodes.far.context.connections.values(), key=lambda each: each.number)
        assert (outer.protocol, outer.target.port, outer.verdict) == ("hbone", TUNNEL_PORT, "allow")
        assert (inner.protocol, inner.peer.security, inner.target.port) == ("http", "mutual_tls", nodes.port)
        assert inner.peer.address == CLIENT
        assert inner.peer.workload is not None
        assert inner.codes() == [200, 403]
        await gone(nodes, client)

    run(show_head, scene, tls, protocol=protocol, strict=strict, policies=(denied,))


@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_bytes_are_carried_both_ways_and_each_direction_ends_by_itself(tls: dict[str, Contexts], protocol: Any) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        messages = [await ztunnel.ask(client) for _ in range(5)]
        assert {each.status for each in messages} == {200}
        await until(lambda: {each.body for each in messages} == {b"hello "}, "the server speaks first")
        for each in messages:
            await client.body(each.number, b"%d" % each.number * 50_000)
        for each in messages:
            await each.ended.wait()
            assert each.body == b"hello " + b"%d" % each.number * 50_000
        assert nodes.app_connections == 5
        await gone(nodes, client)

    run(echo, scene, tls, protocol=protocol)


def test_policies_change_while_a_stream_is_open(tls: dict[str, Contexts]) -> None:
    only = AuthorizationPolicy(
        "default", "only", "ALLOW", (Rule(sources=(RuleSource(principals=("cluster.local/ns/default/sa/other",)),)),)
    )

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        message = await ztunnel.ask(client)
        await until(lambda: message.body == b"hello ")
        await nodes.protect((only,))
        await message.ended.wait()
        assert message.reset is not None
        assert nodes.refused(nodes.far) == ["policy_denied"]
        refused = await ztunnel.ask(client)
        assert refused.status == 401, "before its application is asked"
        assert nodes.app_connections == 1
        assert nodes.refused(nodes.far) == ["policy_denied"]
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp")


def test_an_application_that_is_not_there_is_said_by_status(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        nodes.app.close()
        await nodes.app.wait_closed()
        client = await ztunnel.client()
        message = await ztunnel.ask(client)
        assert message.status == 503
        await message.ended.wait()
        assert message.reset in (None, 0)
        assert nodes.refused(nodes.far) == ["connect_failed"]
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp")


# -- what is none --


@pytest.mark.parametrize(
    "authority",
    [
        f"{STRANGER}:%d",
        f"[::ffff:{SERVER}]:%d",
        "[fd00::1]:%d",
        f"{SERVER}:15001",
        f"{SERVER}:15006",
        f"{SERVER}:{TUNNEL_PORT}",
    ],
)
def test_nothing_leads_elsewhere(tls: dict[str, Contexts], authority: str) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        message = await ztunnel.ask(client, authority.replace("%d", str(nodes.port)))
        assert message.status == 400
        assert nodes.refused(nodes.far) == ["hbone_elsewhere"]
        (outer,) = nodes.far.context.connections.values()
        assert outer.reason is not None
        assert (outer.verdict, outer.reason.code) == ("mixed", "hbone_elsewhere")
        assert (await ztunnel.ask(client)).status == 200, "others of its connection go on"
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp")


@pytest.mark.parametrize(
    "head",
    [
        [(":method", "GET"), (":authority", SERVER), (":scheme", "http"), (":path", "/")],
        [(":method", "CONNECT"), (":authority", "web.default.svc.cluster.local:80")],
        [(":method", "CONNECT"), (":authority", f"{SERVER}:80"), (":scheme", "http"), (":path", "/")],
        [(":method", "CONNECT"), (":authority", f"{SERVER}:80"), (":protocol", "websocket")],
        [(":method", "CONNECT"), (":authority", "9" * 4000)],
        [(":method", "CONNECT")],
    ],
)
def test_what_is_no_connect_to_an_address_and_port_is_said(tls: dict[str, Contexts], head: Any) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        client.h2.config.validate_outbound_headers = False
        number = client.h2.get_next_available_stream_id()
        message = client.messages[number] = Message(number)
        client.h2.send_headers(number, head)
        client.send()
        await message.begun.wait()
        assert message.status == 400
        assert nodes.refused(nodes.far) == ["hbone_malformed"]
        assert nodes.app_connections == 0
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp")


@pytest.mark.parametrize(
    ("authority", "asked"),
    [
        (b"10.0.0.1:80", Asked("10.0.0.1", 80)),
        (b"[FD00::0001]:65535", Asked("fd00::1", 65535)),
        (b"10.0.0.1:0", None),
        (b"10.0.0.1:65536", None),
        (b"10.0.0.1:+80", None),
        (b"10.0.0.1: 80", None),
        ("10.0.0.1:\u0668\u0660".encode(), None),
        (b"10.0.0.1", None),
        (b"10.0.0.1:", None),
        (b":80", None),
        (b"fd00::1:80", None),
        (b"[10.0.0.1]:80", None),
        (b"[fd00::1%eth0]:80", None),
        (b"[fd00::1]80", None),
        (b"010.0.0.1:80", None),
        (b"user@10.0.0.1:80", None),
        (b"[" + b"0:" * LONGEST + b"]:80", None),
        (b"\xff.0.0.1:80", None),
    ],
)
def test_an_authority_is_an_address_and_a_port(authority: bytes, asked: Asked | None) -> None:
    assert read_connect([(b":method", b"CONNECT"), (b":authority", authority)]) == asked


def test_two_authorities_are_none() -> None:
    one = (b":authority", b"10.0.0.1:80")
    assert read_connect([(b":method", b"CONNECT"), one, one]) is None


async def cut(streams: Streams) -> bool:
    """Say whether the connection is reset or closed without a byte."""
    try:
        return await streams[0].read() == b""
    except (ConnectionResetError, ssl.SSLError):
        return True


@pytest.mark.parametrize("first", [GET % b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0", b"", None])
@pytest.mark.parametrize("strict", [False, True])
def test_plaintext_is_refused(tls: dict[str, Contexts], first: bytes | None, strict: bool) -> None:
    """``None``: nothing is said at all; empty: the client only ends."""

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        streams = await asyncio.open_connection(*ztunnel.at)
        if first is not None:
            streams[1].write(first)
            streams[1].write_eof()
        assert await cut(streams)
        assert nodes.refused(nodes.far) == ["not_hbone"]
        assert nodes.app_connections == 0

    run(echo, scene, tls, strict=strict, timeouts={"handshake": 0.3})


def anonymous(alpn: str) -> ssl.SSLContext:
    """Return a client's context without a certificate."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols([alpn])
    return made


def test_tls_without_a_certificate_or_with_another_protocol_is_refused(tls: dict[str, Contexts]) -> None:
    in_place = tls["client"].client_tcp

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        for context in (anonymous("h2"), anonymous("http/1.1"), in_place):
            assert await cut(await ztunnel.raw(context=context))
            assert nodes.refused(nodes.far) == ["not_hbone"], context
        assert nodes.app_connections == 0

    run(echo, scene, tls)


def test_who_cannot_prove_who_it_is_in_this_mesh_is_refused(
    tls: dict[str, Contexts], foreign_tls: dict[str, Contexts]
) -> None:
    foreign, own = foreign_tls["client"].tunnel, tls["client"].tunnel
    assert foreign is not None
    assert own is not None

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        assert await cut(await ztunnel.raw(context=foreign.client))
        assert nodes.refused(nodes.far) == ["upstream_tls"]
        nodes.far.context.mesh = replace(nodes.far.context.mesh, trust_domain="elsewhere.local")
        assert await cut(await ztunnel.raw(context=own.client))
        assert nodes.refused(nodes.far) == ["upstream_tls"]
        assert nodes.app_connections == 0

    try:
        foreign.client.verify_mode = ssl.CERT_NONE
        run(echo, scene, tls)
    finally:
        foreign.client.verify_mode = ssl.CERT_REQUIRED


def test_http_1_inside_of_the_tls_ends_the_connection(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        reader, writer = await ztunnel.raw()
        writer.write(b"CONNECT 127.0.0.2:80 HTTP/1.1\r\nHost: 127.0.0.2:80\r\n\r\n")
        await reader.read()
        assert nodes.refused(nodes.far) == ["http2_broken"]
        assert nodes.app_connections == 0

    run(echo, scene, tls)


def test_streams_are_bounded_by_connection_and_by_pod(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        assert (await ztunnel.ask(client)).status == 200
        assert client.h2.remote_settings.max_concurrent_streams == 128
        taken = [await ztunnel.ask(client) for _ in range(9)]
        # 8 streams and their connection; the last two are too many for the pod
        assert [each.status for each in taken] == [200] * 6 + [503] * 3
        assert set(nodes.refused(nodes.far)) == {"connections_per_pod"}
        client.h2.reset_stream(taken[0].number)
        client.send()
        await until(lambda: nodes.far.context.pods["server"].connections < 8)
        assert (await ztunnel.ask(client)).status == 200
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp", limits={"connectionsPerPod": 8})


def test_streams_that_their_pods_limit_refuses_are_soon_not_looked_at(tls: dict[str, Contexts]) -> None:
    """Each makes a record, which is counted and logged."""

    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        assert (await ztunnel.ask(client)).status == 200
        asked = await asyncio.gather(*[ztunnel.ask(client) for _ in range(100)])
        told = [each for each in asked if each.status == 503]
        assert REFUSALS <= len(told) < len(asked)
        assert {each.reset for each in asked if each not in told} == {7}, "REFUSED_STREAM"
        assert client.goaways == []
        await gone(nodes, client)

    run(echo, scene, tls, protocol="tcp", limits={"connectionsPerPod": 2})


def test_who_asks_for_what_is_none_without_end_floods(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        asked = 0
        while not client.goaways and asked < 5000:
            await ztunnel.ask(client, f"{STRANGER}:80")
            asked += 1
        assert client.goaways[0].error_code == 11, "ENHANCE_YOUR_CALM"
        assert "http2_broken" in nodes.refused(nodes.far)
        await gone(nodes, client)

    run(echo, scene, tls)


def test_without_the_setting_the_port_is_the_applications(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        nodes._redirected[SERVER, TUNNEL_PORT] = nodes._redirected[SERVER, nodes.port]
        reader, writer = await asyncio.open_connection(*ztunnel.at)
        writer.write(b"word")
        assert await reader.readexactly(10) == b"hello word"
        writer.close()
        await nodes.settled()

    run(echo, scene, tls, hbone=False)


# -- the end --


def test_a_proxy_that_drains_asks_its_peer_to_go_elsewhere(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, ztunnel: Ztunnel) -> None:
        client = await ztunnel.client()
        message = await ztunnel.ask(client)
        nodes.far.revocation.drain()
        await until(lambda: len(client.goaways) == 2, "the second names the last stream")
        assert client.goaways[1].last_stream_id == message.number
        await client.body(message.number, b"a word")
        await message.ended.wait()
        assert message.body == b"hello a word"
        await until(lambda: not nodes.far.context.connections)

    run(echo, scene, tls, protocol="tcp")
