"""However a client of HTTP/1.1 spells what policies read, the verdict is that for what an application
reads: the table of what policies read times what RFC 9112 lets a client write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from nodeagent.identity.tls import Contexts
from nodeagent.policy.model import (
    AuthorizationPolicy,
    Condition,
    JwtRule,
    LocalLimit,
    Operation,
    RateLimit,
    RequestAuthentication,
    Rule,
    TokenBucket,
    TokenHeader,
)
from nodeagent.proxy.external.model import CheckVerdict
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.http import fields
from nodeagent.proxy.http1 import requests
from tests.unit.proxy.nodes import Nodes, Policy, Streams, asks, play
from tests.unit.proxy.stage import Stage, answering, ok
from tests.unit.proxy.stage import play as play_stage
from tests.unit.proxy.test_http1 import read_answer

show_head = answering(lambda head, body: ok(head))
Line = tuple[bytes, bytes]

SPELLINGS: Final = {
    "as usual": b"%b: %b",
    "no space": b"%b:%b",
    "spaces before": b"%b:   %b",
    "tab before": b"%b:\t%b",
    "space behind": b"%b: %b ",
    "spaces behind": b"%b: %b   ",
    "tab behind": b"%b: %b\t",
    "both on both sides": b"%b: \t %b\t \t",
}
"""Of one field line (RFC 9112 section 5)."""
CASES: Final[dict[str, Callable[[bytes], bytes]]] = {"as usual": bytes, "upper": bytes.upper, "lower": bytes.lower}
"""Of its name."""


def when(name: str, *values: str, but: tuple[str, ...] = ()) -> Rule:
    return Rule(conditions=(Condition(f"request.headers[{name}]", values, but),))


def to(*hosts: str) -> Rule:
    return Rule(operations=(Operation(hosts=hosts),))


def policy(action: Any, *rules: Rule) -> AuthorizationPolicy:
    return AuthorizationPolicy("default", "policy", action, rules, provider="authz" if action == "CUSTOM" else "")


def limit(**fields: Any) -> RateLimit:
    """Return a limit that the first request uses up."""
    return RateLimit("default", "limit", (LocalLimit(TokenBucket(1, 1, 3600.0), **fields),))


ONE_LINE: Final[dict[str, tuple[Policy, Line, int]]] = {
    "a header": (policy("DENY", when("x-user", "mallory")), (b"X-User", b"mallory"), 403),
    "the begin of a header": (policy("DENY", when("x-user", "mal*")), (b"X-User", b"mallory"), 403),
    "the end of a header": (policy("DENY", when("x-user", "*ory")), (b"X-User", b"mallory"), 403),
    "a header that is not another": (policy("DENY", when("x-user", but=("ann",))), (b"X-User", b"ann"), 200),
    "a header that may come": (policy("ALLOW", when("x-user", "ann")), (b"X-User", b"ann"), 200),
    "a header that may not": (policy("ALLOW", when("x-user", but=("mallory",))), (b"X-User", b"mallory"), 403),
    "a header with white space": (policy("DENY", when("x-user", "a \t b")), (b"X-User", b"a \t b"), 403),
    "User-Agent": (policy("DENY", when("user-agent", "evil")), (b"User-Agent", b"evil"), 403),
    "Authorization": (policy("DENY", when("authorization", "Basic YTpi")), (b"Authorization", b"Basic YTpi"), 403),
    "Cookie": (policy("DENY", when("cookie", "a=b; c=d")), (b"Cookie", b"a=b; c=d"), 403),
    "Content-Length": (policy("DENY", when("content-length", "0")), (b"Content-Length", b"0"), 403),
    "X-Forwarded-For": (policy("DENY", when("x-forwarded-for", "192.0.2.1")), (b"X-Forwarded-For", b"192.0.2.1"), 403),
    "a host": (
        policy("DENY", Rule(operations=(Operation(hosts=("admin.example",)),))),
        (b"Host", b"admin.example"),
        403,
    ),
    "another host": (policy("ALLOW", to("web")), (b"Host", b"web"), 200),
    "Host as a header": (policy("DENY", when("host", "admin.example")), (b"Host", b"admin.example"), 403),
    ":authority": (policy("DENY", when(":authority", "admin.example")), (b"Host", b"admin.example"), 403),
    "whom an authorizer is asked about": (policy("CUSTOM", when("x-user", "mallory")), (b"X-User", b"mallory"), 403),
    "what a limit is for": (limit(headers=(("x-key", "k"),)), (b"X-Key", b"k"), 429),
    "what a limit counts by": (limit(by=("header:x-key",)), (b"X-Key", b"k"), 429),
}
"""What decides, a field line, and the answer to every spelling of it, where one request was answered before."""


REPEATED: Final = (
    (b"X-User: mallory", b"X-User: ann"),
    (b"X-User: ann", b"X-User: mallory"),
    (b"X-User: ann", b"x-user:mallory\t", b"X-USER: bob"),
    (b"X-User: mallory", b"X-User:"),
    (b"X-User:", b"X-User: mallory"),
)
"""Which line counts, applications see in different ways: http.server takes the first, Node.js joins them."""
SEVERAL_LINES: Final[dict[str, tuple[Policy, int]]] = {
    "one that may not come": (policy("DENY", when("x-user", "mallory")), 403),
    "the begin of one": (policy("DENY", when("x-user", "mal*")), 403),
    "the end of one": (policy("DENY", when("x-user", "*ory")), 403),
    "others than one": (policy("DENY", when("x-user", but=("mallory",))), 403),
    "others than two": (policy("DENY", when("x-user", but=("ann", "mallory"))), 403),
    "one that may come": (policy("ALLOW", when("x-user", "mallory")), 403),
    "the begin of one that may come": (policy("ALLOW", when("x-user", "ann*", "bob*")), 403),
    "all but one": (policy("ALLOW", when("x-user", but=("mallory",))), 403),
    "that it is there": (policy("ALLOW", when("x-user", "*")), 200),
    "that it is not there": (policy("DENY", when("x-user", but=("*",))), 200),
    "whom an authorizer is asked about": (policy("CUSTOM", when("x-user", "mallory")), 403),
    "what a limit is for": (limit(headers=(("x-user", "mallory"),)), 429),
}
"""What decides, and the answer to all of REPEATED."""
AS_WRITTEN: Final[dict[str, tuple[bytes, int]]] = {
    "UTF-8": (b"X-Name: \xc3\xa9", 403),
    "UTF-8 and white space": (b"X-Name:\t\xc3\xa9 \t", 403),
    "another line before": (b"X-Name: a\r\nX-Name: \xc3\xa9", 403),
    "Latin-1": (b"X-Name: \xe9", 200),
    "a space of Latin-1, which is none of HTTP": (b"X-Name: \xc3\xa9\xa0", 200),
    "an underscore, as by Envoy": (b"X_Name: \xc3\xa9", 200),
    "kept to this hop, so that no application reads it": (b"Connection: x-name\r\nX-Name: \xc3\xa9", 200),
    "a host": (b"Host: \xc3\xa9", 400),
    "NUL": (b"X-Name: \xc3\xa9\0", 400),
    "a control character": (b"X-Name: \xc3\xa9\x01", 400),
    "a vertical tab": (b"X-Name: \xc3\xa9\x0b", 400),
    "a form feed": (b"X-Name:\x0c\xc3\xa9", 400),
    "folded": (b"X-Name:\r\n \xc3\xa9", 400),
    "a space before the colon": (b"X-Name : \xc3\xa9", 400),
    "more than a head may have": (b"X-Name: \xc3\xa9\r\nX-Long: " + b"a" * 70000, 431),
}
"""A line or two, and the answer where ``X-Name: é`` is denied."""


HOSTS: Final = {
    b"Host: ADMIN.example": 403,
    b"Host: admin.example:80": 200,
    b"Host: admin.example.": 200,
    b"Host:": 200,
    b"Host: :80": 200,
    b"Host: [fd00::1]:80": 200,
    b"Host: web:": 200,
    b"Host: web other": 400,
    b"Host: web/other": 400,
    b"Host: web@other": 400,
    b"Host: web,other": 400,
    b"Host: web:other": 400,
    b"Host: fd00::1": 400,
    b"Host: web\r\nHost: web": 400,
    b"Host: web\r\nHost: admin.example": 400,
}
"""A Host, and the answer where ``admin.example`` is denied. Envoy 1.40 decides alike: a port, and a dot at
the end, are part of the host, and an empty one is one. Of those with 400 it takes the ones with a comma,
``@``, another port, an address without brackets, and repeated ones, as one host with a comma.
"""
KEYLESS: Final = '{"keys":[]}'
TOKENS: Final[dict[str, tuple[JwtRule, bytes]]] = {
    "where it stands": (JwtRule("iss", jwks=KEYLESS), b"Authorization: Bearer x.y.z"),
    "behind spaces": (JwtRule("iss", jwks=KEYLESS), b"Authorization:Bearer   x.y.z \t"),
    "behind a tab": (JwtRule("iss", jwks=KEYLESS), b"Authorization: Bearer\tx.y.z"),
    "on a second line": (JwtRule("iss", jwks=KEYLESS), b"Authorization: Basic a\r\nAuthorization: Bearer x.y.z"),
    "before a second line": (JwtRule("iss", jwks=KEYLESS), b"Authorization: Bearer x.y.z\r\nAuthorization: Basic a"),
    "where a tab is named": (JwtRule("iss", jwks=KEYLESS, from_headers=(TokenHeader("x-t", "T\t"),)), b"X-T: T\tx.y.z"),
    "alone": (JwtRule("iss", jwks=KEYLESS, from_headers=(TokenHeader("x-t"),)), b"X-T:\tx.y.z "),
    "in a cookie": (JwtRule("iss", jwks=KEYLESS, from_cookies=("t",)), b"Cookie: a=b; t=x.y.z"),
    "in a cookie, with spaces": (JwtRule("iss", jwks=KEYLESS, from_cookies=("t",)), b"Cookie: a=b;\tt = x.y.z ;c=d"),
    "in a cookie on a line of its own": (
        JwtRule("iss", jwks=KEYLESS, from_cookies=("t",)),
        b"Cookie: a=b\r\nCookie: t=x.y.z",
    ),
}
"""Where a token is looked for, and a wrong one that applications find there."""
ORIGIN: Final = {
    b"GET /a?b": b"GET /a?b",
    b"GET http://web/a?b": b"GET /a?b",
    b"GET HTTP://WEB/a": b"GET /a",
    b"GET https://web": b"GET /",
    b"GET http://web?b": b"GET /?b",
    b"GET http://web/http://other/": b"GET /http://other/",
    b"GET /http://other/": b"GET /http://other/",
    b"OPTIONS http://web": b"OPTIONS /",
    b"OPTIONS *": b"OPTIONS *",
}
"""A request's line, and the one that an application gets."""


async def ask(streams: Streams, *lines: bytes, request: bytes = b"GET / HTTP/1.1") -> tuple[int, bytes]:
    """Send a request with *lines*, and a Host unless it is among them; return status and body."""
    hosts = [] if any(line.lower().startswith(b"host:") for line in lines) else [b"Host: web"]
    streams[1].write(b"\r\n".join((request, *hosts, *lines, b"", b"")))
    head, body = await read_answer(streams[0])
    return int(head.split()[1]), body


class Refuses(Providers):
    """An authorizer that lets nobody in."""

    async def check(self, *_: Any) -> CheckVerdict:
        return CheckVerdict(False)


@pytest.mark.parametrize("what", ONE_LINE)
def test_white_space_and_case_change_no_verdict(tls: dict[str, Contexts], what: str) -> None:
    decides, (name, value), expected = ONE_LINE[what]

    async def scene(nodes: Nodes) -> None:
        asks(nodes.far, Refuses((), nodes.far.routing.way_to))
        streams = await nodes.dial()
        await ask(streams, b"%b: %b" % (name, value))
        answers = {
            (spelling, case): (await ask(streams, written % (cased(name), value)))[0]
            for spelling, written in SPELLINGS.items()
            for case, cased in CASES.items()
        }
        assert answers == dict.fromkeys(answers, expected)

    play(show_head, scene, tls, protocol="http", policies=(decides,))


@pytest.mark.parametrize("what", SEVERAL_LINES)
def test_another_line_of_the_same_name_hides_none(tls: dict[str, Contexts], what: str) -> None:
    decides, expected = SEVERAL_LINES[what]

    async def scene(nodes: Nodes) -> None:
        asks(nodes.far, Refuses((), nodes.far.routing.way_to))
        streams = await nodes.dial()
        await ask(streams, b"X-User: mallory")
        answers = {lines: (await ask(streams, *lines))[0] for lines in REPEATED}
        assert answers == dict.fromkeys(answers, expected)

    play(show_head, scene, tls, protocol="http", policies=(decides,))


def test_another_line_of_the_same_name_avoids_no_limit(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial()
        for line in (b"X-User: mallory", b"X-User:"):
            assert (await ask(streams, line))[0] == 200
        answers = {lines: (await ask(streams, *lines))[0] for lines in REPEATED}
        assert answers == dict.fromkeys(answers, 429)

    play(show_head, scene, tls, protocol="http", policies=(limit(by=("header:x-user",)),))


@pytest.mark.parametrize("what", AS_WRITTEN)
def test_bytes_beyond_ascii_are_compared_as_they_are(tls: dict[str, Contexts], what: str) -> None:
    line, expected = AS_WRITTEN[what]

    async def scene(nodes: Nodes) -> None:
        assert (await ask(await nodes.dial(), line))[0] == expected

    play(show_head, scene, tls, protocol="http", policies=(policy("DENY", when("x-name", "é")),))


def test_hosts_are_those_that_applications_get(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        answers: dict[bytes, int] = {}
        for line in HOSTS:
            answers[line], head = await ask(await nodes.dial(), line)
            assert answers[line] != 200 or line.rstrip() in [each.rstrip() for each in head.split(b"\r\n")]
        assert answers == HOSTS

    play(show_head, scene, tls, protocol="http", policies=(policy("DENY", to("admin.example")),))


def test_an_empty_host_is_none_of_those_that_may_be_asked(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial()
        assert [(await ask(streams, line))[0] for line in (b"Host: web", b"Host:", b"Host: \t ")] == [200, 403, 403]

    play(show_head, scene, tls, protocol="http", policies=(policy("ALLOW", to("web")),))


@pytest.mark.parametrize("what", TOKENS)
def test_a_token_that_an_application_finds_is_looked_at(tls: dict[str, Contexts], what: str) -> None:
    rule, lines = TOKENS[what]

    async def scene(nodes: Nodes) -> None:
        assert (await ask(await nodes.dial(), lines))[0] == 401

    play(show_head, scene, tls, protocol="http", policies=(RequestAuthentication("default", "jwt", (rule,)),))


@pytest.mark.parametrize("policies", [(), (policy("DENY", when("x-user", "mallory")),)])
def test_an_application_gets_a_path(tls: dict[str, Contexts], policies: tuple[Policy, ...]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial()
        for line, written in ORIGIN.items():
            _, head = await ask(streams, request=line + b" HTTP/1.1")
            assert head.startswith(written + b" HTTP/1.1\r\n")
        assert [record["path"] for record in records(nodes)] == [each.split()[1].decode() for each in ORIGIN.values()]

    play(show_head, scene, tls, protocol="http", policies=policies)


def records(nodes: Nodes) -> list[dict[str, Any]]:
    log: Any = nodes.far.context.access_log
    return cast(list[dict[str, Any]], log.records)


@pytest.mark.parametrize(
    "lines",
    [
        b"X-Request-Id: 1\r\nUser-Agent: a",
        b"X-Request-Id: 1 \r\nUser-Agent:a\t",
        b"X-Request-Id:\r\nUser-Agent: a",
        b"X-Request-Id: 1\r\nX-Request-Id: 2\r\nUser-Agent: a\r\nUser-Agent: b",
        b"X-Request-Id:\r\nX-Request-Id: 2",
        b"Connection: x-request-id, user-agent\r\nX-Request-Id: 1\r\nUser-Agent: a",
        b"Connection: close, X-Request-ID\r\nx-request-id: 1\r\nuser-agent: a",
    ],
)
def test_the_log_says_what_the_application_reads(tls: dict[str, Contexts], lines: bytes) -> None:
    async def scene(nodes: Nodes) -> None:
        _, head = await ask(await nodes.dial(), lines)
        read: dict[bytes, list[bytes]] = {}
        for line in head.split(b"\r\n")[1:-2]:
            name, _, value = line.partition(b": ")
            read.setdefault(name.lower(), []).append(value)
        record = records(nodes)[-1]
        assert record["request_id"] == b",".join(read[b"x-request-id"]).decode()
        assert record["request_id"]
        assert record["user_agent"] == b",".join(read.get(b"user-agent", [b"-"])).decode()

    play(show_head, scene, tls, protocol="http")


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Length", b"X-Forwarded-For", b"x-forwarded-host", b"X-Forwarded-Proto"]
)
def test_what_everybody_needs_ends_at_no_hop(name: bytes) -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.exchange(b"GET / HTTP/1.1\r\nHost: web\r\n%b: 1\r\nConnection: %b\r\n\r\n" % (name, name))
        assert answer.startswith(b"HTTP/1.1 400 ")

    play_stage(show_head, scene)


def test_peers_fill_no_table_for_good() -> None:
    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()

        async def send(host: bytes, name: bytes) -> None:
            writer.write(b"GET / HTTP/1.1\r\nHost: %b\r\n%b: 1\r\n\r\n" % (host, name))
            await read_answer(reader)

        sizes = set[int]()
        for number in range(fields.KNOWN + 100):
            await send(b"host%d" % number, b"x-%d" % number)
            sizes |= {len(requests._hosts), len(fields._known)}
        assert max(sizes) <= fields.KNOWN
        await send(b"web", b"x-usual")
        await send(b"h" * (fields.KNOWN_BYTES + 1), b"x" * (fields.KNOWN_BYTES + 1))
        for table in (requests._hosts, fields._known):
            assert max(map(len, table)) <= fields.KNOWN_BYTES
        assert b"web" in requests._hosts
        assert b"x-usual" in fields._known
        assert fields.classify(b"Host") == fields.HOST

    play_stage(answering(lambda head, body: ok(b"")), scene)


def test_what_goes_on_is_what_was_decided_on(tls: dict[str, Contexts]) -> None:
    async def scene(nodes: Nodes) -> None:
        streams = await nodes.dial()
        for written in SPELLINGS.values():
            status, head = await ask(streams, written % (b"X-User", b"a b"))
            assert status == 200
            assert b"\r\nX-User: a b\r\n" in head

    play(show_head, scene, tls, protocol="http", policies=(policy("DENY", when("x-user", "mallory")),))


def test_white_space_behind_a_trailer_and_behind_an_answers_field_goes_no_further() -> None:
    async def handler(reader: Any, writer: Any) -> None:
        received = await reader.readuntil(b"\r\n0\r\n") + await reader.readuntil(b"\r\n\r\n")
        assert b"X-Sum: 1\r\n" in received
        writer.write(b"HTTP/1.1 200 OK\r\nX-Build: 7 \t\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-End: 2 \r\n\r\n")

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(
            b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1 \t\r\n\r\n"
        )
        head, rest = await read_answer(reader)
        assert b"\r\nX-Build: 7\r\n" in head
        assert rest == b"X-End: 2\r\n"

    play_stage(handler, scene)
