"""A table of policies, requests and verdicts, as Istio documents and tests them, and what the decisions say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.policy.authorization import Authorizer, ConnectionFacts, Decision, Note, RequestAuthorizer, RequestFacts
from nodeagent.policy.claims import SPACE_DELIMITED, Claims
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, Condition, Operation, Rule, RuleSource
from nodeagent.policy.paths import normalise_target

MESH = MeshSettings("cluster.local")
WEB = "cluster.local/ns/default/sa/web"
JOB = "cluster.local/ns/batch/sa/job"
SOURCE_FIELDS = set(RuleSource.__dataclass_fields__)
OPERATION_FIELDS = set(Operation.__dataclass_fields__)


def rule(
    when: dict[str, list[str]] | None = None, when_not: dict[str, list[str]] | None = None, **fields: list[Any]
) -> Rule:
    """A rule of at most one source and one operation, by the fields' names."""
    assert fields.keys() <= SOURCE_FIELDS | OPERATION_FIELDS
    source = {name: tuple(values) for name, values in fields.items() if name in SOURCE_FIELDS}
    operation = {name: tuple(values) for name, values in fields.items() if name in OPERATION_FIELDS}
    conditions = [Condition(key, tuple(values)) for key, values in (when or {}).items()]
    conditions += [Condition(key, (), tuple(values)) for key, values in (when_not or {}).items()]
    return Rule(
        (RuleSource(**source),) if source else (), (Operation(**operation),) if operation else (), tuple(conditions)
    )


def policy(
    action: Any, *rules: Rule, name: str = "p", namespace: str = "default", dry_run: bool = False, provider: str = ""
) -> AuthorizationPolicy:
    return AuthorizationPolicy(namespace, name, action, rules, dry_run, provider)


def allow(*rules: Rule, **more: Any) -> AuthorizationPolicy:
    return policy("ALLOW", *rules, **more)


def deny(*rules: Rule, **more: Any) -> AuthorizationPolicy:
    return policy("DENY", *rules, **more)


def ask(
    policies: list[AuthorizationPolicy],
    line: str = "GET /",
    *,
    tcp: bool = False,
    **facts: Any,
) -> Decision:
    """Decide on the request *line* from a peer and with the headers and claims of *facts*."""
    outcome = bind(policies, tcp=tcp, **facts)
    return outcome if isinstance(outcome, Decision) else outcome.decide(request(line, **facts))


def bind(
    policies: list[AuthorizationPolicy],
    *,
    tcp: bool = False,
    trust_domain: str = "cluster.local",
    aliases: tuple[str, ...] = (),
    peer: str = WEB,
    ip: str = "10.0.0.1",
    to: str = "10.0.0.9",
    port: int = 8080,
    sni: str = "",
    **_: Any,
) -> Decision | RequestAuthorizer:
    mesh = MeshSettings(trust_domain, aliases)
    return Authorizer.compile(policies, http=not tcp, mesh=mesh).connection(ConnectionFacts(peer, ip, to, port, sni))


def request(
    line: str,
    *,
    host: str = "app.default:80",
    headers: dict[str, str] | None = None,
    claims: Claims | None = None,
    ip: str = "10.0.0.1",
    remote: str = "",
    **_: Any,
) -> RequestFacts:
    method, _, target = line.partition(" ")
    path = normalise_target(target.encode("latin-1")).decode("latin-1")
    return RequestFacts(method, path, host, (headers or {}).get, claims, remote=remote or ip)


def token(
    issuer: str | None = "iss",
    subject: str | None = "sub",
    audiences: tuple[str, ...] = (),
    presenter: str = "",
    split: tuple[str, ...] = (),
    **values: Any,
) -> dict[str, Claims]:
    said = {name: value for name, value in (("iss", issuer), ("sub", subject)) if value is not None}
    delimited = SPACE_DELIMITED.union(split)
    return {"claims": Claims(issuer or "", subject or "", audiences, presenter, said | values, delimited)}


def beside(first: dict[str, Claims], other: dict[str, Claims]) -> dict[str, Claims]:
    return {"claims": replace(first["claims"], beside=(other["claims"],))}


# Policies, then (request line, facts, allowed). Each group is read on its own.
Rows = list[tuple[str, dict[str, Any], bool]]
TABLE: dict[str, tuple[list[AuthorizationPolicy], Rows]] = {
    # -- what an action means --
    "no policy": ([], [("GET /", {}, True), ("GET /", {"peer": ""}, True), ("GET /", {"tcp": True}, True)]),
    "allow nothing": ([allow()], [("GET /", {}, False), ("GET /", {"tcp": True}, False)]),
    "allow all": (
        [allow(Rule())],
        [("GET /", {}, True), ("GET /", {"peer": ""}, True), ("GET /", {"tcp": True}, True)],
    ),
    "deny nothing": ([deny()], [("GET /", {}, True), ("GET /", {"tcp": True}, True)]),
    "deny all": ([deny(Rule())], [("GET /", {}, False), ("GET /", {"tcp": True}, False)]),
    "deny beats allow": (
        [allow(Rule(), name="a"), deny(rule(methods=["DELETE"]), name="d")],
        [("GET /", {}, True), ("DELETE /", {}, False)],
    ),
    "allow policies add up": (
        [allow(rule(methods=["GET"]), name="a"), allow(rule(methods=["PUT"]), name="b"), allow(name="none")],
        [("GET /", {}, True), ("PUT /", {}, True), ("POST /", {}, False)],
    ),
    "audit decides nothing": ([policy("AUDIT", Rule())], [("GET /", {}, True), ("GET /", {"tcp": True}, True)]),
    "dry run decides nothing": (
        [deny(Rule(), dry_run=True, name="d"), allow(dry_run=True, name="a")],
        [("GET /", {}, True), ("GET /", {"tcp": True}, True)],
    ),
    "rules are alternatives": (
        [allow(rule(methods=["GET"]), rule(paths=["/x"]))],
        [("GET /", {}, True), ("PUT /x", {}, True), ("PUT /", {}, False)],
    ),
    "from, to and when must all hold": (
        [allow(rule(principals=[WEB], methods=["GET"], when={"request.headers[x-env]": ["prod"]}))],
        [
            ("GET /", {"headers": {"x-env": "prod"}}, True),
            ("GET /", {}, False),
            ("PUT /", {"headers": {"x-env": "prod"}}, False),
            ("GET /", {"peer": JOB, "headers": {"x-env": "prod"}}, False),
        ],
    ),
    "sources and operations are alternatives": (
        [
            allow(
                Rule(
                    (RuleSource(principals=(WEB,)), RuleSource(namespaces=("batch",))),
                    (Operation(methods=("GET",)), Operation(paths=("/open",))),
                )
            )
        ],
        [
            ("GET /", {}, True),
            ("PUT /open", {}, True),
            ("GET /", {"peer": JOB}, True),
            ("PUT /", {}, False),
            ("GET /", {"peer": "cluster.local/ns/default/sa/other"}, False),
        ],
    ),
    "an empty source is anybody": (
        [allow(Rule((RuleSource(principals=(JOB,)), RuleSource())))],
        [("GET /", {"peer": ""}, True)],
    ),
    "two conditions must both hold": (
        [allow(rule(when={"request.headers[a]": ["1"], "request.headers[b]": ["2"]}))],
        [
            ("GET /", {"headers": {"a": "1", "b": "2"}}, True),
            ("GET /", {"headers": {"a": "1"}}, False),
            ("GET /", {"headers": {"b": "2"}}, False),
        ],
    ),
    "value and not value of one field": (
        [allow(rule(paths=["/a*"], not_paths=["/admin", "/auth*"]))],
        [
            ("GET /a", {}, True),
            ("GET /admin", {}, False),
            ("GET /authors", {}, False),
            ("GET /admins", {}, True),
            ("GET /b", {}, False),
        ],
    ),
    # -- source --
    "principals": (
        [allow(rule(principals=[WEB, JOB]))],
        [
            ("GET /", {}, True),
            ("GET /", {"peer": JOB}, True),
            ("GET /", {"peer": ""}, False),
            ("GET /", {"peer": WEB.upper()}, False),
            ("GET /", {"peer": f"{WEB}2"}, False),
            ("GET /", {"peer": f"spiffe://{WEB}"}, False),
            ("GET /", {"tcp": True}, True),
            ("GET /", {"tcp": True, "peer": ""}, False),
        ],
    ),
    "principals by prefix": (
        [allow(rule(principals=["cluster.local/ns/default/*"]))],
        [
            ("GET /", {}, True),
            ("GET /", {"peer": JOB}, False),
            ("GET /", {"peer": "cluster.local/ns/default-2/sa/web"}, False),
        ],
    ),
    "principals by suffix": (
        [allow(rule(principals=["*/sa/web"]))],
        [("GET /", {}, True), ("GET /", {"peer": JOB}, False), ("GET /", {"peer": ""}, False)],
    ),
    "any principal": ([allow(rule(principals=["*"]))], [("GET /", {}, True), ("GET /", {"peer": ""}, False)]),
    "an empty principal is nobody": (
        [allow(rule(principals=[""]))],
        [("GET /", {"peer": ""}, False), ("GET /", {}, False)],
    ),
    "plaintext peers have no principal": (
        [deny(rule(not_principals=["*"]))],
        [("GET /", {}, True), ("GET /", {"peer": ""}, False)],
    ),
    "not principals": (
        [allow(rule(not_principals=[WEB]))],
        [("GET /", {}, False), ("GET /", {"peer": JOB}, True), ("GET /", {"peer": ""}, True)],
    ),
    "cluster.local is the mesh's trust domain": (
        [allow(rule(principals=[WEB]))],
        [
            ("GET /", {"trust_domain": "mesh.example", "peer": "mesh.example/ns/default/sa/web"}, True),
            ("GET /", {"trust_domain": "mesh.example", "peer": WEB}, False),
        ],
    ),
    "cluster.local with a wildcard account": (
        [allow(rule(principals=["cluster.local/ns/default/sa/*"]))],
        [
            ("GET /", {"trust_domain": "m", "peer": "m/ns/default/sa/web"}, True),
            ("GET /", {"trust_domain": "m", "peer": "m/ns/batch/sa/web"}, False),
        ],
    ),
    "cluster.local in what is not a whole identity": (
        [allow(rule(principals=["cluster.local/*"]))],
        [
            ("GET /", {"trust_domain": "m", "peer": "m/ns/default/sa/web"}, False),
            ("GET /", {"trust_domain": "m", "peer": WEB}, True),
        ],
    ),
    "a trust domain with aliases is any of them": (
        [deny(rule(principals=["old/ns/foo/sa/bad"]))],
        [
            ("GET /", {"trust_domain": "new", "aliases": ("old", "older"), "peer": f"{domain}/ns/foo/sa/bad"}, allowed)
            for domain, allowed in (("new", False), ("old", False), ("older", False), ("other", True), ("o", True))
        ]
        + [("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": "new/ns/foo/sa/good"}, True)]
        + [("GET /", {"trust_domain": "new", "peer": "new/ns/foo/sa/bad"}, True)],
    ),
    "not principals of an alias": (
        [allow(rule(not_principals=["old/ns/foo/sa/bad"]))],
        [
            ("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": f"{domain}/ns/foo/sa/bad"}, False)
            for domain in ("new", "old")
        ],
    ),
    "a condition on a principal of an alias": (
        [deny(rule(when={"source.principal": ["old/ns/foo/sa/*"]}))],
        [("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": "new/ns/foo/sa/bad"}, False)],
    ),
    "cluster.local is every alias": (
        [deny(rule(principals=["cluster.local/ns/foo/sa/bad"]))],
        [
            ("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": f"{domain}/ns/foo/sa/bad"}, allowed)
            for domain, allowed in (("new", False), ("old", False), ("cluster.local", True))
        ],
    ),
    "a suffix of trust domains is those, and every other alias": (
        [deny(rule(principals=["*-td/ns/foo/sa/bad"]))],
        [
            (
                "GET /",
                {"trust_domain": "a-td", "aliases": ("b-td", "x"), "peer": f"{domain}/ns/foo/sa/bad"},
                allowed,
            )
            for domain, allowed in (("a-td", False), ("b-td", False), ("any-td", False), ("x", False), ("y", True))
        ],
    ),
    "any trust domain": (
        [deny(rule(principals=["*/ns/foo/sa/bad"]))],
        [("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": "y/ns/foo/sa/bad"}, False)],
    ),
    "what is no whole identity knows no aliases": (
        [deny(rule(principals=["old/ns/foo/*"]))],
        [
            ("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": "new/ns/foo/sa/bad"}, True),
            ("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": "old/ns/foo/sa/bad"}, False),
        ],
    ),
    "trust domains with aliases": (
        [deny(rule(trust_domains=["old"]))],
        [
            ("GET /", {"trust_domain": "new", "aliases": ("old",), "peer": f"{domain}/ns/foo/sa/x"}, allowed)
            for domain, allowed in (("new", False), ("old", False), ("other", True))
        ],
    ),
    "another trust domain is itself": (
        [allow(rule(principals=["other/ns/default/sa/web"]))],
        [("GET /", {"peer": "other/ns/default/sa/web"}, True), ("GET /", {}, False)],
    ),
    "a source.principal condition": (
        [allow(rule(when={"source.principal": [WEB]}))],
        [
            ("GET /", {"trust_domain": "m", "peer": "m/ns/default/sa/web"}, True),
            ("GET /", {"trust_domain": "m", "peer": ""}, False),
        ],
    ),
    "namespaces": (
        [allow(rule(namespaces=["default"]))],
        [
            ("GET /", {}, True),
            ("GET /", {"peer": JOB}, False),
            ("GET /", {"peer": ""}, False),
            ("GET /", {"peer": "cluster.local/ns/default2/sa/web"}, False),
            ("GET /", {"peer": "cluster.local/ns/x/sa/default"}, False),
            ("GET /", {"peer": "cluster.local/default"}, False),
        ],
    ),
    "namespaces by prefix": (
        [allow(rule(namespaces=["def*"]))],
        [("GET /", {}, True), ("GET /", {"peer": JOB}, False)],
    ),
    "namespaces by suffix": ([allow(rule(namespaces=["*ch"]))], [("GET /", {}, False), ("GET /", {"peer": JOB}, True)]),
    "namespaces by both ends": (
        [allow(rule(namespaces=["d*t"]))],
        [("GET /", {}, True), ("GET /", {"peer": "c/ns/t/sa/x"}, False)],
    ),
    "namespaces whose ends would overlap": (
        [allow(rule(namespaces=["ab*ba", "*cdc*cdc*"]))],
        [
            ("GET /", {"peer": "t/ns/abba/sa/x"}, True),
            ("GET /", {"peer": "t/ns/aba/sa/x"}, False),
            ("GET /", {"peer": "t/ns/cdccdc/sa/x"}, True),
            ("GET /", {"peer": "t/ns/xcdcdcx/sa/x"}, False),
        ],
    ),
    "not namespaces": (
        [allow(rule(not_namespaces=["default"]))],
        [("GET /", {}, False), ("GET /", {"peer": JOB}, True), ("GET /", {"peer": ""}, True)],
    ),
    "service accounts": (
        [allow(rule(service_accounts=["web", "batch/job"]))],
        [
            ("GET /", {}, True),
            ("GET /", {"peer": JOB}, True),
            ("GET /", {"peer": "cluster.local/ns/batch/sa/web"}, False),
            ("GET /", {"peer": ""}, False),
            ("GET /", {"peer": "cluster.local/ns/default/sa/web2"}, False),
            ("GET /", {"peer": "other/ns/default/sa/web"}, True),
        ],
    ),
    "a service account is of the policy's namespace": (
        [allow(rule(service_accounts=["job"]), namespace="batch")],
        [("GET /", {"peer": JOB}, True), ("GET /", {"peer": "cluster.local/ns/default/sa/job"}, False)],
    ),
    "not service accounts": (
        [deny(rule(not_service_accounts=["web"]))],
        [("GET /", {}, True), ("GET /", {"peer": JOB}, False), ("GET /", {"peer": ""}, False)],
    ),
    "a source.serviceAccount condition": (
        [allow(rule(when={"source.serviceAccount": ["web"]}))],
        [("GET /", {}, True), ("GET /", {"peer": JOB}, False)],
    ),
    "trust domains": (
        [allow(rule(trust_domains=["cluster.local"]))],
        [("GET /", {}, True), ("GET /", {"peer": "other/ns/default/sa/web"}, False), ("GET /", {"peer": ""}, False)],
    ),
    "not trust domains": (
        [deny(rule(not_trust_domains=["cluster.*"]))],
        [("GET /", {}, True), ("GET /", {"peer": "other/ns/default/sa/web"}, False)],
    ),
    "a source.trustDomain condition": (
        [deny(rule(when_not={"source.trustDomain": ["*.local"]}))],
        [("GET /", {}, True), ("GET /", {"peer": "o/ns/a/sa/b"}, False)],
    ),
    "addresses": (
        [allow(rule(ip_blocks=["10.0.0.1", "192.0.2.0/24", "fd00::/8"]))],
        [
            ("GET /", {}, True),
            ("GET /", {"ip": "10.0.0.2"}, False),
            ("GET /", {"ip": "192.0.2.255"}, True),
            ("GET /", {"ip": "192.0.3.0"}, False),
            ("GET /", {"ip": "fd12::1"}, True),
            ("GET /", {"ip": "FD12:0::1"}, True),
            ("GET /", {"ip": "2001:db8::1"}, False),
            ("GET /", {"ip": ""}, False),
            ("GET /", {"ip": "10.0.0.1", "tcp": True}, True),
            ("GET /", {"ip": "::ffff:10.0.0.1"}, True),
            ("GET /", {"ip": "::ffff:10.0.0.2"}, False),
        ],
    ),
    "a block with host bits": (
        [allow(rule(ip_blocks=["10.1.2.3/16"]))],
        [("GET /", {"ip": "10.1.255.1"}, True), ("GET /", {"ip": "10.2.2.3"}, False)],
    ),
    "families do not mix": (
        [allow(rule(ip_blocks=["::/0"]))],
        [
            ("GET /", {}, False),
            ("GET /", {"ip": "::1"}, True),
            ("GET /", {"ip": "::ffff:10.0.0.1"}, False),
            ("GET /", {"ip": "junk"}, False),
        ],
    ),
    "all of IPv4": ([allow(rule(ip_blocks=["0.0.0.0/0"]))], [("GET /", {}, True), ("GET /", {"ip": "::a00:1"}, False)]),
    "a mapped block": (
        [allow(rule(ip_blocks=["::ffff:10.0.0.0/120"]))],
        [("GET /", {}, True), ("GET /", {"ip": "10.0.1.1"}, False)],
    ),
    "not addresses": (
        [deny(rule(not_ip_blocks=["10.0.0.0/8"]))],
        [("GET /", {}, True), ("GET /", {"ip": "172.16.0.1"}, False), ("GET /", {"ip": "::1"}, False)],
    ),
    "remote addresses": (
        [allow(rule(remote_ip_blocks=["203.0.113.0/24"]))],
        [
            ("GET /", {"remote": "203.0.113.7"}, True),
            ("GET /", {"remote": "203.0.114.7"}, False),
            ("GET /", {"ip": "203.0.113.7", "remote": "10.0.0.1"}, False),
        ],
    ),
    "not remote addresses": (
        [allow(rule(not_remote_ip_blocks=["203.0.113.7"]))],
        [("GET /", {"remote": "203.0.113.7"}, False), ("GET /", {}, True)],
    ),
    "address conditions": (
        [
            allow(
                rule(
                    when={"source.ip": ["10.0.0.0/8"], "remote.ip": ["203.0.113.0/24"], "destination.ip": ["10.0.0.9"]}
                )
            )
        ],
        [
            ("GET /", {"remote": "203.0.113.1"}, True),
            ("GET /", {}, False),
            ("GET /", {"remote": "203.0.113.1", "to": "10.0.0.8"}, False),
            ("GET /", {"remote": "203.0.113.1", "ip": "11.0.0.1"}, False),
        ],
    ),
    "request principals": (
        [allow(rule(request_principals=["iss/sub", "https://id.example/u1"]))],
        [
            ("GET /", token(), True),
            ("GET /", token("https://id.example", "u1"), True),
            ("GET /", {}, False),
            ("GET /", token("iss", "other"), False),
            ("GET /", token("https:", "/id.example/u1"), False),
        ],
    ),
    "request principals by prefix": (
        [allow(rule(request_principals=["iss/*", "https://id.example/adm*"]))],
        [
            ("GET /", token("iss", "any"), True),
            ("GET /", token("iss", ""), False),
            ("GET /", token("https://id.example", "adm-1"), True),
            ("GET /", token("https://id.example", "user"), False),
            ("GET /", token("iss2", "any"), False),
        ],
    ),
    "request principals by suffix": (
        [allow(rule(request_principals=["*/root", "*.example/user"]))],
        [
            ("GET /", token("x", "root"), True),
            ("GET /", token("id.example", "user"), True),
            ("GET /", token("id.test", "user"), False),
            ("GET /", {}, False),
        ],
    ),
    "request principals without a slash": (
        [allow(rule(request_principals=["iss*", "*bob", "solo"]))],
        [
            ("GET /", token("issuer", "x"), True),
            ("GET /", token("i", "bob"), True),
            ("GET /", token("solo", ""), True),
            ("GET /", token("solo", None), False),
            ("GET /", token("solo", "x"), False),
            ("GET /", token("i", "x"), False),
        ],
    ),
    "what a token does not say is no principal": (
        [deny(rule(request_principals=["iss", "iss/", "/sub", "*"]))],
        [
            ("GET /", token("iss", None), True),
            ("GET /", token(None, "sub"), True),
            ("GET /", token(None, None), True),
            ("GET /", token("iss", ""), False),
            ("GET /", token("", "sub"), False),
        ],
    ),
    "what a token does not say is not a principal either": (
        [deny(rule(not_request_principals=["iss", "/sub"]))],
        [("GET /", token("iss", None), False), ("GET /", token(None, "sub"), False), ("GET /", token("", "sub"), True)],
    ),
    "any request principal": (
        [allow(rule(request_principals=["*"]))],
        [("GET /", token(), True), ("GET /", token("", ""), False), ("GET /", {}, False)],
    ),
    "what another token says refuses": (
        [deny(rule(request_principals=["a/mallory"]))],
        [("GET /", beside(token("z"), token("a", "mallory")), False), ("GET /", beside(token("z"), token("a")), True)],
    ),
    "what another token says allows nothing": (
        [allow(rule(request_principals=["a/*"]))],
        [("GET /", beside(token("a"), token("z")), True), ("GET /", beside(token("z"), token("a")), False)],
    ),
    "what another token says is not left out by an exception": (
        [allow(rule(not_request_principals=["a/mallory"]))],
        [("GET /", beside(token("z"), token("a", "mallory")), False), ("GET /", beside(token("z"), token("a")), True)],
    ),
    "what another token says makes no exception": (
        [deny(rule(not_request_principals=["a/*"]))],
        [("GET /", beside(token("a"), token("z")), True), ("GET /", beside(token("z"), token("a")), False)],
    ),
    **{
        f"{key} of another token refuses": (
            [deny(rule(when={f"request.auth.{key}": ["x"]}))],
            [("GET /", beside(token("z"), token("a", "s", ("x",), "x", role="x")), False), ("GET /", token("z"), True)],
        )
        for key in ("audiences", "presenter", "claims[role]")
    },
    "no request principal": (
        [deny(rule(not_request_principals=["*"]))],
        [("GET /", token(), True), ("GET /", {}, False)],
    ),
    # -- operation --
    "methods": (
        [allow(rule(methods=["GET", "P*"]))],
        [
            ("GET /", {}, True),
            ("get /", {}, False),
            ("PUT /", {}, True),
            ("POST /", {}, True),
            ("DELETE /", {}, False),
            ("GETX /", {}, False),
        ],
    ),
    "any method": ([allow(rule(methods=["*"]))], [("BREW /", {}, True)]),
    "not methods": ([allow(rule(not_methods=["DELETE"]))], [("GET /", {}, True), ("DELETE /", {}, False)]),
    "hosts": (
        [allow(rule(hosts=["app.example", "app.example:*"]))],
        [
            ("GET /", {"host": "app.example"}, True),
            ("GET /", {"host": "APP.Example"}, True),
            ("GET /", {"host": "app.example:8080"}, True),
            ("GET /", {"host": "app.example.evil"}, False),
            ("GET /", {"host": "xapp.example"}, False),
            ("GET /", {"host": ""}, False),
        ],
    ),
    "a host without port is not one with it": (
        [allow(rule(hosts=["app.example"]))],
        [("GET /", {"host": "app.example:80"}, False)],
    ),
    "hosts by suffix": (
        [deny(rule(hosts=["*.Example"]))],
        [
            ("GET /", {"host": "a.EXAMPLE"}, False),
            ("GET /", {"host": "a.example:80"}, True),
            ("GET /", {"host": "example"}, True),
        ],
    ),
    "any host": ([allow(rule(hosts=["*"]))], [("GET /", {}, True), ("GET /", {"host": ""}, True)]),
    "an empty host is any host too": (
        [deny(rule(hosts=["*"], paths=["/admin*"]))],
        [
            ("GET /admin", {"host": ""}, False),
            ("GET /admin", {"host": "app"}, False),
            ("GET /", {"host": ""}, True),
        ],
    ),
    "no host is none": ([deny(rule(not_hosts=["*"]))], [("GET /", {"host": ""}, True), ("GET /", {}, True)]),
    "any of several hosts": ([deny(rule(hosts=["app", "*"]))], [("GET /", {"host": ""}, False)]),
    "an empty host is no other one": (
        [deny(rule(hosts=["a*", "*b"]))],
        [("GET /", {"host": ""}, True), ("GET /", {"host": "a"}, False)],
    ),
    **{
        f"an empty host is there: {key}": (
            [deny(rule(when={f"request.headers[{key}]": ["*"]}))],
            [("GET /", {"host": ""}, False), ("GET /", {}, False)],
        )
        for key in ("host", "Host", ":authority", ":method", ":path", ":scheme")
    },
    "the scheme": (
        [deny(rule(when={"request.headers[:scheme]": ["http"]}))],
        [
            ("GET /", {}, False),
            ("GET /", {"headers": {"x-forwarded-proto": "HTTP"}}, False),
            ("GET /", {"headers": {"x-forwarded-proto": "https"}}, True),
            ("GET /", {"headers": {"x-forwarded-proto": "https,http"}}, False),
            ("GET /", {"headers": {"x-forwarded-proto": ""}}, False),
        ],
    ),
    "another pseudo-header than a request has": (
        [deny(rule(when={"request.headers[:status]": ["*"]}))],
        [("GET /", {}, True)],
    ),
    "not hosts": (
        [allow(rule(not_hosts=["internal*"]))],
        [("GET /", {"host": "Internal:80"}, False), ("GET /", {"host": "public"}, True)],
    ),
    "ports": (
        [allow(rule(ports=[8080, 9090]))],
        [
            ("GET /", {}, True),
            ("GET /", {"port": 9090}, True),
            ("GET /", {"port": 80}, False),
            ("GET /", {"tcp": True}, True),
            ("GET /", {"tcp": True, "port": 80}, False),
        ],
    ),
    "not ports": (
        [deny(rule(not_ports=[8080]))],
        [("GET /", {}, True), ("GET /", {"port": 22}, False), ("GET /", {"port": 22, "tcp": True}, False)],
    ),
    "paths": (
        [allow(rule(paths=["/exact", "/prefix*", "*/suffix"]))],
        [
            ("GET /exact", {}, True),
            ("GET /exact/", {}, False),
            ("GET /exact/x", {}, False),
            ("GET /Exact", {}, False),
            ("GET /exact?q=/no", {}, True),
            ("GET /prefixed/x", {}, True),
            ("GET /a/suffix", {}, True),
            ("GET /suffix", {}, True),
            ("GET /a?x=/suffix", {}, False),
            ("GET /a#/suffix", {}, False),
        ],
    ),
    "any path": ([allow(rule(paths=["*"]))], [("GET /", {}, True), ("OPTIONS *", {}, True)]),
    "not paths": ([deny(rule(not_paths=["/healthz"]))], [("GET /healthz", {}, True), ("GET /", {}, False)]),
    "one segment": (
        [allow(rule(paths=["/a/{*}/c"]))],
        [
            ("GET /a/b/c", {}, True),
            ("GET /a//c", {}, False),
            ("GET /a/b/b/c", {}, False),
            ("GET /a/c", {}, False),
            ("GET /a/b=1/c", {}, True),
            ("GET /a/b%2Fb/c", {}, True),
            ("GET /a/../c", {}, False),
            ("GET /a/b/c?x", {}, True),
            ("GET /a/b/cc", {}, False),
        ],
    ),
    "any segments": (
        [allow(rule(paths=["/a/{**}"]))],
        [
            ("GET /a/", {}, True),
            ("GET /a/b/c", {}, True),
            ("GET /a", {}, False),
            ("GET /ab", {}, False),
            ("GET /a/../b", {}, False),
        ],
    ),
    "both operators": (
        [allow(rule(paths=["/a/{*}/c/{**}"]))],
        [("GET /a/b/c/d/e", {}, True), ("GET /a/b/c/", {}, True), ("GET /a/b/x/c/d", {}, False)],
    ),
    "segments behind any segments": (
        [allow(rule(paths=["/store/{**}/cart"]))],
        [("GET /store/a/b/cart", {}, True), ("GET /store//cart", {}, True), ("GET /store/cart", {}, False)],
    ),
    "a slash behind any segments": (
        [allow(rule(paths=["/foo/{**}/"]))],
        [("GET /foo/a/", {}, True), ("GET /foo/a/b/", {}, True), ("GET /foo/a", {}, False)],
    ),
    "templates beside texts": (
        [allow(rule(paths=["/x", "/{*}/y"]))],
        [("GET /x", {}, True), ("GET /a/y", {}, True), ("GET /y", {}, False)],
    ),
    "not a template": (
        [deny(rule(not_paths=["/pub/{**}"]))],
        [("GET /pub/a", {}, True), ("GET /pub/../admin", {}, False)],
    ),
    # -- tricks with paths: what reaches the application is the normalised path, too --
    "path tricks against deny": (
        [deny(rule(paths=["/admin*"]))],
        [
            ("GET /admin", {}, False),
            ("GET /x/../admin", {}, False),
            ("GET /./admin", {}, False),
            ("GET /%61dmin", {}, False),
            ("GET /%2e/admin", {}, False),
            ("GET /x/%2E%2e/admin", {}, False),
            ("GET \\admin", {}, False),
            ("GET /x\\..\\admin", {}, False),
            ("GET /admin;x=1", {}, False),
            ("GET /admin#", {}, False),
            ("GET /admin%2Fx", {}, False),
            ("GET http://app.default:80/admin", {}, False),
            ("GET /../../admin", {}, False),
            ("GET /x/..;/admin", {}, False),
            ("GET /x/%2e%2e;y/admin", {}, False),
            ("GET /.;/admin", {}, False),
            # As in Istio, these are other paths: slashes are not merged, an encoded slash is none,
            # and case counts.
            ("GET //admin", {}, True),
            ("GET /x/..%2Fadmin", {}, True),
            ("GET /ADMIN", {}, True),
            ("GET /%2561dmin", {}, True),
        ],
    ),
    "path tricks against allow": (
        [allow(rule(paths=["/public/*"]))],
        [
            ("GET /public/x", {}, True),
            ("GET /public/../admin", {}, False),
            ("GET /public/%2e%2e/admin", {}, False),
            ("GET /public/..\\admin", {}, False),
            ("GET /public/..;/admin", {}, False),
            ("GET /public\\..\\admin", {}, False),
            ("GET /public/x/../../admin", {}, False),
            ("GET /public%2Fx", {}, False),
            ("GET //public/x", {}, False),
            ("GET /PUBLIC/x", {}, False),
            ("GET /public;/x", {}, False),
            ("GET /./public/x", {}, True),
            ("GET ?/public/x", {}, False),
            ("GET http://app.default:80/public/../admin", {}, False),
            ("GET http://app.default:80?/public/x", {}, False),
        ],
    ),
    # -- when --
    "a header": (
        [allow(rule(when={"request.headers[X-Env]": ["prod", "stag*", "*-eu"]}))],
        [
            ("GET /", {"headers": {"x-env": "prod"}}, True),
            ("GET /", {"headers": {"x-env": "staging"}}, True),
            ("GET /", {"headers": {"x-env": "a-eu"}}, True),
            ("GET /", {"headers": {"x-env": "Prod"}}, False),
            ("GET /", {"headers": {"x-env": "prod,dev"}}, False),
            ("GET /", {}, False),
        ],
    ),
    "any header": (
        [allow(rule(when={"request.headers[x]": ["*"]}))],
        [("GET /", {"headers": {"x": "1"}}, True), ("GET /", {"headers": {"x": ""}}, True), ("GET /", {}, False)],
    ),
    "no header": (
        [deny(rule(when_not={"request.headers[x]": ["*"]}))],
        [("GET /", {"headers": {"x": "1"}}, True), ("GET /", {}, False)],
    ),
    "not this header": (
        [allow(rule(when_not={"request.headers[x]": ["bad*"]}))],
        [
            ("GET /", {"headers": {"x": "good"}}, True),
            ("GET /", {"headers": {"x": "bad1"}}, False),
            ("GET /", {}, True),
        ],
    ),
    "the host as a header": (
        [allow(rule(when={"request.headers[Host]": ["app*"], "request.headers[:method]": ["GET"]}))],
        [("GET /", {}, True), ("PUT /", {}, False)],
    ),
    "the target as a header": (
        [allow(rule(when={"request.headers[:path]": ["*?debug"]}))],
        [("GET /?debug", {}, True), ("GET /", {}, False)],
    ),
    "the namespace as a condition": (
        [allow(rule(when={"source.namespace": ["d*"]}))],
        [("GET /", {}, True), ("GET /", {"peer": JOB}, False)],
    ),
    "the port as a condition": (
        [allow(rule(when={"destination.port": ["8080"]}))],
        [("GET /", {}, True), ("GET /", {"port": 81}, False)],
    ),
    "not the port as a condition": (
        [deny(rule(when_not={"destination.port": ["8080"]}))],
        [("GET /", {}, True), ("GET /", {"port": 81}, False)],
    ),
    "the server name": (
        [allow(rule(when={"connection.sni": ["www.example.com", "*.internal"]}))],
        [
            ("GET /", {"sni": "www.example.com"}, True),
            ("GET /", {"sni": "WWW.Example.com"}, True),
            ("GET /", {"sni": "a.internal"}, True),
            ("GET /", {}, False),
            ("GET /", {"sni": "www.example.com", "tcp": True}, True),
            ("GET /", {"sni": "x", "tcp": True}, False),
        ],
    ),
    "the token's principal": (
        [allow(rule(when={"request.auth.principal": ["iss/s*"]}))],
        [("GET /", token(), True), ("GET /", token("x"), False)],
    ),
    "audiences": (
        [allow(rule(when={"request.auth.audiences": ["a", "b*"]}))],
        [
            ("GET /", token(audiences=("x", "a")), True),
            ("GET /", token(audiences=("bc",)), True),
            ("GET /", token(audiences=("x",)), False),
            ("GET /", token(), False),
        ],
    ),
    "not an audience": (
        [deny(rule(when_not={"request.auth.audiences": ["a"]}))],
        [("GET /", token(audiences=("a",)), True), ("GET /", {}, False)],
    ),
    "the presenter": (
        [allow(rule(when={"request.auth.presenter": ["app"]}))],
        [("GET /", token(presenter="app"), True), ("GET /", token(), False)],
    ),
    "a claim": (
        [allow(rule(when={"request.auth.claims[group]": ["admin", "dev-*"]}))],
        [
            ("GET /", token(group="admin"), True),
            ("GET /", token(group=["x", "dev-1"]), True),
            ("GET /", token(group=["x"]), False),
            ("GET /", token(group=7), False),
            ("GET /", token(group="admin x"), False),
            ("GET /", token(group={"admin": "admin"}), False),
            ("GET /", token(group=[]), False),
            ("GET /", {}, False),
        ],
    ),
    "any value of a claim": (
        [allow(rule(when={"request.auth.claims[g]": ["*"]}))],
        [("GET /", token(g="x"), True), ("GET /", token(g=""), False), ("GET /", token(), False)],
    ),
    "a nested claim": (
        [allow(rule(when={"request.auth.claims[realm_access][roles]": ["admin"]}))],
        [
            ("GET /", token(realm_access={"roles": ["user", "admin"]}), True),
            ("GET /", token(realm_access={"roles": "admin"}), True),
            ("GET /", token(realm_access="admin"), False),
            ("GET /", token(realm_access=["admin"]), False),
            ("GET /", token(roles=["admin"]), False),
        ],
    ),
    "a claim whose name is an URL": (
        [allow(rule(when={"request.auth.claims[https://x.example/r]": ["a"]}))],
        [("GET /", token(**{"https://x.example/r": "a"}), True), ("GET /", token(r="a"), False)],
    ),
    "scope is a list in one text": (
        [allow(rule(when={"request.auth.claims[scope]": ["write"]}))],
        [
            ("GET /", token(scope="read write"), True),
            ("GET /", token(scope="rewrite"), False),
            ("GET /", token(scope=["write"]), True),
        ],
    ),
    "a claim that its rule says is a list in one text": (
        [allow(rule(when={"request.auth.claims[roles]": ["write"]}))],
        [
            ("GET /", token(roles="read write"), False),
            ("GET /", token(split=("roles",), roles="read write"), True),
            ("GET /", token(split=("roles",), roles="rewrite"), False),
            ("GET /", token(split=("roles",), roles={"roles": "read write"}), False),
        ],
    ),
    "a nested scope is one text": (
        [allow(rule(when={"request.auth.claims[scope][x]": ["write"]}))],
        [("GET /", token(scope={"x": "read write"}), False), ("GET /", token(scope={"x": "write"}), True)],
    ),
    "not a claim": (
        [deny(rule(when_not={"request.auth.claims[g]": ["ok"]}))],
        [("GET /", token(g="ok"), True), ("GET /", token(g="no"), False), ("GET /", {}, False)],
    ),
    # -- HTTP fields where there is no HTTP --
    "an ALLOW rule with HTTP fields on TCP": (
        [allow(rule(principals=[WEB], methods=["GET"]))],
        [("GET /", {}, True), ("GET /", {"tcp": True}, False)],
    ),
    "another rule of that policy still allows": (
        [allow(rule(methods=["GET"]), rule(ports=[9000]))],
        [("GET /", {"tcp": True}, False), ("GET /", {"tcp": True, "port": 9000}, True)],
    ),
    "one of several operations has HTTP fields": (
        [allow(Rule((), (Operation(ports=(8080,)), Operation(paths=("/x",)))))],
        [("GET /", {"tcp": True}, False), ("GET /", {}, True)],
    ),
    "an ALLOW rule with a condition on HTTP": (
        [allow(rule(when={"request.headers[x]": ["*"]}))],
        [("GET /", {"tcp": True}, False)],
    ),
    "an ALLOW rule with a negative condition on HTTP": (
        [allow(rule(when_not={"request.auth.claims[x]": ["y"]}))],
        [("GET /", {"tcp": True}, False)],
    ),
    "an ALLOW rule with a request principal": (
        [allow(rule(not_request_principals=["x/y"]))],
        [("GET /", {"tcp": True}, False), ("GET /", {}, True)],
    ),
    "a DENY rule widens": (
        [deny(rule(principals=[WEB], methods=["DELETE"], ports=[8080]))],
        [
            ("GET /", {}, True),
            ("DELETE /", {}, False),
            ("GET /", {"tcp": True}, False),
            ("GET /", {"tcp": True, "peer": JOB}, True),
            ("GET /", {"tcp": True, "port": 22}, True),
        ],
    ),
    "a DENY rule of HTTP fields alone": (
        [deny(rule(paths=["/admin"]))],
        [("GET /", {}, True), ("GET /", {"tcp": True}, False)],
    ),
    "a DENY rule with a condition on HTTP": (
        [deny(rule(ip_blocks=["10.0.0.0/8"], when={"request.headers[x]": ["1"]}))],
        [("GET /", {"tcp": True}, False), ("GET /", {"tcp": True, "ip": "192.0.2.1"}, True)],
    ),
    # -- CUSTOM policies that cannot be asked --
    "two providers": (
        [
            policy("CUSTOM", rule(paths=["/a"]), provider="x", name="x"),
            policy("CUSTOM", rule(paths=["/b"]), provider="y", name="y"),
        ],
        [("GET /a", {}, False), ("GET /b", {}, False), ("GET /c", {}, True), ("GET /", {"tcp": True}, False)],
    ),
    "no provider": ([policy("CUSTOM", rule(paths=["/a"]))], [("GET /a", {}, False), ("GET /b", {}, True)]),
    "one provider": ([policy("CUSTOM", Rule(), provider="x")], [("GET /", {}, True)]),
    "a provider in dry run": (
        [policy("CUSTOM", Rule(), provider="x"), policy("CUSTOM", Rule(), provider="y", dry_run=True, name="q")],
        [("GET /", {}, True)],
    ),
}


def shown(fact: object) -> str:
    """Return *fact* as a part of a test's name, which is the same in every process: sets have no order."""
    return f"a token of {fact.principal}" if isinstance(fact, Claims) else str(fact)


CASES = [
    pytest.param(
        policies,
        line,
        facts,
        verdict,
        id=f"{title}: {line} {' '.join(f'{key}={shown(value)}' for key, value in facts.items())}"[:150],
    )
    for title, (policies, rows) in TABLE.items()
    for line, facts, verdict in rows
]


@pytest.mark.parametrize(("policies", "line", "facts", "verdict"), CASES)
def test_verdict(policies: list[AuthorizationPolicy], line: str, facts: dict[str, Any], verdict: bool) -> None:
    assert ask(policies, line, **facts).allowed is verdict


def test_the_decision_names_policy_and_rule() -> None:
    policies = [
        allow(rule(methods=["PUT"]), rule(methods=["GET"]), name="ok"),
        deny(rule(paths=["/no"]), name="no", namespace="root"),
    ]
    allowed, denied, nobody = ask(policies, "GET /"), ask(policies, "GET /no"), ask(policies, "POST /")
    assert (allowed.policy, allowed.rule, allowed.explain) == (
        "default/ok",
        1,
        "ALLOW policy default/ok, rule 1 matches",
    )
    assert (denied.policy, denied.rule, denied.explain) == ("root/no", 0, "DENY policy root/no, rule 0 matches")
    assert (nobody.policy, nobody.rule, nobody.explain) == (
        "",
        -1,
        "no rule of the workload's ALLOW policies matches: default/ok",
    )
    assert ask([]).explain == "no policy that decides applies"
    assert ask([deny()]).explain == "no DENY policy matches, and no ALLOW policy applies"


def test_an_explanation_names_a_few_policies_only() -> None:
    explain = ask([allow(name=f"p{number}") for number in range(8)]).explain
    assert explain.endswith("default/p0, default/p1, default/p2, default/p3, default/p4 and 3 more")


def test_a_rule_keeps_its_index_where_others_are_left_out() -> None:
    assert ask([allow(rule(methods=["GET"]), rule(ports=[8080]))], tcp=True).rule == 1


def test_what_the_connection_decides_needs_no_request() -> None:
    policies = [allow(rule(principals=[WEB], paths=["/x"])), deny(rule(namespaces=["batch"]), name="d")]
    assert isinstance(bind(policies), RequestAuthorizer)
    refused = bind(policies, peer=JOB)
    assert isinstance(refused, Decision)
    assert refused.policy == "default/d"
    nobody = bind(policies, peer="cluster.local/ns/x/sa/y")
    assert isinstance(nobody, Decision)
    assert not nobody.allowed and nobody.policy == ""


def test_decisions_are_shared_between_connections() -> None:
    authorizer = Authorizer.compile([allow(rule(principals=[WEB]))], http=True, mesh=MESH)
    first, second = (authorizer.connection(ConnectionFacts(WEB, ip, "10.0.0.9", 80)) for ip in ("10.0.0.1", "10.0.0.2"))
    assert first is second
    assert not authorizer.needs_request


def test_needs_request_is_about_http_only() -> None:
    policies = [deny(rule(methods=["GET"]))]
    assert Authorizer.compile(policies, http=True, mesh=MESH).needs_request
    assert not Authorizer.compile(policies, http=False, mesh=MESH).needs_request


def test_custom_is_asked_where_it_matches() -> None:
    policies = [policy("CUSTOM", rule(paths=["/pay*"]), provider="checker"), deny(rule(methods=["DELETE"]), name="d")]
    bound = bind(policies)
    assert isinstance(bound, RequestAuthorizer)
    assert bound.custom(request("GET /pay")) == "checker"
    assert bound.custom(request("GET /")) == ""
    assert bound.decide(request("GET /pay")).allowed
    assert not bound.decide(request("DELETE /pay")).allowed


def test_custom_on_a_connection() -> None:
    policies = [policy("CUSTOM", rule(ports=[8080], methods=["GET"]), provider="checker")]
    assert ask(policies, tcp=True).custom == "checker"
    assert ask(policies, tcp=True, port=22).custom == ""
    whole = bind([policy("CUSTOM", rule(ports=[8080]), provider="checker")])
    assert isinstance(whole, Decision)
    assert whole.custom == "checker" and whole.allowed


def test_custom_with_several_providers_says_why_it_denies() -> None:
    both = [policy("CUSTOM", Rule(), provider=name, name=name) for name in ("x", "y")]
    decision = ask(both)
    assert decision.policy == "default/x" and "do not agree on one provider" in decision.explain
    assert decision.custom == ""


def test_audit_and_dry_run_are_noted_whatever_is_decided() -> None:
    policies = [
        policy("AUDIT", rule(paths=["/a*"]), name="audit"),
        deny(rule(methods=["GET"]), name="try", dry_run=True),
        deny(rule(paths=["/ab"]), name="no"),
    ]
    audit, dry = Note("default/audit", 0, "audit"), Note("default/try", 0, "dry_run_deny")
    assert ask(policies, "GET /a").notes == (audit, dry)
    assert ask(policies, "PUT /a").notes == (audit,)
    assert ask(policies, "PUT /b").notes == ()
    refused = ask(policies, "GET /ab")
    assert not refused.allowed and refused.policy == "default/no" and refused.notes == (audit, dry)


def test_a_dry_run_of_allow_policies_is_of_all_of_them() -> None:
    one, other = (
        allow(rule(methods=["GET"]), name="one", dry_run=True),
        allow(rule(methods=["PUT"]), name="other", dry_run=True),
    )
    assert ask([one], "GET /").notes == (Note("default/one", 0, "dry_run_allow"),)
    assert ask([one], "PUT /").notes == (Note("default/one", -1, "dry_run_deny"),)
    assert ask([one, other], "PUT /").notes == (Note("default/other", 0, "dry_run_allow"),)
    assert ask([one, other], "POST /").notes == (Note("", -1, "dry_run_deny"),)


def test_notes_of_a_connection() -> None:
    policies = [
        policy("AUDIT", rule(principals=[WEB]), name="audit"),
        policy("CUSTOM", Rule(), dry_run=True, provider="x", name="c"),
    ]
    assert ask(policies, tcp=True).notes == (Note("default/audit", 0, "audit"), Note("default/c", 0, "dry_run_custom"))
    assert ask(policies, tcp=True, peer=JOB).notes == (Note("default/c", 0, "dry_run_custom"),)


def test_a_trace_says_what_does_not_match() -> None:
    policies = [
        allow(
            rule(principals=[JOB], methods=["GET"]),
            rule(not_methods=["GET"]),
            rule(when={"request.headers[x]": ["1"]}),
            name="a",
        ),
        deny(rule(ports=[8080]), name="d"),
    ]
    authorizer = Authorizer.compile(policies, http=True, mesh=MESH)
    facts = ConnectionFacts(WEB, "10.0.0.1", "10.0.0.9", 8080)
    assert authorizer.trace(facts, request("GET /")) == (
        "ALLOW policy default/a, rule 0: does not match (from: principals)",
        "ALLOW policy default/a, rule 1: does not match (to: notMethods)",
        "ALLOW policy default/a, rule 2: does not match (when: request.headers[x])",
        "DENY policy default/d, rule 0: matches",
    )
    assert "(to: notMethods)" in authorizer.trace(facts, None)[1], (
        "without a request, what only a request decides is open"
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (rule(ip_blocks=["10.0.0.0/33"]), "ipBlocks: '10.0.0.0/33'"),
        (rule(not_remote_ip_blocks=["x"]), "notRemoteIpBlocks: 'x'"),
        (rule(when={"source.ip": ["1.2.3"]}), "source.ip: '1.2.3'"),
        (rule(when={"destination.port": ["http"]}), "destination.port: 'http'"),
        (rule(when={"destination.port": ["65536"]}), "destination.port: '65536'"),
        (rule(when={"request.headers[]": ["x"]}), "'request.headers[]'"),
        (rule(when={"request.auth.claims": ["x"]}), "'request.auth.claims'"),
        (rule(when={"source.mood": ["x"]}), "'source.mood'"),
        (rule(paths=["/{*}/{**}/{*}"]), "'/{*}/{**}/{*}'"),
        (rule(paths=["/a{*}"]), "'/a{*}'"),
        (rule(paths=["a/{*}"]), "'a/{*}'"),
        (rule(paths=["/{*}b/c"]), "'/{*}b/c'"),
        (rule(paths=["/{*}.txt"]), "'/{*}.txt'"),
        (rule(paths=["/{name}/{*}"]), "'/{name}/{*}'"),
        (rule(paths=["/*/{*}"]), "'/*/{*}'"),
    ],
)
def test_a_value_that_cannot_be_understood_is_refused_by_name(wrong: Rule, named: str) -> None:
    for http in (True, False):
        with pytest.raises(ResourceError) as refused:
            Authorizer.compile([deny(wrong)], http=http, mesh=MESH)
        assert named in str(refused.value)
