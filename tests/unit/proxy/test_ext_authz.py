"""External authorizers where they act: bodies that they see, and what they change about a request and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from nodeagent.extension_providers import ExtensionProvider
from nodeagent.identity.tls import Contexts
from nodeagent.policy.model import AuthorizationPolicy, Rule
from nodeagent.protocols.envoy_auth_pb2 import CheckRequest, CheckResponse
from nodeagent.proxy.dial import Dial
from nodeagent.proxy.external.model import Way
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.external.query import with_parameters
from nodeagent.proxy.http.fields import with_fields
from tests.fakes import ext_authz
from tests.fakes.serving import serve
from tests.unit.proxy.nodes import SERVER, STRANGER, Nodes, Streams, asks, identity, play
from tests.unit.proxy.stage import answering, ok
from tests.unit.proxy.test_guard import get, last_record
from tests.unit.proxy.test_http1 import read_answer
from tests.waiting import DEADLINE, packet, until

ASK = AuthorizationPolicy("default", "ask", "CUSTOM", (Rule(),), provider="authz")
Answer = Callable[[Any], CheckResponse]
mirror = answering(lambda head, body: ok(head + body, b"x-app: 1\r\nset-cookie: app=1\r\n"))


class Authorizer:
    """A gRPC server that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[CheckRequest] = []
        self.answer: Answer = lambda request: ext_authz.allowed()
        self.server, self.port = serve(ext_authz.METHOD, self._answer)

    def _answer(self, request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        self.asked.append(request)
        return self.answer(request.attributes.request.http)

    @property
    def http(self) -> Any:
        """The last request that it was asked about."""
        return self.asked[-1].attributes.request.http


@pytest.fixture
def authorizer() -> Iterator[Authorizer]:
    made = Authorizer()
    yield made
    made.server.stop(None).wait()


def asking(authorizer: Authorizer, nodes: Nodes, **body: object) -> None:
    """Have the server's node ask *authorizer*, with bodies if *body* says how."""
    settings: dict[str, object] = {"service": "authz", "port": 9000, "timeout": "5s"}
    if body:
        settings["includeRequestBodyInCheck"] = body
    provider = ExtensionProvider.model_validate({"name": "authz", "envoyExtAuthzGrpc": settings})
    asks(nodes.far, Providers((provider,), lambda service, port, asker: Way("127.0.0.1", authorizer.port)))


def acted(
    authorizer: Authorizer,
    tls: dict[str, Contexts],
    scene: Callable[[Nodes, Streams], Any],
    body: dict[str, object] | None = None,
    **more: Any,
) -> None:
    async def run(nodes: Nodes) -> None:
        asking(authorizer, nodes, **body or {})
        try:
            await scene(nodes, await nodes.dial(STRANGER))
        finally:
            nodes.far.guards.around.providers.close()
            await asyncio.sleep(0)

    play(mirror, run, tls, protocol="http", policies=(ASK,), **more)


def post(*pieces: bytes, chunked: bool, fields: bytes = b"") -> list[bytes]:
    """Return a request in parts as a client sends them."""
    if not chunked:
        return [
            b"POST /p HTTP/1.1\r\nHost: web\r\n%bContent-Length: %d\r\n\r\n" % (fields, sum(map(len, pieces))),
            *pieces,
        ]
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    return [
        b"POST /p HTTP/1.1\r\nHost: web\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields,
        *framed,
        b"0\r\nx-trailer: t\r\n\r\n",
    ]


async def sent(streams: Streams, parts: list[bytes], *, apart: bool) -> tuple[int, bytes, bytes]:
    for part in parts if apart else [b"".join(parts)]:
        streams[1].write(part)
        await streams[1].drain()
        await packet()
    head, body = await read_answer(streams[0])
    return int(head.split()[1]), head, body


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_shown_whole_and_goes_on_unchanged(
    tls: dict[str, Contexts], authorizer: Authorizer, chunked: bool, apart: bool
) -> None:
    async def scene(nodes: Nodes, streams: Streams) -> None:
        status, _, body = await sent(streams, post(b"abc", b"\xc3\xa9\xff", b"x" * 94, chunked=chunked), apart=apart)
        assert status == 200
        assert authorizer.http.body == "abcé\N{REPLACEMENT CHARACTER}" + "x" * 94
        assert authorizer.http.headers["x-envoy-auth-partial-body"] == "false"
        assert authorizer.http.size == (-1 if chunked else 100)
        head, _, passed = body.partition(b"\r\n\r\n")
        assert passed.startswith(b"abc\xc3\xa9\xff" + b"x" * 94)
        assert (b"x-trailer: t" in passed) == chunked
        assert b"partial-body" not in head
        status, _, body = await sent(streams, post(chunked=chunked), apart=apart)
        assert (status, authorizer.http.body) == (200, "")

    acted(authorizer, tls, scene, {"maxRequestBytes": 100})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_longer_body_is_too_large(tls: dict[str, Contexts], authorizer: Authorizer, chunked: bool) -> None:
    async def scene(nodes: Nodes, streams: Streams) -> None:
        status, _, body = await sent(streams, post(b"x" * 60, b"x" * 41, chunked=chunked), apart=True)
        assert (status, body) == (413, b"Payload Too Large")
        record = last_record(nodes.far)
        assert (record["response_code_details"], record["response_flags"]) == ("request_payload_too_large", "-")
        assert authorizer.asked == [] and nodes.app_connections == 0

    acted(authorizer, tls, scene, {"maxRequestBytes": 100})


@pytest.mark.parametrize("chunked", [False, True])
def test_the_beginning_will_do(tls: dict[str, Contexts], authorizer: Authorizer, chunked: bool) -> None:
    """The verdict comes while the rest is not sent yet; then all of it arrives."""

    async def scene(nodes: Nodes, streams: Streams) -> None:
        head, first, *rest = post(b"a\xff" * 60, b"b" * 300_000, chunked=chunked)
        streams[1].write(head + first)
        await until(lambda: authorizer.asked)
        assert authorizer.http.raw_body == b"a\xff" * 50
        assert authorizer.http.headers["x-envoy-auth-partial-body"] == "true"
        streams[1].write(b"".join(rest))
        _, body = await read_answer(streams[0])
        assert body.partition(b"\r\n\r\n")[2].startswith(b"a\xff" * 60 + b"b" * 300_000)

    acted(authorizer, tls, scene, {"maxRequestBytes": 100, "allowPartialMessage": True, "packAsBytes": True})


def test_no_more_is_held_than_was_asked_for(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    """A body that fits, but is larger than what the proxy otherwise holds; in pieces as small as can be."""

    async def scene(nodes: Nodes, streams: Streams) -> None:
        pieces = [bytes([97 + number % 26]) for number in range(20_000)]
        status, _, body = await sent(streams, post(*pieces, chunked=True), apart=False)
        assert status == 200
        assert authorizer.http.body.encode() == b"".join(pieces)
        assert body.partition(b"\r\n\r\n")[2].startswith(b"".join(pieces))
        assert nodes.far.context.limits.buffer_bytes == 4096

    acted(authorizer, tls, scene, {"maxRequestBytes": 20_000}, limits={"bufferBytes": 4096})


@pytest.mark.parametrize("claim", ["X-Forwarded-Client-Cert", "X_Forwarded_Client_Cert"])
def test_of_a_clients_certificate_the_authorizer_is_told_what_was_proved(
    tls: dict[str, Contexts], authorizer: Authorizer, claim: str
) -> None:
    forged = f"{claim}: By=a;URI=spiffe://cluster.local/ns/default/sa/admin"

    async def scene(nodes: Nodes, streams: Streams) -> None:
        await get(streams, "/", forged)
        assert "admin" not in str(authorizer.http.headers)
        await get(await nodes.connect(), "/", forged)
        told = authorizer.http.headers["x-forwarded-client-cert"]
        assert told == f"By={identity('server')};URI={identity('client')}"
        assert "admin" not in str(authorizer.http.headers)

    acted(authorizer, tls, scene)


def test_without_the_setting_no_body_is_shown(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    async def scene(nodes: Nodes, streams: Streams) -> None:
        status, _, _ = await sent(
            streams, post(b"abc", chunked=False, fields=b"X-Envoy-Auth-Partial-Body: true\r\n"), apart=False
        )
        assert (status, authorizer.http.body) == (200, "")
        assert "x-envoy-auth-partial-body" not in authorizer.http.headers

    acted(authorizer, tls, scene)


def test_requests_behind_one_another(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    """Each has its own body, though they come in one packet."""

    async def scene(nodes: Nodes, streams: Streams) -> None:
        streams[1].write(
            b"".join(
                [*post(b"first", chunked=True), *post(b"second", b"!", chunked=True), *post(b"third", chunked=False)]
            )
        )
        for word in (b"first", b"second!", b"third"):
            _, body = await read_answer(streams[0])
            assert body.partition(b"\r\n\r\n")[2].startswith(word)
        assert [each.attributes.request.http.body for each in authorizer.asked] == ["first", "second!", "third"]

    acted(authorizer, tls, scene, {"maxRequestBytes": 100})


def test_a_client_that_asks_first_is_told_to_go_on(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    async def scene(nodes: Nodes, streams: Streams) -> None:
        head, body = post(b"abc", chunked=False, fields=b"Expect: 100-continue\r\n")
        streams[1].write(head)
        assert await streams[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        streams[1].write(body)
        head, body = await read_answer(streams[0])
        assert head.startswith(b"HTTP/1.1 200")
        assert b"expect" not in body.lower() and body.endswith(b"abc")
        assert authorizer.http.body == "abc"

    acted(authorizer, tls, scene, {"maxRequestBytes": 100})


def test_a_client_that_goes_or_stops_is_not_waited_for(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    async def scene(nodes: Nodes, streams: Streams) -> None:
        head, first, *_ = post(b"abc", b"def", chunked=True)
        streams[1].write(head + first)
        other = await nodes.dial(STRANGER)
        other[1].write(head + first)
        await packet()
        other[1].transport.abort()
        answer, _ = await read_answer(streams[0])
        assert answer.startswith(b"HTTP/1.1 408")
        await until(lambda: not nodes.far.pipeline._waiting)
        assert authorizer.asked == []

    acted(authorizer, tls, scene, {"maxRequestBytes": 100}, timeouts={"streamIdle": 0.3})


# -- what it changes --


def test_the_applications_answer_gets_the_authorizers_fields(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    fields = [
        ("set-cookie", "a=1", 0),
        ("x-app", "2", 2),
        ("x-app", "3", 1),
        ("x-new", "4", 1),
        ("x-none", "5", 3),
        ("content-length", "6", 2),
    ]

    def answer(http: Any) -> CheckResponse:
        answer = ext_authz.allowed()
        for name, value, action in fields:
            answer.ok_response.response_headers_to_add.add(header={"key": name, "value": value}, append_action=action)
        answer.ok_response.response_headers_to_add.add(header={"key": "x-set", "value": "7"}).append.value = False
        return answer

    async def scene(nodes: Nodes, streams: Streams) -> None:
        for method in ("GET", "HEAD"):
            streams[1].write(f"{method} / HTTP/1.1\r\nHost: web\r\n\r\n".encode())
            head = await streams[0].readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            assert [line for line in lines if line.startswith((b"set-cookie", b"x-"))] == [
                b"set-cookie: app=1",
                b"set-cookie: a=1",
                b"x-app: 2",
                b"x-set: 7",
                b"x-new: 4",
            ]
            if method == "GET":
                (length,) = [int(line.split()[1]) for line in lines if line.startswith(b"content-length")]
                await streams[0].readexactly(length)

    authorizer.answer = answer
    acted(authorizer, tls, scene)


def test_fields_of_the_request(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    """As by Envoy, one that is appended is left out where the client sent none of that name."""

    def answer(http: Any) -> CheckResponse:
        answer = ext_authz.allowed(x_user="ann")
        for name in ("x-a", "x-b"):
            answer.ok_response.headers.add(header={"key": name, "value": "more"}).append.value = True
        answer.ok_response.query_parameters_to_set.add(key="id", value="7")
        answer.ok_response.query_parameters_to_remove.append("secret")
        return answer

    async def scene(nodes: Nodes, streams: Streams) -> None:
        _, _, body = await get(streams, "/p?id=1&secret=2&q=%20&id=3", "X-A: one", "x-user: root")
        assert body.startswith(b"GET /p?id=7&q=%20 HTTP/1.1\r\n")
        lines = body.lower().split(b"\r\n")
        assert [line for line in lines if line.startswith((b"x-a:", b"x-b:", b"x-user:"))] == [
            b"x-a: one",
            b"x-user: ann",
            b"x-a: more",
        ]

    authorizer.answer = answer
    acted(authorizer, tls, scene)


@pytest.mark.parametrize(
    ("key", "value"),
    [("f o o", "1"), ("a", "1&b=2"), ("a", "1 HTTP/1.1"), ("a#", "1"), ("", "1"), ("a", "\r\n"), ("é", "1")],
)
def test_a_query_parameter_that_cannot_be_is_no_answer(
    tls: dict[str, Contexts], authorizer: Authorizer, key: str, value: str
) -> None:
    def answer(http: Any) -> CheckResponse:
        answer = ext_authz.allowed()
        answer.ok_response.query_parameters_to_set.add(key=key, value=value)
        return answer

    async def scene(nodes: Nodes, streams: Streams) -> None:
        assert (await get(streams))[0] == 403
        assert nodes.app_connections == 0

    authorizer.answer = answer
    acted(authorizer, tls, scene)


@pytest.mark.parametrize(
    ("target", "put", "removed", "expected"),
    [
        ("/a", [("x", "1")], [], "/a?x=1"),
        ("/a?x=2&y&x", [("x", "1")], [], "/a?x=1&y"),
        ("/a?x=2&y", [], ["x", "y"], "/a"),
        ("/a?b=?&c", [], ["c"], "/a?b=?"),
        ("/a", [("x", "1")], ["x"], "/a"),
        ("/a?%78=2", [("x", "")], [], "/a?%78=2&x="),
    ],
)
def test_with_parameters(target: str, put: list[tuple[str, str]], removed: list[str], expected: str) -> None:
    assert with_parameters(target, put, removed) == expected


def test_with_fields_leaves_its_argument() -> None:
    fields = [(b"A", b"1")]
    assert with_fields(fields, (("a", "2", "add"),)) == [(b"A", b"1"), (b"a", b"2")]
    assert with_fields(fields, (("a", "2", "set_if_present"), ("b", "3", "add_if_absent"))) == [
        (b"a", b"2"),
        (b"b", b"3"),
    ]
    assert fields == [(b"A", b"1")]


def test_a_refusal_is_the_authorizers_own(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    def answer(http: Any) -> CheckResponse:
        if http.path == "/empty":
            return ext_authz.denied(204, "must not be sent", x_a="1")
        answer = ext_authz.denied(401, '{"error": 1}', content_type="application/json")
        for value in ("a=1", "b=2"):
            answer.denied_response.headers.add(header={"key": "set-cookie", "value": value})
        return answer

    async def scene(nodes: Nodes, streams: Streams) -> None:
        for _ in range(2):
            status, head, body = await get(streams)
            assert (status, body) == (401, b'{"error": 1}')
            assert head.lower().count(b"content-type:") == 1 and b"content-type: application/json" in head
            assert b"set-cookie: a=1\r\nset-cookie: b=2\r\n" in head
            status, head, body = await get(streams, "/empty")
            assert (status, body) == (204, b"")
            assert b"content-length" not in head and b"content-type" not in head

    authorizer.answer = answer
    acted(authorizer, tls, scene)


def test_who_takes_mtls_is_asked_from_inside_the_protected_pod(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        way = nodes.near.routing.way_to(SERVER, nodes.port, "client")
        assert way is not None and isinstance(way.through, Dial)
        assert (way.through.pod, way.through.expected) == (nodes.near.context.pods["client"], identity("server"))
        own = nodes.far.routing.way_to(SERVER, nodes.port, "server")
        assert own is not None and isinstance(own.through, Dial) and own.through.expected is None, (
            "within the pod itself"
        )
        assert nodes.near.routing.way_to(SERVER, nodes.port, "nobody") is None, (
            "what takes mTLS is never asked in plaintext"
        )
        assert nodes.near.routing.way_to("192.0.2.1", 80, "client") == Way("192.0.2.1", 80)
        assert nodes.near.routing.way_to("nowhere", 80, "client") is None
        await nodes.protect((), "DISABLE")
        assert nodes.near.routing.way_to(SERVER, nodes.port, "client") == Way(SERVER, nodes.port)

    play(mirror, scene, tls)


def test_a_body_of_several_reads_that_fits_is_read_on(tls: dict[str, Contexts], authorizer: Authorizer) -> None:
    """The first read already holds more than the proxy otherwise keeps, before anybody waits for it."""

    async def scene(nodes: Nodes, streams: Streams) -> None:
        async with asyncio.timeout(DEADLINE):
            status, _, body = await sent(streams, post(b"x" * 700_000, chunked=False), apart=False)
        assert status == 200
        assert len(authorizer.http.body) == 700_000
        assert body.endswith(b"x" * 700_000)

    acted(authorizer, tls, scene, {"maxRequestBytes": 1 << 20}, limits={"bufferBytes": 4096})


@pytest.mark.parametrize("name", ["x-why", "not a name"])
def test_a_refusal_whose_fields_cannot_be_stays_one(
    tls: dict[str, Contexts], authorizer: Authorizer, name: str
) -> None:
    """Not to be taken for no answer, which may mean that the request passes: what stands there may
    come from the client.
    """

    def answer(http: Any) -> CheckResponse:
        answer = ext_authz.denied(401, "no")
        answer.denied_response.headers.add(header={"key": name, "value": "a\r\nb"})
        return answer

    async def scene(nodes: Nodes) -> None:
        settings = {"service": "authz", "port": 9000, "timeout": "5s", "failOpen": True}
        provider = ExtensionProvider.model_validate({"name": "authz", "envoyExtAuthzGrpc": settings})
        asks(nodes.far, Providers((provider,), lambda service, port, asker: Way("127.0.0.1", authorizer.port)))
        try:
            status, head, _ = await get(await nodes.dial(STRANGER))
            assert status == 401
            assert b"\nb" not in head and nodes.app_connections == 0
        finally:
            nodes.far.guards.around.providers.close()
            await asyncio.sleep(0)

    authorizer.answer = answer
    play(mirror, scene, tls, protocol="http", policies=(ASK,))
