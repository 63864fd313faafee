"""What arrives at a pod from outside: mTLS, plaintext, probes, an application's own TLS, and who pretends."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.mesh.entries import DeclaredProbe
from tests.unit.proxy.nodes import CLIENT, NODE, STRANGER, Nodes, play
from tests.unit.proxy.stage import answering, ok
from tests.unit.proxy.test_http1 import read_answer
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
show_head = answering(lambda head, body: ok(head))


async def cut(reader: asyncio.StreamReader) -> bool:
    """Say whether the connection is reset or closed without a byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("protocol", ["http", "auto"])
@pytest.mark.parametrize("strict", [False, True])
def test_between_nodes_the_identity_is_proved_and_told(tls: dict[str, Contexts], protocol: Any, strict: bool) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        for _ in range(3):
            writer.write(
                b"GET / HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: By=spiffe://evil;URI=spiffe://evil\r\n\r\n"
            )
            head = (await read_answer(reader))[1]
            assert head.lower().count(b"x-forwarded-client-cert") == 1
            assert (
                b"By=spiffe://cluster.local/ns/default/sa/server;URI=spiffe://cluster.local/ns/default/sa/client\r\n"
                in head
            )
        connection = next(iter(nodes.far.context.connections.values()))
        assert connection.peer.security == "mutual_tls"
        assert connection.path == "proxy-mtls"
        assert nodes.app_connections == 1
        writer.close()
        await nodes.settled()

    play(show_head, scene, tls, protocol=protocol, strict=strict)


@pytest.mark.parametrize("name", [b"X-FORWARDED-client-cert", b"X_Forwarded_Client_Cert", b"x-forwarded.client_cert"])
def test_plaintext_in_permissive_mode_has_no_identity(tls: dict[str, Contexts], name: bytes) -> None:
    """CGI, WSGI and PHP show an application ``_`` for each sign of a field's name."""

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial()
        writer.write(
            b"GET / HTTP/1.1\r\nHost: web\r\n" + name + b": URI=spiffe://cluster.local/ns/default/sa/client\r\n\r\n"
        )
        assert b"spiffe" not in (await read_answer(reader))[1].lower()
        writer.close()

    play(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize("first", [GET, b"\x00\x01binary", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("protocol", ["http", "tcp", "auto"])
def test_strict_refuses_plaintext(tls: dict[str, Contexts], first: bytes, protocol: Any) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial()
        writer.write(first)
        assert await cut(reader)
        assert nodes.app_connections == 0
        assert len(nodes.refused(nodes.far)) == 1
        await nodes.settled()

    play(show_head, scene, tls, protocol=protocol, strict=True, timeouts={"handshake": 0.3})


def test_strict_refuses_who_says_nothing_or_only_ends(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial()
        assert await cut(reader)
        reader, writer = await nodes.dial()
        writer.write_eof()
        assert await cut(reader)
        assert nodes.app_connections == 0
        await nodes.settled()

    play(show_head, scene, tls, strict=True, timeouts={"handshake": 0.3})


def with_probes(nodes: Nodes) -> None:
    """Give the server's workload its probes, now that its port is known."""
    from dataclasses import replace

    from nodeagent.mesh.entries import Delta

    workload = nodes.far.context.view.workload(nodes.far.context.pods["server"].uid)  # type: ignore[index]
    assert workload is not None
    nodes.far.context.view.apply(Delta((replace(workload, probes=(DeclaredProbe("http", nodes.port, "/healthz"),)),)))


def test_the_nodes_probes_pass_a_strict_pod_as_declared_and_nothing_else(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        with_probes(nodes)
        reader, writer = await nodes.dial(NODE)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: web\r\n\r\n")
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200")
        for request in (b"GET /admin", b"POST /healthz", b"GET /healthz/../admin", b"GET /healthz?x"):
            writer.write(request + b" HTTP/1.1\r\nHost: web\r\n\r\n")
            assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 403"), request
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b"upgrade" not in (await read_answer(reader))[1].lower(), "a probe opens no tunnel"
        writer.close()
        reader, writer = await nodes.dial(NODE)
        writer.write(b"\x00not a probe")
        assert await cut(reader)
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: web\r\n\r\n")
        assert await cut(reader)
        await nodes.settled()

    play(show_head, scene, tls, strict=True, protocol="auto")


def own_tls(foreign: dict[str, Contexts]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts as an application's own TLS has them: a server without client certificates, a
    client that offers h2.
    """
    server, client = foreign["server"].server, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_NONE
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


@pytest.mark.parametrize("alpn", [None, ["h2", "http/1.1"], ["not-istio"]])
@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_an_applications_own_tls_passes_in_permissive_mode(
    tls: dict[str, Contexts], foreign_tls: dict[str, Contexts], alpn: list[str] | None, protocol: Any
) -> None:
    server, client = own_tls(foreign_tls)
    if alpn:
        client.set_alpn_protocols(alpn)

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(server)
        writer.write(b"own:" + await reader.readexactly(4))
        await writer.drain()

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(context=client)
        writer.write(b"ping")
        assert await reader.readexactly(8) == b"own:ping"

    play(app, scene, tls, protocol=protocol)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("alpn", ["istio", "istio-http/1.1"])
def test_who_offers_our_alpn_must_prove_an_identity(
    tls: dict[str, Contexts], foreign_tls: dict[str, Contexts], strict: bool, alpn: str
) -> None:
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
    nameless.set_alpn_protocols([alpn])
    foreign = foreign_tls["client"].client_http if alpn == "istio-http/1.1" else foreign_tls["client"].client_tcp
    foreign.verify_mode = ssl.CERT_NONE

    async def scene(nodes: Nodes) -> None:
        for context in (nameless, foreign):
            try:
                reader, writer = await nodes.dial(CLIENT, context)
                writer.write(GET)
                assert await reader.read() == b""
            except (ConnectionError, ssl.SSLError):
                pass
        await nodes.settled()
        assert nodes.app_connections == 0
        assert nodes.refused(nodes.far)

    play(show_head, scene, tls, protocol="http", strict=strict)


def test_a_server_with_another_identity_gets_no_request(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.far.context.pods["server"].tls = tls["client"]
        reader, writer = await nodes.connect()
        writer.write(GET)
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"upstream_tls (UF)" in body
        assert nodes.app_connections == 0
        writer.close()
        await nodes.settled()

    play(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize("protocol", ["http", "auto"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_new_pods_connection_waits_for_its_first_certificate(
    tls: dict[str, Contexts], side: str, protocol: Any
) -> None:
    async def scene(nodes: Nodes) -> None:
        pod = (nodes.near if side == "client" else nodes.far).context.pods[side]
        pod.tls = None
        reader, writer = await nodes.connect()
        writer.write(GET)
        proxy = nodes.near if side == "client" else nodes.far
        await until(lambda: proxy.context.connections)
        assert nodes.app_connections == 0
        pod.certify(tls[side])
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200")
        writer.close()
        await nodes.settled()

    play(show_head, scene, tls, protocol=protocol, strict=True)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_pod_that_gets_no_certificate_says_so_at_once(
    tls: dict[str, Contexts], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdict: neither asked nor answered, and least of all in plaintext; a client at whose own pod
    it fails is told why.
    """
    monkeypatch.setattr("nodeagent.proxy.pods.CERTIFICATE_SECONDS", 0.0)

    async def scene(nodes: Nodes) -> None:
        proxy = nodes.near if side == "client" else nodes.far
        proxy.context.pods[side].tls = None
        reader, writer = await nodes.connect()
        writer.write(GET)
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 503")
        assert (b"no_certificate (UF)" in body) == (side == "client")
        assert nodes.app_connections == 0
        writer.close()
        await nodes.settled()
        assert "no_certificate" in nodes.refused(proxy) or side == "client"

    play(show_head, scene, tls, protocol="http")


def test_a_clienthello_in_single_bytes_is_still_mtls(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls["client"].client_http.wrap_bio(incoming, outgoing)
        reader, writer = await nodes.dial(CLIENT)
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        hello = outgoing.read()
        for at in range(len(hello)):
            writer.write(hello[at : at + 1])
            await asyncio.sleep(0.0005)  # a packet each
        while True:
            incoming.write(await reader.read(65536))
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        session.write(GET)
        writer.write(outgoing.read())
        answer = b""
        while b"URI=spiffe://cluster.local/ns/default/sa/client" not in answer:
            incoming.write(await reader.read(65536))
            try:
                answer += session.read(65536)
            except ssl.SSLWantReadError:
                pass
        writer.close()

    play(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize("protocol", ["tcp", "auto"])
def test_a_server_that_speaks_first_reaches_a_silent_client(tls: dict[str, Contexts], protocol: Any) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.write(await reader.read(100))
        await writer.drain()

    async def scene(nodes: Nodes) -> None:
        for way in (nodes.connect, nodes.dial):
            reader, writer = await way()
            assert await reader.readline() == b"220 ready\r\n"
            writer.write(b"HELO")
            assert await reader.read(4) == b"HELO"
            writer.close()

    play(app, scene, tls, protocol=protocol)


def test_a_client_that_is_slow_to_ask_on_an_http_port_still_speaks_http(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for way in (nodes.connect, nodes.dial):
            reader, writer = await way()
            await asyncio.sleep(0.15)  # longer than the proxy waits for first words where it must tell protocols apart
            writer.write(GET)
            await read_answer(reader)
            writer.close()
        await nodes.settled()
        assert [record["response_code"] for record in nodes.far.context.access_log.records] == [200, 200]  # type: ignore[union-attr]

    play(show_head, scene, tls, protocol="http", timeouts={"sniff": 0.05})


def test_a_silent_client_on_an_http_port_does_not_stay_for_ever(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for way in (nodes.connect, nodes.dial):
            reader, _ = await way()
            assert await cut(reader)
        await nodes.settled()

    play(show_head, scene, tls, protocol="http", timeouts={"idle": 0.2})


def test_connections_per_pod_are_bounded(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        kept = [await nodes.dial() for _ in range(5)]
        reader, _ = await nodes.dial()
        assert await cut(reader)
        assert nodes.refused(nodes.far) == ["connections_per_pod"]
        for _, writer in kept:
            writer.close()
        await nodes.settled()
        reader, writer = await nodes.dial()
        writer.write(GET)
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200")

    play(show_head, scene, tls, protocol="http", limits={"connectionsPerPod": 5})
