"""Pods beside those of an ambient mesh, whose proxy Envoy plays: HBONE both ways, STRICT, each side's
policy decides by the other's principal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from nodeagent.istio import TUNNEL_PORT
from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns import ambient, sidecar
from tests.netns.identity import PREFIX
from tests.netns.test_agent_processes import reload
from tests.netns.test_agent_upgrade import go_on, none_failed
from tests.netns.world import (
    QUICK,
    about,
    access_log,
    account,
    address_of,
    admin,
    ask,
    bracketed,
    client,
    client_in,
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
ONLY_AMBIENT = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-ambient}
spec: {selector: {matchLabels: {side: ours}}, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/ambient]}}]}]}
"""  # noqa: E501
OURS = {"near": "node1", "far": "node2"}
PORTS = (8080, 9000, 9001, TUNNEL_PORT)
TEXT = "".join(
    (
        account("ambient", "other-ambient", "ours", "intruder"),
        ambient.pod("ambient", "node1", account="ambient"),
        ambient.pod("other-ambient", "node1", account="other-ambient"),
        *(server(name, node, account="ours", labels="side: ours") for name, node in OURS.items()),
        *(client(f"intruder-{node}", node, account="intruder") for node in ("node1", "node2")),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        STRICT,
        ONLY_AMBIENT,
    )
)
WAYS = [(name, version, port) for name in OURS for version in (4, 6) for port in PORTS]
LED = {way: 20000 + at for at, way in enumerate(WAYS)}
"""The ports of a pod of the ambient mesh at which its proxy takes what goes to ours."""
DUPLEX = ("--send-bytes", 100_000, "--receive-bytes", 100_000)
AMBIENT = ("ambient", "other-ambient")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    logs = tmp_path_factory.mktemp("envoy")
    settings = merge(QUICK, {"proxy": {"hbone": True}})
    with cluster("t-ambient", TEXT, agent=settings) as lab, ExitStack() as stack:
        leads: Mapping[int, tuple[str, int]] = {LED[way]: (address_of(lab, way[0], way[1]), way[2]) for way in WAYS}
        for name in AMBIENT:
            takes = [address_of(lab, name, version) for version in (4, 6)]
            process = ambient.start(lab, name, logs / f"{name}.log", leads=leads, takes=takes, admits=["ours"])
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            eventually(
                lambda name=name: sidecar.certificate(lab, name)[0] == f"{PREFIX}/{name}", "it has its certificate"
            )
        yield lab


def led(name: str, version: int, port: int = 8080) -> str:
    return f"http://127.0.0.1:{LED[name, version, port]}"


def says(lab: Lab, source: str, name: str, version: int) -> str:
    """Return what comes back over TCP for a word, by HBONE."""
    arguments = ("127.0.0.1", LED[name, version, 9000], "--send", "a word", "--half-close")
    return str(ask(lab, source, "dial", *arguments)["received"])


def test_a_pod_of_the_ambient_mesh_is_not_captured(lab: Lab) -> None:
    assert pod_row(lab, "ambient") is None
    assert pod_row(lab, "near")["state"] == "enrolled"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", OURS)
def test_http_from_the_ambient_mesh(lab: Lab, name: str, version: int) -> None:
    counted = growth(lab, OURS[name])
    log = access_log(lab, OURS[name])
    seen = about(lab, "ambient", led(name, version))
    assert seen["pod"] == name
    assert f"URI={PREFIX}/ambient" in seen["headers"]["x-forwarded-client-cert"]
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="destination",
        response_code="200",
        connection_security_policy="mutual_tls",
        source_principal=f"{PREFIX}/ambient",
        source_workload="ambient",
        destination_principal=f"{PREFIX}/ours",
    )
    log.find(path="/about", code="200")  # a line of what was asked before may come yet
    assert curl(lab, "other-ambient", f"{led(name, version)}/about").stdout == "RBAC: access denied"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", OURS)
def test_tcp_from_the_ambient_mesh(lab: Lab, name: str, version: int) -> None:
    assert ask(lab, "ambient", "duplex", "127.0.0.1", LED[name, version, 9001], *DUPLEX)["ok"] == 1
    assert says(lab, "ambient", name, version) == "a word"
    refused = growth(lab, OURS[name])
    assert says(lab, "other-ambient", name, version) == ""
    refused.comes_to(1, "nodeagent_refused_connections_total", reason="policy_denied")


@pytest.mark.parametrize("name", OURS)
def test_connections_share_one_of_hbone(lab: Lab, name: str) -> None:
    before = ambient.counted(lab, "ambient", f"cluster.{address_of(lab, name, 4)}.upstream_cx_total")
    for _ in range(20):
        assert says(lab, "ambient", name, 4) == "a word"
    after = ambient.counted(lab, "ambient", f"cluster.{address_of(lab, name, 4)}.upstream_cx_total")
    assert after - before <= 1
    flows = admin(lab, OURS[name], "/flows")["flows"]
    (outer,) = [
        flow
        for flow in flows
        if flow["protocol"] == "hbone"
        and flow["closed"] is None
        and flow["source"] == "default/ambient"
        and flow["destination"].startswith(address_of(lab, name, 4))
    ]
    assert (outer["source_identity"], outer["path"]) == (f"{PREFIX}/ambient", "proxy-mtls")


@pytest.mark.parametrize("name", OURS)
def test_the_port_of_hbone_takes_nothing_else(lab: Lab, name: str) -> None:
    refused = growth(lab, OURS[name])
    url = f"{address_of(lab, name, 4)}:{TUNNEL_PORT}"
    assert curl(lab, "plain", f"http://{url}/").returncode != 0
    assert curl(lab, "plain", "-k", f"https://{url}/").returncode != 0
    refused.comes_to(2, "nodeagent_refused_connections_total", reason="not_hbone")
    # nor lead to itself
    assert curl(lab, "ambient", f"{led(name, 4, TUNNEL_PORT)}/").returncode != 0
    refused.comes_to(1, "nodeagent_refused_connections_total", reason="hbone_elsewhere")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", OURS)
def test_http_to_the_ambient_mesh(lab: Lab, name: str, version: int) -> None:
    counted = growth(lab, OURS[name])
    for url in (
        f"{bracketed(address_of(lab, 'ambient', version))}:8080",
        bracketed(cluster_ip(lab, "ambient", version)),
    ):
        assert about(lab, name, f"http://{url}")["pod"] == "ambient"
    counted.comes_to(
        2,
        "istio_requests_total",
        reporter="source",
        response_code="200",
        source_principal=f"{PREFIX}/ours",
        destination_principal=f"{PREFIX}/ambient",
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", OURS)
def test_tcp_to_the_ambient_mesh(lab: Lab, name: str, version: int) -> None:
    host = address_of(lab, "ambient", version)
    assert ask(lab, name, "duplex", host, 9001, *DUPLEX)["ok"] == 1
    before = ambient.counted(lab, "ambient", "http.taken.downstream_cx_total")
    for _ in range(20):
        assert ask(lab, name, "dial", host, 9000, "--send", "a word", "--half-close")["received"] == "a word"
    assert ambient.counted(lab, "ambient", "http.taken.downstream_cx_total") == before, "all share what was there"


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_what_the_ambient_mesh_refuses_is_told(lab: Lab, node: str) -> None:
    refused = growth(lab, node)
    host = address_of(lab, "ambient", 4)
    done = curl(lab, f"intruder-{node}", "-w", "%{http_code}", f"http://{host}:8080/about")
    assert "status 403" in done.stdout, done
    assert done.stdout.endswith("503")
    assert ask(lab, f"intruder-{node}", "dial", host, 9000, "--send", "a word", "--half-close")["received"] == ""
    refused.comes_to(1, "nodeagent_refused_connections_total", reason="hbone_refused")
    # nothing listens there
    done = curl(lab, "near", "-w", "%{http_code}", f"http://{host}:8099/about")
    assert "status 503" in done.stdout, done


def test_explain_says_when_hbone_is_spoken(lab: Lab) -> None:
    told = admin(lab, "node1", f"/explain?source=near&destination={address_of(lab, 'ambient', 4)}:8080")
    assert "streams of mTLS at its port 15008" in str(told), told


def test_reloads_lose_no_request_either_way(lab: Lab) -> None:
    with ExitStack() as stack:
        clients = [
            stack.enter_context(client_in(lab, source, "load", host, port, "--connections", 4))
            for source, host, port in (
                ("ambient", "127.0.0.1", LED["far", 4, 8080]),
                ("far", address_of(lab, "ambient", 4), 8080),
            )
        ]
        for _ in range(2):
            reload(lab, "node2")
            go_on(clients)
        none_failed(clients)
