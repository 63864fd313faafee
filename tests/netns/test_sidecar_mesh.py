"""Pods with our own classic sidecar among themselves and beside sidecarless ones, STRICT: identity,
policy, routes out, metrics, access log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import sidecar as real
from tests.netns.classic import Sidecar, pod, sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import (
    QUICK,
    about,
    account,
    address_of,
    ask,
    bracketed,
    client,
    client_in,
    cluster,
    cluster_ip,
    curl,
    pod_row,
    server,
)
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)
"""The set-up starts an agent, Envoy and sidecars, each of which compiles what it loads."""

POLICY = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded}
spec:
  selector: {matchLabels: {guard: "on"}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/one, cluster.local/ns/default/sa/less]}}]
    to: [{operation: {methods: [GET], paths: [/about]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/one, cluster.local/ns/default/sa/less]}}]
    to: [{operation: {ports: ["9000", "9001"]}}]
"""
DENY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-near-by}
spec: {action: DENY, selector: {matchLabels: {app: one}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/near-by]}}]}]}
"""  # noqa: E501
SIDECARS = {"one": "node1", "near-by": "node1", "far-off": "node2"}
LESS = {"less-near": "node1", "less-far": "node2"}
LAB = "t-classic"
TEXT = "".join(
    (
        account(*SIDECARS, "less", "intruder"),
        *(
            pod(LAB, name, node, account=name, labels="" if name == "one" else 'guard: "on"')
            for name, node in SIDECARS.items()
        ),
        *(server(name, node, account="less", labels='guard: "on"') for name, node in LESS.items()),
        real.pod("envoy", "node1", account="less"),
        client("intruder", "node1", account="intruder"),
        client("plain", "node2", annotations='nodeagent.io/enroll: "false"'),
        POLICY,
    )
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster(LAB, TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 120}})) as lab:
        yield lab


@pytest.fixture(scope="module")
def sidecars(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sidecar]]:
    logs = tmp_path_factory.mktemp("sidecars")
    with ExitStack() as stack:
        yield {name: stack.enter_context(sidecar(lab, name, logs)) for name in SIDECARS}


@pytest.fixture(autouse=True)
def _running(sidecars: dict[str, Sidecar]) -> None:
    for each in sidecars.values():
        assert each.process.poll() is None, each.log.read_text()[-2000:]


def urls(lab: Lab, name: str) -> list[str]:
    """Return every way to the pod *name* over HTTP: itself and its Service, IPv4 and IPv6."""
    own = [f"http://{bracketed(address_of(lab, name, version))}:8080" for version in (4, 6)]
    return own + [f"http://{bracketed(cluster_ip(lab, name, version))}" for version in (4, 6)]


def status(lab: Lab, source: str, url: str, *arguments: str) -> int:
    return int(curl(lab, source, "-o", "/dev/null", "-w", "%{http_code}", *arguments, url).stdout[-3:])


def says(lab: Lab, source: str, target: str, version: int = 4) -> str:
    return str(
        ask(lab, source, "dial", address_of(lab, target, version), 9000, "--send", "a word", "--half-close")["received"]
    )


def test_the_agent_leaves_the_pod_alone(lab: Lab) -> None:
    assert pod_row(lab, "one") is None


@pytest.mark.parametrize("target", ["near-by", "far-off", *LESS])
def test_http_goes_by_identity(lab: Lab, target: str) -> None:
    for url in urls(lab, target):
        seen = about(lab, "one", url)
        assert seen["pod"] == target
        assert f"URI={PREFIX}/one" in seen["headers"]["x-forwarded-client-cert"]
        assert status(lab, "one", f"{url}/about", "-X", "POST") == 403
        assert status(lab, "one", f"{url}/other") == 403
        refused = curl(lab, "intruder", f"{url}/about")
        assert refused.stdout == "RBAC: access denied"


@pytest.mark.parametrize("target", ["near-by", "far-off", *LESS])
def test_tcp_goes_by_identity(lab: Lab, target: str) -> None:
    for version in (4, 6):
        for host in (address_of(lab, target, version), cluster_ip(lab, target, version)):
            assert ask(lab, "one", "duplex", host, 9001, "--send-bytes", 100_000, "--receive-bytes", 100_000)["ok"] == 1
        assert says(lab, "one", target, version) == "a word"
        assert says(lab, "intruder", target, version) == ""
    greeting = ask(lab, "one", "dial", address_of(lab, "one", 4), 9002, "--send", "a word", "--half-close")["received"]
    assert greeting.startswith("220 one greets "), "a server that speaks first, at the pod's own address"


@pytest.mark.parametrize("source", LESS)
def test_http_from_pods_without_a_sidecar(lab: Lab, source: str) -> None:
    for url in urls(lab, "near-by"):
        seen = about(lab, source, url)
        assert seen["pod"] == "near-by"
        assert f"URI={PREFIX}/less" in seen["headers"]["x-forwarded-client-cert"]
        assert status(lab, source, f"{url}/other") == 403
    assert (
        ask(
            lab, source, "duplex", cluster_ip(lab, "near-by"), 9001, "--send-bytes", 100_000, "--receive-bytes", 100_000
        )["ok"]
        == 1
    )


def test_a_real_envoy_and_ours_take_each_other_for_peers(
    lab: Lab, sidecars: dict[str, Sidecar], tmp_path: Path
) -> None:
    process = real.start(lab, "envoy", tmp_path / "envoy.log", admits=["one"])
    try:
        eventually(lambda: real.certificate(lab, "envoy")[0], "it has its certificate")
        for target in ("near-by", "far-off"):
            seen = about(lab, "envoy", f"http://{cluster_ip(lab, target)}")
            assert (seen["pod"], f"URI={PREFIX}/less" in seen["headers"]["x-forwarded-client-cert"]) == (target, True)
            assert (
                ask(
                    lab,
                    "envoy",
                    "duplex",
                    cluster_ip(lab, target),
                    9001,
                    "--send-bytes",
                    100_000,
                    "--receive-bytes",
                    100_000,
                )["ok"]
                == 1
            )
        assert about(lab, "one", f"http://{cluster_ip(lab, 'envoy')}")["pod"] == "envoy"
        assert status(lab, "near-by", f"http://{cluster_ip(lab, 'envoy')}/about") == 403
        assert (
            ask(
                lab,
                "one",
                "duplex",
                cluster_ip(lab, "envoy"),
                9001,
                "--send-bytes",
                100_000,
                "--receive-bytes",
                100_000,
            )["ok"]
            == 1
        )
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("target", SIDECARS)
def test_plaintext_gets_nowhere(lab: Lab, target: str) -> None:
    for version in (4, 6):
        url = f"http://{bracketed(address_of(lab, target, version))}:8080/about"
        assert curl(lab, "plain", url).returncode == 56, "reset"
        assert says(lab, "plain", target, version) == ""


def test_an_application_reaches_itself_by_its_service(lab: Lab) -> None:
    for version in (4, 6):
        seen = about(lab, "one", f"http://{bracketed(cluster_ip(lab, 'one', version))}")
        assert seen["pod"] == "one"
        assert f"URI={PREFIX}/one" in seen["headers"]["x-forwarded-client-cert"]


def test_the_outside_is_passed_through(lab: Lab, sidecars: dict[str, Sidecar]) -> None:
    """The node is no pod of the mesh: its agent's metrics are outside."""
    for version in (4, 6):
        url = f"http://{bracketed(address_of(lab, 'node2', version))}:15020/metrics"
        assert status(lab, "one", url) == 200
    series = sidecars["one"].samples().labels("istio_requests_total", destination_service_name="PassthroughCluster")
    assert len(series) == 1


def test_nothing_answers(lab: Lab) -> None:
    assert status(lab, "near-by", f"http://{address_of(lab, 'one', 4)}:8099/") == 503


@pytest.mark.parametrize("port", [15001, 15006])
def test_the_sidecars_own_ports_lead_nowhere(lab: Lab, port: int) -> None:
    """Dialled directly they would lead to themselves, and so on for ever."""
    for source, host in (("plain", "near-by"), ("near-by", "near-by"), ("one", "near-by")):
        for version in (4, 6):
            assert status(lab, source, f"http://{bracketed(address_of(lab, host, version))}:{port}/") in (0, 503)
    assert status(lab, "near-by", f"http://127.0.0.1:{port}/") == 0


def test_both_ends_are_counted_and_logged(lab: Lab, sidecars: dict[str, Sidecar]) -> None:
    logs = {name: each.access_log() for name, each in sidecars.items()}
    ends = {
        "source_principal": f"{PREFIX}/one",
        "destination_principal": f"{PREFIX}/far-off",
        "destination_service_name": "far-off",
        "response_code": "200",
    }

    def counted(name: str, reporter: str) -> float:
        return sidecars[name].samples().sum("istio_requests_total", reporter=reporter, **ends)

    before = counted("one", "source"), counted("far-off", "destination")
    about(lab, "one", f"http://{cluster_ip(lab, 'far-off')}", "-H", "x-request-id: 4711")
    eventually(
        lambda: (counted("one", "source"), counted("far-off", "destination")) == (before[0] + 1, before[1] + 1),
        "counted once at each end",
    )
    secured = sidecars["far-off"].samples().sum("istio_requests_total", connection_security_policy="mutual_tls", **ends)
    assert secured == counted("far-off", "destination")
    sent = logs["one"].find(id="4711")
    assert (sent["code"], sent["cluster"]) == ("200", "outbound|80||far-off.default.svc.cluster.local")
    assert logs["far-off"].find(id="4711")["cluster"] == "inbound|8080||"
    about(lab, "one", f"http://{cluster_ip(lab, 'far-off')}")
    assert curl(lab, "intruder", f"http://{cluster_ip(lab, 'far-off')}/about").stdout
    denied = logs["far-off"].find(code="403")
    assert denied["details"].startswith("rbac_access_denied_matched_policy[")
    tcp = (
        sidecars["one"]
        .samples()
        .sum(
            "istio_tcp_connections_opened_total", reporter="source", destination_workload="far-off", response_flags="-"
        )
    )
    assert tcp > 0


def test_the_sidecar_tells_about_itself(lab: Lab, sidecars: dict[str, Sidecar]) -> None:
    one = sidecars["one"]
    assert one.certificate()["identity"] == f"{PREFIX}/one"
    assert one.get(15000, "/flows")[0] == 200
    assert one.samples().sum("istio_build", component="sidecar") == 1
    assert one.samples().labels("nodeagent_busy_poll_ratio", worker="sidecar")
    assert one.samples().sum("nodeagent_certificate_expiry_timestamp_seconds", identity=f"{PREFIX}/one") > 0
    assert status(lab, "plain", f"http://{address_of(lab, 'one', 4)}:15020/stats/prometheus") == 200, (
        "Prometheus needs no identity"
    )
    assert status(lab, "plain", f"http://{bracketed(address_of(lab, 'one', 6))}:15021/healthz/ready") == 200
    assert status(lab, "plain", f"http://{address_of(lab, 'one', 4)}:15000/flows") == 0, (
        "the administration is the pod's own"
    )


def test_a_new_policy_is_in_force_at_once_also_for_what_is_open(lab: Lab, sidecars: dict[str, Sidecar]) -> None:
    url = f"http://{cluster_ip(lab, 'one')}/about"
    with client_in(lab, "near-by", "hold", cluster_ip(lab, "one"), 9000) as held:
        assert held.say()["ok"] == 1
        lab.apply(text=DENY)
        try:
            eventually(lambda: status(lab, "near-by", url) == 403, "it is refused")
            assert held.say()["ok"] == 0
            assert status(lab, "far-off", url) == 200
            row = next(
                row
                for row in json.loads(sidecars["one"].get(15000, "/policies")[1])
                if row["policy"] == "default/not-near-by"
            )
            assert (row["state"], row["pods"]) == ("in force", 1)
        finally:
            lab.delete(("AuthorizationPolicy", "default", "not-near-by"))
    eventually(lambda: status(lab, "near-by", url) == 200, "it is permitted again")
