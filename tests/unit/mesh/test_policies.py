"""Which policies are for which pods: scopes, precedence, Services, and what ``get policies`` says of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entry_json import from_json, to_json
from nodeagent.mesh.policies import Policies
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.policy.mesh_settings import ProviderNames
from nodeagent.policy.model import AuthorizationPolicy, Jwks
from nodeagent.resources import security
from nodeagent.resources.changes import AnyChange, Change, Refused
from nodeagent.resources.objects import PodObject
from tests.unit.mesh.test_compile import DOMAIN, entry, gone, keys, mesh, namespace, pod, policy, service

ROOT = "istio-system"
WEB = {"selector": {"matchLabels": {"app": "web"}}}
YOUNG, OLD = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"


def peer(
    mode: str,
    where: str = "default",
    name: str = "p",
    *,
    created: str | None = None,
    ports: dict[str, str] | None = None,
    **spec: Any,
) -> Change:
    more = {"portLevelMtls": {port: {"mode": own} for port, own in ports.items()}} if ports else {}
    return policy(
        "PeerAuthentication", {"mtls": {"mode": mode}, **more, **spec}, name=name, namespace=where, created=created
    )


def allow(name: str = "a", where: str = "default", **spec: Any) -> Change:
    return policy("AuthorizationPolicy", {"rules": [{}], **spec}, name=name, namespace=where)


def rate_limit(name: str, spec: dict[str, Any]) -> Change:
    metadata = {"name": name, "namespace": "default"}
    document = {"apiVersion": "nodeagent.io/v1alpha1", "kind": "RateLimit", "metadata": metadata, "spec": spec}
    return Change("RateLimit", "default", name, security.parse(document))


def compiled(*changes: AnyChange, **more: Any) -> Mesh:
    made = Mesh("node1", DOMAIN, AnnotationPlaces(), **more)
    made.apply([pod("web"), *changes])
    return made


@pytest.mark.parametrize(
    ("policies", "mode", "source", "ports"),
    [
        ([], "PERMISSIVE", "", ()),
        ([peer("STRICT", ROOT)], "STRICT", "istio-system/p", ()),
        ([peer("STRICT", "other")], "PERMISSIVE", "", ()),
        ([peer("STRICT", ROOT), peer("DISABLE")], "DISABLE", "default/p", ()),
        ([peer("STRICT", ROOT), peer("UNSET")], "STRICT", "istio-system/p", ()),
        ([peer("UNSET", ROOT), peer("UNSET"), peer("UNSET", name="w", **WEB)], "PERMISSIVE", "", ()),
        ([peer("STRICT"), peer("DISABLE", name="w", **WEB)], "DISABLE", "default/w", ()),
        ([peer("STRICT"), peer("UNSET", name="w", **WEB)], "STRICT", "default/p", ()),
        (
            [peer("STRICT"), peer("DISABLE", name="w", selector={"matchLabels": {"app": "shop"}})],
            "STRICT",
            "default/p",
            (),
        ),
        (
            [peer("STRICT"), peer("DISABLE", name="w", selector={"matchLabels": {"app": "web", "tier": "x"}})],
            "STRICT",
            "default/p",
            (),
        ),
        ([peer("STRICT", name="w", ports={"8080": "DISABLE"}, **WEB)], "STRICT", "default/w", ((8080, "DISABLE"),)),
        (
            [peer("STRICT", name="w", ports={"8080": "UNSET", "81": "PERMISSIVE"}, **WEB)],
            "STRICT",
            "default/w",
            ((81, "PERMISSIVE"),),
        ),
        (
            [peer("STRICT"), peer("UNSET", name="w", ports={"8080": "UNSET", "9": "STRICT", "10": "DISABLE"}, **WEB)],
            "STRICT",
            "default/p",
            ((10, "DISABLE"),),
        ),
        ([peer("STRICT", name="y", created=YOUNG), peer("DISABLE", name="z", created=OLD)], "DISABLE", "default/z", ()),
        ([peer("STRICT", name="y", created=OLD), peer("DISABLE", name="a", created=OLD)], "DISABLE", "default/a", ()),
        ([peer("STRICT", name="y", created=OLD), peer("DISABLE", name="z")], "DISABLE", "default/z", ()),
        (
            [
                peer("STRICT", name="y", created=YOUNG, **WEB),
                peer("UNSET", name="z", created=OLD, ports={"1": "DISABLE"}, **WEB),
            ],
            "PERMISSIVE",
            "",
            ((1, "DISABLE"),),
        ),
        (
            [peer("STRICT", ROOT, name="y", created=YOUNG), peer("DISABLE", ROOT, name="z", created=OLD)],
            "DISABLE",
            "istio-system/z",
            (),
        ),
        ([peer("STRICT", ROOT, ports={"8080": "DISABLE"}, **WEB)], "PERMISSIVE", "", ()),
    ],
)
def test_precedence_of_peer_authentication(
    policies: list[Change], mode: str, source: str, ports: tuple[Any, ...]
) -> None:
    for order in (policies, policies[::-1]):
        found = entry(compiled(*order), "workload/uid-web")
        assert (found.mtls, found.mtls_from, found.port_mtls) == (mode, source, ports)


def test_the_default_and_the_root_namespace_are_settings() -> None:
    made = compiled(peer("DISABLE", "mesh"), default_mtls="STRICT", root_namespace="mesh")
    assert entry(made, "workload/uid-web").mtls == "DISABLE"
    made.apply([peer("UNSET", "mesh"), peer("PERMISSIVE", ROOT)])
    assert (entry(made, "workload/uid-web").mtls, entry(made, "workload/uid-web").mtls_from) == ("STRICT", "")


def test_pods_of_other_nodes_have_modes_but_no_policies() -> None:
    made = mesh(pod("near", "10.0.0.1"), pod("far", "10.0.0.2", node="node2"), peer("STRICT"), allow())
    assert [entry(made, f"workload/uid-{name}").mtls for name in ("near", "far")] == ["STRICT", "STRICT"]
    assert [entry(made, f"workload/uid-{name}").policies for name in ("near", "far")] == [
        ("authorization/default/a",),
        (),
    ]


@pytest.mark.parametrize(
    ("change", "applies"),
    [
        (allow(), True),
        (allow(where="other"), False),
        (allow(where=ROOT), True),
        (allow(**WEB), True),
        (allow(where=ROOT, **WEB), True),
        (allow(selector={"matchLabels": {}}), True),
        (allow(selector={"matchLabels": {"app": "shop"}}), False),
        (allow(where=ROOT, selector={"matchLabels": {"app": "shop"}}), False),
        (allow(targetRefs=[{"kind": "Service", "name": "web"}]), True),
        (allow(targetRefs=[{"group": "core", "kind": "Service", "name": "web"}]), True),
        (allow(targetRefs=[{"kind": "Service", "name": "none"}]), False),
        (allow(where="other", targetRefs=[{"kind": "Service", "name": "web"}]), False),
        (allow(targetRefs=[{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web"}]), False),
        (policy("RequestAuthentication", {"jwtRules": [{"issuer": "me"}]}), True),
        (policy("RequestAuthentication", {"targetRefs": [{"kind": "Service", "name": "web"}]}), True),
    ],
)
def test_whom_a_policy_is_for(change: Change, applies: bool) -> None:
    made = compiled(service(), change)
    key = change.object.spec.key  # type: ignore[union-attr]
    assert entry(made, "workload/uid-web").policies == ((key,) if applies else ())
    assert (entry(made, key) is not None) == applies
    delta = made.apply([gone(change)])
    assert delta.removals == ((key,) if applies else ())
    assert entry(made, "workload/uid-web").policies == ()
    assert made.policies() == []


def test_a_policy_is_told_while_a_pod_of_the_node_uses_it() -> None:
    made = mesh(allow(), pod("far", node="node2"))
    assert entry(made, "authorization/default/a") is None
    assert keys(made.apply([pod("web", "10.0.0.9")]).upserts) == ["authorization/default/a", "workload/uid-web"]
    assert keys(made.apply([allow(action="DENY")]).upserts) == ["authorization/default/a"]
    assert made.apply([allow(action="DENY")]).upserts == ()
    delta = made.apply([gone(pod("web"))])
    assert delta.removals == ("authorization/default/a", "workload/uid-web")


def test_a_service_that_changes_its_pods_takes_its_policies_along() -> None:
    made = mesh(
        pod("web", "10.0.0.1"),
        pod("shop", "10.0.0.2", app="shop"),
        allow(targetRefs=[{"kind": "Service", "name": "web"}]),
    )
    used = lambda: [name for name in ("web", "shop") if entry(made, f"workload/uid-{name}").policies]  # noqa: E731
    assert used() == []
    made.apply([service()])
    assert used() == ["web"]
    made.apply([service(app="shop")])
    assert used() == ["shop"]
    assert made.apply([gone(service())]).removals == ("authorization/default/a", "service/default/web")
    assert used() == []


def test_pods_on_the_nodes_network_are_not_governed() -> None:
    made = mesh(pod("agent", "172.18.0.11", host_network=True), allow())
    assert entry(made, "workload/uid-agent").policies == ()


def test_path_bypass_and_sidecar() -> None:
    made = mesh(
        namespace("default", **{"nodeagent.io/path": "proxy"}),
        pod("plain", "10.0.0.1"),
        pod("own", "10.0.0.2", annotations={"nodeagent.io/path": "kernel", "nodeagent.io/bypass": "enabled"}),
        pod("wrong", "10.0.0.3", annotations={"nodeagent.io/path": "fast", "nodeagent.io/bypass": "yes"}),
        pod("car", "10.0.0.4", annotations={"sidecar.istio.io/status": "{}"}),
        pod("car2", "10.0.0.5", labels={"security.istio.io/tlsMode": "istio"}),
        service(annotations={"nodeagent.io/path": "kernel"}),
    )
    found = {name: entry(made, f"workload/uid-{name}") for name in ("plain", "own", "wrong", "car", "car2")}
    assert {name: each.path for name, each in found.items()} == {
        "plain": "proxy",
        "own": "kernel",
        "wrong": "proxy",
        "car": "proxy",
        "car2": "proxy",
    }
    assert [name for name, each in found.items() if each.bypass] == ["own"]
    assert [name for name, each in found.items() if each.sidecar] == ["car", "car2"]
    assert entry(made, "service/default/web").path == "kernel"
    faults = {local.pod: local.faults for local in made.local_pods()}
    assert faults["wrong"] == (
        "metadata.annotations[nodeagent.io/path]: 'fast': auto, kernel, proxy are allowed; it has no effect",
        "metadata.annotations[nodeagent.io/bypass]: 'yes': enabled, disabled are allowed; it has no effect",
    )
    assert faults["plain"] == ()
    made.apply([namespace("default", **{"nodeagent.io/path": "x"}), service(annotations={"nodeagent.io/path": "y"})])
    assert {local.pod: local.faults for local in made.local_pods()}["plain"] == (
        (
            "Namespace default: metadata.annotations[nodeagent.io/path]: 'x': auto, kernel, proxy are allowed; "
            "it has no effect"
        ),
        "Service web: metadata.annotations[nodeagent.io/path]: 'y': auto, kernel, proxy are allowed; it has no effect",
    )
    assert entry(made, "workload/uid-plain").path == "auto"
    made.apply([gone(namespace("default")), gone(service())])
    assert {local.pod: local.faults for local in made.local_pods()}["plain"] == ()


def test_policies_survive_the_channel() -> None:
    rules = [
        {
            "from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"ports": ["80"]}}],
            "when": [{"key": "source.ip", "values": ["::1"]}],
        }
    ]
    jwt = {
        "jwtRules": [
            {"issuer": "i", "fromHeaders": [{"name": "x"}], "outputClaimToHeaders": [{"header": "h", "claim": "c"}]}
        ]
    }
    made = compiled(allow(rules=rules), policy("RequestAuthentication", jwt))
    entries = made.entries().upserts
    assert len(entries) == 3
    for found in entries:
        assert from_json(to_json(found)) == found


def test_rows() -> None:
    made = mesh(
        pod("web", "10.0.0.1"),
        pod("far", "10.0.0.2", node="node2"),
        replace(allow("custom", action="CUSTOM", provider={"name": "opa"}, **WEB), file="/etc/a.yaml"),
        allow("else", where="other"),
        allow("gate", targetRefs=[{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]),
        peer("STRICT", name="first", created=OLD, ports={"8080": "DISABLE"}, **WEB),
        peer("STRICT", name="second", created=YOUNG, **WEB),
        peer("STRICT", ROOT, name="odd", **WEB),
        policy("RequestAuthentication", {"jwtRules": [{"issuer": "me"}]}, namespace=ROOT, file="/etc/p.yaml"),
    )
    refused = (
        Refused("AuthorizationPolicy", "default", "custom", "/etc/a.yaml", "document 1: spec.x", True),
        Refused("AuthorizationPolicy", "default", "new", "/etc/a.yaml", "document 2: spec.y", False),
        Refused("", "", "", "/etc/b.yaml", "document 1: not YAML", True),
    )
    rows = {(row["kind"], row["policy"]): row for row in made.policies(refused)}
    said = {
        policy: (row["action"], row["selector"], row["scope"], row["pods"], row["state"], row["file"])
        for (_, policy), row in rows.items()
    }
    assert said == {
        "default/custom": (
            "CUSTOM opa",
            "app=web",
            "workload",
            1,
            "last good one in force; refused: document 1: spec.x",
            "/etc/a.yaml",
        ),
        "other/else": ("ALLOW", "", "namespace", 0, "no effect: no pod of this node is meant", ""),
        "default/gate": (
            "ALLOW",
            "Gateway/g",
            "workload",
            0,
            "no effect: targetRefs: Gateway/g: only a Service is served here",
            "",
        ),
        "default/first": ("STRICT 8080:DISABLE", "app=web", "workload", 1, "in force", ""),
        "default/second": (
            "STRICT",
            "app=web",
            "workload",
            1,
            "no effect: the older default/first has the same scope",
            "",
        ),
        "istio-system/odd": (
            "STRICT",
            "app=web",
            "workload",
            1,
            "no effect: a PeerAuthentication of the root namespace with a selector is ignored, as in Istio",
            "",
        ),
        "istio-system/p": ("JWT me", "", "mesh", 1, "in force", "/etc/p.yaml"),
        "default/new": ("", "", "", 0, "refused: document 2: spec.y", "/etc/a.yaml"),
        "": ("", "", "", 0, "refused: document 1: not YAML; what it held stays in force", "/etc/b.yaml"),
    }
    assert isinstance(entry(made, "authorization/default/custom"), AuthorizationPolicy)


def test_a_changed_policy_recompiles_only_whom_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mesh(
        *(pod(f"p{number}", f"10.0.0.{number}", app=f"app{number % 10}") for number in range(1, 101)),
        allow(selector={"matchLabels": {"app": "app5"}}),
    )
    seen: list[Any] = []
    original = Mesh._governed
    monkeypatch.setattr(
        Mesh, "_governed", lambda self, key, workload: (seen.append(key), original(self, key, workload))[1]
    )
    monkeypatch.setattr(Mesh, "_workload", None)
    made.apply([allow(selector={"matchLabels": {"app": "app6"}})])
    assert sorted(seen) == sorted(("default", f"p{number}") for number in range(1, 101) if number % 10 in (5, 6))


def test_a_pod_whose_policies_cannot_be_worked_out_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a change of policy for two pods, at one of which the compiler fails. Verdict: the
    other has it; the fault is told while it lasts.
    """
    made = compiled(pod("shop", "10.244.1.6"))
    original = Mesh._governed

    def governed(self: Mesh, key: tuple[str, str], workload: Any) -> Any:
        if key == ("default", "shop"):
            raise IndexError("a mistake of ours")
        return original(self, key, workload)

    monkeypatch.setattr(Mesh, "_governed", governed)
    for mode in ("STRICT", "DISABLE"):
        made.apply([peer(mode)])
        assert [entry(made, f"workload/uid-{name}").mtls for name in ("web", "shop")] == [mode, "PERMISSIVE"]
        assert made.faults == {"the policies of Pod default/shop": "IndexError: 'a mistake of ours'"}
    made.apply([gone(pod("shop"))])
    assert made.faults == {}


def test_a_change_of_policy_that_fails_is_not_called_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: taking in another version of a policy fails, as nobody foresaw. Verdict: its row says
    so, until it is told anew.
    """
    made = compiled(peer("STRICT"))

    def failing(*_: object) -> None:
        raise IndexError("a mistake of ours")

    monkeypatch.setattr(Policies, "put", failing)
    made.apply([peer("DISABLE")])
    words = "its last change could not be taken in (IndexError: 'a mistake of ours'); before it: in force"
    assert [row["state"] for row in made.policies()] == [words]
    monkeypatch.undo()
    made.apply([peer("DISABLE")])
    assert [row["state"] for row in made.policies()] == ["in force"]


def test_a_policy_counts_the_pods_that_it_decides_about() -> None:
    """Input: two PeerAuthentications whose different selectors share pods. Verdict: the older one has them, as in
    Istio, and the younger one's row says so.
    """
    older = peer("PERMISSIVE", name="a", created=OLD, **WEB)
    younger = peer("STRICT", name="b", created=YOUNG, selector={"matchLabels": {"version": "v1"}})
    labels = {"app": "web", "version": "v1"}
    made = compiled(older, younger)
    made.apply([pod("web", labels=labels)])
    first, second = made.policies()
    assert (first["pods"], first["state"]) == (1, "in force")
    assert (second["pods"], second["state"]) == (
        0,
        "no effect: the older default/a decides about all pods of this node that it selects",
    )
    made.apply([pod("other", "10.0.0.9", labels={"app": "other", "version": "v1"})])
    _, second = made.policies()
    assert (second["pods"], second["state"]) == (1, "in force; about 1 more pods the older default/a decides")


OCT = {"kty": "oct", "alg": "HS256", "k": "c2VjcmV0"}
EC = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}


@pytest.mark.parametrize(
    ("sets", "useless"),
    [
        ([[OCT]], "spec.jwtRules[0].jwks"),
        ([[]], "spec.jwtRules[0].jwks"),
        ([[EC], [OCT], [{**EC, "use": "enc"}]], "spec.jwtRules[1].jwks, spec.jwtRules[2].jwks"),
        (
            [[{**EC, "x": "AA"}], [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]],
            "spec.jwtRules[0].jwks, spec.jwtRules[1].jwks",
        ),
        ([[OCT, EC]], ""),
        ([None], ""),
    ],
)
def test_a_key_set_that_can_verify_nothing_is_told(sets: list[Any], useless: str) -> None:
    rules = [
        {"issuer": f"i{at}", **({"jwks": json.dumps({"keys": keys})} if keys is not None else {})}
        for at, keys in enumerate(sets)
    ]
    (row,) = compiled(policy("RequestAuthentication", {"jwtRules": rules})).policies()
    told = f"; {useless}: no key can verify a token (kty RSA, EC or OKP can): each is refused" if useless else ""
    assert row["state"] == f"in force{told}"


def test_the_targets_that_nobody_serves_are_told_beside_those_that_are() -> None:
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}
    made = compiled(service(), allow(targetRefs=[{"kind": "Service", "name": "web"}, gateway]))
    (row,) = made.policies()
    assert (row["pods"], row["state"]) == (1, "in force; targetRefs: Gateway/g: only a Service is served here")


@pytest.mark.parametrize(
    ("rules", "aliases", "said"),
    [
        ([{"from": [{"source": {"principals": ["old/ns/a/sa/b", "cluster.local/ns/a/sa/b"]}}]}], (), "old/ns/a/sa/b"),
        ([{"from": [{"source": {"notPrincipals": ["old/ns/a/sa/b"]}}]}], (), "old/ns/a/sa/b"),
        ([{"when": [{"key": "source.principal", "values": ["old/ns/a/sa/b"]}]}], (), "old/ns/a/sa/b"),
        ([{"from": [{"source": {"principals": ["old/ns/a/sa/b"]}}]}], ("old",), ""),
        ([{"from": [{"source": {"principals": ["*/ns/a/sa/b", "*/sa/b", "old/ns/*", "*"]}}]}], (), ""),
        ([{"when": [{"key": "request.auth.principal", "values": ["old/ns/a/sa/b"]}]}], (), ""),
    ],
)
def test_principals_of_no_trust_domain_of_the_mesh_are_told(rules: Any, aliases: tuple[str, ...], said: str) -> None:
    made = compiled(pod("web"), allow(rules=rules), aliases=aliases)
    (row,) = made.policies()
    why = f"of no trust domain of this mesh ({DOMAIN}: see identity.trustDomainAliases), so nobody's"
    assert row["state"] == (f"in force; {said}: {why}" if said else "in force")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"from": [{"source": {"principals": ["spiffe://cluster.local/ns/a/sa/b"]}}]},
            "spiffe://cluster.local/ns/a/sa/b: written without spiffe://, so nobody's",
        ),
        (
            {"from": [{"source": {"principals": ["cluster.local/ns/*/sa/b"]}}]},
            "cluster.local/ns/*/sa/b: a star is any text at the beginning or the end alone",
        ),
        (
            {"to": [{"operation": {"methods": ["get", "Post", "GET", "purge", "*"]}}]},
            "Post, get: methods are compared with their case, so no request has it",
        ),
        (
            {"to": [{"operation": {"notMethods": ["get"]}}]},
            "get: methods are compared with their case, so no request has it",
        ),
        (
            {"to": [{"operation": {"paths": ["/a/*/b", "/a/{*}/b", "/a/*", "*.css", "*"]}}]},
            "/a/*/b: a star amid stands for itself ({*} is any segment, {**} any number of them)",
        ),
        (
            {"to": [{"operation": {"paths": ["info", "/info"]}}]},
            "info: a path begins with /, so no request has it",
        ),
        (
            {"to": [{"operation": {"paths": ["/info?x=1"]}}]},
            "/info?x=1: paths are compared without a query, so no request has it",
        ),
        (
            {"to": [{"operation": {"hosts": ["a.*.com", "*.com"]}}]},
            "a.*.com: a star is any text at the beginning or the end alone",
        ),
        (
            {"to": [{"operation": {"ports": ["80", "8080"]}}]},
            "ports: 80: no port of a pod of this node that it selects (Service web's 80 is 8080 there)",
        ),
        (
            {"when": [{"key": "destination.port", "values": ["9999"]}]},
            "ports: 9999: no port of a pod of this node that it selects",
        ),
        ({"from": [{"source": {"namespaces": ["a*b"]}}], "to": [{"operation": {"methods": ["M-SEARCH"]}}]}, ""),
    ],
)
def test_what_nothing_can_match_is_told(rule: Any, said: str) -> None:
    """Input: a policy that is right by its form. Verdict: in force as Istio has it, and its row names the value."""
    (row,) = compiled(service(ports=[{"name": "http", "port": 80, "targetPort": 8080}]), allow(rules=[rule])).policies()
    assert row["state"] == (f"in force; {said}" if said else "in force")


def test_a_port_level_mode_of_a_port_that_no_pod_has_is_told() -> None:
    ports = {"80": "DISABLE", "8080": "STRICT"}
    (row,) = compiled(service(), peer("STRICT", ports=ports, **WEB)).policies()
    told = "no port of a pod of this node that it selects (Service web's 80 is 8080 there)"
    assert row["state"] == f"in force; ports: 80: {told}"


def test_a_port_of_a_pod_that_says_nothing_of_its_ports_is_not_doubted() -> None:
    silent = pod("web")
    assert isinstance(silent.object, PodObject)
    silent = replace(silent, object=replace(silent.object, containers=()))
    made = compiled(silent, allow(rules=[{"to": [{"operation": {"ports": ["80"]}}]}]))
    assert [row["state"] for row in made.policies()] == ["in force"]


def test_each_of_several_documents_with_one_name_has_a_row() -> None:
    """Input: one in force, three that stand elsewhere, one that is wrong elsewhere. Verdict: none is hidden."""
    made = compiled(replace(allow("one"), file="/etc/a.yaml"))
    whose = ("AuthorizationPolicy", "default", "one")
    why = "metadata.name: 'one': stands in /etc/a.yaml too, and that one is in force"
    refused = [Refused(*whose, f"/etc/{at}.yaml", why, False, displaced=True) for at in "bcd"]
    refused.append(Refused(*whose, "/etc/e.yaml", "document 1: spec.x", False))
    rows = [(row["policy"], row["state"], row["file"]) for row in made.policies(refused)]
    assert rows == [
        ("default/one", "in force", "/etc/a.yaml"),
        *(("default/one", f"refused: {why}", f"/etc/{at}.yaml") for at in "bcd"),
        ("default/one", "refused: document 1: spec.x", "/etc/e.yaml"),
    ]


def calls_of_the_page(count: int) -> int:
    """Return how many functions a page of *count* policies each of ports and of modes calls, and of refused ones."""
    at_port = [{"to": [{"operation": {"ports": ["9999"]}}]}]
    made = compiled(service(ports=[{"name": "http", "port": 9999, "targetPort": 8080}]))
    made.apply(allow(f"p{at}", rules=at_port) for at in range(count))
    made.apply(peer("STRICT", name=f"m{at}", **WEB) for at in range(count))
    made.apply(peer("STRICT", name=f"n{at}", selector={"matchLabels": {"n": str(at)}}) for at in range(count))
    refused = [Refused("AuthorizationPolicy", "default", f"r{at}", "f", "wrong", False) for at in range(count)]
    called: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, what: called.update([event]))
    try:
        rows = made.policies(refused)
    finally:
        sys.setprofile(None)
    assert len(rows) == 4 * count
    return called["call"]


def test_the_page_of_policies_costs_what_there_is_not_its_square() -> None:
    """Verdict: twice as many of all have it call twice as many functions; control does nothing else meanwhile."""
    assert calls_of_the_page(400) < 2.5 * calls_of_the_page(200)


def test_whom_a_policy_asks_and_who_cannot_answer_is_told() -> None:
    """Input: authorizers, limiters and servers of keys, some of them not there. Verdict: rows and readiness say so."""
    asked = {"domain": "d", "descriptors": [{"entries": [{"key": "k", "value": "v"}]}]}
    made = compiled(
        allow("there", action="CUSTOM", provider={"name": "opa"}),
        allow("typo", action="CUSTOM", provider={"name": "oba"}),
        allow("nobodys", where="other", action="CUSTOM", provider={"name": "oba"}),
        rate_limit("limit", {"global": {"provider": "opa", **asked}}),
        policy("RequestAuthentication", {"jwtRules": [{"issuer": "i", "jwksUri": "https://k"}]}, name="keys"),
        providers=ProviderNames(frozenset({"opa"}), frozenset({"limits"})),
    )
    known = {entry.key: entry for entry in (Jwks("https://k", error="key set https://k: cannot connect"),)}
    said = {str(row["policy"]): row["state"] for row in made.policies((), known.get)}
    typo = "no external authorizer is named 'oba' in extensionProviders of agent.yaml"
    limit = "no rateLimitGrpc provider is named 'opa' in extensionProviders of agent.yaml: failureMode decides"
    keys = "key set https://k: cannot connect; each of its tokens is refused"
    assert said == {
        "default/there": "in force",
        "default/typo": f"in force; {typo}",
        "other/nobodys": "no effect: no pod of this node is meant",
        "default/limit": f"in force; {limit}",
        "default/keys": f"in force; {keys}",
    }
    assert made.unanswered(known.get) == [
        f"AuthorizationPolicy default/typo: {typo}",
        f"RateLimit default/limit: {limit}",
        f"RequestAuthentication default/keys: {keys}",
    ]
    kept = Jwks("https://k", "{}", "key set https://k: cannot connect")
    assert made.unanswered({kept.key: kept}.get)[-1].endswith("cannot connect; the last good keys stay in force")
