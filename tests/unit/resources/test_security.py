"""Istio's security resources: what a good one becomes, and every way in which one can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.policy.model import (
    AuthorizationPolicy,
    Condition,
    JwtRule,
    Operation,
    PeerAuthentication,
    RequestAuthentication,
    Rule,
    RuleSource,
    TokenHeader,
)
from nodeagent.resources import yaml_text
from nodeagent.resources.policy_scope import PolicyTarget
from nodeagent.resources.security import parse, stand_in


def document(kind: str, spec: Any, version: str = "security.istio.io/v1", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "p", "namespace": "shop", **metadata},
        "spec": spec,
    }


def load(text: str) -> Any:
    (value,) = yaml_text.load(text)
    return value


def peer(spec: Any, **more: Any) -> dict[str, Any]:
    return document("PeerAuthentication", spec, **more)


def authorization(spec: Any, **more: Any) -> dict[str, Any]:
    return document("AuthorizationPolicy", spec, **more)


def rule(**parts: Any) -> dict[str, Any]:
    return authorization({"rules": [parts]})


def source(**fields: Any) -> dict[str, Any]:
    return rule(**{"from": [{"source": fields}]})


def operation(**fields: Any) -> dict[str, Any]:
    return rule(to=[{"operation": fields}])


def when(key: str, *values: str, **more: Any) -> dict[str, Any]:
    return rule(when=[{"key": key, **({"values": list(values)} if values else {}), **more}])


def jwt(**fields: Any) -> dict[str, Any]:
    return document("RequestAuthentication", {"jwtRules": [{"issuer": "me", **fields}]})


def test_every_field_of_an_authorization_policy() -> None:
    found = parse(
        load("""
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: api, namespace: shop, creationTimestamp: 2026-01-02T03:04:05Z, annotations: {istio.io/dry-run: "true"}, labels: {a: b}}
spec:
  selector: {matchLabels: {tier: x, app: web}}
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/a/sa/b, "*"]
        notPrincipals: [c]
        requestPrincipals: [iss/sub]
        notRequestPrincipals: [d]
        namespaces: [a]
        notNamespaces: [b]
        trustDomains: [old]
        notTrustDomains: [new]
        ipBlocks: [10.0.0.0/8, "::1"]
        notIpBlocks: [10.1.0.0/16]
        remoteIpBlocks: [192.0.2.1]
        notRemoteIpBlocks: [192.0.2.2]
    - source: {serviceAccounts: [a/b, c], notServiceAccounts: [d]}
    to:
    - operation: {hosts: [a], notHosts: [b], ports: ["80"], notPorts: ["8080"], methods: [GET], notMethods: [PUT], paths: ["/a/{*}/{**}"], notPaths: ["/b*"]}
    when:
    - {key: "request.headers[x-a]", values: [v], notValues: [w]}
    - {key: "request.auth.claims[a][b]", values: [v]}
  - {}
""")  # noqa: E501
    )
    assert (found.key, found.created, found.selector) == (
        ("AuthorizationPolicy", "shop", "api"),
        "2026-01-02T03:04:05Z",
        (("app", "web"), ("tier", "x")),
    )
    first = RuleSource(
        principals=("cluster.local/ns/a/sa/b", "*"),
        not_principals=("c",),
        request_principals=("iss/sub",),
        not_request_principals=("d",),
        namespaces=("a",),
        not_namespaces=("b",),
        trust_domains=("old",),
        not_trust_domains=("new",),
        ip_blocks=("10.0.0.0/8", "::1"),
        not_ip_blocks=("10.1.0.0/16",),
        remote_ip_blocks=("192.0.2.1",),
        not_remote_ip_blocks=("192.0.2.2",),
    )
    second = RuleSource(service_accounts=("a/b", "c"), not_service_accounts=("d",))
    to = Operation(("a",), ("b",), (80,), (8080,), ("GET",), ("PUT",), ("/a/{*}/{**}",), ("/b*",))
    conditions = (Condition("request.headers[x-a]", ("v",), ("w",)), Condition("request.auth.claims[a][b]", ("v",)))
    assert found.spec == AuthorizationPolicy(
        "shop", "api", "DENY", (Rule((first, second), (to,), conditions), Rule()), True
    )


def test_absent_and_empty_rules() -> None:
    assert parse(authorization({})).spec == AuthorizationPolicy("shop", "p")
    assert (
        parse(
            {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"}}
        ).namespace
        == "default"
    )
    assert parse(authorization({"rules": [{}]})).spec == AuthorizationPolicy("shop", "p", "ALLOW", (Rule(),))
    custom = parse(
        authorization(
            {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}
        )
    ).spec
    assert isinstance(custom, AuthorizationPolicy)
    assert custom.provider == "opa"


@pytest.mark.parametrize(
    "right",
    [
        operation(paths=["/foo/{**}/", "/store/{**}/cart", "/{*}/{**}"]),
        operation(ports=["0"]),
        when("destination.port", "0"),
        source(ipBlocks=[f"10.0.{number >> 8}.{number & 255}" for number in range(16384)]),
        source(principals=["a"] * 600),
    ],
    ids=["templates", "port 0", "condition on port 0", "very many blocks", "many principals"],
)
def test_what_istio_takes(right: Any) -> None:
    assert parse(right).spec.rules  # type: ignore[union-attr]


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "True", "TRUE", "0", "f", "F", "false", "False", "FALSE"])
def test_dry_run_in_the_words_of_go(word: str) -> None:
    annotations = {"istio.io/dry-run": word}
    spec = parse(authorization({}, annotations=annotations)).spec
    wanted = word[0] in "1tT"
    assert isinstance(spec, AuthorizationPolicy) and spec.dry_run == wanted
    wrong = authorization({"action": "DNEY"}, annotations=annotations)
    assert (stand_in(("AuthorizationPolicy", "shop", "p"), wrong, "why") is None) == wanted


def test_targets() -> None:
    refs = [{"kind": "Service", "name": "web"}, {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]
    assert parse(authorization({"targetRefs": refs})).targets == (
        PolicyTarget("", "Service", "web"),
        PolicyTarget("gateway.networking.k8s.io", "Gateway", "g"),
    )
    assert parse(
        authorization({"targetRef": {"group": "core", "kind": "Service", "name": "web", "namespace": "shop"}})
    ).targets == (PolicyTarget("core", "Service", "web"),)


def test_peer_authentication() -> None:
    assert parse(peer({})).spec == PeerAuthentication("shop", "p")
    assert parse(peer({"mtls": {"mode": "UNSET"}})).spec == PeerAuthentication("shop", "p")
    text = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, "80": {mode: UNSET}, 81: {}}}
"""  # noqa: E501
    assert parse(load(text)).spec == PeerAuthentication(
        "shop", "p", "STRICT", ((80, None), (81, None), (8080, "DISABLE"))
    )


def test_request_authentication() -> None:
    keys = '{"keys": []}'
    found = parse(
        jwt(
            audiences=["a"],
            jwks=keys,
            fromHeaders=[{"name": "x.token", "prefix": "Bearer "}],
            fromParams=["t"],
            fromCookies=["c"],
            outputPayloadToHeader="x.payload",
            outputClaimToHeaders=[{"header": "x-sub", "claim": "a.b"}],
            forwardOriginalToken=True,
            timeout="1m500ms",
            spaceDelimitedClaims=["roles"],
        )
    )
    assert found.spec == RequestAuthentication(
        "shop",
        "p",
        (
            JwtRule(
                "me",
                ("a",),
                keys,
                "",
                (TokenHeader("x.token", "Bearer "),),
                ("t",),
                ("c",),
                "x.payload",
                (("x-sub", "a.b"),),
                True,
                60.5,
                ("roles",),
            ),
        ),
    )
    by_uri = parse(document("RequestAuthentication", {"jwtRules": [{"jwksUri": "https://issuer.example/keys"}]})).spec
    assert by_uri == RequestAuthentication("shop", "p", (JwtRule("", jwks_uri="https://issuer.example/keys"),))


WRONG: list[tuple[Any, str]] = [
    # the document
    (5, "document: of type int: a mapping is expected"),
    ({"kind": "VirtualService"}, "kind: 'VirtualService': allowed: AuthorizationPolicy, PeerAuthentication"),
    ({"kind": []}, "kind: []"),
    (
        document("PeerAuthentication", {}, "security.istio.io/v2"),
        "apiVersion: 'security.istio.io/v2': allowed: security.istio.io/v1, security.istio.io/v1beta1",
    ),
    (document("PeerAuthentication", {}) | {"data": 1}, "data: unknown field: allowed: apiVersion"),
    (peer({}, name="Upper"), "metadata.name: 'Upper'"),
    (peer({}, name=""), "metadata.name: ''"),
    (peer({}, namespace="a/b"), "metadata.namespace: 'a/b'"),
    (peer({}, creationTimestamp="yesterday"), "metadata.creationTimestamp: 'yesterday'"),
    (peer({}, annotations={"a": 1}), "metadata.annotations"),
    (peer([]), "spec: []: a mapping is expected"),
    # scope
    (
        peer({"selector": {"matchExpressions": []}}),
        "spec.selector.matchExpressions: unknown field: allowed: matchLabels",
    ),
    (peer({"selector": {"matchLabels": {"app": "*"}}}), "spec.selector.matchLabels['app']: '*'"),
    (peer({"selector": {"matchLabels": {"": "x"}}}), "spec.selector.matchLabels['']"),
    (peer({"selector": {"matchLabels": {"app": 1}}}), "spec.selector.matchLabels: {'app': 1}: a mapping of texts"),
    (peer({"targetRefs": []}), "spec.targetRefs: unknown field: allowed: selector, mtls, portLevelMtls"),
    (
        authorization({"selector": {}, "targetRefs": [{"kind": "Service", "name": "a"}]}),
        "spec.selector: {}: only one of",
    ),
    (
        authorization({"targetRefs": [{"kind": "Deployment", "name": "a"}]}),
        "spec.targetRefs[0].kind: 'Deployment': allowed: Service (core)",
    ),
    (authorization({"targetRefs": [{"kind": "Gateway", "name": "a"}]}), "spec.targetRefs[0].kind: 'Gateway'"),
    (
        authorization({"targetRefs": [{"kind": "Service", "name": "a", "namespace": "other"}]}),
        "spec.targetRefs[0].namespace: 'other': only the policy's own",
    ),
    (authorization({"targetRefs": [{"kind": "Service"}]}), "spec.targetRefs[0].name"),
    (authorization({"targetRefs": [{"kind": "Service", "name": "a"}] * 17}), "spec.targetRefs: 17 items: at most 16"),
    # PeerAuthentication
    (peer({"mtls": {"mode": "strict"}}), "spec.mtls.mode: 'strict': allowed: UNSET, STRICT, PERMISSIVE, DISABLE"),
    (peer({"mtls": {"modes": "STRICT"}}), "spec.mtls.modes: unknown field: allowed: mode"),
    (peer({"mtls": "STRICT"}), "spec.mtls: 'STRICT': a mapping"),
    (
        peer({"portLevelMtls": {"80": {"mode": "STRICT"}}}),
        "spec.portLevelMtls: {'80': {'mode': 'STRICT'}}: a selector with matchLabels is needed",
    ),
    (
        peer({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"80": {}, "080": {"mode": "DISABLE"}}}),
        "spec.portLevelMtls.080: port 80 is there twice",
    ),
    (peer({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {}}), "spec.portLevelMtls: {}: at least one port"),
    (
        peer({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {}}}),
        "spec.portLevelMtls.http: a port from 1 to 65535",
    ),
    (peer({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"65536": {}}}), "spec.portLevelMtls.65536"),
    # AuthorizationPolicy
    (authorization({"action": "allow"}), "spec.action: 'allow': allowed: ALLOW, DENY, AUDIT, CUSTOM"),
    (authorization({"rule": []}), "spec.rule: unknown field"),
    (authorization({"action": "DENY"}), "spec.rules: a DENY policy without rules never does anything"),
    (authorization({"action": "CUSTOM", "provider": {"name": "x"}}), "spec.rules: a CUSTOM policy"),
    (authorization({"action": "CUSTOM", "rules": [{}]}), "spec.provider.name: a text is expected"),
    (authorization({"provider": {"name": "x"}}), "spec.provider: {'name': 'x'}: only a CUSTOM policy"),
    (
        authorization({}, annotations={"istio.io/dry-run": "yes"}),
        "metadata.annotations[istio.io/dry-run]: 'yes': allowed: true, false",
    ),
    (authorization({"rules": {}}), "spec.rules: {}: a list is expected"),
    (authorization({"rules": [None]}), "spec.rules[0]: None: a mapping"),
    (authorization({"rules": [{}] * 513}), "spec.rules: 513 items: at most 512"),
    (rule(**{"from": []}), "spec.rules[0].from: []: at least one item"),
    (rule(to=[]), "spec.rules[0].to: []: at least one item"),
    (rule(form=[]), "spec.rules[0].form: unknown field: allowed: from, to, when"),
    (source(), "spec.rules[0].from[0].source: {}: at least one field"),
    (source(ipBlocks=["10.0.0.1"] * 16385), "spec.rules[0].from[0].source.ipBlocks: 16385 items: at most 16384"),
    (source(principals=[]), "spec.rules[0].from[0].source: {'principals': []}: at least one field"),
    (
        source(principal=["a"]),
        "spec.rules[0].from[0].source.principal: unknown field: allowed: principals, notPrincipals",
    ),
    (source(principals="a"), "spec.rules[0].from[0].source.principals: 'a': a list is expected"),
    (source(principals=["a", ""]), "spec.rules[0].from[0].source.principals[1]: '': a text that is not empty"),
    (source(namespaces=[1]), "spec.rules[0].from[0].source.namespaces[0]: 1: a text"),
    (
        source(ipBlocks=["10.0.0.0/33"]),
        "spec.rules[0].from[0].source.ipBlocks[0]: '10.0.0.0/33': an address or a block",
    ),
    (source(notRemoteIpBlocks=["host"]), "spec.rules[0].from[0].source.notRemoteIpBlocks[0]: 'host'"),
    *(
        (source(**{field: [block]}), f"spec.rules[0].from[0].source.{field}[0]: '{block}'")
        for block in (
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/0.255.255.255",
            "10.0.0.0/08",
            "fd00::/",
            "fe80::1%eth0/64",
            "10/8",
        )
        for field in ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")
    ),
    *(
        (when(key, "10.0.0.0/255.0.0.0"), "spec.rules[0].when[0].values[0]: '10.0.0.0/255.0.0.0'")
        for key in ("source.ip", "remote.ip", "destination.ip")
    ),
    (source(serviceAccounts=["a/*"]), "spec.rules[0].from[0].source.serviceAccounts[0]: 'a/*'"),
    (
        source(serviceAccounts=["a"], namespaces=["b"]),
        "spec.rules[0].from[0].source.serviceAccounts: ['a']: not allowed together with namespaces",
    ),
    (operation(), "spec.rules[0].to[0].operation: {}: at least one field"),
    (operation(ports=["65536"]), "spec.rules[0].to[0].operation.ports[0]: '65536': a port from 1 to 65535"),
    (operation(ports=[80]), "spec.rules[0].to[0].operation.ports[0]: 80"),
    (operation(notPorts=["http"]), "spec.rules[0].to[0].operation.notPorts[0]: 'http'"),
    (
        operation(paths=["/{**}/x/{*}"]),
        "spec.rules[0].to[0].operation.paths[0]: '/{**}/x/{*}': no {*} or {**} may follow {**}",
    ),
    (operation(paths=["/{**}/{**}"]), "spec.rules[0].to[0].operation.paths[0]: '/{**}/{**}'"),
    (operation(paths=["{*}"]), "spec.rules[0].to[0].operation.paths[0]: '{*}': a path template begins"),
    (operation(paths=["/{*}x"]), "spec.rules[0].to[0].operation.paths[0]: '/{*}x'"),
    (operation(notPaths=["/{name}"]), "spec.rules[0].to[0].operation.notPaths[0]: '/{name}'"),
    (operation(paths=["/{*}/*"]), "spec.rules[0].to[0].operation.paths[0]: '/{*}/*'"),
    (when(""), "spec.rules[0].when[0].key: ''"),
    (when("source.port", "1"), "spec.rules[0].when[0].key: 'source.port': allowed: connection.sni"),
    (when("request.headers", "1"), "spec.rules[0].when[0].key: 'request.headers'"),
    (when("request.headers[a][b]", "1"), "spec.rules[0].when[0].key: 'request.headers[a][b]'"),
    (when("request.auth.claims[]", "1"), "spec.rules[0].when[0].key: 'request.auth.claims[]'"),
    (when("source.namespace"), "spec.rules[0].when[0].values: at least one value"),
    (when("source.namespace", values=[]), "spec.rules[0].when[0].values: []: at least one value"),
    (when("source.ip", "nowhere"), "spec.rules[0].when[0].values[0]: 'nowhere'"),
    (when("destination.port", notValues=["http"]), "spec.rules[0].when[0].notValues[0]: 'http'"),
    (when("source.namespace", "a", value=[]), "spec.rules[0].when[0].value: unknown field"),
    *(
        (
            authorization(
                {"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{"from": [{"source": {field: ["a"]}}]}]}
            ),
            f"spec.rules[0].from[0].source.{field}: ['a']: not allowed with action CUSTOM",
        )
        for field in (
            "principals",
            "notPrincipals",
            "requestPrincipals",
            "namespaces",
            "notNamespaces",
            "serviceAccounts",
        )
    ),
    (
        authorization(
            {
                "action": "CUSTOM",
                "provider": {"name": "x"},
                "rules": [{"when": [{"key": "request.auth.principal", "values": ["a"]}]}],
            }
        ),
        "spec.rules[0].when[0].key: 'request.auth.principal': not allowed with action CUSTOM",
    ),
    # RequestAuthentication
    (document("RequestAuthentication", {"jwtRules": [{}]}), "spec.jwtRules[0].issuer: a text is expected"),
    (jwt(issuers="x"), "spec.jwtRules[0].issuers: unknown field"),
    (jwt(audiences=[""]), "spec.jwtRules[0].audiences[0]: ''"),
    (jwt(jwksUri="ftp://x/y"), "spec.jwtRules[0].jwksUri: 'ftp://x/y': an http or https URI"),
    (jwt(jwksUri="https://u:p@x/y"), "spec.jwtRules[0].jwksUri"),
    (jwt(jwksUri="https://x:99999/y"), "spec.jwtRules[0].jwksUri"),
    (jwt(jwksUri="https://[x/y"), "spec.jwtRules[0].jwksUri"),
    (jwt(jwksUri="https://x/y", jwks="{}"), "spec.jwtRules[0].jwks: only one of jwks and jwksUri"),
    (jwt(jwks="nonsense"), "spec.jwtRules[0].jwks: a JSON key set"),
    (jwt(jwks="[" * 100000), "spec.jwtRules[0].jwks: a JSON key set"),
    (jwt(jwks='{"keys": 1}'), "spec.jwtRules[0].jwks: a JSON key set"),
    (jwt(fromHeaders=[{"prefix": "x"}]), "spec.jwtRules[0].fromHeaders[0].name"),
    (jwt(fromHeaders=[{"name": "a b"}]), "spec.jwtRules[0].fromHeaders[0].name: 'a b'"),
    (jwt(fromParams=[""]), "spec.jwtRules[0].fromParams[0]"),
    (jwt(fromCookies=[1]), "spec.jwtRules[0].fromCookies[0]: 1"),
    (jwt(outputPayloadToHeader="a:b"), "spec.jwtRules[0].outputPayloadToHeader: 'a:b'"),
    (jwt(outputClaimToHeaders=[{"header": "a.b", "claim": "c"}]), "spec.jwtRules[0].outputClaimToHeaders[0].header"),
    (jwt(outputClaimToHeaders=[{"header": "a"}]), "spec.jwtRules[0].outputClaimToHeaders[0].claim"),
    (jwt(outputClaimToHeaders=[{"header": "a\r\n", "claim": "c"}]), "spec.jwtRules[0].outputClaimToHeaders[0].header"),
    (jwt(forwardOriginalToken="yes"), "spec.jwtRules[0].forwardOriginalToken: 'yes': true or false"),
    (jwt(timeout="soon"), "spec.jwtRules[0].timeout: 'soon': a duration"),
    (jwt(timeout="0s"), "spec.jwtRules[0].timeout: '0s': a duration"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[words[:60] for _, words in WRONG])
def test_what_is_wrong_is_named(wrong: Any, words: str) -> None:
    with pytest.raises(ResourceError) as caught:
        parse(wrong)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_key_set_is_never_shown() -> None:
    with pytest.raises(ResourceError) as caught:
        parse(jwt(jwks='{"keys": {"k": "c2VjcmV0"}}'))
    assert "c2Vj" not in str(caught.value)


_WORDS = st.sampled_from(
    [
        "rules",
        "from",
        "to",
        "when",
        "source",
        "operation",
        "principals",
        "paths",
        "key",
        "values",
        "selector",
        "matchLabels",
        "mtls",
        "mode",
    ]
)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), _WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=4)),
    max_leaves=15,
)


@given(st.sampled_from(["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"]), _JSON, _JSON)
def test_any_json_is_a_policy_or_one_error(kind: str, spec: Any, metadata: Any) -> None:
    for wild in (
        document(kind, spec),
        document(kind, {"rules": spec, "jwtRules": spec}),
        document(kind, {}) | {"metadata": metadata},
        spec,
    ):
        try:
            assert parse(wild).kind == kind
        except ResourceError:
            continue
