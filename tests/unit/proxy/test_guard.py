"""Policies where they act: what a protected server's proxy answers, counts, logs and cuts."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from nodeagent.config import ProxySettings
from nodeagent.errors import CONNECT_TIMEOUT
from nodeagent.identity.tls import Contexts, Inside
from nodeagent.mesh.entries import DeclaredProbe, Delta
from nodeagent.policy.authorization import Authorizer, ConnectionFacts, Decision, RequestFacts
from nodeagent.policy.jwt import Authenticator
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    GlobalLimit,
    LocalLimit,
    Operation,
    RateLimit,
    Rule,
    RuleSource,
    TokenBucket,
)
from nodeagent.policy.paths import normalise_target
from nodeagent.policy.rate_limit import RateLimiter
from nodeagent.proxy.client_guard import ClientGuard
from nodeagent.proxy.context import Context
from nodeagent.proxy.external.model import CheckVerdict
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.guard import DECISIONS, Compiler, Guard
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.fields import rewritten
from nodeagent.proxy.pool import Dial, DialError, Pool
from nodeagent.proxy.proxy import Proxy
from nodeagent.proxy.route import Destination, Route
from tests.unit.proxy.nodes import CLIENT, NODE, SERVER, STRANGER, Nodes, Policy, Streams, asks, play
from tests.unit.proxy.stage import answering, context, ok
from tests.unit.proxy.test_flow import connection
from tests.unit.proxy.test_http1 import read_answer
from tests.unit.proxy.test_inbound import GET, cut, with_probes
from tests.unit.proxy.test_worker import workload
from tests.waiting import quiet, until

MESH = MeshSettings("cluster.local")
CLIENT_ID = "cluster.local/ns/default/sa/client"
show_head = answering(lambda head, body: ok(head))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)


def allow(*rules: Rule, name: str = "allow") -> AuthorizationPolicy:
    return AuthorizationPolicy("default", name, "ALLOW", rules)


def deny(*rules: Rule, name: str = "deny") -> AuthorizationPolicy:
    return AuthorizationPolicy("default", name, "DENY", rules)


def paths(*patterns: str) -> Rule:
    return Rule(operations=(Operation(paths=patterns),))


FROM_CLIENT = Rule(sources=(RuleSource(principals=(CLIENT_ID,)),))


async def get(streams: Streams, target: str = "/", *fields: str, method: str = "GET") -> tuple[int, bytes, bytes]:
    """Ask for *target*; return status, the answer's head and its body."""
    streams[1].write("\r\n".join((f"{method} {target} HTTP/1.1", "Host: web", *fields, "", "")).encode())
    head, body = await read_answer(streams[0])
    return int(head.split()[1]), head, body


def events(proxy: Proxy) -> dict[tuple[str, str], int]:
    """Return what policies decided since the last call: (policy, event) -> count."""
    return {
        (labels[1], labels[2]): count
        for part in proxy.context.metrics.delta()
        for name, labels, count in part.get("counts", ())
        if name == "nodeagent_policy_events_total"
    }  # fmt: skip


def last_record(proxy: Proxy) -> dict[str, Any]:
    log: Any = proxy.context.access_log
    record: dict[str, Any] = log.records[-1]
    return record


def test_only_the_principal_that_is_named_comes_in(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        assert (await get(await nodes.connect()))[0] == 200
        stranger = await nodes.dial(STRANGER)
        status, _, body = await get(stranger)
        assert (status, body) == (403, b"RBAC: access denied")
        assert (await get(stranger))[0] == 403, "the connection itself goes on"
        assert nodes.app_connections == 1
        assert events(nodes.far) == {("", "deny"): 2}
        assert last_record(nodes.far)["response_code_details"] == "rbac_access_denied_matched_policy[none]"

    play(show_head, scene, tls, protocol="http", policies=(allow(FROM_CLIENT),))


@pytest.mark.parametrize(
    "target",
    ["/admin", "/admin?x", "/./admin", "/a/../admin", "/%61dmin", "/admin/../admin", "/a/%2e%2e/admin", "/x/..\\admin"],
)
def test_a_path_is_refused_however_it_is_written(tls: dict[str, Contexts], target: str) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        status, _, body = await get(streams, target)
        assert (status, body) == (403, b"RBAC: access denied")
        assert (
            last_record(nodes.far)["response_code_details"]
            == "rbac_access_denied_matched_policy[ns[default]-policy[deny]-rule[0]]"
        )
        assert (await get(streams, "/public"))[0] == 200
        assert events(nodes.far) == {("default/deny", "deny"): 1}

    play(show_head, scene, tls, protocol="http", policies=(deny(paths("/admin")),))


@pytest.mark.parametrize("host", ["Host: web", "Host:", "Host: ", "X: y"])
def test_any_host_is_an_empty_one_and_none_too(tls: dict[str, Contexts], host: str) -> None:
    async def scene(nodes: Nodes) -> None:
        for target, expected in (("/admin", b"403"), ("/public", b"200"), ("/admin", b"403")):
            reader, writer = await nodes.connect()
            writer.write(f"GET {target} HTTP/1.{0 if host == 'X: y' else 1}\r\n{host}\r\n\r\n".encode())
            head, _ = await read_answer(reader)
            assert head.split()[1] == expected

    rule = Rule(operations=(Operation(hosts=("*",), paths=("/admin*",)),))
    play(show_head, scene, tls, protocol="http", policies=(deny(rule),))


def test_what_was_decided_on_is_what_goes_on(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        _, _, body = await get(await nodes.connect(), "/a/./b/../%63?q=/../x")
        assert body.startswith(b"GET /a/c?q=/../x HTTP/1.1\r\n")

    play(show_head, scene, tls, protocol="http", policies=(deny(paths("/admin")),))


def random_rule(draw: random.Random) -> Rule:
    def some(values: list[str]) -> tuple[str, ...]:
        return tuple(draw.sample(values, draw.randrange(3)))

    operation = Operation(
        methods=some(["GET", "POST", "P*"]),
        paths=some(["/a", "/a/*", "*/b", "/{*}/b"]),
        not_hosts=some(["web", "w*", "other"]),
    )
    condition = Condition("request.headers[x-word]", ("v",))
    return Rule(
        draw.choice([(), (RuleSource(principals=(CLIENT_ID,)),)]),
        (operation,),
        (condition,) if draw.random() < 0.3 else (),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_remembered_decision_is_the_one_that_is_made_anew(tls: dict[str, Contexts], seed: int) -> None:
    draw = random.Random(seed)

    async def scene(nodes: Nodes) -> None:
        for _ in range(15):
            actions: list[Action] = ["ALLOW", "DENY", "AUDIT"]
            policies = tuple(
                AuthorizationPolicy("default", f"p{at}", draw.choice(actions), (random_rule(draw),))
                for at in range(draw.randrange(1, 4))
            )
            await nodes.protect(policies)
            facts = ConnectionFacts(CLIENT_ID, CLIENT, SERVER, nodes.port)
            authorizer = Authorizer.compile(policies, http=True, mesh=MESH)
            streams = await nodes.connect()
            for _ in range(20):
                method, target = draw.choice(["GET", "POST"]), draw.choice(["/a", "/a/b", "/a/./b", "/x/b?q", "/%61"])
                word = draw.choice(["v", "w"])
                outcome = authorizer.connection(facts)
                if not isinstance(outcome, Decision):
                    path = normalise_target(target.encode()).decode()
                    outcome = outcome.decide(RequestFacts(method, path, "web", {"x-word": word}.get))
                events(nodes.far)
                status, _, body = await get(streams, target, f"X-Word: {word}", "Content-Length: 0", method=method)
                assert status == (200 if outcome.allowed else 403)
                assert not outcome.allowed or body.split()[1] == normalise_target(target.encode())
                expected = [(note.policy, note.kind) for note in outcome.notes] + (
                    [] if outcome.allowed else [(outcome.policy, "deny")]
                )
                assert events(nodes.far) == dict.fromkeys(expected, 1)

    play(show_head, scene, tls, protocol="http")


def test_what_a_guard_remembers_is_bounded() -> None:
    guard = Guard(Authorizer.compile([deny(paths("/admin"))], http=True, mesh=MESH), None, None, (), MESH)
    bound = ClientGuard(guard, ConnectionFacts("", CLIENT, SERVER, 80), "client", "server", "server")
    for number in range(3 * DECISIONS):
        guard.remember((bound, b"GET", b"/%d" % number, b"web"), b"/", Decision(True))
        assert len(guard._decided) <= DECISIONS
    for long in (
        (bound, b"GET", b"/" + b"x" * 1000, b"web"),
        (bound, b"G" * 1000, b"/", b"web"),
        (bound, b"GET", b"/", b"w" * 1000),
    ):
        guard.remember(long, b"/", Decision(True))
        assert guard.decided(long) is None


def test_what_limits_or_tokens_have_a_say_in_is_not_remembered() -> None:
    authorizer = Authorizer.compile([deny(paths("/admin"))], http=True, mesh=MESH)
    client = ConnectionFacts("", CLIENT, SERVER, 80)
    limit = RateLimit("default", "limit", (LocalLimit(TokenBucket(1, 1, 60.0)),))
    guards = [
        Guard(authorizer, Authenticator.compile([], lambda uri: None, time.time), None, (), MESH),
        Guard(authorizer, None, RateLimiter.compile([limit], time.monotonic), (), MESH),
        Guard(authorizer, None, None, (GlobalLimit("limits", "domain"),), MESH),
    ]
    assert [ClientGuard(guard, client, "client", "server", "server").by_line for guard in guards] == [False] * 3
    assert ClientGuard(Guard(authorizer, None, None, (), MESH), client, "client", "server", "server").by_line


def test_a_policy_is_compiled_once_and_forgotten_with_it() -> None:
    compiler = Compiler(MESH)
    old, same_name = deny(paths("/admin")), deny(paths("/other"))
    compiled = compiler.compiled(old)
    assert compiler.compiled(old) is compiled
    assert compiler.compiled(same_name) is not compiled
    compiler.keep([same_name])
    assert list(compiler._known) == [id(same_name)]


def test_a_policy_that_cannot_be_compiled_lets_nobody_in(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        assert (await get(await nodes.connect()))[0] == 403
        assert events(nodes.far) == {("AuthorizationPolicy default/wrong", "deny"): 1}

    wrong = AuthorizationPolicy("default", "wrong", "ALLOW", (Rule(sources=(RuleSource(ip_blocks=("everywhere",)),)),))
    play(show_head, scene, tls, protocol="http", policies=(allow(FROM_CLIENT), wrong))


@pytest.mark.parametrize("missing", [deny(name="missing").key, RateLimit("default", "missing").key])
def test_a_policy_that_is_not_there_lets_nobody_in(tls: dict[str, Contexts], missing: str) -> None:
    """It selects the workload, and did not come to the worker."""

    async def scene(nodes: Nodes) -> None:
        view = nodes.far.context.view
        workload = view.workload(nodes.far.context.pods["server"].uid)
        assert workload is not None
        streams = await nodes.connect()
        assert (await get(streams))[0] == 200
        view.apply(Delta((replace(workload, policies=(*workload.policies, missing)),)))
        assert (await get(streams))[0] == 403
        assert "policy[missing]" in last_record(nodes.far)["response_code_details"]

    play(show_head, scene, tls, protocol="http", policies=(allow(FROM_CLIENT),))


def test_a_tcp_connection_is_reset_before_the_application_hears_of_it(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"\x00hello")
        assert await cut(reader)
        assert nodes.app_connections == 0
        reader, writer = await nodes.connect()
        writer.write(b"\x00hello")
        assert await reader.readexactly(6) == b"\x00hello"
        assert events(nodes.far) == {("", "deny"): 1}

    play(echo, scene, tls, protocol="tcp", policies=(allow(FROM_CLIENT),))


def test_an_http_rule_on_a_tcp_port_lets_nobody_in_and_keeps_everybody_out(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        for policies in ((allow(paths("/ok")),), (deny(paths("/admin")),)):
            await nodes.protect(policies)
            reader, writer = await nodes.connect()
            writer.write(b"\x00hello")
            assert await cut(reader)
        assert nodes.app_connections == 0

    play(echo, scene, tls, protocol="tcp")


def test_a_new_policy_cuts_what_it_refuses_and_leaves_the_rest(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        kept, refused = await nodes.connect(), await nodes.dial(STRANGER)
        for reader, writer in (kept, refused):
            writer.write(b"\x00hello")
            assert await reader.readexactly(6) == b"\x00hello"
        await nodes.protect((allow(FROM_CLIENT),))
        assert await cut(refused[0])
        kept[1].write(b"still")
        assert await kept[0].readexactly(5) == b"still"
        assert "policy_denied" in nodes.refused(nodes.far)

    play(echo, scene, tls, protocol="tcp")


def test_a_new_policy_holds_for_the_next_request(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        assert (await get(streams, "/admin"))[0] == 200
        await nodes.protect((deny(paths("/admin")),))
        assert (await get(streams, "/admin"))[0] == 403
        assert (await get(streams, "/other"))[0] == 200
        await nodes.protect(())
        assert (await get(streams, "/admin"))[0] == 200

    play(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_strict_cuts_the_plaintext_that_permissive_let_in(tls: dict[str, Contexts], protocol: Any) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await nodes.protect((), "STRICT")
        writer.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
        assert "plaintext_refused" in nodes.refused(nodes.far)

    play(show_head, scene, tls, protocol=protocol)


def test_a_connection_ends_with_the_certificate_that_it_was_let_in_by(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.connect()
        writer.write(b"\x00hello")
        assert await reader.readexactly(6) == b"\x00hello"
        (connection,) = nodes.far.context.connections.values()
        assert time.time() < connection.expires < time.time() + 3700
        connection.expires = time.time() - 1
        assert await cut(reader)
        assert "certificate_ended" in nodes.refused(nodes.far)

    play(echo, scene, tls, protocol="tcp")


def test_declared_probes_pass_policies_and_nothing_else_of_the_node_does(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        with_probes(nodes)
        streams = await nodes.dial(NODE)
        assert (await get(streams, "/healthz"))[0] == 200
        assert (await get(streams, "/other"))[0] == 403

    play(
        show_head,
        scene,
        tls,
        protocol="http",
        policies=(allow(FROM_CLIENT),),
        probes=(DeclaredProbe("http", 1, "/healthz"),),
    )


def test_a_used_up_bucket_answers_429_and_says_when_to_come_back(tls: dict[str, Contexts]) -> None:
    limit: Policy = RateLimit("default", "slow", local=(LocalLimit(TokenBucket(2, 1, 3600.0)),))

    async def scene(nodes: Nodes) -> None:
        streams = await nodes.connect()
        assert [(await get(streams))[0] for _ in range(3)] == [200, 200, 429]
        _, head, body = await get(streams)
        assert body == b"local_rate_limited"
        assert b"x-ratelimit-limit: 2" in head.lower()
        assert last_record(nodes.far)["response_flags"] == "RL"
        assert events(nodes.far) == {("default/slow", "rate_limited"): 2}
        await nodes.protect((limit, deny(paths("/admin"))))
        assert (await get(streams))[0] == 429, "another policy's change fills no bucket"

    play(show_head, scene, tls, protocol="http", policies=(limit,))


def test_a_pod_that_comes_back_has_the_policies_that_it_has_now(tls: dict[str, Contexts]) -> None:
    """The policy that selects it by then was there all the time, for another pod."""
    other = deny(paths("/other"), name="other")

    async def scene(nodes: Nodes) -> None:
        view = nodes.far.context.view
        workload = view.workload(nodes.far.context.pods["server"].uid)
        assert workload is not None
        view.apply(Delta((other, replace(workload, policies=(deny().key,)))))
        streams = await nodes.dial(STRANGER)
        assert (await get(streams, "/other"))[0] == 200
        view.apply(Delta(removals=(workload.key,)))
        view.apply(Delta((replace(workload, policies=(deny().key, other.key)),)))
        assert (await get(await nodes.dial(STRANGER), "/other"))[0] == 403
        assert (await get(streams, "/other"))[0] == 403

    play(show_head, scene, tls, protocol="http", policies=(deny(paths("/admin")),))


@pytest.mark.parametrize("protocol", ["auto", "http"])
def test_who_has_not_said_enough_yet_meets_the_mode_that_is_in_force_when_it_has(
    tls: dict[str, Contexts], protocol: Any
) -> None:
    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"P")
        await until(lambda: nodes.far.context.connections)
        await quiet()
        await nodes.protect((), "STRICT")
        writer.write(b"OST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n")
        assert await cut(reader)
        assert nodes.app_connections == 0
        assert nodes.refused(nodes.far) == ["plaintext_refused"]
        await nodes.settled()

    play(show_head, scene, tls, protocol=protocol, timeouts={"sniff": 5})


@pytest.mark.parametrize(("policies", "mode"), [((), "STRICT"), ((deny(Rule()),), "PERMISSIVE")])
def test_what_changes_while_the_application_is_dialled_is_in_force(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch, policies: tuple[Policy, ...], mode: Any
) -> None:
    dialling, go, connect = asyncio.Event(), asyncio.Event(), Dial.connect

    async def slow(self: Dial, context: Context, inside: Inside, **options: Any) -> Any:
        dialling.set()
        await go.wait()
        return await connect(self, context, inside, **options)

    async def scene(nodes: Nodes) -> None:
        monkeypatch.setattr(Dial, "connect", slow)
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"hello")
        await dialling.wait()
        await nodes.protect(policies, mode)
        go.set()
        assert await cut(reader)
        assert len(nodes.refused(nodes.far)) == 1
        await nodes.settled()

    play(echo, scene, tls, protocol="tcp")


def refusals(nodes: Nodes) -> list[tuple[str, float]]:
    """Return how often the server's node counted each reason since the last call."""
    return [
        (labels[0], times)
        for part in nodes.far.context.metrics.delta()
        for name, labels, times in part.get("counts", ())
        if name == "nodeagent_refused_connections_total"
    ]


SWEPT = pytest.mark.parametrize("swept", [True, False], ids=["swept", "between sweeps"])


@SWEPT
@pytest.mark.parametrize("protocol", ["http", "auto"])
def test_a_certificate_that_ends_before_the_first_request_ends_the_connection_once(
    tls: dict[str, Contexts], protocol: Any, swept: bool
) -> None:
    async def scene(nodes: Nodes) -> None:
        nodes._sweeper.cancel()
        reader, writer = await nodes.dial(CLIENT, tls["client"].client_http)
        await until(lambda: any(each.expires for each in nodes.far.context.connections.values()))
        (connection,) = nodes.far.context.connections.values()
        connection.expires = 1.0
        if swept:
            for _ in range(3):
                nodes.far.revocation.sweep()
        else:
            writer.write(GET)
        assert await cut(reader)
        assert refusals(nodes) == [("certificate_ended", 1)]
        assert connection.verdict == "deny"
        assert nodes.app_connections == 0
        await nodes.settled()

    play(show_head, scene, tls, protocol=protocol, timeouts={"sniff": 5})


@pytest.mark.parametrize("claim", ["X-Forwarded-Client-Cert", "X_Forwarded_Client_Cert"])
def test_of_a_clients_certificate_policies_see_what_was_proved(tls: dict[str, Contexts], claim: str) -> None:
    condition = Condition("request.headers[x-forwarded-client-cert]", (f"*{CLIENT_ID}",))

    async def scene(nodes: Nodes) -> None:
        forged = f"{claim}: By=a;URI=spiffe://{CLIENT_ID}"
        assert (await get(await nodes.dial(STRANGER), "/", forged))[0] == 403
        assert (await get(await nodes.connect(), "/", f"{claim}: By=a;URI=b"))[0] == 200

    play(show_head, scene, tls, protocol="http", policies=(allow(Rule(conditions=(condition,))),))


@pytest.mark.parametrize(
    ("swept", "reached"),
    [(False, True), (True, True), (True, False)],
    ids=["between sweeps", "swept", "swept, and not reached"],
)
def test_a_certificate_that_ends_while_the_endpoint_is_dialled_ends_the_connection_once(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch, reached: bool, swept: bool
) -> None:
    dialling, go, connect = asyncio.Event(), asyncio.Event(), Dial.connect

    async def slow(self: Dial, context: Context, *inside: Any, **options: Any) -> Any:
        dialling.set()
        await go.wait()
        if not reached:
            raise DialError(CONNECT_TIMEOUT)
        return await connect(self, context, *inside, **options)

    async def scene(nodes: Nodes) -> None:
        nodes._sweeper.cancel()
        monkeypatch.setattr(Dial, "connect", slow)
        reader, writer = await nodes.dial(CLIENT, tls["client"].client_tcp)
        writer.write(b"hello")
        await dialling.wait()
        (connection,) = nodes.far.context.connections.values()
        connection.expires = 1.0
        if swept:
            for _ in range(3):
                nodes.far.revocation.sweep()
        go.set()
        assert await cut(reader)
        await until(lambda: not nodes.far.context.pods["server"].open)
        assert refusals(nodes) == [("certificate_ended", 1)]

    play(echo, scene, tls, protocol="tcp")


def test_a_certificate_that_ends_while_an_authorizer_is_asked_ends_the_connection_once(
    tls: dict[str, Contexts],
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Providers):
        async def check(self, *_: Any) -> CheckVerdict:
            asked.set()
            await answer.wait()
            return CheckVerdict(False)

    async def scene(nodes: Nodes) -> None:
        asks(nodes.far, Slow((), nodes.far.routing.way_to))
        reader, writer = await nodes.dial(CLIENT, tls["client"].client_tcp)
        writer.write(b"hello")
        await asked.wait()
        (connection,) = nodes.far.context.connections.values()
        connection.expires = 1.0
        assert await cut(reader), "the sweep does not wait for the authorizer"
        answer.set()
        await until(lambda: not nodes.far.context.pods["server"].open)
        assert refusals(nodes) == [("certificate_ended", 1)]
        assert nodes.app_connections == 0

    ask = AuthorizationPolicy("default", "ask", "CUSTOM", (Rule(),), provider="authz")
    play(echo, scene, tls, protocol="tcp", policies=(ask,))


def test_a_request_that_cannot_be_forwarded_after_an_authorizer_is_answered(
    tls: dict[str, Contexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Allows(Providers):
        async def check(self, *_: Any) -> CheckVerdict:
            return CheckVerdict(True)

    def fails(self: Pool, exchange: Exchange) -> None:
        raise RuntimeError("a fault of ours")

    async def scene(nodes: Nodes) -> None:
        asks(nodes.far, Allows((), nodes.far.routing.way_to))
        monkeypatch.setattr(Pool, "send", fails)
        reader, writer = await nodes.dial(STRANGER)
        writer.write(GET)
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 403 ")
        writer.close()
        await nodes.settled()

    ask = AuthorizationPolicy("default", "ask", "CUSTOM", (Rule(),), provider="authz")
    play(show_head, scene, tls, protocol="http", policies=(ask,))


def test_a_client_is_told_that_nobody_is_the_authorizer_that_a_policy_names(tls: dict[str, Contexts]) -> None:
    """Input: no provider of that name. Verdict: refused, and not as by one that is there and does not answer."""

    async def scene(nodes: Nodes) -> None:
        reader, writer = await nodes.dial(STRANGER)
        writer.write(GET)
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 403 ")
        assert body.startswith(b"external_missing (UAEX): no external authorizer has the name that the policy says")
        writer.close()
        await nodes.settled()

    ask = AuthorizationPolicy("default", "ask", "CUSTOM", (Rule(),), provider="authz")
    play(show_head, scene, tls, protocol="http", policies=(ask,))


def test_what_is_delivered_to_nobody_is_never_unguarded() -> None:
    """A route to a protected application without its endpoint cannot be; were there one, nothing may pass."""

    async def scene() -> None:
        proxy = Proxy(context(ProxySettings(), None))
        made = connection()
        policy = deny(Rule())
        protected = workload((policy.key,))
        destination = Destination(None, protected, "proxy-local", None, "-", delivers=True)
        route = Route(proxy.context.metrics, made, destination, "Kubernetes")
        with pytest.raises(AssertionError, match="has an endpoint"):
            proxy.guards.guard(made, route, http=True)

    uvloop.run(scene())


def test_no_more_than_one_read_is_kept_of_a_connection_that_waits_for_an_authorizer(tls: dict[str, Contexts]) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(Providers):
        async def check(self, *_: Any) -> CheckVerdict:
            asked.set()
            await answer.wait()
            return CheckVerdict(True)

    async def scene(nodes: Nodes) -> None:
        asks(nodes.far, Slow((), nodes.far.routing.way_to))
        reader, writer = await nodes.dial(STRANGER)
        writer.write(b"x" * (8 << 20))
        await asked.wait()
        await quiet()
        (connection,) = nodes.far.context.connections.values()
        assert len(connection.early) < 1 << 20
        answer.set()
        for _ in range(8):
            assert await reader.readexactly(1 << 20) == b"x" * (1 << 20)

    play(
        echo,
        scene,
        tls,
        protocol="tcp",
        policies=(AuthorizationPolicy("default", "ask", "CUSTOM", (Rule(),), provider="authz"),),
    )


def test_what_an_application_takes_for_a_field_of_a_policy_goes_too() -> None:
    """A claim that the proxy tells in x-user: CGI, WSGI and PHP would put a client's own X_User before it."""
    fields = [(name, b"admin") for name in (b"X-User", b"x_user", b"X.User", b"x-users")]
    assert rewritten(fields, ("x-user",), (("x-user", "somebody"),)) == [
        (b"x-users", b"admin"),
        (b"x-user", b"somebody"),
    ]
