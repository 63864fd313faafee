"""Two pods with the injector's Envoy: mTLS between them over both families, policy, plaintext where
it may be, probes, log.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import QUICK, about, account, ask, client, cluster, cluster_ip, curl, server
from tests.waiting import eventually

OUTSIDE = 'nodeagent.io/enroll: "false"'
TEXT = "".join(
    (
        account("one", "two"),
        sidecar.pod("one", "node1", account="one"),
        sidecar.pod("two", "node2", account="two"),
        client("plain", "node1", annotations=OUTSIDE),
        server("bare", "node2", annotations=OUTSIDE),
    )
)
OF_ONE = [{"source": {"principals": ["cluster.local/ns/default/sa/one"]}}]
POLICIES = [
    sidecar.policy(
        "no-secrets",
        action="DENY",
        rules=[{"from": OF_ONE, "to": [{"operation": {"paths": ["/echo*"], "methods": ["PUT"]}}]}],
    ),
    sidecar.policy(
        "by-name", rules=[{"to": [{"operation": {"paths": ["/about"], "methods": ["GET"]}}]}, {"from": OF_ONE}]
    ),
]
PROBES = {
    "readinessProbe": {"httpGet": {"port": 8080, "path": "/about?probed=1"}},
    "livenessProbe": {"grpc": {"port": 9998, "service": "app"}},
}
HEALTH = """
import concurrent.futures, grpc
answer = grpc.unary_unary_rpc_method_handler(lambda request, context: bytes([8, 1 if request == b"\\n\\x03app" else 2]))
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": answer}),))
server.add_insecure_port("[::]:9998")
server.start()
server.wait_for_termination()
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("envoy")


@pytest.fixture(scope="module")
def lab(logs: Path) -> Iterator[Lab]:
    with cluster("t-envoy", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 120}})) as lab, ExitStack() as stack:
        bare = [
            f"{address['ip']}/{128 if ':' in address['ip'] else 32}" for address in lab.pod("bare")["status"]["podIPs"]
        ]
        processes = [
            sidecar.start(lab, "one", logs / "one.log", admits=["two"], values={"plaintextRanges": bare}),
            sidecar.start(
                lab,
                "two",
                logs / "two.log",
                probes=PROBES,
                values={"mtls": "PERMISSIVE", "authorizationPolicies": POLICIES},
            ),
        ]
        for process in processes:
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        yield lab


def urls(lab: Lab, name: str) -> list[str]:
    """Return where the pod *name* is reached over HTTP: by each of its addresses, and by its Service."""
    found = [address["ip"] for address in lab.pod(name)["status"]["podIPs"]]
    assert len(found) == 2, "both families"
    return [
        *(f"http://[{ip}]:8080" if ":" in ip else f"http://{ip}:8080" for ip in found),
        f"http://{cluster_ip(lab, name)}",
    ]


def status(lab: Lab, source: str, url: str, *arguments: str) -> int:
    """Return the status that *source* gets; 0: the connection was cut."""
    return int(curl(lab, source, "-g", "-o", "/dev/null", "-w", "%{http_code}", *arguments, url).stdout[-3:])


def test_mtls_between_sidecars(lab: Lab) -> None:
    for source, target in (("one", "two"), ("two", "one")):
        for url in urls(lab, target):
            seen = about(lab, source, url, "-g", "-H", "X-Forwarded-Client-Cert: URI=spiffe://forged")
            assert seen["pod"] == target
            assert f"URI={PREFIX}/{source}" in seen["headers"]["x-forwarded-client-cert"]
            assert "forged" not in seen["headers"]["x-forwarded-client-cert"]


def test_plaintext_where_it_may_be(lab: Lab) -> None:
    for url in urls(lab, "two"):
        seen = about(lab, "plain", url, "-g", "-H", "X-Forwarded-Client-Cert: URI=spiffe://forged")
        assert "x-forwarded-client-cert" not in seen["headers"]
    for url in urls(lab, "one"):
        assert status(lab, "plain", f"{url}/about") == 0


def test_policies(lab: Lab) -> None:
    url = urls(lab, "two")[0]
    assert status(lab, "one", f"{url}/echo", "--data", "x") == 200
    assert status(lab, "one", f"{url}/echo", "--request", "PUT", "--data", "x") == 403
    assert status(lab, "one", f"{url}/./x/../echo", "--path-as-is", "--request", "PUT", "--data", "x") == 403
    assert status(lab, "plain", f"{url}/about") == 200
    assert status(lab, "plain", f"{url}/echo", "--data", "x") == 403


def test_tcp(lab: Lab) -> None:
    for host in [*(address["ip"] for address in lab.pod("one")["status"]["podIPs"]), cluster_ip(lab, "one")]:
        assert ask(lab, "two", "duplex", host, 9001, "--send-bytes", 100_000, "--receive-bytes", 100_000)["ok"] == 1
    for source in ("plain", "one"):
        # A rule of HTTP never admits TCP, and one that denies by method denies all TCP (Istio).
        assert ask(lab, source, "dial", lab.address("two"), 9000, "--send", "a word\n")["received"] == ""


def test_what_is_outside_the_mesh_is_passed_through(lab: Lab) -> None:
    for url in urls(lab, "bare")[:2]:
        seen = about(lab, "one", url, "-g")
        assert seen["pod"] == "bare"
        assert "x-forwarded-client-cert" not in seen["headers"]


def test_probes(lab: Lab) -> None:
    at = f"http://{lab.address('two')}:15020/app-health/c"
    assert status(lab, "plain", f"{at}/readyz") == 200
    assert status(lab, "plain", f"{at}/livez") == 503
    process = lab.popen(
        "two",
        [sys.executable, "-c", HEALTH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: status(lab, "plain", f"{at}/livez") == 200, "the gRPC service is healthy")
    finally:
        process.kill()
        process.wait(60)
    eventually(lambda: status(lab, "plain", f"{at}/livez") == 503, "it is gone")


def test_the_access_log_is_istios(lab: Lab, logs: Path) -> None:
    about(lab, "one", urls(lab, "two")[0], "-H", "User-Agent: logged")
    for name in ("one", "two"):
        line = eventually(
            lambda name=name: next(
                (line for line in (logs / f"{name}.log").read_text().splitlines() if '"logged"' in line), ""
            ),
            "its line",
        )
        assert '"GET /about HTTP/1.1" 200 - via_upstream' in line
