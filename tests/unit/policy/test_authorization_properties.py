"""Properties of compiled policies on random policies and requests; the plain evaluator beside this
file is the judge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.policy.authorization import Authorizer, ConnectionFacts, Decision, RequestAuthorizer, RequestFacts
from nodeagent.policy.claims import Claims
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, Condition, Operation, Rule, RuleSource
from tests.unit.policy import authorization_reference as reference

DOMAIN = "mesh.example"
MESH = MeshSettings(DOMAIN)
PRINCIPALS = [
    "cluster.local/ns/a/sa/x",
    "mesh.example/ns/a/sa/x",
    "mesh.example/ns/b/sa/y",
    "cluster.local/ns/a/*",
    "mesh.example/ns/a/*",
    "*/sa/x",
    "*",
]
NAMESPACES = ["a", "b", "a*", "*b", "a*b", "*a*", "*"]
ACCOUNTS = ["x", "y", "a/x", "b/y"]
DOMAINS = ["mesh.example", "other", "mesh*", "*"]
BLOCKS = ["10.0.0.1", "10.0.0.0/8", "10.0.1.7/24", "0.0.0.0/0", "fd00::1", "fd00::/8", "::/0"]
ADDRESSES = ["10.0.0.1", "10.0.1.9", "192.0.2.1", "fd00::1", "2001:db8::1", "::ffff:10.0.0.1"]
METHODS = ["GET", "POST", "P*", "*T", "*", "get"]
PATHS = ["/a", "/a/b", "/a/*", "*/b", "*", "/a/{*}", "/a/{**}", "/{*}/b", "/A"]
TARGETS = ["/a", "/a/b", "/A", "/a/c/b", "/a/", "/", "//a", "/a%2Fb", "/a?q=/b", "/a;x/b"]
HOSTS = ["h.example", "H.Example", "h.example:*", "*.example", "*"]
TOKENS = ["*", "iss/sub", "iss/s*", "iss/*", "https://i/sub", "iss", "/sub"]
WORDS = ["v", "w", "v*", "*w", "*"]


def some(values: list[str], most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple) | st.just(())


SOURCES = (
    st.builds(
        RuleSource,
        principals=some(PRINCIPALS),
        not_principals=some(PRINCIPALS, 1),
        namespaces=some(NAMESPACES),
        not_namespaces=some(NAMESPACES, 1),
        request_principals=some(TOKENS, 1),
        not_request_principals=some(TOKENS, 1),
        service_accounts=some(ACCOUNTS),
        not_service_accounts=some(ACCOUNTS, 1),
        trust_domains=some(DOMAINS, 1),
        not_trust_domains=some(DOMAINS, 1),
        ip_blocks=some(BLOCKS),
        not_ip_blocks=some(BLOCKS, 1),
        remote_ip_blocks=some(BLOCKS),
        not_remote_ip_blocks=some(BLOCKS, 1),
    )
    | st.builds(RuleSource, principals=some(PRINCIPALS))
    | st.builds(RuleSource, namespaces=some(NAMESPACES))
)
PORTS = st.lists(st.sampled_from([80, 8080, 9000]), max_size=2, unique=True).map(tuple)
OPERATIONS = st.builds(
    Operation,
    hosts=some(HOSTS),
    not_hosts=some(HOSTS, 1),
    ports=PORTS,
    not_ports=PORTS,
    methods=some(METHODS),
    not_methods=some(METHODS, 1),
    paths=some(PATHS),
    not_paths=some(PATHS, 1),
) | st.builds(Operation, methods=some(METHODS), paths=some(PATHS))
KEYS: dict[str, list[str]] = {
    "request.headers[X-Word]": WORDS,
    "source.ip": BLOCKS,
    "remote.ip": BLOCKS,
    "destination.ip": BLOCKS,
    "source.namespace": NAMESPACES,
    "source.serviceAccount": ACCOUNTS,
    "source.trustDomain": DOMAINS,
    "source.principal": PRINCIPALS,
    "request.auth.principal": TOKENS,
    "request.auth.audiences": WORDS,
    "request.auth.presenter": WORDS,
    "request.auth.claims[scope]": WORDS,
    "request.auth.claims[a][b]": WORDS,
    "destination.port": ["80", "8080"],
    "connection.sni": HOSTS,
}
CONDITIONS = st.sampled_from(sorted(KEYS)).flatmap(
    lambda key: st.builds(Condition, st.just(key), some(KEYS[key]), some(KEYS[key], 1))
)
RULES = st.builds(
    Rule,
    st.lists(SOURCES, max_size=2).map(tuple),
    st.lists(OPERATIONS, max_size=2).map(tuple),
    st.lists(CONDITIONS, max_size=1).map(tuple),
)
POLICIES = st.builds(
    AuthorizationPolicy,
    st.sampled_from(["a", "root"]),
    st.just(""),
    st.sampled_from(["ALLOW", "ALLOW", "DENY", "AUDIT", "CUSTOM"]),
    st.lists(RULES, max_size=2).map(tuple),
    st.sampled_from([False, False, True]),
    st.sampled_from(["p", "p", "p", "q"]),
)
SETS = st.lists(POLICIES, max_size=4).map(
    lambda policies: [replace(policy, name=f"p{index}") for index, policy in enumerate(policies)]
)
CONNECTIONS = st.builds(
    ConnectionFacts,
    st.sampled_from(["", "mesh.example/ns/a/sa/x", "mesh.example/ns/b/sa/y", "other/ns/ab/sa/x", "other/odd"]),
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.sampled_from([80, 8080, 9000]),
    st.sampled_from(["", "h.example", "H.EXAMPLE"]),
    st.sampled_from(["", "mesh.example/ns/a/sa/x", "mesh.example/ns/b/sa/y"]),
)
TEXTS = st.sampled_from(["v", "w", "vw", ""])


def _token(
    issuer: str | None, subject: str | None, audiences: tuple[str, ...], presenter: str, values: dict[str, object]
) -> Claims:
    said = {name: value for name, value in (("iss", issuer), ("sub", subject)) if value is not None}
    return Claims(issuer or "", subject or "", audiences, presenter, said | values)


TOKEN = st.builds(
    _token,
    st.sampled_from(["iss", "https://i", "", None]),
    st.sampled_from(["sub", "other", "", None]),
    st.lists(TEXTS, max_size=2).map(tuple),
    TEXTS,
    st.fixed_dictionaries(
        {},
        optional={
            "scope": st.sampled_from(["v w", "vw", "x", 5]),
            "a": st.sampled_from(["v", {"b": "v"}, {"b": ["x", "w"]}, {"b": [1, {}]}, {"b": True}]),
        },
    ),
)
CLAIMS = st.none() | st.builds(
    lambda token, others: replace(token, beside=tuple(others)), TOKEN, st.lists(TOKEN, max_size=2)
)


@st.composite
def requests(draw: st.DrawFn) -> RequestFacts:
    words = draw(st.lists(TEXTS, max_size=2))
    word = ",".join(words) if words else None
    return RequestFacts(
        draw(st.sampled_from(["GET", "POST", "PUT"])),
        draw(st.sampled_from(TARGETS)),
        draw(st.sampled_from(["h.example", "H.EXAMPLE:8080", "other", ""])),
        {"x-word": word}.get,
        draw(CLAIMS),
        {"x-word": words}.__getitem__,
        draw(st.sampled_from(ADDRESSES)),
    )


def decide(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts | None
) -> tuple[Decision, str]:
    """The decision and the provider to ask, as the proxy comes to them."""
    outcome = Authorizer.compile(policies, http=request is not None, mesh=MESH).connection(connection)
    if isinstance(outcome, Decision):
        return outcome, outcome.custom
    assert request is not None
    return outcome.decide(request), outcome.custom(request)


@settings(max_examples=250)
@given(SETS, CONNECTIONS, requests())
def test_compiled_http_policies_say_what_the_plain_evaluator_says(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts
) -> None:
    decision, custom = decide(policies, connection, request)
    assert decision.allowed == reference.allowed(policies, connection, request, DOMAIN)
    assert custom == reference.provider(policies, connection, request, DOMAIN)
    assert {(note.policy, note.rule, note.kind) for note in decision.notes} == reference.notes(
        policies, connection, request, DOMAIN
    )


@settings(max_examples=120)
@given(SETS, CONNECTIONS)
def test_compiled_tcp_policies_say_what_the_plain_evaluator_says(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts
) -> None:
    decision, custom = decide(policies, connection, None)
    assert decision.allowed == reference.allowed(policies, connection, None, DOMAIN)
    assert custom == reference.provider(policies, connection, None, DOMAIN)
    assert {(note.policy, note.rule, note.kind) for note in decision.notes} == reference.notes(
        policies, connection, None, DOMAIN
    )


@settings(max_examples=80)
@given(SETS, CONNECTIONS, requests(), st.booleans())
def test_the_policy_and_rule_that_a_decision_names_do_match(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts, http: bool
) -> None:
    asked = request if http else None
    decision, _ = decide(policies, connection, asked)
    if decision.policy:
        [policy] = [policy for policy in policies if f"{policy.namespace}/{policy.name}" == decision.policy]
        assert decision.rule in reference.matching(policy, connection, asked, DOMAIN)
        assert (policy.action == "ALLOW") == decision.allowed
        assert decision.policy in decision.explain and f"rule {decision.rule}" in decision.explain


@settings(max_examples=80)
@given(SETS, POLICIES, CONNECTIONS, requests(), st.booleans())
def test_one_more_deny_policy_never_allows_more(
    policies: list[AuthorizationPolicy],
    extra: AuthorizationPolicy,
    connection: ConnectionFacts,
    request: RequestFacts,
    http: bool,
) -> None:
    asked = request if http else None
    more = [*policies, replace(extra, name="extra", action="DENY", dry_run=False)]
    assert decide(policies, connection, asked)[0].allowed or not decide(more, connection, asked)[0].allowed


@settings(max_examples=80)
@given(SETS, POLICIES, POLICIES, CONNECTIONS, requests(), st.booleans())
def test_one_allow_policy_less_of_several_never_allows_more(
    policies: list[AuthorizationPolicy],
    one: AuthorizationPolicy,
    other: AuthorizationPolicy,
    connection: ConnectionFacts,
    request: RequestFacts,
    http: bool,
) -> None:
    asked = request if http else None
    fewer = [*policies, replace(one, name="one", action="ALLOW", dry_run=False)]
    all_of_them = [*fewer, replace(other, name="other", action="ALLOW", dry_run=False)]
    assert decide(all_of_them, connection, asked)[0].allowed or not decide(fewer, connection, asked)[0].allowed


@settings(max_examples=120)
@given(SETS, CONNECTIONS, requests(), st.booleans())
def test_who_hides_his_identity_gains_nothing(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts, http: bool
) -> None:
    """What is denied to him, or asked of others about him, when he proves it, is so when his address alone tells."""
    asked = request if http else None
    restricting = [policy for policy in policies if policy.action != "ALLOW"]
    proved, hidden = (
        replace(connection, principal=one, presumed=other)
        for one, other in ((connection.presumed, ""), ("", connection.presumed))
    )
    (open_one, asked_one), (open_other, asked_other) = (decide(restricting, each, asked) for each in (proved, hidden))
    assert open_one.allowed or not open_other.allowed
    assert not asked_one or asked_other
    nobody = replace(connection, principal="", presumed="")
    assert decide(policies, nobody, asked)[0].allowed or not decide(policies, hidden, asked)[0].allowed, (
        "nor does what he is presumed to be let him in"
    )


@settings(max_examples=80)
@given(SETS, CONNECTIONS, requests())
def test_a_decision_on_the_connection_holds_for_every_request(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts
) -> None:
    authorizer = Authorizer.compile(policies, http=True, mesh=MESH)
    outcome = authorizer.connection(connection)
    if isinstance(outcome, Decision):
        assert outcome.allowed == reference.allowed(policies, connection, request, DOMAIN)
    else:
        assert authorizer.needs_request
        # One residual serves all requests of the connection: what one asked leaves nothing behind
        # for the next.
        first = outcome.decide(request)
        outcome.decide(RequestFacts("OTHER", "/elsewhere", "elsewhere", {}.get))
        assert outcome.decide(request) == first


@settings(max_examples=250)
@given(SETS, CONNECTIONS, requests(), TEXTS, CLAIMS)
def test_where_the_line_decides_fields_and_claims_change_nothing(
    policies: list[AuthorizationPolicy],
    connection: ConnectionFacts,
    request: RequestFacts,
    word: str,
    claims: Claims | None,
) -> None:
    outcome = Authorizer.compile(policies, http=True, mesh=MESH).connection(connection)
    if isinstance(outcome, RequestAuthorizer) and outcome.by_line:
        other = RequestFacts(request.method, request.path, request.host, {"x-word": word}.get, claims)
        assert outcome.decide(other) == outcome.decide(request)
        assert outcome.custom(other) == outcome.custom(request)


@pytest.mark.parametrize(
    ("rule", "by_line"),
    [
        (Rule(operations=(Operation(methods=("GET",), paths=("/a/{*}",), not_hosts=("h",)),)), True),
        (
            Rule(
                conditions=(Condition("request.headers[:Path]", ("/a*",)), Condition("request.headers[host]", ("h",)))
            ),
            True,
        ),
        (
            Rule(operations=(Operation(paths=("/a",)),), conditions=(Condition("request.headers[x-word]", ("v",)),)),
            False,
        ),
        (
            Rule(operations=(Operation(paths=("/a",)),), conditions=(Condition("request.auth.claims[a]", (), ("v",)),)),
            False,
        ),
        (Rule((RuleSource(not_request_principals=("iss/sub",)),), (Operation(paths=("/a",)),)), False),
    ],
)
@pytest.mark.parametrize("action", ["ALLOW", "DENY", "AUDIT", "CUSTOM"])
def test_which_rules_the_line_decides(
    rule: Rule, by_line: bool, action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"]
) -> None:
    policies = [
        AuthorizationPolicy("a", "p", action, (rule,), provider="p"),
        AuthorizationPolicy("a", "q", "DENY", (Rule(operations=(Operation(paths=("/q",)),)),)),
    ]
    outcome = Authorizer.compile(policies, http=True, mesh=MESH).connection(
        ConnectionFacts("", "10.0.0.1", "10.0.0.2", 80)
    )
    assert isinstance(outcome, RequestAuthorizer)
    assert outcome.by_line == by_line


@settings(max_examples=80)
@given(SETS, CONNECTIONS, requests(), st.booleans())
def test_what_a_trace_says_of_each_rule_is_so(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts, http: bool
) -> None:
    asked = request if http else None
    lines = Authorizer.compile(policies, http=http, mesh=MESH).trace(connection, asked)
    matching = {line.removesuffix(": matches") for line in lines if line.endswith(": matches")}
    expected = set()
    for policy in policies:
        dry = " (dry run)" if policy.dry_run else ""
        for index in reference.matching(policy, connection, asked, DOMAIN):
            expected.add(f"{policy.action} policy {policy.namespace}/{policy.name}{dry}, rule {index}")
    assert matching == expected


@settings(max_examples=40)
@given(SETS, CONNECTIONS, requests(), st.randoms(use_true_random=False))
def test_the_order_of_policies_does_not_matter(
    policies: list[AuthorizationPolicy], connection: ConnectionFacts, request: RequestFacts, random: object
) -> None:
    mixed = list(policies)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert decide(mixed, connection, request) == decide(policies, connection, request)
