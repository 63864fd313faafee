"""gRPC between pods with a real Envoy sidecar and sidecarless ones, STRICT on both sides: HTTP/2 with
mTLS as Istio's sidecars speak it (ALPN istio-h2), each call judged and counted on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import sidecar
from tests.netns.grpc_world import PORT, calls_server, grpcio, rpc, target
from tests.netns.identity import PREFIX, with_volume
from tests.netns.test_grpc_calls import EXPECTED
from tests.netns.world import QUICK, access_log, account, address_of, bracketed, client, cluster, growth
from tests.waiting import eventually

STRICT = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
LESS = {"near": "node1", "far": "node2"}
"""Pods without a sidecar."""
PROBE = "readinessProbe: {exec: {command: [sh, -c, 'grep -qi :C383 /proc/net/tcp6']}, periodSeconds: 1}"


def classic() -> str:
    """Return the YAML of a pod that brings a sidecar; it calls, and is called."""
    text = calls_server("classic", "node1", account="classic", annotations="sidecar.istio.io/status: '{}'")
    first, _, service = text.partition("\n\n---")
    before, probe, _ = first.partition("readinessProbe")
    assert probe, text
    return with_volume(f"{before}{PROBE}, {sidecar.MOUNT}}}\n") + f"\n---{service}"


TEXT = "".join(
    (
        account("classic", "less", "intruder"),
        classic(),
        *(calls_server(name, node, account="less") for name, node in LESS.items()),
        client("intruder", "node1", account="intruder"),
        STRICT,
    )
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    log = tmp_path_factory.mktemp("envoy") / "classic.log"
    with (
        cluster("t-grpc-mixed", TEXT, agent=merge(QUICK, {"identity": {"ttlSeconds": 120}})) as lab,
        ExitStack() as stack,
    ):
        process = sidecar.start(lab, "classic", log, admits=["less"])
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        eventually(lambda: sidecar.certificate(lab, "classic")[0] == f"{PREFIX}/classic", "it has its certificate")
        yield lab


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", LESS)
def test_the_sidecar_calls(lab: Lab, name: str, version: int) -> None:
    counted = growth(lab, LESS[name])
    at = f"{bracketed(address_of(lab, name, version))}:{PORT}"
    assert rpc(lab, "classic", at, data="word", calls=50, parallel=10)["answers"] == {"word": 50}
    counted.comes_to(
        50,
        "istio_requests_total",
        reporter="destination",
        request_protocol="grpc",
        grpc_response_status="0",
        connection_security_policy="mutual_tls",
        source_principal=f"{PREFIX}/classic",
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", LESS)
def test_the_sidecar_is_called(lab: Lab, name: str, version: int) -> None:
    counted = growth(lab, LESS[name])
    at = target(lab, "classic", version)
    assert rpc(lab, name, at, "Who", calls=50, parallel=10)["answers"] == {"classic": 50}
    counted.comes_to(50, "istio_requests_total", reporter="source", request_protocol="grpc", grpc_response_status="0")


def test_every_form_of_a_call_passes_both_ways(lab: Lab) -> None:
    assert grpcio(lab, "classic", target(lab, "far"), "sync", *EXPECTED) == EXPECTED
    assert grpcio(lab, "near", target(lab, "classic"), "aio", *EXPECTED) == EXPECTED


def test_what_envoy_refuses_is_its_status(lab: Lab) -> None:
    log = access_log(lab)
    told = rpc(lab, "intruder", target(lab, "classic"))
    assert (told["codes"], told["words"]) == ({"PermissionDenied": 1}, {"RBAC: access denied": 1})
    assert log.find(path="/load.Load/Echo", grpc="7")["code"] == "200"
