"""An HTTP authorizer where it acts: on requests of HTTP/1.1, HTTP/2 and gRPC, and on their answers."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.extension_providers import ExtensionProvider
from nodeagent.identity.tls import Contexts
from nodeagent.log_lines import SparingLog
from nodeagent.policy.model import Operation, Rule
from nodeagent.proxy import client_guard
from nodeagent.proxy.external.model import Way
from nodeagent.proxy.external.providers import Providers
from tests.unit.proxy.http2_peers import Apps, Http2Client, echo
from tests.unit.proxy.nodes import STRANGER, Nodes, asks, play
from tests.unit.proxy.stage import answering, ok
from tests.unit.proxy.test_ext_authz import ASK, post, sent
from tests.unit.proxy.test_guard import get, last_record
from tests.unit.proxy.test_http_call import NO, Authorizer, Reply
from tests.unit.proxy.test_inbound import cut
from tests.waiting import until

LOGIN = (
    b"HTTP/1.1 302 Found\r\nLocation: https://login/?rd=%2F\r\nSet-Cookie: csrf=1; HttpOnly\r\nSet-Cookie: b=2\r\n"
    b"Content-Type: text/html\r\nX-Secret: s\r\nContent-Length: 4\r\n\r\n<a>\n"
)
SETTINGS: dict[str, Any] = {
    "includeRequestHeadersInCheck": ["cookie", "x-forwarded-client-cert"],
    "headersToUpstreamOnAllow": ["x-auth-*"],
    "headersToDownstreamOnAllow": ["set-cookie"],
    "headersToDownstreamOnDeny": ["set-cookie", "content-type"],
}
mirror = answering(lambda head, body: ok(head + body))


def by_session(head: bytes, body: bytes) -> bytes:
    """As oauth2-proxy: who has a session may pass, others are to log in."""
    if b"cookie: session=ann" not in head:
        return LOGIN
    return ok(b"", b"X-Auth-User: ann\r\nSet-Cookie: session=new\r\nX-Envoy-Auth-Headers-To-Remove: cookie\r\n")


def acted(
    reply: Reply,
    tls: dict[str, Contexts],
    scene: Callable[[Nodes, Authorizer], Awaitable[None]],
    app: Any = mirror,
    protocol: Any = "http",
    **more: Any,
) -> None:
    async def run(nodes: Nodes) -> None:
        authorizer = Authorizer(reply)
        await authorizer.start()
        settings = {"service": "authz", "port": 8000, "timeout": "5s", **SETTINGS, **more}
        provider = ExtensionProvider.model_validate({"name": "authz", "envoyExtAuthzHttp": settings})
        asks(nodes.far, Providers((provider,), lambda service, port, asker: Way("127.0.0.1", authorizer.port)))
        try:
            await scene(nodes, authorizer)
        finally:
            nodes.far.guards.around.providers.close()
            await until(lambda: not authorizer.open)
            await authorizer.stop()

    play(app, run, tls, protocol=protocol, policies=(ASK,))


def test_who_is_not_logged_in_is_sent_there(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        streams = await nodes.dial(STRANGER)
        for _ in range(2):
            status, head, body = await get(streams, "/a?b=1")
            assert (status, body) == (302, b"<a>\n")
            lines = head.lower().split(b"\r\n")
            assert [line for line in lines if line.startswith((b"location", b"set-cookie", b"content-", b"x-"))] == [
                b"content-length: 4",
                b"location: https://login/?rd=%2f",
                b"set-cookie: csrf=1; httponly",
                b"set-cookie: b=2",
                b"content-type: text/html",
            ]
        record = last_record(nodes.far)
        assert (record["response_code_details"], record["response_flags"]) == ("ext_authz_denied", "UAEX")
        assert nodes.app_connections == 0

    acted(by_session, tls, scene)


def test_who_is_logged_in_passes_as_whom_the_authorizer_says(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        status, head, body = await get(await nodes.dial(STRANGER), "/", "Cookie: session=ann", "X-Auth-User: root")
        assert status == 200
        assert head.lower().count(b"set-cookie: session=new") == 1
        assert b"\r\nx-auth-user: ann\r\n" in body
        assert b"root" not in body
        assert b"ookie" not in body

    acted(by_session, tls, scene)


@pytest.mark.parametrize("claim", ["X-Forwarded-Client-Cert", "X_Forwarded_Client_Cert"])
def test_of_a_clients_certificate_the_authorizer_is_told_what_was_proved(tls: dict[str, Contexts], claim: str) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        forged = f"{claim}: By=a;URI=spiffe://cluster.local/ns/default/sa/admin"
        await get(await nodes.dial(STRANGER), "/", forged)
        await get(await nodes.connect(), "/", forged)
        stranger, client = authorizer.heads
        assert b"URI=" not in stranger
        assert b"URI=spiffe://cluster.local/ns/default/sa/client\r\n" in client
        assert b"admin" not in client

    acted(lambda head, body: NO, tls, scene, includeRequestHeadersInCheck=["x*"])


def test_an_empty_refusal_is_empty(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        status, head, body = await get(await nodes.dial(STRANGER))
        assert (status, body) == (401, b"")
        assert b"content-length: 0\r\n" in head

    acted(lambda head, body: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", tls, scene)


@pytest.mark.parametrize("fails_open", [False, True])
def test_an_authorizer_that_fails(
    tls: dict[str, Contexts], fails_open: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_guard, "log", SparingLog(logging.getLogger("nodeagent.proxy")))

    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        assert (await get(await nodes.dial(STRANGER)))[0] == (200 if fails_open else 403)

    reply: Reply = lambda head, body: b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"  # noqa: E731
    acted(reply, tls, scene, failOpen=fails_open)
    assert ("passes unchecked: the external authorizer authz: the answer's status is 500" in caplog.text) is fails_open


def test_a_client_that_resets_its_connection_ends_its_check(tls: dict[str, Contexts]) -> None:
    """One that only says that it sends no more may wait for the answer."""

    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        _, writer = await nodes.dial(STRANGER)
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        await until(lambda: authorizer.heads and authorizer.open)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await until(lambda: not authorizer.open)
        assert nodes.app_connections == 0

    acted(lambda head, body: b"HTTP/1.1 200 OK\r\n", tls, scene, failOpen=True, timeout="600s")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_authorizer_decides_by_the_body(tls: dict[str, Contexts], chunked: bool) -> None:
    def reply(head: bytes, body: bytes) -> bytes:
        return ok(b"") if body == b"allow\xff" else NO

    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        streams = await nodes.dial(STRANGER)
        status, _, body = await sent(streams, post(b"allow", b"\xff", chunked=chunked), apart=True)
        assert status == 200
        assert b"\r\n\r\nallow\xff" in body
        assert b"x-envoy-auth-partial-body: false\r\n" in authorizer.heads[0]
        assert (await sent(streams, post(b"deny", chunked=chunked), apart=True))[0] == 403
        assert (await sent(streams, post(b"x" * 41, chunked=chunked), apart=True))[0] == 413

    acted(reply, tls, scene, includeRequestBodyInCheck={"maxRequestBytes": 40})


def test_streams_of_http2_are_asked_about_one_by_one(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        client = await Http2Client.on(await nodes.connect())
        denied = await client.get("/a")
        assert (denied.status, denied.body) == (302, b"<a>\n")
        assert denied.fields[b"location"] == b"https://login/?rd=%2F"
        crumbs = [(b"cookie", b"session=ann"), (b"cookie", b"b=2")]
        assert (await client.get("/b", more=crumbs)).status == 200
        first, second = authorizer.heads
        assert first.startswith(b"GET /a HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n")
        assert b"\r\ncookie: session=ann; b=2\r\n" in second

    acted(by_session, tls, scene, Apps(echo), "http2")


def test_a_grpc_call_is_told_the_refusal_as_a_status(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        client = await Http2Client.on(await nodes.connect())
        kind = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        denied = await client.post("/shop.Stock/Get", b"\0\0\0\0\0", more=kind)
        assert denied.status == 200
        assert (denied.fields[b"grpc-status"], denied.fields[b"set-cookie"]) == (b"7", b"a=1")
        assert authorizer.heads[0].startswith(b"POST /shop.Stock/Get HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n")
        assert b"transfer-encoding" not in authorizer.heads[0]
        allowed = await client.post("/shop.Stock/Get", b"\0\0\0\0\0", more=[*kind, (b"cookie", b"session=ann")])
        assert allowed.status == 200
        assert b"grpc-status" not in allowed.fields

    def reply(head: bytes, body: bytes) -> bytes:
        return NO.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=1\r\n\r\n") if b"session" not in head else ok(b"")

    acted(reply, tls, scene, Apps(echo), "grpc")


def test_bytes_that_are_not_http_are_refused(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes, authorizer: Authorizer) -> None:
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"hello")
        assert await cut(reader)
        assert nodes.refused(nodes.far) == ["external_error"]
        assert authorizer.heads == []
        assert nodes.app_connections == 0
        other_ports = Rule(operations=(Operation(not_ports=(nodes.port,)),))
        await nodes.protect((replace(ASK, rules=(other_ports,)),))
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 "), "its port was let out"

    acted(by_session, tls, scene, mirror, "tcp", failOpen=True)
