"""What is established is judged by a new policy where it went, be it that its endpoint has left the Service."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nodeagent.mesh.entries import Delta
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule
from tests.unit.proxy.stage import Stage, ok, play, read_request
from tests.waiting import until


async def deny(stage: Stage, rule: Rule) -> None:
    """Let nobody do at the server's pod any more what *rule* says."""
    policy = AuthorizationPolicy("default", "deny", "DENY", (rule,))
    server = stage.context.view.workload("server")
    assert server is not None
    stage.proxy.put([Delta((policy, replace(server, policies=(policy.key,))))])
    await stage.proxy.revocation.reconsider()


@pytest.mark.parametrize("left", [False, True])
def test_a_request_under_way(left: bool) -> None:
    asked = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await asyncio.Event().wait()

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET /shut HTTP/1.1\r\nHost: web\r\n\r\n")
        await asked.wait()
        if left:
            stage.publish(())
        await deny(stage, Rule(operations=(Operation(paths=("/shut",)),)))
        assert b" 403 " in await reader.readuntil(b"\r\n\r\n")

    play(app, scene)


@pytest.mark.parametrize("left", [False, True])
def test_a_connection_that_is_carried_as_bytes(left: bool) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        await reader.read()

    async def scene(stage: Stage) -> None:
        reader, _ = await stage.connect()
        assert await reader.readexactly(7) == b"welcome"
        if left:
            stage.publish(())
        await deny(stage, Rule())
        with pytest.raises(ConnectionResetError):
            await reader.read()

    play(app, scene, protocol="tcp")


def test_what_is_permitted_goes_on_though_its_endpoint_left() -> None:
    go_on = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await go_on.wait()
        writer.write(ok(b"late"))

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        await until(lambda: stage.upstream_connections)
        stage.publish(())
        await stage.proxy.revocation.reconsider()
        go_on.set()
        assert (await read_request(reader))[1] == b"late"

    play(app, scene)
