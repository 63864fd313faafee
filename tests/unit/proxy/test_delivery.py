"""Which connections reach an application for whom: one client's are no other's, and over the
network each of a client's connections is one of its own.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from nodeagent.config import DeliverySetting
from nodeagent.identity.tls import Contexts
from nodeagent.mesh.entries import Delta, Endpoint
from nodeagent.vocabulary import Address, PodUid
from tests.unit.proxy.nodes import NODE, Nodes
from tests.unit.proxy.stage import Stage, answering, ok, play, read_request
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
SERVE = answering(lambda head, body: ok(b"served"))


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GET)
    assert (await reader.readuntil(b"served")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("way", "upstreams"), [("inside", 1), ("network", 2)])
def test_over_the_network_a_connection_of_the_clients_is_one(way: DeliverySetting, upstreams: int) -> None:
    """Input: two connections of one client, one after the other, two requests on each. The second
    goes over a new one, as the network is to be asked.
    """

    async def scene(stage: Stage) -> None:
        stage.context.delivery = way
        for _ in range(2):
            reader, writer = await stage.connect()
            await asked(reader, writer)
            await asked(reader, writer)
            writer.close()
            await until(lambda: not stage.context.connections)
        assert stage.upstream_connections == upstreams

    play(SERVE, scene)


def test_over_the_network_the_application_hears_that_the_client_has_gone() -> None:
    gone = asyncio.Event()

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b"served"))
        assert not await reader.read()
        gone.set()

    async def scene(stage: Stage) -> None:
        stage.context.delivery = "network"
        reader, writer = await stage.connect()
        await asked(reader, writer)
        assert not gone.is_set()
        writer.close()
        await gone.wait()

    play(app, scene)


@pytest.mark.parametrize("way", ["inside", "network"])
def test_the_kernel_is_told_for_whom_before_each_dial(way: DeliverySetting) -> None:
    """Input: a request. The socket that is about to be connected is announced, unconnected, for the
    client's address.
    """
    told: list[str] = []

    def announce(dialler: socket.socket, client: str) -> None:
        with pytest.raises(OSError, match="not connected"):
            dialler.getpeername()
        told.append(client)

    async def scene(stage: Stage) -> None:
        stage.context.delivery, stage.context.announce = way, announce
        reader, writer = await stage.connect()
        await asked(reader, writer)
        assert told == ["10.244.1.2"]
        writer.close()

    play(SERVE, scene)


def test_an_endpoint_whose_policies_nobody_knows_is_dialled_as_a_strangers() -> None:
    """Input: a captured pod that is not in the snapshot. Verdict: its own side decides who comes
    in; this one does not get past it.
    """
    told: list[str] = []

    async def scene(stage: Stage) -> None:
        stage.context.announce = lambda dialler, client: told.append(client)
        stage.context.view.apply(Delta(removals=("workload/server",)))
        reader, writer = await stage.connect()
        await asked(reader, writer)
        assert [connection.path for connection in stage.context.connections.values()] == ["proxy-plaintext"]
        assert not told
        writer.close()

    play(SERVE, scene)


def test_a_dial_that_cannot_be_announced_is_none() -> None:
    """Input: the kernel does not take the client's name. Nothing is dialled: the application would
    take the client for another.
    """

    def announce(dialler: socket.socket, client: str) -> None:
        raise OSError(12, "no memory")

    async def scene(stage: Stage) -> None:
        stage.context.announce = announce
        assert (await stage.exchange(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))).startswith(
            b"HTTP/1.1 503 "
        )
        assert stage.upstream_connections == 0

    play(SERVE, scene)


def test_each_client_from_outside_has_connections_of_its_own_and_few_idle(tls: dict[str, Contexts]) -> None:
    """Input: ten clients, of whom each may keep one idle connection. None is served over another's,
    and the oldest are closed.
    """

    async def scene() -> None:
        nodes = Nodes(
            SERVE,
            tls,
            protocol="http",
            mode="PERMISSIVE",
            probes=(),
            policies=(),
            settings={"limits": {"idleUpstreamConnections": 1}},
        )
        await nodes.start()
        sources = [NODE, *(f"127.0.1.{number}" for number in range(9))]
        for source in sources:
            await asked(*await nodes.dial(source))
            await asked(*await nodes.dial(source))
        assert nodes.app_connections == len(sources)
        nodes.far.revocation.sweep()
        assert sum(len(pool.idle()) for pool in nodes.far.routing.pools()) == 4
        await nodes.stop()

    asyncio.run(scene())


def test_what_an_endpoint_slice_names_outside_the_mesh_is_passed_through() -> None:
    """Input: a Service whose one endpoint is no pod. Verdict: it is asked as it is, counted for the Service."""

    async def scene(stage: Stage) -> None:
        stage.publish((Endpoint(Address("127.0.0.1"), stage.endpoint_port, PodUid("")),))
        reader, writer = await stage.connect()
        await asked(reader, writer)
        writer.close()
        await until(lambda: len(stage.log.records) == 1)
        assert stage.log.records[0]["upstream_cluster"] == "outbound|80||web.default.svc.cluster.local"
        assert [route.path for routes in stage.pods["client"].routes.values() for route in routes] == ["passthrough"]

    play(SERVE, scene)


def test_a_providers_endpoints_are_asked_in_turn() -> None:
    """Those of the first one's family: a provider may listen in that alone."""

    async def scene(stage: Stage) -> None:
        addresses = ("10.0.0.1", "fd00::1", "10.0.0.2")
        stage.publish(tuple([Endpoint(Address(each), 1, PodUid("")) for each in addresses]))
        found = [stage.context.view.endpoint_of("default/web", 80) for _ in range(3)]
        assert found == [("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.1", 1)]
        assert stage.context.view.endpoint_of("default/web", 81) is None
        other = stage.context.view.endpoint_of("web.default.svc.cluster.local", 80)
        assert other == ("10.0.0.2", 1), "it is the same Service"

    play(SERVE, scene)
