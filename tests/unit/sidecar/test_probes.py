"""The application's probes, asked by the sidecar: every kind, and applications that answer
anything, everything or nothing.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from grpclib.health.check import ServiceStatus
from grpclib.health.service import OVERALL, Health
from grpclib.server import Server

from nodeagent.health import MAX_BYTES
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.sidecar.probes import VARIABLE, check, from_environment

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
HOST = "127.0.0.1"


async def asked(port: int, kind: str, seconds: int = 20, **handler: Any) -> str:
    """Return why the probe fails."""
    (probe,) = from_environment(
        {VARIABLE: json.dumps({"/app-health/c/livez": {kind: {"port": port, **handler}, "timeoutSeconds": seconds}})}
    ).values()
    return await check(probe, HOST)


@asynccontextmanager
async def application(
    serve: Callable[[Reader, Writer], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    async def quietly(reader: Reader, writer: Writer) -> None:
        try:
            await serve(reader, writer)
        except OSError:
            pass  # the sidecar had enough
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(quietly, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def says(answer: bytes, heard: list[bytes] | None = None) -> Callable[[Reader, Writer], Awaitable[None]]:
    async def serve(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return serve


async def endless(reader: Reader, writer: Writer) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "HTTP status 503"),
        (b"HTTP/1.1 199 Odd\r\n\r\n", "HTTP status 199"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not an HTTP answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not an HTTP answer"),
        (b"\n", "not an HTTP answer"),
        (b"", "0 bytes"),
        (b"x" * 100_000, "limit"),
    ],
)
def test_http_is_judged_by_its_status(answer: bytes, words: str) -> None:
    async def scenario() -> str:
        async with application(says(answer)) as port:
            return await asked(port, "httpGet", path="/healthz")

    fault = asyncio.run(scenario())
    assert (words in fault) if words else fault == "", fault


def test_the_request_is_the_kubelets() -> None:
    heard: list[bytes] = []

    async def scenario() -> None:
        async with application(says(b"HTTP/1.1 200 OK\r\n\r\n", heard)) as port:
            assert (
                await asked(
                    port,
                    "httpGet",
                    path="/a?b=c",
                    httpHeaders=[{"name": "Host", "value": "shop"}, {"name": "X-Probe", "value": "yes"}],
                )
                == ""
            )

    asyncio.run(scenario())
    first, *fields = heard[0].decode().strip().split("\r\n")
    assert first == "GET /a?b=c HTTP/1.1"
    assert {"host: shop", "x-probe: yes", "connection: close"} <= set(fields)
    assert any(field.startswith("user-agent: kube-probe/") for field in fields)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("healthz", "/healthz"),
        ("/a b", "/a%20b"),
        ("/ HTTP/1.1\r\nx: y", "/%20HTTP/1.1%0D%0Ax:%20y"),
        ("/%41?x=%20", "/%41?x=%20"),
    ],
)
def test_any_path_makes_one_request(path: str, target: str) -> None:
    heard: list[bytes] = []

    async def scenario() -> None:
        async with application(says(b"HTTP/1.1 200 OK\r\n\r\n", heard)) as port:
            assert await asked(port, "httpGet", path=path, host=None) == ""

    asyncio.run(scenario())
    assert heard[0].startswith(f"GET {target} HTTP/1.1\r\n".encode())


def test_https_is_not_verified(tmp_path: Path) -> None:
    certificate = CertificateAuthority.open_or_create(tmp_path / "ca", "cluster.local").issue_server(
        ["elsewhere"], 3600
    )
    (tmp_path / "pem").write_bytes(certificate.chain_pem + certificate.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    async def scenario() -> None:
        async with application(says(b"HTTP/1.1 200 OK\r\n\r\n"), context) as port:
            assert await asked(port, "httpGet", scheme="HTTPS") == ""
            assert await asked(port, "httpGet", scheme="HTTP") != ""

    asyncio.run(scenario())


def test_tcp_is_judged_by_the_connection() -> None:
    async def scenario() -> None:
        async with application(silent) as port:
            assert await asked(port, "tcpSocket") == ""
        assert "failed" in await asked(port, "tcpSocket")

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["httpGet", "grpc"])
@pytest.mark.parametrize("serve", [silent, endless])
def test_an_application_that_never_comes_to_an_end(kind: str, serve: Any) -> None:
    async def scenario() -> str:
        async with application(serve) as port:
            return await asked(port, kind, seconds=1)

    assert asyncio.run(scenario())


@pytest.mark.parametrize("service", ["", "shop", "s" * 200])
def test_grpc_health(service: str) -> None:
    """Against a real implementation of the protocol."""

    async def scenario() -> None:
        status = ServiceStatus()
        server = Server([Health({_Shop(service): [status]} if service else {OVERALL: [status]})])
        await server.start(HOST, 0)
        assert server._server is not None
        assert server._server.sockets is not None
        port = server._server.sockets[0].getsockname()[1]
        try:
            status.set(True)
            assert await asked(port, "grpc", service=service) == ""
            status.set(False)
            assert "NOT_SERVING" in await asked(port, "grpc", service=service)
            assert "status NOT_FOUND" in await asked(port, "grpc", service="unheard-of")
        finally:
            server.close()
            await server.wait_closed()

    asyncio.run(scenario())


class _Shop:
    """What Health takes a service's name from."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __mapping__(self) -> dict[str, Any]:
        return {f"/{self._name}/Method": None}


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\2\x08\2", b"\0\0\0\0\4\x08\1\x08\2", b"x" * 1000])
def test_grpc_that_answers_nonsense(body: bytes) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        while True:
            for event in connection.receive_data(await reader.read(65536)):
                if isinstance(event, h2.events.StreamEnded):
                    connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                    connection.send_data(1, body)
                    connection.send_headers(1, [("grpc-status", "0")], end_stream=True)
            writer.write(connection.data_to_send())
            await writer.drain()

    async def scenario() -> str:
        async with application(serve) as port:
            return await asked(port, "grpc")

    assert asyncio.run(scenario()).startswith("grpc: ")


def test_grpc_with_a_field_that_is_no_text() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.read(65536)
        encoder, end_headers, end = hpack.Encoder(), 0x4, 0x5
        head = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-app", b"\xff\xfe")]
        fields = encoder.encode(head), encoder.encode([(b"grpc-status", b"0")])
        frames = (1, end_headers, fields[0]), (0, 0, b"\0\0\0\0\2\x08\1"), (1, end, fields[1])
        writer.write(
            b"\0\0\0\4\0\0\0\0\0"
            + b"".join(struct.pack("!HBBBI", 0, len(data), kind, flags, 1) + data for kind, flags, data in frames)
        )
        await writer.drain()
        await reader.read()

    async def scenario() -> str:
        async with application(serve) as port:
            return await asked(port, "grpc")

    assert asyncio.run(scenario()) == ""


def test_grpc_is_bounded() -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while True:  # frames that are allowed at any time
            connection.ping(b"12345678")
            writer.write(connection.data_to_send())
            await writer.drain()

    async def scenario() -> str:
        async with application(serve) as port:
            return await asked(port, "grpc")

    assert str(MAX_BYTES) in asyncio.run(scenario())


def test_none_is_none() -> None:
    assert from_environment({}) == {}
