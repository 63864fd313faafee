"""``nodeagent explain``: the steps in words, and that the verdict is the one that the proxy's own code gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nodeagent.errors import ConfigError
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.declared import HEALTH_CHECK
from nodeagent.mesh.entries import DeclaredProbe, Workload
from nodeagent.mesh.explain import Explanation, explain
from nodeagent.mesh.explain_policies import Question
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.policy.claims import Claims
from nodeagent.policy.mesh_settings import MeshSettings, ProviderNames
from nodeagent.policy.model import Jwks
from nodeagent.proxy.admission import permitted
from nodeagent.proxy.connection import Peer
from nodeagent.proxy.permit import Permit, is_probe
from nodeagent.resources.changes import Change, EnrolledChange
from nodeagent.vocabulary import PodUid
from tests.unit.mesh.test_compile import DOMAIN, pod, policy, service
from tests.unit.mesh.test_endpoint_slices import slice_of

CLIENT = "cluster.local/ns/default/sa/client"
ASKED = ProviderNames(frozenset({"opa"}))
GET_ITEMS = [
    {"from": [{"source": {"principals": [CLIENT]}}], "to": [{"operation": {"methods": ["GET"], "paths": ["/items*"]}}]}
]


def cluster(*policies: Change) -> Mesh:
    made = Mesh("node1", DOMAIN, AnnotationPlaces())
    pods = [
        pod("web", "10.0.0.1"),
        pod("client", "10.0.0.2", app="client"),
        pod("remote", "10.0.1.2", app="client", node="node2"),
        pod("bare", "10.0.1.3", app="bare", node="node2"),
        pod("far", "10.0.1.4", app="far", node="node2"),
    ]
    made.apply([*pods, service(), service("idle", "nobody", addresses=["10.96.0.8"]), *policies])
    made.apply([EnrolledChange(PodUid(f"uid-{name}"), True) for name in ("web", "client", "remote", "far")])
    return made


def asked(made: Mesh, source: str, destination: str, method: str = "", path: str = "/", **more: Any) -> Explanation:
    question = Question(source, destination, method, path, tuple(more.pop("headers", ())))
    entries = (*made.entries().upserts, *more.pop("fetched", ()))
    return explain(entries, question, node="node1", mesh=MeshSettings(DOMAIN, providers=ASKED), **more)


def words(found: Explanation, stage: str) -> str:
    return "; ".join(step.words for step in found.steps if step.stage == stage)


def allow(rules: Any = None, **spec: Any) -> Change:
    return policy("AuthorizationPolicy", {"rules": GET_ITEMS if rules is None else rules, **spec})


def strict() -> Change:
    return policy("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, name="strict", namespace="istio-system")


@pytest.mark.parametrize(
    ("source", "method", "path", "verdict"),
    [
        ("client", "GET", "/items/1", "allowed"),
        ("default/remote", "GET", "/items/1", "allowed"),
        (f"spiffe://{CLIENT}", "GET", "/items", "allowed"),
        ("client", "POST", "/items/1", "refused"),
        ("client", "GET", "/other", "refused"),
        ("bare", "GET", "/items", "refused"),
        ("-", "GET", "/items", "refused"),
        ("192.0.2.1", "GET", "/items", "refused"),
        ("client", "", "/", "unknown"),
    ],
)
def test_the_verdict(source: str, method: str, path: str, verdict: str) -> None:
    found = asked(cluster(allow()), source, "web:80", method, path)
    assert found.verdict == verdict
    assert [step.stage for step in found.steps][:3] == ["route", "mtls", "path"]
    assert found.steps[-1].stage == "verdict"


def test_the_steps_of_a_request() -> None:
    found = asked(cluster(allow(), strict()), "client", "web.default.svc.cluster.local:80", "GET", "/items/1")
    assert words(found, "route") == (
        "Service web.default.svc.cluster.local port 80 (http) is served by default/web; what follows is for "
        "default/web on node1, port 8080"
    )
    assert words(found, "mtls").startswith(
        "STRICT (by PeerAuthentication istio-system/strict): both pods are on node1: the kernel proves the client, "
    )
    assert words(found, "path") == "nodeagent.io/path is not set: auto"
    assert words(found, "policy") == "ALLOW policy default/p, rule 0: matches"
    assert words(found, "verdict").startswith("allowed: ")
    assert "default/p" in words(found, "verdict")
    assert found.to_json()["steps"][0] == {"stage": "route", "words": words(found, "route")}


@pytest.mark.parametrize(
    ("source", "mode", "said", "verdict"),
    [
        ("remote", "STRICT", "mTLS; the client's certificate proves", "allowed"),
        ("remote", "PERMISSIVE", "mTLS; the client's certificate proves", "allowed"),
        ("remote", "DISABLE", "plaintext between nodes", "allowed"),
        ("bare", "PERMISSIVE", "plaintext is taken", "allowed"),
        ("bare", "STRICT", "the client cannot prove an identity: refused", "refused"),
        ("-", "STRICT", "the client cannot prove an identity: refused", "refused"),
    ],
)
def test_modes(source: str, mode: str, said: str, verdict: str) -> None:
    found = asked(cluster(policy("PeerAuthentication", {"mtls": {"mode": mode}})), source, "web", "GET")
    assert said in words(found, "mtls")
    assert found.verdict == verdict


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_a_client_that_proves_nothing_is_denied_by_its_address_and_never_allowed_by_it(action: str) -> None:
    bare = [{"from": [{"source": {"namespaces": ["default"]}}]}]
    found = asked(cluster(policy("AuthorizationPolicy", {"action": action, "rules": bare})), "bare", "web", "GET")
    assert found.verdict == "refused"
    assert words(found, "policy").endswith("matches" if action == "DENY" else "does not match (from: namespaces)")
    assert "DENY and CUSTOM take it for cluster.local/ns/default/sa/" in words(found, "mtls")


def test_a_port_level_mode_is_named() -> None:
    spec = {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"8080": {"mode": "STRICT"}}}
    assert "portLevelMtls" in words(asked(cluster(policy("PeerAuthentication", spec)), "client", "web", "GET"), "mtls")


def test_custom_jwt_audit_and_dry_run() -> None:
    made = cluster(
        policy("AuthorizationPolicy", {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}, name="c"),
        policy(
            "AuthorizationPolicy",
            {"action": "AUDIT", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]},
            name="audit",
        ),
        policy(
            "AuthorizationPolicy", {"rules": [{"from": [{"source": {"requestPrincipals": ["me/sub"]}}]}]}, name="token"
        ),
        policy("RequestAuthentication", {"jwtRules": [{"issuer": "me"}]}, name="jwt"),
    )
    found = asked(made, "client", "web", "GET")
    assert found.verdict == "refused"
    assert "opa is asked first" in words(found, "custom")
    assert "RequestAuthentication default/jwt: a token must be valid for one of: me" in words(found, "jwt")
    assert "none is assumed" in words(found, "jwt")
    assert words(found, "audit") == "default/audit, rule 0: reported only"
    stages = [step.stage for step in found.steps]
    assert stages.index("custom") < stages.index("jwt") < stages.index("policy") < stages.index("verdict")
    taken = asked(made, "client", "web", "GET", claims=Claims("me", "sub", (), "", {"iss": "me", "sub": "sub"}))
    assert taken.verdict == "unknown", "the external authorizer has the last word"
    assert "me/sub" in words(taken, "jwt")


def test_an_external_authorizer_that_nobody_is_refuses() -> None:
    """Verdict: as the data plane: without it nothing of what the policy matches passes."""
    spec = {"action": "CUSTOM", "provider": {"name": "oba"}, "rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}
    made = cluster(policy("AuthorizationPolicy", spec))
    found = asked(made, "client", "web", "GET", "/a")
    assert found.verdict == "refused"
    assert words(found, "custom") == "no external authorizer is named 'oba' in extensionProviders of agent.yaml"
    assert words(found, "verdict").startswith("refused with 403 (external_missing)")
    assert asked(made, "client", "web", "GET", "/b").verdict == "allowed"


def test_a_key_set_that_cannot_be_fetched_is_told() -> None:
    made = cluster(policy("RequestAuthentication", {"jwtRules": [{"issuer": "me", "jwksUri": "https://k"}]}))
    found = asked(made, "client", "web", "GET", fetched=[Jwks("https://k", error="key set https://k: cannot connect")])
    assert "key set https://k: cannot connect; each of its tokens is refused" in words(found, "jwt")


SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
@pytest.mark.parametrize(
    ("source", "method", "path", "passes"),
    [
        ("bare", "GET", "/metrics", True),
        ("-", "GET", "/metrics", True),
        ("192.0.2.1", "GET", "/ready", True),
        ("bare", "GET", "/ready", False),
        ("192.0.2.1", "GET", "/metrics", True),
        ("192.0.2.1", "POST", "/ready", False),
        ("bare", "GET", "/other", False),
    ],
)
def test_what_the_pod_declares_passes_as_in_the_data_plane(
    mode: str, source: str, method: str, path: str, passes: bool
) -> None:
    """Input: a pod with a probe and metrics, a DENY of everything, and the node at 192.0.2.1. Verdict: explain's is
    that of the data plane's own function.
    """
    everything = policy("AuthorizationPolicy", {"action": "DENY", "rules": [{}]}, name="deny")
    peer = policy("PeerAuthentication", {"mtls": {"mode": mode}}, name="peer")
    made = cluster(everything, peer, pod("web", "10.0.0.1", annotations=SCRAPED))
    found = asked(made, source, "web", method, path, node_addresses=("192.0.2.1",))
    assert found.verdict == ("allowed" if passes else "refused"), found
    (server,) = (entry for entry in made.entries().upserts if isinstance(entry, Workload) and entry.pod == "web")
    permit = permitted(Peer(source, 1, "", "none", None), server, 8080, from_node=source == "192.0.2.1")
    assert isinstance(permit, Permit)
    assert is_probe(permit, method.encode(), path.encode()) == passes


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
@pytest.mark.parametrize(
    ("source", "method", "path", "passes"),
    [
        ("192.0.2.1", "POST", HEALTH_CHECK, True),
        ("bare", "POST", HEALTH_CHECK, False),
        ("192.0.2.1", "GET", HEALTH_CHECK, False),
        ("192.0.2.1", "POST", "/grpc.health.v1.Health/Watch", False),
    ],
)
def test_the_health_that_a_grpc_probe_declares_may_be_asked_for_by_the_node(
    mode: str, source: str, method: str, path: str, passes: bool
) -> None:
    """Input: a pod whose one probe is a gRPC probe, a DENY of everything, and the node at 192.0.2.1."""
    everything = policy("AuthorizationPolicy", {"action": "DENY", "rules": [{}]}, name="deny")
    peer = policy("PeerAuthentication", {"mtls": {"mode": mode}}, name="peer")
    made = cluster(everything, peer)
    (server,) = (entry for entry in made.entries().upserts if isinstance(entry, Workload) and entry.pod == "web")
    probed = replace(server, probes=(DeclaredProbe("grpc", 8080, "shop"), DeclaredProbe("grpc", 8080)))
    entries = [probed if entry is server else entry for entry in made.entries().upserts]
    found = explain(
        entries,
        Question(source, "web", method, path, ()),
        node="node1",
        mesh=MeshSettings(DOMAIN),
        node_addresses=("192.0.2.1",),
    )
    assert found.verdict == ("allowed" if passes else "refused"), found
    if passes:
        assert "for the health of shop, the server as a whole" in words(found, "verdict")


def test_a_connection_to_what_declares_a_probe_depends_on_the_request() -> None:
    found = asked(cluster(strict()), "192.0.2.1", "web", node_addresses=("192.0.2.1",))
    assert found.verdict == "unknown"
    assert words(found, "verdict").endswith("nothing passes but what is declared: http /ready")


def test_a_connection_without_request_terms_needs_no_request() -> None:
    by_client = [{"from": [{"source": {"principals": [CLIENT]}}]}]
    assert asked(cluster(allow(by_client)), "client", "web").verdict == "allowed"
    assert asked(cluster(allow(by_client)), "bare", "web").verdict == "refused"


@pytest.mark.parametrize(
    ("name", "method", "verdict", "said"),
    [
        (
            "web",
            "",
            "unknown",
            "what is not HTTP is refused (unparsed_http), as RequestAuthentication default/p decides by the request",
        ),
        ("web", "GET", "allowed", ""),
        ("grpc", "GET", "allowed", ""),
        ("grpc-web", "GET", "allowed", ""),
        ("tcp-web", "", "allowed", ""),
    ],
)
def test_what_is_not_parsed_where_requests_are_decided_on(name: str, method: str, verdict: str, said: str) -> None:
    made = cluster(policy("RequestAuthentication", {"jwtRules": [{"issuer": "me", "jwks": '{"keys":[]}'}]}))
    made.apply([service(ports=[{"name": name, "port": 80, "targetPort": 8080}])])
    found = asked(made, "client", "web:80", method)
    assert (found.verdict, said in words(found, "verdict")) == (verdict, True)


def test_what_other_nodes_decide_and_what_nothing_serves() -> None:
    found = asked(cluster(), "client", "far:8080", "GET")
    assert (found.verdict, words(found, "policy")) == (
        "unknown",
        "the policies of default/far are known on its own node: ask the agent of node2",
    )
    found = asked(cluster(), "client", "idle")
    assert (found.verdict, words(found, "route")) == (
        "refused",
        "Service idle.default.svc.cluster.local port 80 (http) has no ready endpoint: 503, flag UH",
    )
    assert "not enrolled and has no sidecar" in words(asked(cluster(), "client", "bare:80", "GET"), "mtls")


@pytest.mark.parametrize(
    "destination",
    [
        "web",
        "default/web",
        "web.default",
        "web.default.svc",
        "10.96.0.7",
        "10.96.0.7:80",
        "fd00:10:96::7",
        "[fd00:10:96::7]:80",
    ],
)
def test_names_of_a_service(destination: str) -> None:
    assert "Service web.default" in words(asked(cluster(), "client", destination, "GET"), "route")


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("nobody", "web", "SRC: 'nobody': no such pod"),
        ("client", "nothing", "DST: 'nothing': no such Service or pod"),
        ("client", "web:81", "DST: 'web:81': web.default.svc.cluster.local has no such port: allowed: 80"),
        ("client", "web:http", "DST: 'web:http': the port must be a number"),
        ("client", "default/client", "DST: 'default/client': a port is needed"),
    ],
)
def test_who_is_not_known(source: str, destination: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(cluster(), source, destination, "GET")
    assert error in str(caught.value)


def test_the_kernel_path_may_be_told() -> None:
    found = asked(
        cluster(),
        "client",
        "web",
        "GET",
        kernel_path=lambda client, server, port: f"{client and client.pod} to {server.pod}:{port} by kernel",
    )
    assert words(found, "path") == "client to web:8080 by kernel"


def test_a_service_that_is_served_outside_the_mesh_is_said_to_be() -> None:
    made = cluster(service("db", None, addresses=["10.96.0.9"]), slice_of("db-a", "192.0.2.7"))
    found = asked(made, "client", "db")
    assert found.verdict == "allowed"
    assert words(found, "route").endswith("is served outside the mesh, by 192.0.2.7:5432: passed through as it is")


REDIRECTED = {"ambient.istio.io/redirection": "enabled"}
TUNNEL = {"networking.istio.io/tunnel": "http"}


def test_hbone_is_named_where_it_is_spoken() -> None:
    made = cluster()
    made.apply([pod("ambient", "10.0.1.9", app="ambient", node="node2", annotations=REDIRECTED)])
    found = asked(made, "client", "ambient:80", hbone=True)
    assert found.verdict == "unknown"
    assert "port 15008; the client's certificate proves cluster.local/ns/default/sa/client" in words(found, "mtls")
    assert "its own mesh" in words(found, "policy")
    assert "which proxy.hbone is for" in words(asked(made, "client", "ambient:80"), "mtls")


def test_who_comes_by_hbone_has_proved_who_it_is() -> None:
    made = cluster(strict(), allow([{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/ambient"]}}]}]))
    made.apply(
        [
            pod("ambient", "10.0.1.9", app="ambient", annotations=REDIRECTED),
            pod("web", "10.0.0.1", labels=TUNNEL),
        ]
    )
    found = asked(made, "ambient", "web", "GET", hbone=True)
    assert (found.verdict, "HBONE" in words(found, "mtls")) == ("allowed", True)
    assert asked(made, "ambient", "web", "GET").verdict == "refused"


@pytest.mark.parametrize(
    ("action", "lines", "verdict"),
    [
        ("DENY", ["mallory"], "refused"),
        ("DENY", ["mallory", "bob"], "refused"),
        ("DENY", ["bob", "mallory"], "refused"),
        ("DENY", ["bob", "carol"], "allowed"),
        ("ALLOW", ["mallory"], "allowed"),
        ("ALLOW", ["mallory", "bob"], "refused"),
        ("ALLOW", ["bob", "mallory"], "refused"),
    ],
)
def test_each_line_of_a_repeated_header_counts(action: str, lines: list[str], verdict: str) -> None:
    """As in the proxy: DENY refuses where one line matches, ALLOW asks for all."""
    rule = {"when": [{"key": "request.headers[x-user]", "values": ["mallory"]}]}
    headers = [("x-user", line) for line in lines]
    made = cluster(policy("AuthorizationPolicy", {"action": action, "rules": [rule]}))
    assert asked(made, "client", "web:80", "GET", headers=headers).verdict == verdict


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ([], "allowed"),
        ([("x-forwarded-for", "203.0.113.9")], "refused"),
        ([("x-forwarded-for", "203.0.113.9, 198.51.100.1")], "allowed"),
        ([("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.9:80")], "refused"),
    ],
)
def test_the_client_is_who_x_forwarded_for_names(headers: list[tuple[str, str]], verdict: str) -> None:
    denied = [{"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24"]}}]}]
    made = cluster(policy("AuthorizationPolicy", {"action": "DENY", "rules": denied}))
    found = asked(made, "client", "web", "GET", headers=headers)
    assert found.verdict == verdict
    assert words(found, "policy").endswith("matches" if verdict == "refused" else "(from: remoteIpBlocks)")
    assert asked(made, "client", "web").verdict == "unknown", "it depends on the request"


def test_a_path_is_judged_as_it_is_forwarded() -> None:
    made = cluster(
        policy("AuthorizationPolicy", {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]})
    )
    assert asked(made, "client", "web", "GET", "/x/../a").verdict == "refused"


@pytest.mark.parametrize(
    ("source", "destination", "mode", "verdict"),
    [
        ("client", "web:80", "PERMISSIVE", "refused"),
        ("remote", "web:80", "STRICT", "refused"),
        ("remote", "web:80", "DISABLE", "allowed"),
        ("client", "10.0.0.1:8080", "PERMISSIVE", "allowed"),
        ("bare", "web:80", "PERMISSIVE", "allowed"),
    ],
)
def test_the_server_name_is_the_services(source: str, destination: str, mode: str, verdict: str) -> None:
    name = "outbound_.80_._.web.default.svc.cluster.local"
    denied = [{"when": [{"key": "connection.sni", "values": [name]}]}]
    made = cluster(
        policy("AuthorizationPolicy", {"action": "DENY", "rules": denied}),
        policy("PeerAuthentication", {"mtls": {"mode": mode}}, name="mode"),
    )
    assert asked(made, source, destination, "GET").verdict == verdict
