"""AuthorizationPolicies as Envoy's rules: which are in force where, what they say, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.inject import InjectionError
from nodeagent.inject.rbac import Selected, translate

Json = dict[str, Any]


def policy(name: str = "p", namespace: str = "default", **spec: Any) -> Json:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def rule(source: Json | None = None, operation: Json | None = None) -> Json:
    return ({"from": [{"source": source}]} if source else {}) | (
        {"to": [{"operation": operation}]} if operation else {}
    )


def of_web(*policies: Json) -> Any:
    return translate(policies, "istio-system", Selected("default", {"app": "web"}), "cluster.local")


def test_who_is_selected() -> None:
    given = [
        policy("own"),
        policy("other-namespace", "shop"),
        policy("root", "istio-system"),
        policy("selected", selector={"matchLabels": {"app": "web"}}),
        policy("not-selected", selector={"matchLabels": {"app": "db"}}),
        policy("unknown-but-elsewhere", "shop", action="CUSTOM", provider={"name": "x"}, rules=[{}]),
    ]
    rules = of_web(*(each | {"spec": each["spec"] | {"rules": [{}]}} for each in given))
    (allow,) = rules.http
    assert [name.split("]")[1] for name in allow["policies"]] == ["-policy[own", "-policy[root", "-policy[selected"]


def test_deny_comes_before_allow() -> None:
    rules = of_web(policy("a", rules=[{}]), policy("d", action="DENY", rules=[{}]))
    assert [each["action"] for each in rules.http] == [each["action"] for each in rules.tcp] == ["DENY", "ALLOW"]


def test_a_policy_without_rules_denies_all_and_no_policy_nothing() -> None:
    assert of_web(policy()).http == ({"action": "ALLOW", "policies": {}},)
    assert of_web().http == ()


def test_a_rule_of_http_on_tcp() -> None:
    """ALLOW: the rule goes, the policy still denies; DENY: only the field goes, so the rule widens (Istio)."""
    get = [rule({"principals": ["td/ns/a/sa/b"]}, {"methods": ["GET"], "ports": ["80"]})]
    assert of_web(policy(rules=get)).tcp == ({"action": "ALLOW", "policies": {}},)
    (deny,) = of_web(policy(action="DENY", rules=get)).tcp
    ((found,),) = [each["permissions"] for each in deny["policies"].values()]
    assert found == {"and_rules": {"rules": [{"or_rules": {"rules": [{"destination_port": 80}]}}]}}


def name_of(value: str) -> Json:
    (allow,) = of_web(policy(rules=[rule({"principals": [value]})])).http
    found: Json = next(iter(allow["policies"].values()))["principals"][0]["and_ids"]["ids"][0]["or_ids"]["ids"][0][
        "authenticated"
    ]["principal_name"]
    return found


@pytest.mark.parametrize(
    ("value", "matcher"),
    [
        ("td/ns/a/sa/b", {"exact": "spiffe://td/ns/a/sa/b"}),
        ("td/ns/a/*", {"prefix": "spiffe://td/ns/a/"}),
        ("*/sa/b.c", {"safe_regex": {"regex": r"spiffe://.*/sa/b\.c"}}),
        ("*", {"safe_regex": {"regex": "spiffe://.+"}}),
    ],
)
def test_principals(value: str, matcher: Json) -> None:
    assert name_of(value) == matcher


def test_cluster_local_is_the_meshs_own_trust_domain() -> None:
    """As Istio has it, and as the agent's own policies: a DENY rule would let pass whom it names."""
    principals = ["cluster.local/ns/a/sa/b", "cluster.local/ns/a/*", "other/ns/a/sa/b"]
    given = policy(action="DENY", rules=[rule({"principals": principals})])
    (deny,) = translate([given], "istio-system", Selected("default", {}), "td.example").http
    ids = deny["policies"]["ns[default]-policy[p]-rule[0]"]["principals"][0]["and_ids"]["ids"][0]["or_ids"]["ids"]
    assert [each["authenticated"]["principal_name"] for each in ids] == [
        {"exact": "spiffe://td.example/ns/a/sa/b"},
        {"prefix": "spiffe://cluster.local/ns/a/"},
        {"exact": "spiffe://other/ns/a/sa/b"},
    ]


@pytest.mark.parametrize(
    ("value", "matcher"),
    [
        ("/a", {"exact": "/a"}),
        ("/a*", {"prefix": "/a"}),
        ("*.html", {"suffix": ".html"}),
        ("*", {"safe_regex": {"regex": ".+"}}),
    ],
)
def test_paths(value: str, matcher: Json) -> None:
    (allow,) = of_web(policy(rules=[rule(None, {"paths": [value]})])).http
    assert next(iter(allow["policies"].values()))["permissions"][0] == {
        "and_rules": {"rules": [{"or_rules": {"rules": [{"url_path": {"path": matcher}}]}}]}
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (policy(action="AUDIT", rules=[{}]), "(default/p): spec.action: AUDIT: allowed"),
        (policy(action="CUSTOM", provider={"name": "x"}, rules=[{}]), "(default/p): spec.action: CUSTOM: allowed"),
        (policy(targetRefs=[{"kind": "Service", "group": "", "name": "web"}]), "(default/p): spec.targetRefs: allowed"),
        (policy(rules=[rule({"requestPrincipals": ["*"]})]), "spec.rules[0]: request_principals: not translated"),
        (
            policy(rules=[{}, rule({"notRemoteIpBlocks": ["10.0.0.0/8"]})]),
            "spec.rules[1]: not_remote_ip_blocks: not translated",
        ),
        (policy(rules=[rule({"serviceAccounts": ["a"]})]), "spec.rules[0]: service_accounts: not translated"),
        (policy(rules=[rule(None, {"hosts": ["a"]})]), "spec.rules[0]: hosts: not translated"),
        (policy(rules=[rule(None, {"paths": ["/a/{*}"]})]), "spec.rules[0].to: paths: templates are not translated"),
        (
            policy(rules=[{"when": [{"key": "connection.sni", "values": ["a"]}]}]),
            "spec.rules[0].when: connection.sni: not translated",
        ),
        (policy(rules="all"), "spec.rules"),
        (
            {"kind": "PeerAuthentication", "apiVersion": "security.istio.io/v1", "metadata": {"name": "p"}, "spec": {}},
            "kind: PeerAuthentication: allowed",
        ),
        ({"kind": "Pod"}, "kind"),
    ],
    ids=str,
)
def test_what_cannot_be_said_is_refused(wrong: Json, message: str) -> None:
    with pytest.raises(InjectionError) as error:
        of_web(wrong)
    assert str(error.value).startswith("values.authorizationPolicies[0]")
    assert message in str(error.value)


def test_a_policy_that_stands_twice_is_refused() -> None:
    """Rules are told apart by the policy's name: of two with the same, some would silently be lost."""
    with pytest.raises(
        InjectionError, match=r"values\.authorizationPolicies\[2\] \(default/p\): metadata\.name: allowed: another name"
    ):
        of_web(policy(rules=[rule({"principals": ["a"]})]), policy("q"), policy(action="DENY", rules=[{}]))
    of_web(policy(), policy(namespace="istio-system"), policy(namespace="elsewhere"))


def test_a_label_that_comes_later_is_refused_where_it_would_decide() -> None:
    by_name = policy(selector={"matchLabels": {"app": "web", "statefulset.kubernetes.io/pod-name": "web-0"}})
    by_zone = policy(selector={"matchLabels": {"topology.kubernetes.io/zone": "a"}})
    later = frozenset({"statefulset.kubernetes.io/pod-name"})

    def of(given: Json, **labels: str) -> Any:
        return translate([given], "istio-system", Selected("default", labels, later), "cluster.local").http

    for given in (by_name, by_zone):
        (key,) = given["spec"]["selector"]["matchLabels"].keys() - {"app"}
        with pytest.raises(InjectionError, match=r"spec\.selector\.matchLabels\[" + key.replace(".", r"\.")):
            of(given, app="web")
    assert of(by_name, app="db") == (), "whatever comes later, it is not for this one"
    assert of(by_name, app="web", **{"statefulset.kubernetes.io/pod-name": "web-0"})
    assert of(by_name, app="web", **{"statefulset.kubernetes.io/pod-name": "web-1"}) == ()
