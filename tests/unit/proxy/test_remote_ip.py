"""Policies by the client's address: the one that X-Forwarded-For tells where there are requests, and
where there are none the peer's, as for Istio's sidecars.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, Condition, Rule, RuleSource
from tests.unit.proxy.http2_peers import Apps, Http2Client
from tests.unit.proxy.http2_peers import echo as echo_stream
from tests.unit.proxy.nodes import CLIENT, STRANGER, Nodes, play
from tests.unit.proxy.stage import answering, ok
from tests.unit.proxy.test_guard import allow, deny, echo, events, get
from tests.unit.proxy.test_inbound import cut

show_head = answering(lambda head, body: ok(head))
ELSEWHERE = "203.0.113.9"


def blocks(*values: str) -> Rule:
    return Rule((RuleSource(remote_ip_blocks=values),))


def condition(*values: str) -> Rule:
    return Rule(conditions=(Condition("remote.ip", values),))


def unless(*values: str) -> Rule:
    return Rule((RuleSource(not_remote_ip_blocks=values),))


ADMITS = [
    # policies, X-Forwarded-For line by line, whether a request comes in
    ((deny(blocks("203.0.113.0/24")),), [ELSEWHERE], False),
    ((deny(condition("203.0.113.0/24")),), [ELSEWHERE], False),
    ((deny(blocks("203.0.113.0/24")),), [], True),
    ((deny(blocks("203.0.113.0/24")),), ["198.51.100.1"], True),
    ((deny(blocks("203.0.113.0/24")),), [f"{ELSEWHERE}, 198.51.100.1"], True),
    ((deny(blocks("203.0.113.0/24")),), ["198.51.100.1", ELSEWHERE], False),
    ((deny(blocks("203.0.113.0/24")),), [f"{ELSEWHERE}:1234"], False),
    ((deny(blocks("2001:db8::/32")),), ["[2001:db8::1]:80"], False),
    ((deny(blocks("2001:db8::/32")),), ["2001:db8::1"], False),
    ((deny(blocks(CLIENT)),), [], False),
    ((deny(blocks(CLIENT)),), ["junk"], False),
    ((deny(blocks(CLIENT)),), [ELSEWHERE], True),
    ((allow(blocks("203.0.113.0/24")),), [ELSEWHERE], True),
    ((allow(blocks("203.0.113.0/24")),), [], False),
    ((allow(blocks("203.0.113.0/24")),), ["198.51.100.1"], False),
    ((allow(unless("203.0.113.0/24")),), [ELSEWHERE], False),
    ((allow(unless("203.0.113.0/24")),), [], True),
    ((deny(Rule((RuleSource(ip_blocks=(CLIENT,)),))),), [ELSEWHERE], False),
    ((deny(Rule((RuleSource(ip_blocks=(ELSEWHERE,)),))),), [ELSEWHERE], True),
]


@pytest.mark.parametrize(("policies", "told", "admitted"), ADMITS)
def test_http1(
    tls: dict[str, Contexts], policies: tuple[AuthorizationPolicy, ...], told: list[str], admitted: bool
) -> None:
    async def scene(nodes: Nodes) -> None:
        status, _, _ = await get(await nodes.connect(), "/", *[f"X-Forwarded-For: {each}" for each in told])
        assert status == (200 if admitted else 403)

    play(show_head, scene, tls, protocol="http", policies=policies)


@pytest.mark.parametrize(("policies", "told", "admitted"), ADMITS)
def test_http2(
    tls: dict[str, Contexts], policies: tuple[AuthorizationPolicy, ...], told: list[str], admitted: bool
) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        answer = await client.get("/", more=[(b"x-forwarded-for", each.encode()) for each in told])
        assert answer.status == (200 if admitted else 403)

    play(Apps(echo_stream), scene, tls, protocol="http2", policies=policies)


def test_each_request_of_a_connection_is_another_clients(tls: dict[str, Contexts]) -> None:
    """A gateway keeps its connections: what one client may, the next one may not."""

    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        told = [ELSEWHERE, "198.51.100.1", ELSEWHERE, "198.51.100.1"]
        answers = [(await get(streams, "/", f"X-Forwarded-For: {each}"))[0] for each in told]
        assert answers == [403, 200, 403, 200]
        assert events(nodes.far) == {("default/deny", "deny"): 2}

    play(show_head, scene, tls, protocol="http", policies=(deny(blocks(ELSEWHERE)),))


def test_the_meshs_own_proxies_are_no_clients(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        assert (await get(streams, "/", f"X-Forwarded-For: {ELSEWHERE}, 192.0.2.1"))[0] == 403
        assert (await get(streams, "/", f"X-Forwarded-For: 192.0.2.1, {ELSEWHERE}"))[0] == 200

    mesh = MeshSettings("cluster.local", trusted_proxies=1)
    play(show_head, scene, tls, protocol="http", policies=(deny(blocks(ELSEWHERE)),), mesh=mesh)


def test_lines_of_one_field_are_one_list_over_http2_too(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        for lines, status in (([ELSEWHERE, "192.0.2.1"], 403), (["192.0.2.1", ELSEWHERE], 200)):
            more = [(b"x-forwarded-for", each.encode()) for each in lines]
            assert (await client.get("/", more=more)).status == status

    mesh = MeshSettings("cluster.local", trusted_proxies=1)
    play(Apps(echo_stream), scene, tls, protocol="http2", policies=(deny(blocks(ELSEWHERE)),), mesh=mesh)


def test_a_new_policy_ends_the_requests_of_the_clients_that_it_forbids(tls: dict[str, Contexts]) -> None:
    changed = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await changed.wait()
        writer.write(b"llo")
        await reader.read()

    async def scene(nodes: Nodes) -> None:
        streams = {told: await nodes.connect() for told in (ELSEWHERE, "198.51.100.1")}
        for told, (reader, writer) in streams.items():
            writer.write(f"GET / HTTP/1.1\r\nHost: web\r\nX-Forwarded-For: {told}\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\nhe")
        await nodes.protect((deny(blocks(ELSEWHERE)),))
        assert await cut(streams[ELSEWHERE][0])
        changed.set()
        assert await streams["198.51.100.1"][0].readexactly(3) == b"llo"

    play(hold, scene, tls, protocol="http")


WHOLE: list[tuple[tuple[AuthorizationPolicy, ...], bool]] = [
    ((deny(blocks(CLIENT)),), False),
    ((deny(blocks(ELSEWHERE)),), True),
    ((allow(blocks(CLIENT)),), True),
    ((allow(blocks(ELSEWHERE)),), False),
    ((allow(condition(CLIENT)),), True),
    ((allow(unless(CLIENT)),), False),
]


@pytest.mark.parametrize(("policies", "admitted"), WHOLE)
@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_what_is_not_http_comes_from_its_peer(
    tls: dict[str, Contexts], policies: tuple[AuthorizationPolicy, ...], admitted: bool, protocol: Any
) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        writer.write(b"\x00hello")
        if admitted:
            assert await reader.readexactly(6) == b"\x00hello"
        else:
            assert await cut(reader)
            assert nodes.app_connections == 0

    play(echo, scene, tls, protocol=protocol, policies=policies)


def test_who_keeps_silent_on_a_port_of_unknown_protocol_may_be_a_gateway(tls: dict[str, Contexts]) -> None:
    """Its first request comes later, and only that tells whose it is."""

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(STRANGER)
        await asyncio.sleep(0.2)  # longer than timeouts.sniff: what is silent that long may be TCP
        assert (await get((reader, writer), "/", f"X-Forwarded-For: {ELSEWHERE}"))[0] == 200
        assert (await get((reader, writer), "/", "X-Forwarded-For: 198.51.100.1"))[0] == 403

    play(show_head, scene, tls, protocol="auto", policies=(allow(blocks(ELSEWHERE)),), timeouts={"sniff": 0.05})
