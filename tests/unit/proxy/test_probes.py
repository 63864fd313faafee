"""What the node may ask of a pod in plaintext beside HTTP probes: the health that a gRPC probe asks
for, and whether a port opens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from nodeagent.identity.tls import Contexts
from nodeagent.mesh.entries import DeclaredProbe, Delta
from nodeagent.policy.model import AuthorizationPolicy, JwtRule, MtlsMode, RequestAuthentication, Rule, RuleSource
from nodeagent.proxy.carried import CarriedConnection
from tests.fakes import health
from tests.unit.proxy.http2_peers import Apps, Http2App, Http2Client, Message
from tests.unit.proxy.nodes import NODE, SERVER, STRANGER, Nodes, Streams, play
from tests.unit.proxy.test_guard import get
from tests.unit.proxy.test_inbound import cut, show_head
from tests.waiting import packet

ONLY_CLIENT = AuthorizationPolicy(
    "default", "only", "ALLOW", (Rule(sources=(RuleSource(principals=("cluster.local/ns/default/sa/client",)),)),)
)
OK, NOT_FOUND, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE = "0", "5", "7", "12", "14"


@pytest.fixture
def application() -> Iterator[health.Health]:
    made = health.Health()
    server, made.port = health.serve(made)  # type: ignore[attr-defined]
    yield made
    server.stop(None).wait()


def declare(nodes: Nodes, *probes: tuple[str, str], application: Any = None) -> None:
    """Have the server's pod declare *probes* (kind, path or service) for its port, and *application* serve that."""
    workload = nodes.far.context.view.workload(nodes.far.context.pods["server"].uid)  # type: ignore[index]
    assert workload is not None
    declared = tuple(DeclaredProbe(kind, nodes.port, path) for kind, path in probes)  # type: ignore[arg-type]
    scrapes = tuple(probe for probe in declared if probe.kind == "scrape")
    nodes._probes = tuple(probe for probe in declared if probe.kind != "scrape")
    nodes.far.context.view.apply(Delta((dataclasses.replace(workload, probes=nodes._probes, scrapes=scrapes),)))
    if application is not None:
        nodes._redirected[SERVER, nodes.port] = ("127.0.0.1", application.port)


class Http2:
    """A client that may do what a gRPC library would not."""

    def __init__(self, streams: Streams) -> None:
        self.reader, self.writer = streams
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.headers: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()

    def ask(
        self,
        path: str = health.CHECK,
        service: str = "",
        method: str = "POST",
        more: tuple[tuple[str, str], ...] = (),
    ) -> int:
        """Send a request; return its stream."""
        stream = self.h2.get_next_available_stream_id()
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "probe"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *more,
        ]
        message = HealthCheckRequest(service=service).SerializeToString()
        self.h2.send_headers(stream, fields)
        self.h2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
        self.flush()
        return stream

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def answer(self, stream: int) -> tuple[str, bytes]:
        """Return the gRPC status of *stream*, and its message."""
        while stream not in self.ended:
            data = await self.reader.read(65536)
            assert data, "the connection was closed"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    self.headers.setdefault(event.stream_id, {}).update(event.headers)  # type: ignore[arg-type]
                elif isinstance(event, h2.events.DataReceived):
                    self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.ended.add(event.stream_id)
            self.flush()
        return self.headers[stream].get("grpc-status", "none"), self.data.get(stream, b"")[5:]


def probed(
    tls: dict[str, Contexts],
    application: health.Health,
    scene: Callable[[Nodes], Any],
    *probes: tuple[str, str],
    mode: MtlsMode = "STRICT",
    **options: Any,
) -> None:
    async def run(nodes: Nodes) -> None:
        declare(nodes, *probes, application=application)
        await scene(nodes)

    play(show_head, run, tls, strict=mode == "STRICT", **options)


@pytest.mark.parametrize("protocol", ["tcp", "auto", "http"])
@pytest.mark.parametrize("pieces", [1, 9])
def test_a_grpc_probe_is_answered_by_the_application(
    tls: dict[str, Contexts], application: health.Health, protocol: Any, pieces: int
) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial(NODE)
        client = Http2(streams)
        written: list[bytes] = []
        client.writer = type("Writer", (), {"write": staticmethod(written.append)})()  # type: ignore[assignment]
        stream = client.ask(service="web")
        whole = b"".join(written)
        for at in range(0, len(whole), len(whole) // pieces):
            streams[1].write(whole[at : at + len(whole) // pieces])
            await packet()
        client.writer = streams[1]
        status, message = await client.answer(stream)
        assert (status, HealthCheckResponse.FromString(message).status) == (OK, HealthCheckResponse.SERVING)
        assert application.asked == [(health.CHECK, "web")]
        streams[1].close()
        await nodes.settled()

    probed(tls, application, scene, ("grpc", "web"), protocol=protocol)


def test_what_the_application_says_is_what_the_node_hears(tls: dict[str, Contexts], application: health.Health) -> None:
    async def scene(nodes: Nodes) -> None:
        client = Http2(await nodes.dial(NODE))
        status, message = await client.answer(client.ask(service="ill"))
        assert (status, HealthCheckResponse.FromString(message).status) == (OK, HealthCheckResponse.NOT_SERVING)
        assert (await client.answer(client.ask(service="unheard-of")))[0] == NOT_FOUND
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nodes._redirected[SERVER, nodes.port] = unused.getsockname()
            assert (await client.answer(client.ask(service="ill")))[0] == UNAVAILABLE

    probed(tls, application, scene, ("grpc", "ill"), ("grpc", "unheard-of"))


def test_nothing_but_the_declared_service_is_asked(tls: dict[str, Contexts], application: health.Health) -> None:
    async def scene(nodes: Nodes) -> None:
        client = Http2(await nodes.dial(NODE))
        for service in ("", "WEB", "web2", "ill"):
            assert (await client.answer(client.ask(service=service)))[0] == PERMISSION_DENIED
        for path in (
            health.SECRET,
            "/grpc.health.v1.Health/Watch",
            health.CHECK.lower(),
            health.CHECK + "/",
            "/" + health.CHECK,
            f"{health.CHECK}?x",
        ):
            assert (await client.answer(client.ask(path, "web")))[0] == UNIMPLEMENTED
        assert (await client.answer(client.ask(method="GET")))[0] != OK
        both = [client.ask(service="web"), client.ask(health.SECRET, "web")]
        assert [(await client.answer(stream))[0] for stream in both] == [OK, UNIMPLEMENTED]
        assert application.asked == [(health.CHECK, "web")]
        assert "probe" not in str(application.metadata), "what it sent itself goes nowhere"

    probed(tls, application, scene, ("grpc", "web"))


@pytest.mark.parametrize(
    "rest", [b"garbage" * 10, b"\0\0\4\1\x25\0\0\0\1" + b"\xff" * 4, b"\xff\xff\xff\0\0\0\0\0\1", b""]
)
def test_nonsense_reaches_nobody(tls: dict[str, Contexts], application: health.Health, rest: bytes) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(NODE)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rest)
        writer.write_eof()
        await reader.read()
        await nodes.settled()
        assert application.asked == []

    probed(tls, application, scene, ("grpc", "web"), timeouts={"head": 1})


@pytest.mark.parametrize(
    ("source", "probe"), [(STRANGER, ("grpc", "web")), (NODE, ("tcp", "")), (NODE, ("http", "/web"))]
)
def test_who_is_not_the_node_and_what_is_not_declared_is_cut(
    tls: dict[str, Contexts], application: health.Health, source: str, probe: tuple[str, str]
) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial(source)
        Http2(streams).ask(service="web")
        assert await cut(streams[0])
        assert application.asked == []

    probed(tls, application, scene, probe)


def test_policies_let_probes_pass_and_nothing_beside(tls: dict[str, Contexts], application: health.Health) -> None:
    """PERMISSIVE, and a policy that asks for a principal, which the node has not."""

    async def scene(nodes: Nodes) -> None:
        client = Http2(await nodes.dial(NODE))
        assert (await client.answer(client.ask(service="web")))[0] == OK
        assert (await client.answer(client.ask(health.SECRET, "web")))[0] == UNIMPLEMENTED
        reader, writer = await nodes.dial(NODE)
        writer.write(b"\x00not a probe")
        assert await cut(reader)
        stranger = Http2(await nodes.dial(STRANGER))
        assert (await stranger.answer(stranger.ask(service="web")))[0] == PERMISSION_DENIED
        assert application.asked == [(health.CHECK, "web")]

    probed(tls, application, scene, ("grpc", "web"), ("tcp", ""), mode="PERMISSIVE", policies=(ONLY_CLIENT,))


@pytest.mark.parametrize("source", [NODE, STRANGER])
def test_who_needs_no_exemption_is_read_as_http(
    tls: dict[str, Contexts], application: health.Health, source: str
) -> None:
    """PERMISSIVE, and a policy that decides by the connection alone and permits this one. Input: a forged identity."""

    async def scene(nodes: Nodes) -> None:
        client = Http2(await nodes.dial(source))
        forged = ("x-forwarded-client-cert", "By=a;URI=spiffe://cluster.local/ns/default/sa/admin")
        assert (await client.answer(client.ask(service="web", more=(forged,))))[0] == OK
        assert application.asked == [(health.CHECK, "web")]
        assert "admin" not in str(application.metadata)

    evil = AuthorizationPolicy("default", "evil", "DENY", (Rule(sources=(RuleSource(namespaces=("evil",)),)),))
    probed(tls, application, scene, ("grpc", "web"), mode="PERMISSIVE", policies=(evil,), protocol="http2")


def test_without_a_policy_a_permissive_port_is_open_to_the_node(
    tls: dict[str, Contexts], application: health.Health
) -> None:
    async def scene(nodes: Nodes) -> None:
        client = Http2(await nodes.dial(NODE))
        assert (await client.answer(client.ask(health.SECRET, "web")))[0] == OK

    probed(tls, application, scene, ("grpc", "web"), mode="PERMISSIVE")


# -- declared metrics --


@pytest.mark.parametrize("source", [STRANGER, NODE])
def test_declared_metrics_are_told_to_everybody_and_nothing_beside(tls: dict[str, Contexts], source: str) -> None:
    """STRICT, and a policy that asks for a principal. Input: requests on one connection, then what is no HTTP."""

    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("scrape", "/stats"))
        streams = await nodes.dial(source)
        for path, status in (("/stats", 200), ("/", 403), ("/stats?x", 403), ("/stats", 200)):
            assert (await get(streams, path))[0] == status
        streams[1].write(b"HEAD /stats HTTP/1.1\r\nHost: web\r\n\r\n")
        assert (await streams[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
        reader, writer = await nodes.dial(source)
        writer.write(b"\x00data")
        assert (await reader.read()).startswith(b"HTTP/1.1 400"), "our own answer"
        streams[1].close()
        await nodes.settled()
        assert nodes.app_connections == 1

    play(show_head, scene, tls, strict=True, protocol="http", policies=(ONLY_CLIENT,))


def test_where_only_metrics_may_be_asked_what_else_is_under_way_ends(tls: dict[str, Contexts]) -> None:
    """Input: a stranger's streams while the port was PERMISSIVE, which becomes STRICT."""
    go = asyncio.Event()

    async def answer(app: Http2App, message: Message) -> None:
        await app.say(message, b"first", end=False)
        await go.wait()
        if message.reset is None:
            await app.body(message.number, b" and last")

    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("scrape", "/stats"))
        client = await Http2Client.on(await nodes.dial(STRANGER))
        stats, other = client.ask("/stats"), client.ask("/")
        await stats.begun.wait()
        await other.begun.wait()
        nodes._mode = "STRICT"
        nodes.publish()
        declare(nodes, ("scrape", "/stats"))
        await nodes.far.revocation.reconsider()
        await other.ended.wait()
        assert other.reset is not None
        go.set()
        await stats.ended.wait()
        assert (stats.reset, stats.body) == (None, b"first and last")
        await client.close()

    play(Apps(answer), scene, tls, protocol="http2")


def test_policies_let_scrapes_pass_and_no_tunnel_in_their_name(tls: dict[str, Contexts]) -> None:
    """PERMISSIVE, and a policy that asks for a principal, which the asker has not."""

    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("scrape", "/stats"))
        streams = await nodes.dial(STRANGER)
        assert (await get(streams, "/stats"))[0] == 200
        assert (await get(streams, "/other"))[0] == 403
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"GET /stats HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")

    play(show_head, scene, tls, protocol="http", policies=(ONLY_CLIENT,))


@pytest.mark.parametrize(("kind", "source"), [("scrape", STRANGER), ("http", NODE)])
def test_who_asks_for_metrics_or_health_says_nothing_of_himself(
    tls: dict[str, Contexts], kind: str, source: str
) -> None:
    """Input: a scrape or probe with the fields in which the application is told what tokens say, and
    with another method. Verdict: it reaches the application without; what else it says remains.
    """
    rule = JwtRule(
        "me", jwks='{"keys": []}', output_payload_to_header="X-Payload", output_claim_to_headers=(("X-Sub", "sub"),)
    )

    async def scene(nodes: Nodes) -> None:
        declare(nodes, (kind, "/stats"))
        forged = "X-Sub: admin\r\nX_Sub: admin\r\nx-payload: forged\r\nX-HTTP-Method-Override: DELETE\r\n"
        reader, writer = await nodes.dial(source)
        writer.write(f"GET /stats HTTP/1.1\r\nHost: web\r\n{forged}Authorization: Basic YTpi\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200")
        size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        told = (await reader.readexactly(size)).lower()
        assert b"authorization: basic ytpi" in told
        assert not any(said in told for said in (b"admin", b"forged", b"delete"))

    play(
        show_head, scene, tls, protocol="http", policies=(ONLY_CLIENT, RequestAuthentication("default", "jwt", (rule,)))
    )


@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_a_port_with_metrics_takes_no_other_protocol_of_strangers(tls: dict[str, Contexts], protocol: Any) -> None:
    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("scrape", "/stats"))
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"\x00data")
        assert await cut(reader)
        await nodes.settled()
        assert nodes.app_connections == 0
        assert nodes.refused(nodes.far) == ["probe_refused"]

    play(greet, scene, tls, strict=True, protocol=protocol)


# -- TCP probes --


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An application that speaks first, and hears."""
    writer.write(b"hello")
    heard.append(await reader.read(100))


heard: list[bytes] = []


@pytest.mark.parametrize("protocol", ["tcp", "auto", "http"])
@pytest.mark.parametrize("kind", ["tcp", "http", "grpc"])
def test_a_connection_may_be_opened_and_carries_nothing(tls: dict[str, Contexts], protocol: Any, kind: str) -> None:
    async def scene(nodes: Nodes) -> None:
        declare(nodes, (kind, "/"))
        heard.clear()
        for half_close in (True, False):
            reader, writer = await nodes.dial(NODE)
            if half_close:
                writer.write_eof()
            assert await reader.read() == b"", "it ends by itself, and not as refused"
        reader, writer = await nodes.dial(NODE)
        writer.write(b"\x00data")
        if protocol == "http":
            assert (await reader.read()).startswith(b"HTTP/1.1 400"), "our own answer"
        else:
            assert await cut(reader)
        await nodes.settled()
        assert nodes.app_connections == 0 and heard == []
        assert nodes.refused(nodes.far) == ([] if protocol == "http" else ["probe_refused"])

    play(greet, scene, tls, strict=True, protocol=protocol, timeouts={"handshake": 0.3, "idle": 0.3})


@pytest.mark.parametrize("http", [False, True])
def test_what_was_open_before_strict_is_held_to_it(tls: dict[str, Contexts], http: bool) -> None:
    """An established connection of the node, on a port that has probes: from now on it is asked for those alone."""

    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("tcp", ""), ("http", "/healthz"))
        streams = await nodes.dial(NODE)
        if http:
            assert (await get(streams, "/admin"))[0] == 200
            await nodes.protect((), "STRICT")
            assert (await get(streams, "/admin"))[0] == 403
            assert (await get(streams, "/healthz"))[0] == 200
        else:
            streams[1].write(b"\x00")
            assert await streams[0].readexactly(5) == b"hello"
            await nodes.protect((), "STRICT")
            assert await cut(streams[0])

    play(show_head if http else greet, scene, tls, protocol="http" if http else "tcp")


@pytest.mark.parametrize(("path", "status"), [(b"/admin", b"403"), (b"/healthz", b"502")])
def test_no_tunnel_opens_after_strict_for_who_asked_before(
    tls: dict[str, Contexts], path: bytes, status: bytes
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go.wait()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        await reader.read()

    async def scene(nodes: Nodes) -> None:
        declare(nodes, ("http", "/healthz"))
        streams = await nodes.dial(NODE)
        head = b"GET %b HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        streams[1].write(head % path)
        await asked.wait()
        await nodes.protect((), "STRICT")
        go.set()
        assert (await streams[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
        assert not any(
            isinstance(connection.carriage, CarriedConnection) for connection in nodes.far.context.connections.values()
        )

    play(application, scene, tls, protocol="http")
