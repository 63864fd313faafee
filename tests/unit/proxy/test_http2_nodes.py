"""HTTP/2 between two nodes: mTLS as Istio's sidecars negotiate it, policies by stream, and their change."""

from __future__ import annotations

import asyncio
import time

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.policy.model import AuthorizationPolicy, Condition, Operation, Rule
from tests.unit.proxy.http2_peers import Apps, Http2App, Http2Client, Message, echo
from tests.unit.proxy.nodes import Nodes, play
from tests.unit.proxy.stage import answering, ok
from tests.waiting import DEADLINE, until


def denies(*paths: str) -> AuthorizationPolicy:
    return AuthorizationPolicy("default", "deny", "DENY", (Rule(operations=(Operation(paths=paths),)),))


@pytest.mark.parametrize("protocol", ["http2", "auto", "grpc"])
def test_streams_of_one_client_share_one_connection_between_the_nodes(tls: dict[str, Contexts], protocol: str) -> None:
    apps = Apps(echo)

    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        asked = [client.ask(f"/{each}") for each in range(30)]
        async with asyncio.timeout(DEADLINE):
            for each in asked:
                await each.ended.wait()
        assert [each.status for each in asked] == [200] * 30
        whole = await client.post("/large", b"l" * 500_000, trailers=[(b"sum", b"1")])
        assert (whole.body, whole.trailers[b"sum"]) == (b"l" * 500_000, b"1")
        assert len(nodes.far.context.connections) == 1
        (connection,) = nodes.far.context.connections.values()
        assert (connection.protocol, connection.peer.security) == ("http2", "mutual_tls")
        (head,) = [each.fields for each in apps.connections[0].messages.values() if each.fields[b":path"] == b"/7"]
        assert b"URI=spiffe://cluster.local/ns/default/sa/client" in head[b"x-forwarded-client-cert"]

    play(apps, scene, tls, protocol=protocol)  # type: ignore[arg-type]


def test_no_server_is_asked_again_over_a_connection_whose_certificate_has_ended(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        assert (await client.get("/")).status == 200
        groups = [group for pool in nodes.near.routing.pools() for group in pool.streams._groups.values()]
        (upstream,) = [each for group in groups for each in group.connections]
        assert time.time() < upstream.expires < time.time() + 3700
        (before,) = nodes.far.context.connections.values()
        upstream.expires = 1.0
        await until(lambda: before.closed is not None)
        assert (await client.get("/")).status == 200

    play(Apps(echo), scene, tls, protocol="http2")


def test_a_port_declared_http_is_asked_in_http1_on_the_way_too(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        assert (await client.get("/")).body == b"ok"
        (connection,) = nodes.far.context.connections.values()
        assert connection.protocol == "http"

    play(answering(lambda head, body: ok(b"ok")), scene, tls, protocol="http")


def test_a_policy_judges_each_stream_by_itself(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        answers = [(await client.get(path)).status for path in ("/open", "/shut", "/open")]
        assert answers == [200, 403, 200]

    play(Apps(echo), scene, tls, protocol="http2", policies=(denies("/shut"),))


def test_the_scheme_that_policies_compare_is_the_one_that_is_forwarded(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        assert (await client.get("/")).status == 403
        assert (await client.get("/", more=[(b"x-forwarded-proto", b"https")])).status == 200

    plain = Rule(conditions=(Condition("request.headers[:scheme]", ("http",)),))
    play(Apps(echo), scene, tls, protocol="http2", policies=(AuthorizationPolicy("default", "deny", "DENY", (plain,)),))


def test_what_a_new_policy_forbids_is_ended_and_the_rest_goes_on(tls: dict[str, Contexts]) -> None:
    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message, b"begun", end=False)

    apps = Apps(answer)

    async def scene(nodes: Nodes) -> None:
        client = await Http2Client.on(await nodes.connect())
        shut = client.ask("/shut")
        kept = client.ask("/open")
        await until(lambda: (shut.body, kept.body) == (b"begun", b"begun"))
        await nodes.protect((denies("/shut"),))
        async with asyncio.timeout(DEADLINE):
            await shut.ended.wait()
        assert shut.reset is not None
        assert not kept.ended.is_set()
        numbers = {each.fields[b":path"]: each.number for each in apps.connections[0].messages.values()}
        await until(lambda: apps.connections[0].messages[numbers[b"/shut"]].reset is not None)
        await apps.connections[0].body(numbers[b"/open"], b" and done")
        async with asyncio.timeout(DEADLINE):
            await kept.ended.wait()
        assert kept.body == b"begun and done"

    play(apps, scene, tls, protocol="http2")
