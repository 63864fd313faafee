"""External authorizers and rate limit services: the clients against real gRPC servers, sound, slow,
broken and hostile.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import uvloop

from nodeagent.extension_providers import ExtensionProvider
from nodeagent.policy.authorization_facts import RequestFacts
from nodeagent.policy.model import GlobalLimit
from nodeagent.policy.rate_limit import descriptors
from nodeagent.protocols.envoy_auth_pb2 import CheckRequest, CheckResponse
from nodeagent.protocols.envoy_ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from nodeagent.proxy.dial import Dialled
from nodeagent.proxy.external import bounds, call
from nodeagent.proxy.external.model import CheckVerdict, HttpFacts, Party, RateVerdict, Way
from nodeagent.proxy.external.providers import Providers
from tests.fakes import ext_authz, rate_limit
from tests.fakes.serving import Method, serve
from tests.waiting import until

CLIENT = Party("10.0.0.1", 4000, "cluster.local/ns/shop/sa/cart")
SERVER = Party("10.0.0.2", 8080, "cluster.local/ns/shop/sa/stock")
REQUEST = HttpFacts("GET", "/items?id=1", "stock.shop:80", (("Host", "stock.shop:80"), ("X-Ext-Authz", "allow")))
LIMIT = GlobalLimit("limits", "shop", ((("who", "{principal}"),),))
ROOT = Path(__file__).parents[3]
Start = Callable[[Method, Callable[[Any, grpc.ServicerContext], Any]], int]
T = TypeVar("T")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers; all are stopped at the end."""
    servers: list[grpc.Server] = []

    def started(method: Method, answer: Callable[[Any, grpc.ServicerContext], Any]) -> int:
        server, port = serve(method, answer)
        servers.append(server)
        return port

    yield started
    for server in servers:
        server.stop(None).wait()


def providers(
    port: int, *, where: Callable[[str, int], tuple[str, int] | None] | None = None, **settings: object
) -> Providers:
    """Return both kinds of provider, at *port* of this host unless *where* says otherwise."""
    common = {"service": "shop/decides.shop.svc.cluster.local", "port": 9000, "timeout": "5s"}
    kinds = [
        {"name": "authz", "envoyExtAuthzGrpc": {**common, **settings}},
        {"name": "limits", "rateLimitGrpc": common},
    ]

    def way(service: str, asked: int, asker: str) -> Way | None:
        found = where(service, asked) if where else ("127.0.0.1", port)
        return Way(*found) if found else None

    return Providers((ExtensionProvider.model_validate(kind) for kind in kinds), way)


def run(subject: Callable[[], Providers], use: Callable[[Providers], Awaitable[T]]) -> T:
    """Run *use* in a loop as a worker has it, and close the connections."""

    async def main() -> T:
        made = subject()
        try:
            return await use(made)
        finally:
            made.close()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def checked(port: int, http: HttpFacts | None = REQUEST, **settings: object) -> CheckVerdict:
    return run(lambda: providers(port, **settings), lambda made: made.check("authz", CLIENT, SERVER, http))


def asked(port: int, limit: GlobalLimit = LIMIT) -> RateVerdict:
    return run(lambda: providers(port), lambda made: made.ask(limit, [(("who", "cart"),)]))


# -- ext_authz --


def test_an_allowed_request_gets_the_authorizers_fields(start: Start) -> None:
    port = start(ext_authz.METHOD, ext_authz.by_header)
    assert checked(port) == CheckVerdict(True, set=(("x-ext-authz-check-result", "allowed"),))


def test_a_denied_request_gets_the_authorizers_answer(start: Start) -> None:
    port = start(
        ext_authz.METHOD, lambda request, context: ext_authz.denied(401, "who are you?", www_authenticate="Bearer")
    )
    assert checked(port) == CheckVerdict(
        False, status=401, headers=(("www-authenticate", "Bearer"),), body=b"who are you?"
    )


def test_the_authorizer_is_told_what_envoy_tells(start: Start) -> None:
    seen: list[CheckRequest] = []

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        seen.append(request)
        return ext_authz.allowed()

    port = start(ext_authz.METHOD, answer)
    headers = (
        ("Host", "h"),
        ("Cookie", "a=1"),
        ("X-A", "1"),
        ("x-a", "2"),
        ("Content-Length", "5"),
        ("x-request-id", "r"),
        ("x-b", "caf\xc3\xa9"),
        ("x-c", "\xff"),
    )
    assert checked(port, HttpFacts("POST", "/a?b=%20", "h", headers)).allowed
    attributes = seen[0].attributes
    assert attributes.source.principal == "spiffe://cluster.local/ns/shop/sa/cart"
    assert attributes.source.address.socket_address.address == "10.0.0.1"
    assert attributes.destination.address.socket_address.port_value == 8080
    assert attributes.destination.principal == "spiffe://cluster.local/ns/shop/sa/stock"
    http = attributes.request.http
    assert (http.method, http.path, http.host, http.scheme, http.protocol, http.size, http.id) == (
        "POST",
        "/a?b=%20",
        "h",
        "http",
        "HTTP/1.1",
        5,
        "r",
    )
    assert dict(http.headers) == {
        ":method": "POST",
        ":path": "/a?b=%20",
        ":authority": "h",
        ":scheme": "http",
        "cookie": "a=1",
        "x-a": "1,2",
        "content-length": "5",
        "x-request-id": "r",
        "x-b": "café",
        "x-c": "\N{REPLACEMENT CHARACTER}",
    }
    assert attributes.request.time.seconds > 0


def test_a_tcp_connection_is_asked_about_without_http(start: Start) -> None:
    seen: list[CheckRequest] = []

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        seen.append(request)
        return ext_authz.denied()

    port = start(ext_authz.METHOD, answer)
    verdict = run(lambda: providers(port), lambda made: made.check("authz", CLIENT, SERVER, None, sni="stock.shop"))
    assert not verdict.allowed and not verdict.failed
    assert not seen[0].attributes.request.HasField("http")
    assert seen[0].attributes.tls_session.sni == "stock.shop"


def test_set_append_and_remove(start: Start) -> None:
    answer = ext_authz.allowed(x_set="s")
    answer.ok_response.headers.add(header={"key": "X-More", "value": "m"}).append.value = True
    answer.ok_response.headers.add(header={"key": "x-raw", "raw_value": b"\xe9"})
    answer.ok_response.headers_to_remove.extend(["Authorization", "host", ":path"])
    answer.ok_response.response_headers_to_add.add(header={"key": "x-told", "value": "t"})
    port = start(ext_authz.METHOD, lambda request, context: answer)
    expected = CheckVerdict(
        True,
        set=(("x-set", "s"), ("x-raw", "\xe9")),
        append=(("x-more", "m"),),
        remove=("authorization",),
        answer=(("x-told", "t", "add"),),
    )
    assert checked(port) == expected


@pytest.mark.parametrize(
    "name", ["host", "Content-Length", "transfer-encoding", "connection", "upgrade", ":path", "x-forwarded-client-cert"]
)
def test_framing_and_identity_are_not_the_authorizers(start: Start, name: str) -> None:
    answer = ext_authz.allowed(x_good="1")
    answer.ok_response.headers.add(header={"key": name, "value": "5"})
    port = start(ext_authz.METHOD, lambda request, context: answer)
    assert checked(port) == CheckVerdict(True, set=(("x-good", "1"),))


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-a", "1\r\nx-b: 2"), ("x-a", "\0"), ("x a", "1"), ("", "1"), ("x-a\n", "1"), ("x-a", "y" * 20000)],
)
def test_a_field_that_cannot_be_is_no_answer(start: Start, name: str, value: str) -> None:
    for answer in (ext_authz.allowed(), ext_authz.denied()):
        options = answer.ok_response if answer.HasField("ok_response") else answer.denied_response
        options.headers.add(header={"key": name, "value": value})
        verdict = checked(start(ext_authz.METHOD, lambda request, context, answer=answer: answer))  # type: ignore[misc]
        assert not verdict.allowed and verdict.status == 403 and "header field" in verdict.failed


def test_more_fields_than_a_request_may_have_are_no_answer(start: Start) -> None:
    port = start(
        ext_authz.METHOD, lambda request, context: ext_authz.allowed(**{f"x_{number}": "1" for number in range(200)})
    )
    assert "more than 128" in checked(port).failed


def test_a_body_that_contradicts_the_status_does_not_allow(start: Start) -> None:
    refusal_with_ok = CheckResponse()
    refusal_with_ok.status.code = 7
    refusal_with_ok.ok_response.SetInParent()
    ok_with_refusal = CheckResponse()
    ok_with_refusal.denied_response.status.code = 429
    for answer, status in ((refusal_with_ok, 403), (ok_with_refusal, 429)):
        verdict = checked(start(ext_authz.METHOD, lambda request, context, answer=answer: answer))  # type: ignore[misc]
        assert (verdict.allowed, verdict.status, verdict.failed) == (False, status, "")


@pytest.mark.parametrize("status", [0, 100, 199, 600, 70000])
def test_a_status_that_no_answer_may_have_becomes_403(start: Start, status: int) -> None:
    assert checked(start(ext_authz.METHOD, lambda request, context: ext_authz.denied(status))).status == 403


# -- no answer --


def refuse(request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.INTERNAL, "a secret of the provider")


def test_a_failure_follows_the_settings(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    port = start(ext_authz.METHOD, refuse)
    assert checked(port) == CheckVerdict(False, failed="gRPC status INTERNAL")
    assert checked(port, failOpen=True).allowed
    assert checked(port, statusOnError="503").status == 503
    assert "secret" not in caplog.text and "extension provider authz" in caplog.text


def test_a_provider_that_is_not_there(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        verdict = checked(unused.getsockname()[1])
    assert not verdict.allowed and verdict.failed.startswith("cannot connect")
    verdict = run(
        lambda: providers(0, where=lambda service, port: None),
        lambda made: made.check("authz", CLIENT, SERVER, REQUEST),
    )
    assert verdict == CheckVerdict(False, failed="no such Service, or it has no ready endpoint")


def test_a_name_that_is_no_provider_or_one_of_another_kind_denies() -> None:
    for name in ("nobody", "limits"):
        verdict = run(lambda: providers(1), lambda made, name=name: made.check(name, CLIENT, SERVER, REQUEST))  # type: ignore[misc]
        assert not verdict.allowed and "extensionProviders" in verdict.failed
    for mode in ("allow", "deny"):
        limit = GlobalLimit("authz", "shop", LIMIT.descriptors, mode)  # type: ignore[arg-type]
        answer = asked(1, limit)
        assert (answer.allowed, answer.status) == (mode == "allow", 500) and "extensionProviders" in answer.failed


def test_the_service_and_port_of_the_settings_are_resolved(start: Start) -> None:
    port, looked = start(ext_authz.METHOD, ext_authz.by_header), []

    def where(service: str, number: int) -> tuple[str, int]:
        looked.append((service, number))
        return "127.0.0.1", port

    assert run(lambda: providers(0, where=where), lambda made: made.check("authz", CLIENT, SERVER, REQUEST)).allowed
    assert looked == [("shop/decides.shop.svc.cluster.local", 9000)]


def test_a_silent_provider_costs_its_timeout_and_the_next_call_a_new_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def twice(made: Providers) -> tuple[CheckVerdict, CheckVerdict]:
            return await made.check("authz", CLIENT, SERVER, REQUEST), await made.check(
                "authz", CLIENT, SERVER, REQUEST
            )

        verdicts = run(lambda: providers(silent.getsockname()[1], timeout="100ms"), twice)
        assert [verdict.failed for verdict in verdicts] == ["no answer within 0.1 s"] * 2
        silent.settimeout(60)
        for _ in range(2):
            silent.accept()[0].close()


@pytest.mark.parametrize(
    "junk",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0" * 100,
        b"\0\0\0\4\0\0\0\0\0" + b"\0\0\5\1\4\0\0\0\1\x88\x88\x88\xff\xff",
        b"",
    ],
)
def test_a_peer_that_does_not_speak_grpc(junk: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def use(made: Providers) -> CheckVerdict:
            loop = asyncio.get_running_loop()
            server.setblocking(False)

            async def speak() -> None:
                while True:
                    peer, _ = await loop.sock_accept(server)
                    await loop.sock_sendall(peer, junk)
                    peer.close()

            speaking = asyncio.create_task(speak())
            try:
                return await made.check("authz", CLIENT, SERVER, REQUEST)
            finally:
                speaking.cancel()

        verdict = run(lambda: providers(server.getsockname()[1]), use)
    assert not verdict.allowed and verdict.failed


def test_an_endless_answer_is_cut_off(start: Start) -> None:
    port = start(ext_authz.METHOD, lambda request, context: ext_authz.denied(body="x" * (bounds.MAX_ANSWER + 1)))
    assert "longer than" in checked(port).failed
    port = start(ext_authz.METHOD, lambda request, context: ext_authz.denied(body="x" * 100_000))
    assert len(checked(port).body) == 100_000, "more than one window of flow control"


def test_calls_share_a_connection_and_a_restart_is_survived(start: Start) -> None:
    peers: set[str] = set()

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        peers.add(context.peer())
        return ext_authz.allowed()

    server, port = serve(ext_authz.METHOD, answer)

    async def use(made: Providers) -> list[CheckVerdict]:
        verdicts = list(await asyncio.gather(*(made.check("authz", CLIENT, SERVER, REQUEST) for _ in range(50))))
        assert len(peers) == 1
        await asyncio.to_thread(server.stop(None).wait)
        start_again, _ = serve(ext_authz.METHOD, answer, f"127.0.0.1:{port}")
        try:
            verdicts += [await made.check("authz", CLIENT, SERVER, REQUEST) for _ in range(2)]
        finally:
            await asyncio.to_thread(start_again.stop(None).wait)
        assert len(peers) == 2
        return verdicts

    assert all(verdict.allowed for verdict in run(lambda: providers(port), use))


def test_a_connection_that_ends_under_a_call_is_tried_once_more(start: Start) -> None:
    calls: list[int] = []

    async def use(made: Providers) -> CheckVerdict:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as closing:
            closing.setblocking(False)
            places.append(closing.getsockname()[1])
            asking = asyncio.create_task(made.check("authz", CLIENT, SERVER, REQUEST))
            peer, _ = await loop.sock_accept(closing)
            await loop.sock_recv(peer, 65536)
            peer.close()
            return await asking

    good = start(ext_authz.METHOD, ext_authz.by_header)
    places: list[int] = []

    def where(service: str, port: int) -> tuple[str, int]:
        calls.append(port)
        return "127.0.0.1", places[0] if len(calls) == 1 else good

    assert run(lambda: providers(0, where=where), use).allowed
    assert len(calls) == 2


def test_the_next_endpoint_is_asked_where_one_is_not_there(start: Start) -> None:
    good = start(ext_authz.METHOD, ext_authz.by_header)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        places = iter([unused.getsockname()[1], good])
        made = providers(0, where=lambda service, port: ("127.0.0.1", next(places)))
        assert run(lambda: made, lambda made: made.check("authz", CLIENT, SERVER, REQUEST)).allowed


def test_a_client_that_goes_leaves_the_connection_to_others(start: Start) -> None:
    peers: set[str] = set()

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        peers.add(context.peer())
        if request.attributes.request.http.path == "/slow":
            gone.wait(timeout=60)
        return ext_authz.allowed()

    gone = threading.Event()
    port = start(ext_authz.METHOD, answer)

    async def use(made: Providers) -> bool:
        slow = asyncio.create_task(made.check("authz", CLIENT, SERVER, HttpFacts("GET", "/slow", "h", ())))
        await until(lambda: peers)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        gone.set()
        return (await made.check("authz", CLIENT, SERVER, REQUEST)).allowed

    assert run(lambda: providers(port), use)
    assert len(peers) == 1


def test_calls_beyond_the_bound_fail_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_CALLS", 2)
    port = start(ext_authz.METHOD, ext_authz.by_header)

    async def use(made: Providers) -> list[CheckVerdict]:
        return list(await asyncio.gather(*(made.check("authz", CLIENT, SERVER, REQUEST) for _ in range(3))))

    assert [verdict.allowed for verdict in run(lambda: providers(port), use)] == [True, True, False]


def test_a_pod_whose_calls_wait_keeps_no_other_from_asking(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_CALLS", 6)
    monkeypatch.setattr(bounds, "FEW_LEFT", 3)
    monkeypatch.setattr(bounds, "MAX_CALLS_OF_A_POD", 2)
    port = start(ext_authz.METHOD, ext_authz.by_header)

    async def use(made: Providers) -> list[CheckVerdict]:
        askers = ("crowded", "crowded", "crowded", "crowded", "other")
        asked = [made.check("authz", CLIENT, SERVER, REQUEST, asker=asker) for asker in askers]
        return [*await asyncio.gather(*asked), await made.check("authz", CLIENT, SERVER, REQUEST, asker="crowded")]

    assert [verdict.allowed for verdict in run(lambda: providers(port), use)] == [True, True, True, False, True, True]


def test_the_next_endpoint_is_asked_where_nobody_takes_the_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "CONNECT_SECONDS", 0.1)
    port = start(ext_authz.METHOD, ext_authz.by_header)

    async def never(inside: object) -> Dialled:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody says so")

    def made() -> Providers:
        ways = itertools.cycle([Way("192.0.2.1", 80, "pod", never), Way("127.0.0.1", port)])
        document = {"name": "authz", "envoyExtAuthzGrpc": {"service": "a", "port": 1, "timeout": "5s"}}
        return Providers((ExtensionProvider.model_validate(document),), lambda *_: next(ways))

    assert run(made, lambda providers: providers.check("authz", CLIENT, SERVER, REQUEST)).allowed


def test_what_too_many_calls_keep_from_being_asked_never_passes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients bring it about: else their crowd would let the others pass unchecked."""
    monkeypatch.setattr(bounds, "MAX_CALLS", 0)
    port = start(ext_authz.METHOD, ext_authz.by_header)

    async def use(made: Providers) -> CheckVerdict:
        assert not (await made.ask(GlobalLimit("limits", "d", (), failure_mode="allow"), [(("a", "b"),)])).allowed
        return await made.check("authz", CLIENT, SERVER, REQUEST)

    assert not run(lambda: providers(port, failOpen=True), use).allowed


def test_connections_to_many_endpoints_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "MAX_CONNECTIONS", 2)
    peers: list[str] = []

    def answer(request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:
        peers.append(context.peer())
        return ext_authz.allowed()

    ports = [start(ext_authz.METHOD, answer) for _ in range(3)]
    order = iter([0, 1, 2, 2, 1, 0])

    async def use(made: Providers) -> list[CheckVerdict]:
        return [await made.check("authz", CLIENT, SERVER, REQUEST) for _ in range(6)]

    assert all(
        verdict.allowed
        for verdict in run(lambda: providers(0, where=lambda service, port: ("127.0.0.1", ports[next(order)])), use)
    )
    assert len(set(peers)) == 4, "the first was closed for the third, and made anew at the end"


# -- the rate limit service --


def test_within_and_over_the_limit(start: Start) -> None:
    port = start(rate_limit.METHOD, rate_limit.Counting(1))
    quota = (("x-ratelimit-limit", "1, 1;w=3600"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1800"))
    assert asked(port) == RateVerdict(True, headers=quota)
    assert asked(port) == RateVerdict(False, headers=(("x-envoy-ratelimited", "true"), *quota))


def test_the_service_is_told_domain_and_descriptors_and_its_fields_are_taken(start: Start) -> None:
    seen: list[RateLimitRequest] = []

    def answer(request: RateLimitRequest, context: grpc.ServicerContext) -> RateLimitResponse:
        seen.append(request)
        answer = RateLimitResponse(overall_code=RateLimitResponse.OK)
        answer.request_headers_to_add.add(key="x-up", value="1")
        answer.response_headers_to_add.add(key="x-down", value="2")
        return answer

    port = start(rate_limit.METHOD, answer)
    verdict = run(lambda: providers(port), lambda made: made.ask(LIMIT, [(("a", "1"), ("b", "2")), (("c", "3"),)]))
    assert verdict == RateVerdict(True, request_headers=(("x-up", "1"),), headers=(("x-down", "2"),))
    assert seen[0].domain == "shop"
    assert [[(entry.key, entry.value) for entry in descriptor.entries] for descriptor in seen[0].descriptors] == [
        [("a", "1"), ("b", "2")],
        [("c", "3")],
    ]


@pytest.mark.parametrize("answer", [refuse, lambda request, context: RateLimitResponse()])
def test_without_an_answer_the_failure_mode_decides(
    start: Start, answer: Callable[[Any, grpc.ServicerContext], Any]
) -> None:
    port = start(rate_limit.METHOD, answer)
    assert asked(port).allowed and asked(port).failed
    denied = asked(port, GlobalLimit("limits", "shop", LIMIT.descriptors, "deny"))
    assert (denied.allowed, denied.status) == (False, 500)


def test_over_the_limit_with_a_field_that_cannot_be_is_over_the_limit(start: Start) -> None:
    answer = RateLimitResponse(overall_code=RateLimitResponse.OVER_LIMIT)
    answer.response_headers_to_add.add(key="x-down", value="a\nb")
    verdict = asked(start(rate_limit.METHOD, lambda request, context: answer))
    assert (verdict.allowed, verdict.status, verdict.headers) == (False, 429, ()) and "header field" in verdict.failed


def test_a_limits_own_timeout_counts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = asked(silent.getsockname()[1], GlobalLimit("limits", "shop", LIMIT.descriptors, timeout_seconds=0.05))
    assert answer.failed == "no answer within 0.05 s"


def test_nothing_to_ask_is_not_asked() -> None:
    assert run(lambda: providers(1), lambda made: made.ask(GlobalLimit("nobody", "d"), [])) == RateVerdict(True)


def test_descriptors_say_what_the_request_has() -> None:
    def each(value: str) -> list[tuple[tuple[str, str], ...]]:
        request = RequestFacts("GET", "/b?c", "web:80", {"x-user": "ann"}.get)
        return descriptors(GlobalLimit("p", "d", ((("k", value), ("fixed", "1")),)), request, "td/ns/a/sa/b", "")

    values = {
        "{principal}": "td/ns/a/sa/b",
        "{path}": "/b",
        "{method}": "GET",
        "{host}": "web:80",
        "{header:x-user}": "ann",
        "text": "text",
    }
    assert {name: each(name) for name in values} == {
        name: [(("k", value), ("fixed", "1"))] for name, value in values.items()
    }
    assert each("{pod}") == each("{header:x-other}") == [], "as in Envoy, one that lacks a value is left out"


# -- settings, and the fakes as programs --


def test_without_providers_no_grpc_is_loaded() -> None:
    code = (
        "import sys; from nodeagent.proxy.external.providers import Providers; Providers((), print); "
        "print({'grpclib', 'google.protobuf'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("program", ["ext_authz", "rate_limit"])
def test_the_fakes_run_as_programs(program: str) -> None:
    command = [sys.executable, str(ROOT / f"tests/fakes/{program}.py"), "--port", "0", "--address", "127.0.0.1"]
    with subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            word, port = process.stdout.readline().split()
            assert word == "ready"
            assert checked(int(port)).allowed if program == "ext_authz" else asked(int(port)).allowed
            assert process.stdout.readline().startswith("{")
        finally:
            process.kill()
