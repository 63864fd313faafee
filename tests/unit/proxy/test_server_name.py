"""The server name of mTLS between pods, which ``connection.sni`` compares: that of Istio's sidecars for
the Service that was asked for, on whichever way the connection goes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.mesh.entries import Delta, Endpoint, Protocol, Service, ServicePort, Workload
from nodeagent.policy.model import AuthorizationPolicy, Condition, MtlsMode, Rule
from nodeagent.proxy.view import ClusterView
from nodeagent.vocabulary import Address, PodUid
from tests.unit.control.scene import workload
from tests.unit.proxy.http2_peers import Apps, Http2Client
from tests.unit.proxy.http2_peers import echo as echo_stream
from tests.unit.proxy.nodes import SERVER, Nodes, play
from tests.unit.proxy.stage import VIP, Stage, answering, ok
from tests.unit.proxy.stage import play as play_alone
from tests.unit.proxy.test_guard import allow, deny, echo, get
from tests.unit.proxy.test_inbound import cut

SERVE = answering(lambda head, body: ok(b"served"))
WEB = "outbound_.80_._.web.default.svc.cluster.local"
OTHER = "outbound_.8080_._.other.default.svc.cluster.local"


def named(*values: str) -> Rule:
    return Rule(conditions=(Condition("connection.sni", values),))


def service(name: str, vip: str, port: int, *endpoints: Endpoint, protocol: Protocol = "http") -> Service:
    addresses = (Address(vip),) if vip else ()
    host = f"{name}.default.svc.cluster.local"
    return Service(name, "default", host, addresses, (ServicePort(port, name, protocol, endpoints),))


def ask_for(nodes: Nodes, vip: str, port: int, *, protocol: Protocol = "http") -> None:
    """Have the client's application connect to a Service that the server serves."""
    endpoint = Endpoint(Address(SERVER), nodes.port, PodUid("server"))
    web = service("web", VIP, 80, endpoint, protocol=protocol)
    other = service("other", "10.96.0.2", 8080, endpoint, protocol=protocol)
    nodes.near.context.view.apply(Delta((web, other)))
    nodes.originals.to = (vip, port)


SEEN = [
    # whom the client dials, and what the server's node is told
    ((VIP, 80), WEB),
    (("10.96.0.2", 8080), OTHER),
    ((SERVER, 0), ""),
]


@pytest.mark.parametrize(("dialled", "told"), SEEN)
def test_another_node_is_told_which_service_was_asked_for(
    tls: dict[str, Contexts], dialled: tuple[str, int], told: str
) -> None:
    async def scene(nodes: Nodes) -> None:
        ask_for(nodes, dialled[0], dialled[1] or nodes.port)
        assert (await get(await nodes.connect()))[0] == 200
        (connection,) = nodes.far.context.connections.values()
        assert connection.sni == told
        await nodes.protect((deny(named("*")),))
        assert (await get(await nodes.connect()))[0] == (403 if told else 200)
        await nodes.protect((deny(named("outbound_.80_.*")),))
        assert (await get(await nodes.connect()))[0] == (403 if told == WEB else 200)

    play(SERVE, scene, tls, protocol="http")


def test_connections_for_one_service_are_not_anothers(tls: dict[str, Contexts]) -> None:
    """Both are served at one port of one pod, and connections to it are kept."""

    async def scene(nodes: Nodes) -> None:
        for _ in range(2):
            ask_for(nodes, VIP, 80)
            assert (await get(await nodes.connect()))[0] == 200
            ask_for(nodes, "10.96.0.2", 8080)
            assert (await get(await nodes.connect()))[0] == 403

    play(SERVE, scene, tls, protocol="http", policies=(allow(named(WEB)),))


def test_streams_of_a_shared_connection_have_its_name(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        ask_for(nodes, VIP, 80)
        streams = [await nodes.connect() for _ in range(4)]
        assert [(await get(each))[0] for each in streams] == [200] * 4
        assert {each.sni for each in nodes.far.context.connections.values()} == {WEB}

    play(SERVE, scene, tls, protocol="http", policies=(allow(named(WEB)),))


def test_http2(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        ask_for(nodes, VIP, 80, protocol="http2")
        assert (await (await Http2Client.on(await nodes.connect())).get("/")).status == 200
        ask_for(nodes, "10.96.0.2", 8080, protocol="http2")
        assert (await (await Http2Client.on(await nodes.connect())).get("/")).status == 403

    play(Apps(echo_stream), scene, tls, protocol="http2", policies=(allow(named(WEB)),))


def test_bytes(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        ask_for(nodes, VIP, 80, protocol="tcp")
        reader, writer = await nodes.connect()
        writer.write(b"\x00hello")
        assert await reader.readexactly(6) == b"\x00hello"
        ask_for(nodes, "10.96.0.2", 8080, protocol="tcp")
        reader, writer = await nodes.connect()
        writer.write(b"\x00hello")
        assert await cut(reader)

    play(echo, scene, tls, protocol="tcp", policies=(allow(named(WEB)),))


def protect(stage: Stage, policy: AuthorizationPolicy, mode: MtlsMode = "PERMISSIVE") -> None:
    workload = stage.context.view.workload(PodUid("server"))
    assert isinstance(workload, Workload)
    stage.context.view.apply(Delta((policy, replace(workload, policies=(policy.key,), mtls=mode))))


@pytest.mark.parametrize("way", ["inside", "network"])
@pytest.mark.parametrize(
    ("rule", "mode", "status"),
    [
        (named("*"), "PERMISSIVE", 403),
        (named(WEB), "STRICT", 403),
        (named(OTHER), "STRICT", 200),
        (named("*"), "DISABLE", 200),
    ],
)
def test_on_the_same_node_it_is_what_it_would_be(way: str, rule: Rule, mode: MtlsMode, status: int) -> None:
    """Nothing is encrypted there; where plaintext is asked for, nobody is told a name on any way."""

    async def scene(stage: Stage) -> None:
        stage.context.delivery = way  # type: ignore[assignment]
        protect(stage, deny(rule), mode)
        assert (await get(await stage.connect()))[0] == status

    play_alone(SERVE, scene)


def test_a_pod_that_is_dialled_itself_is_told_no_name() -> None:
    async def scene(stage: Stage) -> None:
        stage.asked = "127.0.0.1"
        protect(stage, deny(named("*")))
        assert (await get(await stage.connect()))[0] == 503, "let in, though nothing listens there"

    play_alone(SERVE, scene)


@pytest.mark.parametrize(
    ("address", "port", "name"),
    [
        ("10.96.0.1", 80, WEB),
        ("10.96.0.1", 81, ""),
        ("10.0.0.1", 8080, ""),
        ("10.0.0.2", 9000, "outbound_.9000_._.headless.default.svc.cluster.local"),
        ("10.0.0.3", 9001, ""),
        ("10.0.0.9", 80, ""),
        ("192.0.2.1", 80, ""),
    ],
)
def test_what_is_asked_for_by_name(address: str, port: int, name: str) -> None:
    view = ClusterView()
    served = {
        "web": (service("web", "10.96.0.1", 80), 8080, "10.0.0.1"),
        "headless": (service("headless", "", 9000), 9000, "10.0.0.2"),
        "shifted": (service("shifted", "", 9000), 9001, "10.0.0.3"),
    }
    entries: list[Service | Workload] = []
    for uid, (each, own, where) in served.items():
        entries += [each, pod(uid, where, own, f"default/{uid}")]
    view.apply(Delta((*entries, pod("alone", "10.0.0.9", 80, ""))))
    assert view.resolve(address, port).server_name() == name


def pod(uid: str, address: str, port: int, of: str) -> Workload:
    return replace(workload(uid, address), ports=((port, "http"),), services=((port, of),) if of else ())
