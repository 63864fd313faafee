"""An external authorizer over HTTP in a cluster: a pod that both nodes' agents ask, in plaintext and by mTLS."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.test_agent_policy import SERVERS, TEXT, Policies, policy, status
from tests.netns.world import QUICK, about, access_log, admin, ask, cluster, cluster_ip, curl, pod
from tests.waiting import eventually

FAKE = Path(__file__).resolve().parent.parent / "fakes" / "http_authz.py"
SETTINGS: dict[str, Any] = {
    "service": "default/http-authz.default.svc.cluster.local",
    "port": 8000,
    "timeout": "5s",
    "pathPrefix": "/check",
    "includeRequestHeadersInCheck": ["cookie", "x-ext-*"],
    "includeAdditionalHeadersInCheck": {"X-Redirect": "http://%REQ(:AUTHORITY)%%REQ(:PATH)%"},
    "includeRequestBodyInCheck": {"maxRequestBytes": 4096},
    "headersToUpstreamOnAllow": ["x-auth-*"],
    "headersToDownstreamOnAllow": ["set-cookie"],
    "headersToDownstreamOnDeny": ["set-cookie"],
}
COMMAND = [sys.executable, str(FAKE), "--port", "8000"]
READY = "readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}"
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: http-authz}
spec: {selector: {app: http-authz}, ports: [{name: http, port: 8000}]}
"""


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policies]:
    folder = tmp_path_factory.mktemp("policies")
    known = [
        {"name": "login", "envoyExtAuthzHttp": SETTINGS},
        {"name": "open", "envoyExtAuthzHttp": {**SETTINGS, "failOpen": True}},
    ]
    text = TEXT + pod("http-authz", "node1", command=json.dumps(COMMAND), container=READY) + SERVICE
    settings = {"resources": [str(folder)], "extensionProviders": known}
    with cluster("t-http-authz", text, agent=merge(QUICK, settings)) as lab:
        yield Policies(lab, folder)


def asks(provider: str, more: str = "") -> str:
    whom = "selector: {matchLabels: {role: server}}"
    return policy("ask", f"{{{whom}, action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}") + more


def head(lab: Lab, url: str, *arguments: str) -> str:
    return curl(lab, "client", "-o", "/dev/null", "-D", "-", *arguments, url).stdout.lower()


def test_who_is_not_logged_in_is_sent_there_and_comes_back(login: Policies) -> None:
    lab = login.lab
    login.put("test", asks("login"))
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}"
        eventually(lambda url=url: status(lab, "client", f"{url}/about") == 302, "it is asked and says no")
        told = head(lab, f"{url}/about?a=b")
        host = url.removeprefix("http://")
        assert f"\nlocation: https://login.example/start?rd=http%3a%2f%2f{host}%2fabout%3fa%3db\n" in told
        assert "\nset-cookie: csrf=1; httponly\nset-cookie: other=2\n" in told
        assert "x-internal" not in told
        assert curl(lab, "client", url).stdout == "log in"
        assert head(lab, url, "-I").startswith("http/1.1 302 ")
        told = head(lab, f"{url}/about", "-b", "session=ann")
        assert told.startswith("http/1.1 200 ")
        assert "\nset-cookie: session=renewed\n" in told
        seen = about(lab, "client", url, "-H", "x-ext-authz: allow", "-H", "x-auth-user: root")
        assert seen["headers"]["x-auth-user"] == "ann"
        assert "x-ext-authz" not in seen["headers"]
    log = access_log(lab)
    assert status(lab, "client", f"http://{cluster_ip(lab, 'local')}/about") == 302
    assert log.find(code="302", flags="UAEX")["details"] == "ext_authz_denied"
    assert ask(lab, "client", "dial", cluster_ip(lab, "local"), 9001, "--send", "1 10 10\n0123456789")["received"] == ""


def test_http2_and_bodies(login: Policies) -> None:
    lab = login.lab
    login.put("test", asks("login"))
    url = f"http://{cluster_ip(lab, 'remote')}/echo"
    eventually(lambda: status(lab, "client", url) == 302, "it is asked and says no")
    for version in ("--http1.1", "--http2-prior-knowledge"):
        assert curl(lab, "client", version, "--data-binary", "allow", url).stdout == "allow"
        assert status(lab, "client", url, version, "-d", "deny") == 302
        assert status(lab, "client", url, version, "-d", "x" * 5000) == 413


def test_a_strict_authorizer_is_asked_with_the_servers_identity(login: Policies) -> None:
    lab = login.lab
    strict = policy("default", "{mtls: {mode: STRICT}}", kind="PeerAuthentication")
    sources = "{from: [{source: {serviceAccounts: [server]}}]}"
    may_ask = policy("may-ask", f"{{selector: {{matchLabels: {{app: http-authz}}}}, rules: [{sources}]}}")
    login.put("test", asks("login", strict + may_ask))
    for name in SERVERS:
        url = f"http://{cluster_ip(lab, name)}/about"
        eventually(lambda url=url: status(lab, "client", url) == 302, "it is asked and says no")
        assert status(lab, "client", url, "-H", "x-ext-authz: allow") == 200
    asking = {
        flow["source"]: flow["source_identity"]
        for flow in admin(lab, "node1", "/flows")["flows"]
        if flow["destination"].startswith("default/http-authz:") and flow["protocol"] == "http"
    }
    server = "spiffe://cluster.local/ns/default/sa/server"
    assert asking == {f"default/{name}": server for name in SERVERS}


@pytest.mark.parametrize(("provider", "code"), [("login", 403), ("open", 200)])
def test_an_authorizer_that_fails(login: Policies, provider: str, code: int) -> None:
    lab = login.lab
    login.put("test", asks(provider))
    url = f"http://{cluster_ip(lab, 'local')}"
    eventually(lambda: provider in str(login.rows()), "it is read")
    broken = f"{url}/status/200/broken"
    eventually(lambda: status(lab, "client", broken) == code, "as it is configured")
    assert "a secret" not in curl(lab, "client", broken).stdout
    assert status(lab, "client", f"{url}/about") == 302, "otherwise it decides"
