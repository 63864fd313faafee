"""The certificate authority in a real API server: real tokens, with the rights of its own manifest and no others."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent import config
from nodeagent.errors import IdentityError
from nodeagent.identity import authority_directory
from nodeagent.identity.authority_directory import certificates
from nodeagent.identity.istio_ca import IstioCa
from nodeagent.identity.spiffe import spiffe_id
from tests.kube.cluster import ROOT, Cluster, free_port, process
from tests.waiting import eventually

SYSTEM, AGENT, CA = "nodeagent-system", "nodeagent", "nodeagent-ca"
SECRET = f"/api/v1/namespaces/{SYSTEM}/secrets/{CA}"
ROOTS = f"/api/v1/namespaces/{SYSTEM}/configmaps/nodeagent-ca-root-cert"
MERGE = "application/merge-patch+json"


class Authority:
    """``nodeagent ca serve`` as the manifest runs it: only where it listens is another."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.folder
        documents = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(ROOT / "daemonset" / "ca"))))
        if cluster.call("GET", f"/api/v1/namespaces/{SYSTEM}")[0] == 404:
            cluster.namespace(SYSTEM)
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))
        self.account(SYSTEM, AGENT)
        eventually(self._may_begin, "its rights are known to the API server", 60)

    def _may_begin(self) -> bool:
        attributes = {"verb": "get", "resource": "secrets", "name": CA, "namespace": SYSTEM}
        spec = {"user": f"system:serviceaccount:{SYSTEM}:{CA}", "resourceAttributes": attributes}
        review = self.cluster.ok("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
        return bool(review["status"]["allowed"])

    def account(self, namespace: str, name: str) -> None:
        status, answer = self.cluster.call(
            "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}}
        )
        assert status in (201, 409), answer

    def token(self, namespace: str, account: str, pod: Any = None, audience: str = "istio-ca") -> str:
        """Return a token as a projected volume of *pod* has it."""
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 3600}
        if pod is not None:
            reference = {"apiVersion": "v1", "kind": "Pod"}
            spec["boundObjectRef"] = {**reference, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token: str = self.cluster.ok("POST", path, {"spec": spec})["status"]["token"]
        return token

    @contextmanager
    def served(self, name: str = "one") -> Iterator[int]:
        """Run it; give its port once it is ready."""
        port = free_port()
        telemetry = free_port()
        settings = yaml.safe_load((ROOT / "daemonset" / "ca" / "ca.yaml").read_text())
        token = self.token(SYSTEM, CA, audience="https://kubernetes.default.svc")
        settings["kubernetes"]["kubeconfig"] = str(self.cluster.write_kubeconfig(f"ca-{name}", token))
        settings["directory"] = str(self.folder / f"ca-{name}")
        settings |= {"names": ["127.0.0.1"], "address": "127.0.0.1", "port": port, "telemetryPort": telemetry}
        path = self.folder / f"ca-{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        log = self.folder / f"ca-{name}.log"
        with process(log, sys.executable, "-m", "nodeagent", "ca", "serve", "-c", path) as child:

            def ready() -> bool:
                assert child.poll() is None, log.read_text()[-3000:]
                command = ["curl", "-sf", f"http://127.0.0.1:{telemetry}/ready"]
                return subprocess.run(command, capture_output=True, check=False).returncode == 0

            eventually(ready, "the authority's start", 60)
            yield port

    def log(self, name: str = "one") -> str:
        return (self.folder / f"ca-{name}.log").read_text()

    def trusted(self) -> bytes:
        """Return what agents are told to trust."""
        text: str = self.cluster.ok("GET", ROOTS)["data"]["root-cert.pem"]
        return text.encode()

    def issue(self, port: int, token: str, namespace: str, account: str) -> Any:
        """Ask for the identity of *account* as a node's agent does."""
        (self.folder / "token").write_text(token)
        (self.folder / "roots.pem").write_bytes(self.trusted())
        document = {
            "address": f"127.0.0.1:{port}",
            "tokenFile": str(self.folder / "token"),
            "rootCertFile": str(self.folder / "roots.pem"),
        }
        source = IstioCa(config.IstioCaConfig.model_validate(document), "cluster.local", "Kubernetes")
        return asyncio.run(source.issue(spiffe_id("cluster.local", namespace, account), 3600))

    def refused(self, port: int, token: str, namespace: str, account: str) -> str:
        with pytest.raises(IdentityError) as error:
            self.issue(port, token, namespace, account)
        return str(error.value)


@pytest.fixture(scope="module")
def authority(cluster: Cluster) -> Authority:
    return Authority(cluster)


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    with authority.served() as port:
        yield port


def running(cluster: Cluster, namespace: str, name: str, node: str, account: str = "default", **metadata: Any) -> Any:
    """Return a pod that is bound to *node*, as the scheduler does it."""
    body = {
        "metadata": {"name": name, **metadata},
        "spec": {"serviceAccountName": account or None, "containers": [{"name": "c", "image": "i"}], "nodeName": node},
    }
    return cluster.ok("POST", f"/api/v1/namespaces/{namespace}/pods", body)


@pytest.fixture(scope="module")
def agent(authority: Authority) -> Any:
    cluster = authority.cluster
    for namespace in ("shop", "bank"):
        cluster.namespace(namespace)
        authority.account(namespace, "web")
    running(cluster, "shop", "web", "node-a", "web")
    running(cluster, "bank", "web", "node-b", "web")
    return running(cluster, SYSTEM, "nodeagent-a", "node-a", AGENT)


def test_a_nodes_agent_gets_the_identities_of_its_nodes_pods(authority: Authority, port: int, agent: Any) -> None:
    token = authority.token(SYSTEM, AGENT, agent)
    issued = authority.issue(port, token, "shop", "web")
    assert issued.identity == "spiffe://cluster.local/ns/shop/sa/web"
    assert "no pod on node node-a is spiffe://cluster.local/ns/bank/sa/web" in authority.refused(
        port, token, "bank", "web"
    )


def test_a_pod_that_has_just_come_is_known(authority: Authority, port: int, agent: Any) -> None:
    token = authority.token(SYSTEM, AGENT, agent)
    authority.account("shop", "late")
    assert "PERMISSION_DENIED" in authority.refused(port, token, "shop", "late")
    running(authority.cluster, "shop", "late", "node-a", "late")
    authority.issue(port, token, "shop", "late")


def test_a_mirror_of_a_static_pod_gives_its_node_nothing(authority: Authority, port: int, agent: Any) -> None:
    mirror = {"kubernetes.io/config.mirror": "0123"}
    running(authority.cluster, "shop", "mirror", "node-a", "", annotations=mirror)
    token = authority.token(SYSTEM, AGENT, agent)
    assert "PERMISSION_DENIED" in authority.refused(port, token, "shop", "default")


def test_who_is_no_agent_gets_its_own_identity_and_no_other(authority: Authority, port: int, agent: Any) -> None:
    authority.account("shop", "late2")
    pod = running(authority.cluster, "shop", "other", "node-a", "late2")
    token = authority.token("shop", "late2", pod)
    authority.issue(port, token, "shop", "late2")
    assert "is no node's agent" in authority.refused(port, token, "shop", "web")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("audience", "the API server does not take the token"),
        ("unbound", "does not say on which node"),
        ("nonsense", "the API server does not take the token"),
    ],
)
def test_tokens_that_do_not_prove_where_an_agent_is(
    authority: Authority, port: int, agent: Any, what: str, words: str
) -> None:
    token = {
        "audience": lambda: authority.token(SYSTEM, AGENT, agent, audience="elsewhere"),
        "unbound": lambda: authority.token(SYSTEM, AGENT),
        "nonsense": lambda: "a.b.c",
    }[what]()
    assert words in authority.refused(port, token, "shop", "web")
    assert token not in authority.log()


def test_the_token_of_a_pod_that_is_gone_proves_nothing(authority: Authority, port: int, agent: Any) -> None:
    gone = running(authority.cluster, SYSTEM, "nodeagent-gone", "node-a", AGENT)
    token = authority.token(SYSTEM, AGENT, gone)
    path = f"/api/v1/namespaces/{SYSTEM}/pods/nodeagent-gone?gracePeriodSeconds=0"
    authority.cluster.ok("DELETE", path)
    assert "UNAUTHENTICATED" in authority.refused(port, token, "shop", "web")


def test_the_key_is_in_the_secret_and_nowhere_else(authority: Authority, port: int) -> None:
    data = authority.cluster.ok("GET", SECRET)["data"]
    assert set(data) == {"root-cert.pem", "signing.pem", "root-key.pem"}
    assert base64.b64decode(data["root-cert.pem"]) == authority.trusted()
    assert {path.name for path in (authority.folder / "ca-one").iterdir()} == {"root-cert.pem", "signing.pem", ".lock"}
    assert "PRIVATE KEY" not in authority.log()


def test_replicas_that_start_at_once_make_one_authority(authority: Authority, port: int, agent: Any) -> None:
    before = authority.trusted()
    empty = dict.fromkeys(("root-cert.pem", "signing.pem", "root-key.pem"))
    with ExitStack() as stack:
        authority.cluster.ok("PATCH", SECRET, {"data": empty}, MERGE)
        with ThreadPoolExecutor(2) as pool:
            ports = list(pool.map(lambda name: stack.enter_context(authority.served(name)), ("two", "three")))
        eventually(lambda: len(certificates(authority.trusted())) == 1 and authority.trusted() != before, seconds=60)
        for each in (port, *ports):
            eventually(lambda each=each: _issues(authority, each, agent), seconds=60)


def _issues(authority: Authority, port: int, agent: Any) -> bool:
    try:
        authority.issue(port, authority.token(SYSTEM, AGENT, agent), "shop", "web")
    except IdentityError:
        return False
    return True


def test_the_root_is_exchanged_in_the_secret(authority: Authority, port: int, agent: Any) -> None:
    """Each step by the command, as the cluster's administrator; the service follows."""
    before = authority.trusted()
    steps = {"prepare": 2, "switch": 2, "finish": 1}
    for step, roots in steps.items():
        options = ("--secret", f"{SYSTEM}/{CA}", "--kubeconfig", str(authority.cluster.kubeconfig), "--after", "0")
        command = [sys.executable, "-m", "nodeagent", "ca", "rotate-root", step, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        eventually(lambda roots=roots: len(certificates(authority.trusted())) == roots, seconds=60)
        eventually(lambda: _issues(authority, port, agent), seconds=60)
    assert authority.trusted() != before
    early = [*command[:5], "switch", *options[:4]]
    refused = subprocess.run(early, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"Secret {SYSTEM}/{CA}: the step before was taken" in refused.stderr


def test_a_right_that_is_missing_is_named(authority: Authority, port: int, agent: Any) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent-ca"
    rules = authority.cluster.ok("GET", path)["rules"]
    token = authority.token(SYSTEM, AGENT, agent)
    try:
        for resource, words in (("pods", "get pods"), ("tokenreviews", "create tokenreviews.authentication.k8s.io")):
            left = [rule for rule in rules if rule["resources"] != [resource]]
            authority.cluster.ok("PATCH", path, {"rules": left}, MERGE)
            fresh = authority.token(SYSTEM, AGENT, agent, audience="istio-ca") if resource == "pods" else token
            eventually(lambda fresh=fresh, words=words: words in _said(authority, port, fresh), seconds=60)
    finally:
        authority.cluster.ok("PATCH", path, {"rules": rules}, MERGE)
    eventually(lambda: _issues(authority, port, agent), seconds=60)


def _said(authority: Authority, port: int, token: str) -> str:
    try:
        authority.issue(port, token, "shop", "web")
    except IdentityError as error:
        return str(error)
    return ""


def test_a_secret_that_is_gone_is_named_and_what_was_there_goes_on(authority: Authority, port: int, agent: Any) -> None:
    kept = authority.cluster.ok("GET", SECRET)
    authority.cluster.ok("DELETE", SECRET)
    try:
        eventually(lambda: f"Secret {SYSTEM}/{CA} is not there: apply daemonset/ca" in authority.log(), seconds=60)
        assert _issues(authority, port, agent)
    finally:
        body = {"metadata": {"name": CA}, "data": kept["data"]}
        authority.cluster.ok("POST", f"/api/v1/namespaces/{SYSTEM}/secrets", body)


def test_half_an_authority_is_never_used(tmp_path: Path, authority: Authority) -> None:
    """A Secret with keys and without roots: no other authority is made in its place."""
    path = f"/api/v1/namespaces/{SYSTEM}/secrets"
    body = {"metadata": {"name": "half"}, "data": {"signing.pem": base64.b64encode(b"x").decode()}}
    authority.cluster.ok("POST", path, body)
    options = ("--secret", f"{SYSTEM}/half", "--kubeconfig", str(authority.cluster.kubeconfig))
    command = [sys.executable, "-m", "nodeagent", "ca", "rotate-root", "prepare", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"data.{authority_directory.ROOTS} is missing, and signing.pem is there" in done.stderr
