"""Pods with a real Envoy sidecar beside sidecarless ones, STRICT on both sides: each side's policy
decides by the other's principal.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import sidecar
from tests.netns.identity import PREFIX
from tests.netns.world import (
    QUICK,
    about,
    account,
    address_of,
    ask,
    bracketed,
    client,
    cluster,
    cluster_ip,
    curl,
    growth,
    pod_row,
    server,
)
from tests.waiting import eventually

STRICT = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
ONLY_CLASSIC = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-classic}
spec: {selector: {matchLabels: {side: less}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/classic]}}]}]}
"""  # noqa: E501
SIDECARLESS = {"near": "node1", "far": "node2"}
TEXT = "".join(
    (
        account("classic", "other-classic", "less", "intruder"),
        sidecar.pod("classic", "node1", account="classic"),
        sidecar.pod("other-classic", "node1", account="other-classic"),
        *(server(name, node, account="less", labels="side: less") for name, node in SIDECARLESS.items()),
        client("intruder", "node1", account="intruder"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        STRICT,
        ONLY_CLASSIC,
    )
)
DUPLEX = ("--send-bytes", 100_000, "--receive-bytes", 100_000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The sidecar of `classic` admits sidecarless pods of the account `less`; those admit `classic`."""
    logs = tmp_path_factory.mktemp("envoy")
    with cluster("t-mixed", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 120}})) as lab, ExitStack() as stack:
        for name in ("classic", "other-classic"):
            process = sidecar.start(lab, name, logs / f"{name}.log", admits=["less"])
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            eventually(
                lambda name=name: sidecar.certificate(lab, name)[0] == f"{PREFIX}/{name}", "it has its certificate"
            )
        yield lab


def addresses(lab: Lab, name: str, version: int = 4) -> tuple[str, str]:
    """Return where the pod *name* is reached over HTTP: by itself, and by its Service."""
    return (
        f"http://{bracketed(address_of(lab, name, version))}:8080",
        f"http://{bracketed(cluster_ip(lab, name, version))}",
    )


def status(lab: Lab, source: str, url: str) -> int:
    """Return the status that *source* gets; 0: the connection was cut."""
    return int(curl(lab, source, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/about").stdout[-3:])


def says(lab: Lab, source: str, target: str, version: int = 4) -> str:
    """Return what comes back over TCP for a word."""
    return str(
        ask(lab, source, "dial", address_of(lab, target, version), 9000, "--send", "a word", "--half-close")["received"]
    )


def test_a_pod_with_a_sidecar_is_not_captured(lab: Lab) -> None:
    assert pod_row(lab, "classic") is None
    assert pod_row(lab, "near")["state"] == "enrolled"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SIDECARLESS)
def test_http_from_the_sidecar(lab: Lab, name: str, version: int) -> None:
    for url in addresses(lab, name, version):
        seen = about(lab, "classic", url)
        assert seen["pod"] == name
        assert f"URI={PREFIX}/classic" in seen["headers"]["x-forwarded-client-cert"]
        denied = curl(lab, "other-classic", f"{url}/about")
        assert denied.stdout == "RBAC: access denied", denied


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SIDECARLESS)
def test_http_to_the_sidecar(lab: Lab, name: str, version: int) -> None:
    for url in addresses(lab, "classic", version):
        seen = about(lab, name, url)
        assert seen["pod"] == "classic"
        assert f"URI={PREFIX}/less" in seen["headers"]["x-forwarded-client-cert"]
        assert status(lab, "intruder", url) == 403, "Envoy's own policy does not know this principal"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SIDECARLESS)
def test_tcp_from_the_sidecar(lab: Lab, name: str, version: int) -> None:
    for host in (address_of(lab, name, version), cluster_ip(lab, name, version)):
        assert ask(lab, "classic", "duplex", host, 9001, *DUPLEX)["ok"] == 1
    assert says(lab, "classic", name, version) == "a word"
    assert says(lab, "other-classic", name, version) == ""


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SIDECARLESS)
def test_tcp_to_the_sidecar(lab: Lab, name: str, version: int) -> None:
    for host in (address_of(lab, "classic", version), cluster_ip(lab, "classic", version)):
        assert ask(lab, name, "duplex", host, 9001, *DUPLEX)["ok"] == 1
    assert says(lab, name, "classic", version) == "a word"
    assert says(lab, "intruder", "classic", version) == ""


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", ["classic", *SIDECARLESS])
def test_plaintext_gets_nowhere(lab: Lab, name: str, version: int) -> None:
    url = addresses(lab, name, version)[0]
    assert status(lab, "plain", url) in (0, 403)
    assert says(lab, "plain", name, version) == ""


def test_metrics_name_both_ends(lab: Lab) -> None:
    counted = growth(lab)
    about(lab, "classic", addresses(lab, "near")[0])
    about(lab, "near", addresses(lab, "classic")[0])
    ends = {"source_principal": f"{PREFIX}/classic", "destination_principal": f"{PREFIX}/less"}
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="destination",
        connection_security_policy="mutual_tls",
        response_code="200",
        **ends,
    )
    ends = {"source_principal": f"{PREFIX}/less", "destination_principal": f"{PREFIX}/classic"}
    counted.comes_to(1, "istio_requests_total", reporter="source", response_code="200", **ends)


@pytest.mark.parametrize(
    ("source", "target"), [("classic", "near"), ("classic", "far"), ("near", "classic"), ("far", "classic")]
)
def test_bodies_arrive_whole(lab: Lab, source: str, target: str) -> None:
    body = base64.b64encode(hashlib.shake_256(b"body").digest(300_000)).decode()
    done = curl(lab, source, "--data-binary", "@-", f"{addresses(lab, target)[0]}/echo", input=body)
    assert done.stdout == body


def test_probes_are_answered_by_the_sidecar(lab: Lab) -> None:
    at = f"http://{lab.address('classic')}"
    answers = {
        word: status_of(lab, f"{at}:15020/app-health/c/{word}") for word in ("readyz", "livez", "startupz", "other")
    }
    assert answers == {"readyz": 200, "livez": 200, "startupz": 503, "other": 404}
    assert status_of(lab, f"{at}:15021/healthz/ready") == 200
    assert "envoy_cluster_upstream_cx_total" in curl(lab, "plain", f"{at}:15090/stats/prometheus").stdout
    assert status_of(lab, f"{at}:15090/quitquitquit") == 404


def status_of(lab: Lab, url: str) -> int:
    """Return the status that somebody without a certificate gets, as the kubelet has none."""
    return int(curl(lab, "plain", "-o", "/dev/null", "-w", "%{http_code}", url).stdout[-3:])
