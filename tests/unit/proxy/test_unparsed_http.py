"""HTTP that would pass for something else: no application gets a client's own
X-Forwarded-Client-Cert, and no policy about requests is passed by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.policy.model import (
    AuthorizationPolicy,
    JwtRule,
    LocalLimit,
    Operation,
    RateLimit,
    RequestAuthentication,
    Rule,
    TokenBucket,
)
from tests.unit.proxy.http2_peers import Apps, Http2App, Message
from tests.unit.proxy.nodes import CLIENT, NODE, Nodes, Streams, play
from tests.unit.proxy.test_inbound import cut, with_probes
from tests.waiting import packet, until

FORGED = (
    b"GET /admin HTTP/1.1\r\nHost: web\r\nAuthorization: Bearer a.b.c\r\nX-Forwarded-Client-Cert: "
    b"By=x;URI=spoof\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2 = PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"URI=spoof"
LATE = 0.3
"""Seconds: longer than a client may keep silent (timeouts.sniff)."""
WRITTEN: dict[str, tuple[bytes | float, ...]] = {
    "plain": (FORGED,),
    "after an empty line": (b"\r\n" + FORGED,),
    "an empty line, then late": (b"\r\n", LATE, FORGED),
    "late": (LATE, FORGED),
    "the first byte, then late": (b"G", LATE, FORGED[1:]),
    "a line in two": (FORGED[:16], LATE, FORGED[16:]),
    "PROPFIND": (FORGED.replace(b"GET", b"PROPFIND"),),
    "a method of its own": (FORGED.replace(b"GET", b"FROBNICATE"),),
    "a method of its own, in two": (b"FROB", LATE, FORGED.replace(b"GET", b"NICATE")),
    "LF alone": (FORGED.replace(b"\r\n", b"\n"),),
    "tabs": (FORGED.replace(b" ", b"\t"),),
}
POLICIES: dict[str, RequestAuthentication | RateLimit | AuthorizationPolicy] = {
    "jwt": RequestAuthentication("default", "jwt", (JwtRule("issuer", jwks='{"keys":[]}'),)),
    "limit": RateLimit("default", "slow", (LocalLimit(TokenBucket(1, 1, 3600.0)),)),
    "rule": AuthorizationPolicy("default", "deny", "DENY", (Rule(operations=(Operation(paths=("/admin",)),)),)),
}
WAYS = pytest.mark.parametrize("way", [Nodes.connect, Nodes.dial], ids=["mtls", "plain"])
Way = Callable[[Nodes], Awaitable[Streams]]


class Http2Application(Apps):
    """Answers every request, and keeps what it heard as lines of HTTP/1."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.heard = b""

    async def _answer(self, app: Http2App, message: Message) -> None:
        self.heard += b"".join([name + b": " + value + b"\n" for name, value in message.fields.items()])
        await app.say(message, b"ok")


def application_of(protocol: str) -> Application | Http2Application:
    """Return an application that speaks what its port is declared to."""
    return Http2Application() if protocol == "http2" else Application()


class Application:
    """Takes anything, and answers every head that a lenient server would take."""

    def __init__(self) -> None:
        self.heard = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.heard += data
            if b"\n\n" in data.replace(b"\r", b""):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def say(reached: Awaitable[Streams], pieces: tuple[bytes | float, ...]) -> bytes:
    """Say *pieces*, pausing for numbers; return the first line of the answer, empty when there is none."""
    reader, writer = await reached
    for piece in pieces:
        if isinstance(piece, float):
            await asyncio.sleep(piece)  # so long as the case says
        elif not writer.is_closing():
            writer.write(piece)
    try:
        return await reader.readline()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@WAYS
@pytest.mark.parametrize("protocol", ["auto", "http", "http2"])
def test_a_clients_own_certificate_field_never_arrives(tls: dict[str, Contexts], protocol: Any, way: Way) -> None:
    application = application_of(protocol)

    async def scene(nodes: Nodes) -> None:
        answers = await asyncio.gather(*(say(way(nodes), pieces) for pieces in WRITTEN.values()))
        assert b"spoof" not in application.heard
        answered = {name for name, answer in zip(WRITTEN, answers, strict=True) if b" 200 " in answer}
        assert {
            "plain",
            "after an empty line",
            "late",
            "the first byte, then late",
            "a line in two",
            "PROPFIND",
        } <= answered

    play(application, scene, tls, protocol=protocol)


@WAYS
@pytest.mark.parametrize("written", ["plain", "late", "a line in two"])
def test_what_turns_out_to_be_http_late_is_called_http_too(tls: dict[str, Contexts], written: str, way: Way) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        for piece in WRITTEN[written]:
            if isinstance(piece, float):
                await asyncio.sleep(piece)  # so long as the case says
            else:
                writer.write(piece)
        assert b" 200 " in await reader.readline()
        found = nodes.far.context.connections.values()
        (connection,) = [each for each in found if each.protocol != "shared"]
        assert connection.protocol == "http"
        assert not connection.probe

    play(Application(), scene, tls, protocol="auto")


def test_what_turns_out_to_be_http_late_is_a_probe_by_what_permits_it_then(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(NODE)
        await until(lambda: any(each.protocol == "tcp" for each in nodes.far.context.connections.values()))
        with_probes(nodes)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: web\r\n\r\n")
        assert b" 200 " in await reader.readline()
        (connection,) = nodes.far.context.connections.values()
        assert connection.probe

    play(Application(), scene, tls, protocol="auto")


@pytest.mark.parametrize("protocol", ["auto", "http", "http2"])
def test_what_a_peer_says_that_it_carries_is_its_word(tls: dict[str, Contexts], protocol: Any) -> None:
    """A pod that has its own certificate speaks mTLS itself, and offers the ALPN of TCP with HTTP behind it."""
    application = application_of(protocol)

    async def scene(nodes: Nodes) -> None:
        answers = [
            await say(nodes.dial(CLIENT, tls["client"].client_tcp), pieces) for pieces in ((FORGED,), (LATE, FORGED))
        ]
        assert all(b" 200 " in answer for answer in answers)
        assert b"spoof" not in application.heard
        assert application.heard.count(b"URI=spiffe://cluster.local/ns/default/sa/client") == 2

    play(application, scene, tls, protocol=protocol)


@WAYS
@pytest.mark.parametrize("protocol", ["auto", "http", "http2"])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_about_requests_is_passed_by(tls: dict[str, Contexts], policy: str, protocol: Any, way: Way) -> None:
    application = application_of(protocol)

    async def scene(nodes: Nodes) -> None:
        allowed = policy == "limit"
        answers = await asyncio.gather(
            *(say(way(nodes), pieces) for pieces in [*WRITTEN.values(), (HTTP2,), (PREFACE[:3], LATE, HTTP2[3:])])
        )
        codes = [answer.split()[1] for answer in answers if answer.startswith(b"HTTP")]
        assert codes.count(b"200") == allowed, "the one that the limit allows"
        assert b"spoof" not in application.heard
        assert application.heard.count(b"/admin") == allowed

    play(application, scene, tls, protocol=protocol, policies=(POLICIES[policy],), timeouts={"handshake": 2})


@WAYS
@pytest.mark.parametrize(
    "first", [b"\x00\x01binary", b"PING\r\n", b"ruok", b""], ids=["binary", "a line", "half a line", "silent"]
)
def test_what_is_not_http_is_refused_there_unless_the_port_is_declared(
    tls: dict[str, Contexts], first: bytes, way: Way
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read()

    async def refused(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        writer.write(first)
        assert await cut(reader)
        assert nodes.refused(nodes.far) == ["unparsed_http"]
        assert nodes.app_connections == 0

    async def carried(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        writer.write(first)
        assert await reader.readline() == b"220 ready\r\n"

    play(greet, refused, tls, protocol="auto", policies=(POLICIES["jwt"],), timeouts={"handshake": 0.5})
    play(greet, carried, tls, protocol="tcp", policies=(POLICIES["jwt"],), timeouts={"handshake": 0.5})


@WAYS
@pytest.mark.parametrize("protocol", ["auto", "http", "http2"])
@pytest.mark.parametrize("policy", [(), (POLICIES["jwt"],)], ids=["unprotected", "protected"])
def test_what_is_no_http2_behind_its_preface_goes_nowhere(
    tls: dict[str, Contexts], policy: tuple[Any, ...], protocol: Any, way: Way
) -> None:
    application = application_of(protocol)

    async def scene(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        for piece in (HTTP2[:1], HTTP2[1:20], HTTP2[20:]):
            writer.write(piece)
            await packet()
        frames = await reader.read()
        assert frames[3] == 4, "SETTINGS come first (RFC 9113 section 3.4)"
        goaway = frames.index(b"a frame is larger") - 17
        assert frames[goaway + 3] == 7 and frames[goaway + 16] == 6, "GOAWAY, FRAME_SIZE_ERROR"
        assert application.heard == b""

    play(application, scene, tls, protocol=protocol, policies=policy)


@WAYS
def test_half_a_line_that_a_protocol_begins_with_is_answered_and_never_looked_at_again(
    tls: dict[str, Contexts], way: Way
) -> None:
    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(4) == b"ruok"
        writer.write(b"imok")
        writer.write(await reader.readexactly(len(FORGED)))

    async def scene(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        writer.write(b"ruok")
        assert await reader.readexactly(4) == b"imok"
        writer.write(FORGED)
        assert await reader.readexactly(len(FORGED)) == FORGED, "the server has spoken: it is no HTTP server"

    play(app, scene, tls, protocol="auto")


@WAYS
@pytest.mark.parametrize("late", [0.0, LATE])
def test_a_line_without_an_end_is_refused_before_it_is_long(tls: dict[str, Contexts], late: float, way: Way) -> None:
    application = Application()

    async def scene(nodes: Nodes) -> None:
        assert (await say(way(nodes), (late, b"GET /" + b"x" * 9000))).startswith(b"HTTP/1.1 431 ")
        assert application.heard == b""

    play(application, scene, tls, protocol="auto", limits={"headerBytes": 8192})


@WAYS
def test_what_was_carried_is_cut_when_such_a_policy_comes(tls: dict[str, Contexts], way: Way) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await way(nodes)
        writer.write(b"\x00\n\n")
        assert await reader.readexactly(8) == b"HTTP/1.1"
        await nodes.protect((POLICIES["limit"],))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert nodes.refused(nodes.far) == ["unparsed_http"]

    play(Application(), scene, tls, protocol="auto")
