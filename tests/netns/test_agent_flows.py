"""What ``nodeagent flows`` tells of connections that fare well and ill, through the proxy and past it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.lab.layout import Node
from tests.netns.test_agent_policy import PRINCIPAL, Policies, policy, status
from tests.netns.world import QUICK, about, account, client, cluster, cluster_ip, curl, pod, pod_row, server, service
from tests.unit.policy.jwt_issuer import ISSUER, key_set
from tests.waiting import eventually

PROBED = "ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /about, port: 8080}, periodSeconds: 1}"
TEXT = "".join(
    (
        account("client", "other", "server"),
        client("client", "node1", account="client"),
        client("other", "node1", account="other"),
        pod("web", "node1", account="server", annotations="nodeagent.io/path: proxy", container=PROBED),
        service("web", "app: web"),
        service("nobody", "app: nobody"),
        server("direct", "node1", account="server", annotations="nodeagent.io/path: kernel"),
        server("reader", "node1", account="server"),
        service("alias", "app: direct"),
        (
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: closed}\nspec: {selector: {app: direct}, "
            "ports: [{port: 9008}]}\n"
        ),
    )
)
ONCE = "{maxTokens: 1, tokensPerFill: 1, fillInterval: 1h}"
POLICIES = "".join(
    (
        policy(
            "no-echo",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/echo]}}]}]}",
        ),
        policy(
            "tokens",
            f"{{selector: {{matchLabels: {{app: web}}}}, jwtRules: [{{issuer: {ISSUER}, jwks: '{key_set()}'}}]}}",
            kind="RequestAuthentication",
        ),
        policy(
            "slow",
            f"{{selector: {{matchLabels: {{app: web}}}}, local: [{{match: {{paths: [/slow]}}, tokenBucket: {ONCE}}}]}}",
            kind="RateLimit",
        ),
        policy(
            "only",
            f"{{selector: {{matchLabels: {{app: direct}}}}, rules: [{{from: [{{source: {{principals: [{PRINCIPAL}]}}}}]}}]}}",  # noqa: E501
        ),
    )
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("policies")
    settings = merge(QUICK, {"resources": [str(folder)], "telemetry": {"accessLog": {"path": ""}}})
    with cluster("t-flows", TEXT, agent=settings) as made:
        policies = Policies(made, folder)
        policies.put("test", POLICIES)
        eventually(lambda: [row["state"] for row in policies.rows()] == ["in force"] * 4, "the policies are in force")
        eventually(lambda: pod_row(made, "direct")["paths"]["8080"].startswith("kernel"), "the kernel path is there")
        yield made


def flows(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    argv = [
        sys.executable,
        "-m",
        "nodeagent",
        "flows",
        "--name",
        lab.layout.name,
        "--node",
        "node1",
        "-o",
        "json",
        "--last",
        "0",
        *arguments,
    ]
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    )
    return found


def the_last(lab: Lab, *arguments: str) -> dict[str, Any]:
    """Wait for the row of the connection that ended last."""
    return eventually(
        lambda: next((row for row in reversed(flows(lab, *arguments)) if row["closed"]), None), f"a row for {arguments}"
    )


@pytest.mark.parametrize(
    ("url", "arguments", "codes", "verdict", "reason", "policy_name"),
    [
        ("web/about", (), [200], "allow", "", ""),
        ("web/status/403", (), [403], "allow", "", ""),
        ("web/echo", (), [403], "deny", "policy_denied", "default/no-echo"),
        ("web/about", ("-H", "authorization: Bearer x"), [401], "deny", "jwt_refused", ""),
        ("nobody/about", (), [503], "error", "no_endpoints", ""),
    ],
)
def test_a_request_is_shown_as_it_fared(
    lab: Lab, url: str, arguments: tuple[str, ...], codes: list[int], verdict: str, reason: str, policy_name: str
) -> None:
    name, _, path = url.partition("/")
    status(lab, "client", f"http://{cluster_ip(lab, name)}/{path}", *arguments)
    row = the_last(lab, "--from", "client", "--to", name, "--code", str(codes[0]), "--verdict", verdict)
    assert (row["requests"], row["codes"], row["verdict"], row["reason"], row["policy"]) == (
        1,
        codes,
        verdict,
        reason,
        policy_name,
    )
    assert row["source"] == "default/client"


def test_a_connection_with_several_requests_is_one_row(lab: Lab) -> None:
    url = f"http://{cluster_ip(lab, 'web')}"
    status(lab, "client", f"{url}/slow", f"{url}/slow", f"{url}/about", "-o", "/dev/null", "-o", "/dev/null")
    row = the_last(lab, "--to", "web", "--verdict", "mixed")
    assert (row["requests"], row["codes"][-3:]) == (3, [200, 200, 429])
    assert (row["reason"], row["policy"]) == ("rate_limited", "default/slow")


def test_probes_are_shown_when_they_are_asked_for(lab: Lab) -> None:
    eventually(lambda: [row for row in flows(lab, "--probes", "--to", "web") if row["probe"]], "the kubelet has asked")
    node = (lab.address("node1"), str(Node(1).gateways[0]))
    assert not [row for row in flows(lab) if row["source"].partition(":")[0] in node]


def test_what_the_kernel_refuses_is_a_row_of_the_service_that_was_dialled(lab: Lab) -> None:
    for name, times in (("direct", 2), ("alias", 3)):
        for _ in range(times):
            assert curl(lab, "other", f"http://{cluster_ip(lab, name)}/about").returncode == 7
    for name, times in (("direct", 2), ("alias", 3)):
        (row,) = flows(lab, "--from", "other", "--to", f"{name}.default.svc.cluster.local")
        assert (row["path"], row["verdict"], row["reason"], row["policy"], row["times"]) == (
            "kernel",
            "deny",
            "policy_denied",
            "",
            times,
        )
        assert (row["source"], row["destination"]) == ("default/other", "default/direct:8080")
        assert row["opened"] <= row["closed"]


def test_a_connection_past_the_proxy_stays_a_row_when_it_has_closed(lab: Lab) -> None:
    assert about(lab, "client", f"http://{cluster_ip(lab, 'alias')}")["pod"] == "direct"
    row = the_last(lab, "--from", "client", "--to", "alias")
    assert (row["path"], row["verdict"], row["reason"], row["policy"]) == ("kernel", "allow", "", "default/only")
    assert row["received"] > 50 < row["sent"]
    assert row["opened"] < row["closed"]
    assert flows(lab, "--from", "client", "--to", "alias") == [row], "what is told of the past does not change"


def test_a_connection_past_the_proxy_that_nobody_takes_is_an_error(lab: Lab) -> None:
    assert curl(lab, "client", f"http://{cluster_ip(lab, 'closed')}:9008/").returncode == 7
    row = the_last(lab, "--from", "client", "--verdict", "error", "--to", "default/direct:9008")
    assert (row["path"], row["reason"]) == ("kernel", "connect_failed")


def test_an_application_that_may_read_who_its_client_is_is_told_so_by_default(lab: Lab) -> None:
    """No access log is asked for and nothing is decided per request: that alone does not make
    anything of a client's own words.
    """
    forged = ("-H", "X-Forwarded-Client-Cert: By=x;URI=spiffe://forged")
    told = about(lab, "client", f"http://{cluster_ip(lab, 'reader')}", *forged)["headers"]
    assert told["x-forwarded-client-cert"] == f"By=spiffe://cluster.local/ns/default/sa/server;URI=spiffe://{PRINCIPAL}"
    paths = pod_row(lab, "reader")["paths"]
    assert paths["8080"].startswith("proxy: the application may read X-Forwarded-Client-Cert")
    assert paths["9000"].startswith("kernel: ")
    assert pod_row(lab, "direct")["paths"]["8080"].endswith(
        "is kernel; X-Forwarded-Client-Cert is neither made nor removed"
    )
