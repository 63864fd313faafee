"""HBONE from a pod: its connections to a pod of an ambient mesh share few of mTLS to that pod's proxy,
each is a stream, and what the proxy refuses is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from h2.errors import ErrorCodes

from nodeagent.identity.tls import Contexts
from nodeagent.istio import TUNNEL_PORT
from nodeagent.mesh.entries import Delta
from nodeagent.policy.model import AuthorizationPolicy
from nodeagent.proxy.connection import Connection
from nodeagent.proxy.http2.frames import goaway
from nodeagent.vocabulary import PodUid
from tests.unit.proxy.http2_peers import Apps, Http2App, Http2Client, Message
from tests.unit.proxy.nodes import SERVER, Nodes, Streams, identity
from tests.unit.proxy.nodes import play as play_nodes
from tests.unit.proxy.stage import answering, ok, read_request
from tests.unit.proxy.test_hbone import cut, echo, tunnel_port
from tests.waiting import until

play = partial(play_nodes, hbone=True)
show_head = answering(lambda head, body: ok(head))
NOBODY = AuthorizationPolicy("default", "nobody", "ALLOW", ())


def publish(nodes: Nodes) -> None:
    """Tell the client's node that the server's pod is an ambient mesh's."""
    view = nodes.near.context.view
    workload = view.workload(PodUid("server"))
    assert workload is not None
    view.apply(Delta((replace(workload, enrolled=False, hbone=True),)))


def tunnels(nodes: Nodes) -> list[Connection]:
    """Return the connections of HBONE that the server's node has open."""
    return [each for each in nodes.far.context.connections.values() if each.protocol == "hbone"]


def run(app: Any, scene: Callable[[Nodes], Awaitable[None]], tls: dict[str, Contexts], **more: Any) -> None:
    """Run *scene* where the server's node takes HBONE, as an ambient mesh's proxy."""

    async def played(nodes: Nodes) -> None:
        async with AsyncExitStack() as stack:
            nodes.outside[SERVER, TUNNEL_PORT] = await stack.enter_async_context(tunnel_port(nodes))
            publish(nodes)
            await scene(nodes)

    play(app, played, tls, **more)


async def get(streams: Streams, path: str = "/") -> tuple[bytes, bytes]:
    """Return head and body of the answer to a request by *streams*."""
    streams[1].write(f"GET {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
    return await read_request(streams[0])


# -- what is carried --


def test_requests_of_many_clients_share_one_connection_to_the_pod(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        clients = [await nodes.connect() for _ in range(20)]
        for _ in range(3):
            answers = await asyncio.gather(*[get(each) for each in clients])
            assert all(b"URI=" + identity("client").encode() in body for _, body in answers)
        (outer,) = tunnels(nodes)
        assert outer.peer.identity == identity("client")
        inner = [each for each in nodes.far.context.connections.values() if each is not outer]
        assert {each.target.port for each in inner} == {nodes.port}
        near = list(nodes.near.context.connections.values())
        assert {(each.path, each.verdict) for each in near} == {("proxy-mtls", "allow")}

    run(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_bytes_are_carried_and_each_direction_ends_by_itself(tls: dict[str, Contexts], protocol: Any) -> None:
    async def scene(nodes: Nodes) -> None:
        clients = [await nodes.connect() for _ in range(5)]
        for _, writer in clients:
            writer.write(b"word" * 50_000)
            writer.write_eof()
        for reader, _ in clients:
            assert await reader.read() == b"hello " + b"word" * 50_000
        assert len(tunnels(nodes)) == 1

    run(echo, scene, tls, protocol=protocol)


def test_http_2_is_carried_inside(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        answers = await asyncio.gather(*[client.get(f"/{at}") for at in range(10)])
        assert [each.status for each in answers] == [200] * 10
        (outer,) = tunnels(nodes)
        inner = [each for each in nodes.far.context.connections.values() if each is not outer]
        assert [each.protocol for each in inner] == ["http2"]
        client.writer.close()

    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message)

    run(Apps(answer), scene, tls, protocol="auto")


def test_more_streams_than_one_connection_takes_are_another(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        clients = await asyncio.gather(*[nodes.connect() for _ in range(200)])
        words = await asyncio.gather(*[reader.readexactly(6) for reader, _ in clients])
        assert words == [b"hello "] * 200
        assert len(tunnels(nodes)) == 2

    run(echo, scene, tls, protocol="tcp")


def test_a_proxy_that_drains_keeps_what_it_has_and_gets_nothing_new(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        assert await reader.readexactly(6) == b"hello "
        (old,) = tunnels(nodes)
        assert old.carriage is not None
        old.carriage.drain()
        (tunnel,) = nodes.near.routing._tunnels.values()
        (link,) = tunnel._pool._links
        await until(lambda: link.lease.retired, "the client's node has heard it")
        fresh = await nodes.connect()
        assert await fresh[0].readexactly(6) == b"hello "
        writer.write(b"word")
        assert await reader.readexactly(4) == b"word"
        await until(lambda: len(tunnels(nodes)) == 2)
        writer.close()
        await until(lambda: old not in nodes.far.context.connections.values())
        assert len(tunnels(nodes)) == 1

    run(echo, scene, tls, protocol="tcp")


def test_a_certificate_that_is_renewed_is_shown(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        await get(streams)
        (old,) = tunnels(nodes)
        pod = nodes.near.context.pods["client"]
        pod.certify(replace(tls["client"]))
        await until(lambda: old.closed is not None)
        assert (await get(streams))[0]
        assert len(tunnels(nodes)) == 1

    run(show_head, scene, tls, protocol="http")


def test_without_the_setting_it_is_plaintext(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        assert b"URI=" not in (await get(await nodes.connect()))[1]
        assert not tunnels(nodes)

    run(show_head, scene, tls, protocol="http", hbone=False)


# -- what is refused --


def test_a_policy_of_the_other_side_cuts_bytes_and_is_told(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        assert await cut(await nodes.connect())
        assert nodes.refused(nodes.near) == ["hbone_refused"]
        assert nodes.refused(nodes.far) == ["policy_denied"]
        assert nodes.app_connections == 0
        (flow,) = nodes.near.context.recent
        assert flow.reason is not None
        assert "status 401" in flow.reason.hint

    run(echo, scene, tls, protocol="tcp", policies=(NOBODY,))


def test_an_application_that_is_not_there_is_told(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.app.close()
        await nodes.app.wait_closed()
        assert await cut(await nodes.connect())
        assert nodes.refused(nodes.near) == ["hbone_refused"]
        assert nodes.refused(nodes.far) == ["connect_failed"]

    run(echo, scene, tls, protocol="tcp")


def test_who_speaks_no_hbone_there_or_is_another_is_nobody(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        head, _ = await get(await nodes.connect())
        assert head.startswith(b"HTTP/1.1 503")
        (connection,) = nodes.near.context.connections.values()
        assert connection.reason is not None
        assert connection.reason.code == "upstream_tls"
        assert nodes.app_connections == 0

    server = tls["server"].tunnel
    assert server is not None
    try:
        server.server.set_alpn_protocols(["http/1.1"])
        run(show_head, scene, tls, protocol="http")
    finally:
        server.server.set_alpn_protocols(["h2"])
    run(show_head, scene, {**tls, "server": tls["client"]}, protocol="http")


# -- a peer made by hand --


def against(
    tls: dict[str, Contexts], take: Callable[[Http2App, Message], Awaitable[None]], scene: Any, **more: Any
) -> None:
    """Run *scene* against a peer of HBONE by the ``h2`` package that has *take* answer each stream."""
    tunnel = tls["server"].tunnel
    assert tunnel is not None

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        app = Http2App((reader, writer), take, early=True)
        await app.read()
        writer.close()

    async def played(nodes: Nodes) -> None:
        server = await asyncio.start_server(peer, SERVER, 0, ssl=tunnel.server)
        nodes.outside[SERVER, TUNNEL_PORT] = server.sockets[0].getsockname()
        publish(nodes)
        try:
            await scene(nodes)
        finally:
            server.close()

    play(echo, played, tls, **more)


def test_the_head_is_a_connect_to_address_and_port_and_interim_answers_are_none(tls: dict[str, Contexts]) -> None:
    heads: list[dict[bytes, bytes]] = []

    async def take(app: Http2App, message: Message) -> None:
        heads.append(message.fields)
        app.h2.send_headers(message.number, [(b":status", b"103")])
        await app.say(message, b"hello")

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        assert await reader.readexactly(5) == b"hello"
        assert heads == [{b":method": b"CONNECT", b":authority": f"{SERVER}:{nodes.port}".encode()}]
        writer.close()

    against(tls, take, scene, protocol="tcp")


def test_a_stream_that_a_leaving_peer_never_looked_at_is_asked_for_again(tls: dict[str, Contexts]) -> None:
    asked: list[Http2App] = []

    async def take(app: Http2App, message: Message) -> None:
        asked.append(app)
        if len(asked) < 3:
            app.writer.write(goaway(0, ErrorCodes.NO_ERROR, b""))
        else:
            await app.say(message, b"hello")

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        assert await reader.readexactly(5) == b"hello"
        assert len(set(map(id, asked))) == 3, "each on a connection of its own"
        writer.close()

    against(tls, take, scene, protocol="tcp")


def test_a_peer_that_takes_no_streams_is_told_as_such(tls: dict[str, Contexts]) -> None:
    async def take(app: Http2App, message: Message) -> None:
        app.h2.reset_stream(message.number, ErrorCodes.REFUSED_STREAM)
        app.send()

    async def scene(nodes: Nodes) -> None:
        assert await cut(await nodes.connect())
        assert nodes.refused(nodes.near) == ["streams_exhausted"]

    against(tls, take, scene, protocol="tcp")


def test_a_peer_that_never_answers_is_given_up(tls: dict[str, Contexts]) -> None:
    streams: list[Message] = []

    async def take(app: Http2App, message: Message) -> None:
        streams.append(message)

    async def scene(nodes: Nodes) -> None:
        assert await cut(await nodes.connect())
        assert nodes.refused(nodes.near) == ["connect_timeout"]
        await until(lambda: [each.reset for each in streams] == [ErrorCodes.CANCEL])

    against(tls, take, scene, protocol="tcp", timeouts={"connect": 0.3})
