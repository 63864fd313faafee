"""Istio's security resources in a cluster: who comes in is what the YAML says, at once when it
changes, and every way round is closed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.lab.processes import inside
from nodeagent.places.annotation import CGROUP
from tests.netns.world import (
    QUICK,
    about,
    access_log,
    account,
    admin,
    ask,
    bracketed,
    client,
    client_in,
    cluster,
    cluster_ip,
    curl,
    growth,
    pod,
    pod_row,
    server,
)
from tests.unit.policy.jwt_issuer import ISSUER, key_set, token
from tests.waiting import eventually

PRINCIPAL = "cluster.local/ns/default/sa/client"
SERVERS = ("local", "remote")
TEXT = "".join(
    (
        account("client", "other", "server"),
        client("client", "node1", account="client"),
        client("other", "node1", account="other"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        *(
            server(name, node, account="server", labels="role: server")
            for name, node in zip(SERVERS, ("node1", "node2"), strict=True)
        ),
    )
)


class Policies:
    """The folder of YAML that both agents watch."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder

    def put(self, name: str, text: str) -> None:
        staged = self.folder / f".{name}"
        staged.write_text(text)
        staged.rename(self.folder / f"{name}.yaml")

    def drop(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink()

    def rows(self, node: str = "node1") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = admin(self.lab, node, "/policies")
        return rows


def policy(name: str, spec: str, *, kind: str = "AuthorizationPolicy", annotations: str = "") -> str:
    version = "nodeagent.io/v1alpha1" if kind == "RateLimit" else "security.istio.io/v1"
    return (
        f"---\napiVersion: {version}\nkind: {kind}\nmetadata: "
        f"{{name: {name}, namespace: default, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    with cluster("t-policy", TEXT, agent=merge(QUICK, {"resources": [str(folder)]})) as lab:
        yield Policies(lab, folder)


@pytest.fixture
def put(policies: Policies) -> Iterator[Callable[..., None]]:
    """Put documents in force until the test ends; return once both agents have taken them in."""

    def apply(*documents: str) -> None:
        policies.put("test", "".join(documents))
        wanted = len(documents)
        for node in ("node1", "node2"):
            eventually(lambda node=node: len(policies.rows(node)) >= wanted, f"{wanted} policies on {node}")

    yield apply
    if (policies.folder / "test.yaml").exists():
        policies.drop("test")
    for node in ("node1", "node2"):
        eventually(lambda node=node: not policies.rows(node), f"no policies on {node}")
    lab = policies.lab
    eventually(
        lambda: all(status(lab, "other", f"http://{cluster_ip(lab, name)}/about") == 200 for name in SERVERS),
        "everything is open again",
    )


def status(lab: Lab, source: str, url: str, *arguments: str) -> int:
    """Return the status that *source* gets for *url*; 0: the connection was cut."""
    done = curl(lab, source, "-o", "/dev/null", "-w", "%{http_code}", *arguments, url)
    assert done.returncode in (0, 52, 56), done
    return int(done.stdout[-3:])


def test_by_principal_on_both_paths_and_families(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(
        policy(
            "only",
            f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}",  # noqa: E501
        )
    )
    for name in SERVERS:
        for version in (4, 6):
            url = f"http://{bracketed(cluster_ip(lab, name, version))}/about"
            eventually(lambda url=url: status(lab, "other", url) == 403, f"other is refused at {url}")
            assert status(lab, "client", url) == 200
            assert curl(lab, "other", url).stdout == "RBAC: access denied"
        assert status(lab, "plain", f"http://{lab.address(name)}:8080/about") == 403, (
            "a plaintext peer has no principal"
        )
        assert status(lab, "node1", f"http://{lab.address(name)}:8080/about") == 403
        got = ask(lab, "other", "dial", cluster_ip(lab, name), 9001, "--send", "1 10 10\n0123456789")
        assert got["received"] == ""
        assert (
            ask(lab, "client", "duplex", cluster_ip(lab, name), 9001, "--send-bytes", 1000, "--receive-bytes", 1000)[
                "ok"
            ]
            == 1
        )


@pytest.mark.parametrize(
    "path", ["/echo", "/./echo", "/x/../echo", "/%65cho", "/about/%2e%2e/echo", "/about/..\\echo", "/echo?x=/about"]
)
def test_no_spelling_of_a_path_gets_round(policies: Policies, put: Callable[..., None], path: str) -> None:
    lab = policies.lab
    put(
        policy(
            "echo",
            "{selector: {matchLabels: {role: server}}, action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}",
        )
    )
    log = access_log(lab)
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}"
        eventually(lambda url=url: status(lab, "client", f"{url}/echo") == 403, "it is in force")
        assert status(lab, "client", f"{url}{path}", "--path-as-is") == 403
        assert status(lab, "client", f"{url}/about") == 200
    log.find(code="403", details="rbac_access_denied_matched_policy[ns[default]-policy[echo]-rule[0]]")


def test_counted_by_policy(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(
        policy(
            "post",
            "{selector: {matchLabels: {app: local}}, action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}",
        )
    )
    url = f"http://{cluster_ip(lab, 'local')}/about"
    eventually(lambda: status(lab, "client", url, "-d", "x") == 403, "it is in force")
    counted = growth(lab)
    assert [status(lab, "client", url, "-d", "x") for _ in range(3)] == [403] * 3
    counted.comes_to(3, "nodeagent_policy_events_total", policy="default/post", event="deny")
    counted.comes_to(3, "istio_requests_total", reporter="destination", response_code="403")


def test_a_change_cuts_what_is_open(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    for name in SERVERS:
        with client_in(lab, "client", "hold", cluster_ip(lab, name), 9000, "--connections", 2) as kept:
            with client_in(lab, "other", "hold", cluster_ip(lab, name), 9000, "--connections", 2) as cut:
                put(
                    policy(
                        "only",
                        f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}",  # noqa: E501
                    )
                )
                eventually(
                    lambda cut=cut: cut.say() == {"ok": 0, "bad": ["ECONNRESET"]}, "what is refused now is closed"
                )
            assert kept.say() == {"ok": 2, "bad": []}
        policies.drop("test")
        eventually(lambda name=name: status(lab, "other", f"http://{cluster_ip(lab, name)}/about") == 200, "open again")


def test_dry_run_reports_and_does_nothing(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    counted = growth(lab)
    put(
        policy(
            "dry",
            "{selector: {matchLabels: {app: local}}, action: DENY, rules: [{}]}",
            annotations='istio.io/dry-run: "true"',
        )
    )
    url = f"http://{cluster_ip(lab, 'local')}/about"
    eventually(
        lambda: (
            status(lab, "client", url) == 200 and counted.of("nodeagent_policy_events_total", event="dry_run_deny") > 0
        ),
        "it is reported",
    )


def test_peer_authentication_by_namespace_workload_and_port(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(
        policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication"),
        policy(
            "port",
            "{selector: {matchLabels: {app: remote}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
            kind="PeerAuthentication",
        ),
    )
    eventually(lambda: status(lab, "plain", f"http://{lab.address('local')}:8080/about") == 0, "plaintext is refused")
    eventually(lambda: pod_row(lab, "remote")["mode"] == "STRICT", "the mode is told")
    assert status(lab, "plain", f"http://{lab.address('remote')}:8080/about") == 200, "the port is open"
    assert ask(lab, "plain", "dial", lab.address("remote"), 9001, "--send", "1 10 10\n0123456789")["received"] == ""
    for name in SERVERS:
        assert about(lab, "client", f"http://{cluster_ip(lab, name)}")["pod"] == name
        assert (
            ask(lab, "client", "duplex", cluster_ip(lab, name), 9001, "--send-bytes", 1000, "--receive-bytes", 1000)[
                "ok"
            ]
            == 1
        )


def test_disabled_mtls_is_plaintext_on_the_wire(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(policy("without", "{selector: {matchLabels: {app: remote}}, mtls: {mode: DISABLE}}", kind="PeerAuthentication"))
    counted = growth(lab, "node2")
    url = f"http://{cluster_ip(lab, 'remote')}/about"
    wanted = {"reporter": "destination", "connection_security_policy": "none"}
    eventually(
        lambda: status(lab, "client", url) == 200 and counted.of("istio_requests_total", **wanted) > 0, "plaintext"
    )


def test_a_rate_limit_by_pod(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    spec = (
        "{selector: {matchLabels: {role: server}}, local: [{by: [pod], tokenBucket: {maxTokens: 3, "
        "tokensPerFill: 1, fillInterval: 1h}}]}"
    )
    put(policy("slow", spec, kind="RateLimit"))
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}/about"
        eventually(lambda url=url: status(lab, "client", url) == 429, "used up")
        assert [status(lab, "other", url) for _ in range(4)] == [200, 200, 200, 429]
        assert "x-ratelimit-limit: 3" in curl(lab, "client", "-D", "-", url).stdout.lower()


def test_a_bad_document_changes_nothing_and_is_named(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    good = policy(
        "only",
        "{selector: {matchLabels: {role: server}}, action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}",
    )
    put(good)
    url = f"http://{cluster_ip(lab, 'local')}"
    eventually(lambda: status(lab, "client", f"{url}/echo") == 403, "in force")
    policies.put("test", good.replace("DENY", "FORBID"))
    refused = eventually(
        lambda: next((row for row in policies.rows() if "FORBID" in json.dumps(row)), None), "the error is listed"
    )
    assert "spec.action" in json.dumps(refused)
    assert status(lab, "client", f"{url}/echo") == 403, "the last good one stays"
    assert status(lab, "client", f"{url}/about") == 200


def test_under_strict_nothing_can_be_read_between_the_nodes(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication"))
    eventually(lambda: status(lab, "plain", f"http://{lab.address('remote')}:8080/about") == 0, "in force")
    tcpdump = ["tcpdump", "-i", "eth0", "-U", "-w", "-", "-Z", "root", "--immediate-mode", "tcp"]
    with subprocess.Popen(
        inside(lab.netns("remote"), tcpdump), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as capture:
        assert capture.stderr is not None
        assert b"listening" in capture.stderr.readline()
        for version in (4, 6):
            host = bracketed(cluster_ip(lab, "remote", version))
            assert status(lab, "client", f"http://{host}/about", "-H", "x-secret: open-sesame") == 200
            assert (
                ask(
                    lab,
                    "client",
                    "duplex",
                    cluster_ip(lab, "remote", version),
                    9001,
                    "--send-bytes",
                    1000,
                    "--receive-bytes",
                    1000,
                )["ok"]
                == 1
            )
        capture.terminate()
        seen, _ = capture.communicate(timeout=60)
    assert len(seen) > 4000
    for word in (b"open-sesame", b"GET /about", b"HTTP/1.1 200"):
        assert word not in seen


@pytest.mark.parametrize("port", [15001, 15006])
def test_a_pod_that_dials_the_listeners_itself_gets_nowhere(policies: Policies, port: int) -> None:
    lab = policies.lab
    for host in ("127.0.0.1", "[::1]", lab.address("local"), lab.address("client")):
        done = curl(lab, "client", f"http://{host}:{port}/about")
        assert '"pod"' not in done.stdout, done


def test_a_network_namespace_of_its_own_does_not_hide_a_pod(policies: Policies, put: Callable[..., None]) -> None:
    """What a pod runs elsewhere is nobody: it reaches nothing that asks for a principal."""
    lab = policies.lab
    put(
        policy(
            "only",
            f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}",  # noqa: E501
        )
    )
    url = f"http://{lab.address('local')}:8080/about"
    eventually(lambda: status(lab, "other", url) == 403, "in force")
    join = f'echo $$ > {lab.pod("client")["metadata"]["annotations"][CGROUP]}/c/cgroup.procs && exec "$@"'
    done = lab.exec(
        "node1",
        ["sh", "-c", join, "sh", "nsenter", f"--net={lab.netns('plain')}", "curl", "-sS", "--max-time", "60", url],
    )
    assert done.stdout == "RBAC: access denied", done


def test_explain_says_which_rule_decides(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    put(
        policy(
            "only",
            f"{{selector: {{matchLabels: {{role: server}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}",  # noqa: E501
        )
    )
    eventually(lambda: status(lab, "other", f"http://{cluster_ip(lab, 'local')}/about") == 403, "in force")
    allowed = admin(lab, "node1", "/explain?source=default/client&destination=default/local:80&method=GET&path=/about")
    denied = admin(lab, "node1", "/explain?source=default/other&destination=default/local:80&method=GET&path=/about")
    assert allowed["verdict"] == "allowed"
    assert "default/only" in json.dumps(allowed)
    assert denied["verdict"] == "refused"


# -- with others' help: these run in a lab of their own, whose agents know the providers --

FAKES = Path(__file__).resolve().parent.parent / "fakes"


def provider(name: str, *arguments: str) -> str:
    """Return the YAML of a pod that runs the program *name* of tests/fakes, and of its Service."""
    command = json.dumps(
        [sys.executable, str(FAKES / f"{name}.py"), "--port", "9100", "--address", "0.0.0.0", *arguments]
    )
    ready = "readinessProbe: {tcpSocket: {port: 9100}, periodSeconds: 1}"
    own = name.replace("_", "-")
    spec = f"{{selector: {{app: {own}}}, ports: [{{name: grpc, port: 9100}}]}}"
    return (
        pod(own, "node1", command=command, container=ready)
        + f"\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {own}}}\nspec: {spec}\n"
    )


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    known = [
        {
            "name": "authz",
            "envoyExtAuthzGrpc": {"service": "ext-authz.default.svc.cluster.local", "port": 9100, "timeout": "5s"},
        },
        {
            "name": "bodies",
            "envoyExtAuthzGrpc": {
                "service": "ext-authz",
                "port": 9100,
                "includeRequestBodyInCheck": {"maxRequestBytes": 4096},
            },
        },
        {
            "name": "gone",
            "envoyExtAuthzGrpc": {"service": "nowhere.default.svc.cluster.local", "port": 9100, "timeout": "1s"},
        },
        {
            "name": "limits",
            "rateLimitGrpc": {"service": "rate-limit.default.svc.cluster.local", "port": 9100, "timeout": "5s"},
        },
    ]
    text = TEXT + provider("ext_authz", "--tcp", "deny") + provider("rate_limit", "--limit", "3")
    with cluster(
        "t-providers", text, agent=merge(QUICK, {"resources": [str(folder)], "extensionProviders": known})
    ) as lab:
        yield Policies(lab, folder)


def test_an_external_authorizer_decides(providers: Policies) -> None:
    lab = providers.lab
    providers.put(
        "test",
        policy("ask", "{selector: {matchLabels: {app: local}}, action: CUSTOM, provider: {name: authz}, rules: [{}]}"),
    )
    url = f"http://{cluster_ip(lab, 'local')}"
    eventually(lambda: status(lab, "client", f"{url}/about") == 403, "it is asked and says no")
    log = access_log(lab)
    assert status(lab, "client", f"{url}/about", "-H", "x-ext-authz: allow") == 200
    assert status(lab, "client", f"{url}/about") == 403
    assert log.find(code="403")["flags"] == "UAEX"
    done = curl(lab, "client", "-H", "x-ext-authz: allow", "--data-binary", "@-", f"{url}/echo", input="x" * 300_000)
    assert done.stdout == "x" * 300_000, "a body waits for the verdict"
    assert ask(lab, "client", "dial", cluster_ip(lab, "local"), 9001, "--send", "1 10 10\n0123456789")["received"] == ""


def test_an_authorizer_decides_by_the_body(providers: Policies) -> None:
    lab = providers.lab
    providers.put(
        "test",
        policy(
            "ask", "{selector: {matchLabels: {role: server}}, action: CUSTOM, provider: {name: bodies}, rules: [{}]}"
        ),
    )
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}/echo"
        eventually(lambda url=url: status(lab, "client", url) == 403, "it is asked and says no")
        for more in ((), ("-H", "transfer-encoding: chunked"), ("-H", "expect: 100-continue")):
            assert curl(lab, "client", "--data-binary", "allow", *more, url).stdout == "allow"
            assert status(lab, "client", url, "-d", "deny", *more) == 403
            assert status(lab, "client", url, "-d", "x" * 5000, *more) == 413


def test_a_strict_authorizer_is_asked_with_the_servers_identity(providers: Policies) -> None:
    """From both nodes by mTLS, and the authorizer's own policy decides who may ask."""
    lab = providers.lab
    ask_it = policy(
        "ask", "{selector: {matchLabels: {role: server}}, action: CUSTOM, provider: {name: authz}, rules: [{}]}"
    )
    strict = policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication")

    def may_ask(account: str) -> str:
        return policy(
            "may-ask",
            f"{{selector: {{matchLabels: {{app: ext-authz}}}}, rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}]}}]}}",  # noqa: E501
        )

    providers.put("test", ask_it + strict + may_ask("server"))
    urls = [f"http://{cluster_ip(lab, name)}/about" for name in SERVERS]
    for url in urls:
        eventually(lambda url=url: status(lab, "client", url) == 403, "it is asked and says no")
        eventually(
            lambda url=url: status(lab, "client", url, "-H", "x-ext-authz: allow") == 200, "it is asked and says yes"
        )
    inbound = [
        flow
        for flow in admin(lab, "node1", "/flows")["flows"]
        if flow["direction"] == "inbound" and flow["destination"].startswith("default/ext-authz:")
    ]
    asking = {flow["source"]: (flow["source_identity"], flow["path"]) for flow in inbound if not flow["closed"]}
    assert asking == {
        f"default/{name}": ("spiffe://cluster.local/ns/default/sa/server", "proxy-mtls") for name in SERVERS
    }
    providers.put("test", ask_it + strict + may_ask("other"))
    for url in urls:
        eventually(
            lambda url=url: status(lab, "client", url, "-H", "x-ext-authz: allow") == 403,
            "the servers may not ask any more",
        )


def test_an_authorizer_that_is_not_there_refuses(providers: Policies) -> None:
    lab = providers.lab
    providers.put(
        "test",
        policy("ask", "{selector: {matchLabels: {app: local}}, action: CUSTOM, provider: {name: gone}, rules: [{}]}"),
    )
    url = f"http://{cluster_ip(lab, 'local')}/about"
    eventually(lambda: status(lab, "client", url, "-H", "x-ext-authz: allow") == 403, "nobody says yes")
    providers.put(
        "test",
        policy(
            "ask", "{selector: {matchLabels: {app: local}}, action: CUSTOM, provider: {name: unknown}, rules: [{}]}"
        ),
    )
    eventually(lambda: "unknown" in str(providers.rows()), "it is read")
    assert status(lab, "client", url, "-H", "x-ext-authz: allow") == 403


def test_a_rate_limit_service_is_asked(providers: Policies) -> None:
    lab = providers.lab
    descriptors = "[{entries: [{key: path, value: '{path}'}, {key: who, value: '{pod}'}]}]"
    spec = f"{{selector: {{matchLabels: {{app: local}}}}, global: {{provider: limits, domain: test, descriptors: {descriptors}}}}}"  # noqa: E501
    providers.put("test", policy("shared", spec, kind="RateLimit"))
    url = f"http://{cluster_ip(lab, 'local')}/about"
    eventually(lambda: status(lab, "client", url) == 429, "used up")
    assert [status(lab, "other", url) for _ in range(4)] == [200, 200, 200, 429]


def test_a_token_is_asked_for_and_its_claims_decide(policies: Policies, put: Callable[..., None]) -> None:
    lab = policies.lab
    tokens = {name: token({"sub": name, "groups": [name], "exp": time.time() + 600}) for name in ("admin", "guest")}
    expired = token({"sub": "admin", "groups": ["admin"], "exp": 1})
    rule = f"{{issuer: {ISSUER}, jwks: '{key_set()}', outputClaimToHeaders: [{{header: x-sub, claim: sub}}]}}"
    put(
        policy(
            "jwt", f"{{selector: {{matchLabels: {{role: server}}}}, jwtRules: [{rule}]}}", kind="RequestAuthentication"
        ),
        policy(
            "admins",
            "{selector: {matchLabels: {role: server}}, rules: [{when: [{key: 'request.auth.claims[groups]', "
            "values: [admin]}]}]}",
        ),
    )
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}/about"
        eventually(lambda url=url: status(lab, "client", url) == 403, "without a token there are no claims")
        assert status(lab, "client", url, "-H", f"authorization: Bearer {tokens['guest']}") == 403
        assert status(lab, "client", url, "-H", f"authorization: Bearer {expired}") == 401
        seen = about(
            lab,
            "client",
            f"http://{cluster_ip(lab, name)}",
            "-H",
            f"authorization: Bearer {tokens['admin']}",
            "-H",
            "x-sub: root",
        )
        assert seen["headers"]["x-sub"] == "admin"
        assert "authorization" not in seen["headers"]
    assert tokens["guest"] not in lab.agent("node1").access_log.read_text()
