"""External authorization by HTTP, pure: what is asked, and what an answer means."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.extension_providers import EnvoyExtAuthzHttp
from nodeagent.proxy.external.bounds import CallError
from nodeagent.proxy.external.http_authz import CheckForm, Verdicts
from nodeagent.proxy.external.http_call import CheckAnswer, HttpCheck
from nodeagent.proxy.external.model import Body, CheckVerdict, HttpFacts, Party
from nodeagent.proxy.http.fields import Field

CLIENT = Party("10.0.0.1", 4000, "cluster.local/ns/shop/sa/cart")
SERVER = Party("10.0.0.2", 8080, "cluster.local/ns/shop/sa/stock")
HEADERS = (
    ("Host", "stock.shop"),
    ("Authorization", "Bearer t"),
    ("Cookie", "a=1"),
    ("cookie", "b=2"),
    ("X-A", "1"),
    ("x-a", "2"),
    ("Content-Length", "3"),
    ("Transfer-Encoding", "chunked"),
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("te", "trailers"),
    ("expect", "100-continue"),
    ("X-Envoy-Auth-Partial-Body", "false"),
)
FRAME = [(b"host", b"stock.shop"), (b"content-length", b"0")]


def settings(**more: Any) -> EnvoyExtAuthzHttp:
    return EnvoyExtAuthzHttp.model_validate({"service": "authz", "port": 8000, **more})


def asked(http: HttpFacts, **more: Any) -> HttpCheck:
    return CheckForm(settings(**more)).about(CLIENT, SERVER, http, "")


def verdict(status: int, *fields: Field, body: bytes = b"", fault: str = "", **more: Any) -> CheckVerdict:
    return Verdicts(settings(**more)).of(CheckAnswer(status, list(fields), body, fault))


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({}, [(b"authorization", b"Bearer t")]),
        (
            {"includeRequestHeadersInCheck": ["COOKIE", "x-*"]},
            [(b"authorization", b"Bearer t"), (b"cookie", b"a=1; b=2"), (b"x-a", b"1,2")],
        ),
        ({"includeHeadersInCheck": ["x-a"]}, [(b"authorization", b"Bearer t"), (b"x-a", b"1,2")]),
        (
            {"includeHeadersInCheck": ["x-a"], "includeRequestHeadersInCheck": ["cookie"]},
            [(b"authorization", b"Bearer t"), (b"cookie", b"a=1; b=2")],
        ),
        # what frames the client's message is never told, whatever is asked for
        (
            {"includeRequestHeadersInCheck": ["*e", "c*", "t*", "content-length", "host", "expect", "x-envoy-*", "*n"]},
            [(b"authorization", b"Bearer t"), (b"cookie", b"a=1; b=2")],
        ),
    ],
)
def test_which_fields_are_told(more: dict[str, Any], fields: list[Field]) -> None:
    question = asked(HttpFacts("GET", "/items?id=1", "stock.shop", HEADERS), **more)
    assert question == HttpCheck(b"GET", b"/items?id=1", b"stock.shop", FRAME + fields)


def test_a_prefix_stands_before_the_path() -> None:
    question = asked(HttpFacts("POST", "/items?id=%20", "stock.shop", ()), pathPrefix="/check/")
    assert question == HttpCheck(b"POST", b"/check//items?id=%20", b"stock.shop", FRAME)


def test_additional_fields_replace_the_clients() -> None:
    more = {
        "includeRequestHeadersInCheck": ["x-*"],
        "includeAdditionalHeadersInCheck": {
            "X-Uri": "%REQ(:PATH)%",
            "X-A": "mine",
            "X-Host": "%REQ(:AUTHORITY)%",
            "X-Forwarded-For": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "X-Who": "%DOWNSTREAM_PEER_URI_SAN%",
            "X-B": "%REQ(X-None)%",
        },
    }
    question = asked(HttpFacts("GET", "/p", "stock.shop", (*HEADERS, ("X-B", "forged"), ("x-uri", "/forged"))), **more)
    assert question.fields[2:] == [
        (b"authorization", b"Bearer t"),
        (b"x-a", b"mine"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"x-host", b"stock.shop"),
        (b"x-uri", b"/p"),
        (b"x-who", b"spiffe://cluster.local/ns/shop/sa/cart"),
    ]


@pytest.mark.parametrize("partial", [False, True])
def test_a_body_is_told_as_it_is(partial: bool) -> None:
    question = asked(HttpFacts("POST", "/p", "stock.shop", HEADERS, body=Body(b"a\xff\r\n", partial)))
    assert question.body == b"a\xff\r\n"
    told = b"true" if partial else b"false"
    assert question.fields == [
        (b"host", b"stock.shop"),
        (b"content-length", b"4"),
        (b"authorization", b"Bearer t"),
        (b"x-envoy-auth-partial-body", told),
    ]


# -- answers --

ANSWERED = (
    (b"Date", b"now"),
    (b"Content-Type", b"text/html"),
    (b"Content-Length", b"2"),
    (b"Location", b"https://login/?rd=%2F"),
    (b"Set-Cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
    (b"X-Auth-User", b"ann"),
    (b"x-auth-user", b"bob"),
    (b"Host", b"other"),
    (b"Connection", b"keep-alive"),
    (b"Keep-Alive", b"timeout=5"),
    (b"X-Forwarded-Client-Cert", b"By=me"),
)
OK = CheckVerdict(True)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, OK),
        ({"headersToUpstreamOnAllow": ["x-auth-*"]}, CheckVerdict(True, set=(("x-auth-user", "bob"),))),
        (
            {"headersToDownstreamOnAllow": ["set-cookie"], "headersToDownstreamOnDeny": ["date"]},
            CheckVerdict(True, answer=(("set-cookie", "a=1", "add"), ("set-cookie", "b=2", "add"))),
        ),
        # framing and identity are not the authorizer's
        (
            {"headersToUpstreamOnAllow": ["host", "con*", "keep-alive", "x-forwarded-*"]},
            CheckVerdict(True, set=(("content-type", "text/html"),)),
        ),
        ({"headersToDownstreamOnAllow": ["content-length", "connection"]}, OK),
    ],
)
def test_200_allows_and_changes_what_is_listed(more: dict[str, Any], expected: CheckVerdict) -> None:
    assert verdict(200, *ANSWERED, body=b"ok", **more) == expected


def test_what_is_to_be_removed() -> None:
    fields = (
        (b"X-Envoy-Auth-Headers-To-Remove", b"Authorization, x-a,,Host, :path, content-length, Content_Length"),
        (b"x-envoy-auth-headers-to-remove", b"x-b"),
        (b"x-a", b"1"),
        (b"x-c", b"2"),
    )
    found = verdict(200, *fields, headersToUpstreamOnAllow=["x-*"], headersToDownstreamOnAllow=["x-envoy-*"])
    assert found == CheckVerdict(True, set=(("x-c", "2"),), remove=("authorization", "x-a", "x-b"))


@pytest.mark.parametrize("status", [201, 204, 206, 302, 304, 400, 401, 403, 404, 407, 429, 451])
def test_any_other_status_is_the_refusal(status: int) -> None:
    assert verdict(status, body=b"no") == CheckVerdict(False, status=status, body=b"no")


def test_a_status_that_no_answer_may_have_becomes_403() -> None:
    assert verdict(600).status == 403


@pytest.mark.parametrize("status", [500, 502, 503, 599])
def test_5xx_is_no_answer(status: int) -> None:
    with pytest.raises(CallError, match=f"status is {status}"):
        verdict(status, body=b"a secret")


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ([], ["date", "content-type", "location", "set-cookie", "set-cookie", "x-auth-user", "x-auth-user"]),
        (["set-cookie"], ["location", "set-cookie", "set-cookie"]),
        (["content-*", "host", "conn*"], ["content-type", "location"]),
    ],
)
def test_what_the_client_gets_of_a_refusal(listed: list[str], names: list[str]) -> None:
    found = verdict(
        302, *ANSWERED, (b"x-envoy-auth-headers-to-remove", b"x"), body=b"go", headersToDownstreamOnDeny=listed
    )
    assert (found.allowed, found.status, found.body, found.failed) == (False, 302, b"go", "")
    assert [name for name, _ in found.headers] == names


@pytest.mark.parametrize(("name", "value"), [(b"x-a", b"1\x01"), (b"x a", b"1"), (b"x-a", b"y" * 20_000)])
def test_a_field_that_cannot_be_allows_nothing_and_a_refusal_stays_one(name: bytes, value: bytes) -> None:
    lists = {"headersToUpstreamOnAllow": ["x*"]}
    with pytest.raises(CallError, match="header field"):
        verdict(200, (name, value), **lists)
    found = verdict(401, (name, value), body=b"no", **lists)
    assert (found.allowed, found.status, found.headers) == (False, 401, ())
    assert "header field" in found.failed
    assert verdict(200, (b"y", value)) == OK, "nobody wants it"


def test_more_fields_than_a_request_may_have() -> None:
    fields = [(b"x-%d" % number, b"1") for number in range(200)]
    with pytest.raises(CallError, match="more than 128"):
        verdict(200, *fields, headersToUpstreamOnAllow=["x-*"])
    with pytest.raises(CallError, match="more than 128"):
        verdict(200, (b"x-envoy-auth-headers-to-remove", b",".join(name for name, _ in fields)))


def test_an_answer_that_is_not_whole() -> None:
    with pytest.raises(CallError, match="cut"):
        verdict(200, fault="cut")
    found = verdict(403, fault="cut", failOpen=True)
    assert (found.allowed, found.status) == (False, 403)
    assert "cut" in found.failed
