"""Everything else that a pod may dial works as it does without the agent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.layout import OUTSIDE
from tests.netns.world import (
    SERVER,
    about,
    access_log,
    address_of,
    ask,
    bracketed,
    cluster_ip,
    curl,
    growth,
    pod,
    scrape,
    service,
)
from tests.waiting import eventually

VERSIONS = (4, 6)


def running(lab: Lab, place: str) -> Iterator[Lab]:
    with lab.popen(place, [sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield lab
        process.kill()


@pytest.fixture(scope="module")
def outside(mesh: Lab) -> Iterator[Lab]:
    """The test server outside the cluster: on the bridge between the nodes."""
    yield from running(mesh, "underlay")


@pytest.fixture(scope="module")
def on_node(mesh: Lab) -> Iterator[Lab]:
    """The test server on node1 itself."""
    yield from running(mesh, "node1")


def captured(lab: Lab) -> float:
    return scrape(lab).sum("nodeagent_kernel_events_total", event="outbound_captured")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("which", ["loopback", "own address"])
def test_a_pod_that_dials_itself_is_left_alone(mesh: Lab, which: str, version: int) -> None:
    address = ("127.0.0.1" if version == 4 else "::1") if which == "loopback" else address_of(mesh, "local", version)
    before = captured(mesh)
    seen = about(mesh, "local", f"http://{bracketed(address)}:8080")
    assert (seen["pod"], seen["seen"]) == ("local", address)
    assert "x-request-id" not in seen["headers"]
    assert ask(mesh, "local", "duplex", address, 9001, "--send-bytes", 100000, "--receive-bytes", 100000)["ok"] == 1
    assert captured(mesh) == before


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_pod_reaches_itself_through_its_service(mesh: Lab, name: str, version: int) -> None:
    seen = about(mesh, name, f"http://{bracketed(cluster_ip(mesh, name, version))}")
    assert seen["pod"] == name
    assert (
        ask(
            mesh,
            name,
            "duplex",
            cluster_ip(mesh, name, version),
            9001,
            "--send-bytes",
            100000,
            "--receive-bytes",
            100000,
        )["ok"]
        == 1
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["local", "remote", "unmeshed"])
def test_a_pods_address_may_be_dialled_instead_of_its_service(mesh: Lab, name: str, version: int) -> None:
    address = address_of(mesh, name, version)
    counted = growth(mesh)
    assert about(mesh, "client", f"http://{bracketed(address)}:8080")["pod"] == name
    counted.comes_to(1, "istio_requests_total", reporter="source", destination_workload=name, source_workload="client")
    assert ask(mesh, "client", "duplex", address, 9001, "--send-bytes", 100000, "--receive-bytes", 100000)["ok"] == 1


def test_a_headless_service_is_its_pods(mesh: Lab) -> None:
    assert about(mesh, "client", "http://headless:8080")["pod"] in ("local", "remote")
    for name in ("local", "remote"):
        counted = growth(mesh)
        assert about(mesh, "client", f"http://{name}.headless:8080")["pod"] == name
        counted.comes_to(
            1, "istio_requests_total", reporter="source", destination_workload=name, source_workload="client"
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_node(on_node: Lab, version: int) -> None:
    address = address_of(on_node, "node1", version)
    assert about(on_node, "client", f"http://{bracketed(address)}:8080")["pod"]
    assert ask(on_node, "client", "duplex", address, 9001, "--send-bytes", 100000, "--receive-bytes", 100000)["ok"] == 1
    assert about(on_node, "far", f"http://{bracketed(address)}:8080")["pod"]


@pytest.mark.parametrize("version", VERSIONS)
def test_outside_the_cluster(outside: Lab, version: int) -> None:
    address = str(OUTSIDE[version == 6])
    counted, log = growth(outside), access_log(outside)
    seen = about(outside, "client", f"http://{bracketed(address)}:8080")
    # as without the agent: from the pod, masqueraded by the node
    assert seen["seen"] == address_of(outside, "node1", version)
    assert "x-forwarded-client-cert" not in seen["headers"]
    labels = {
        "destination_service": "unknown",
        "destination_service_name": "PassthroughCluster",
        "destination_workload": "unknown",
    }
    counted.comes_to(
        1, "istio_requests_total", reporter="source", source_workload="client", response_code="200", **labels
    )
    assert ask(outside, "client", "duplex", address, 9001, "--send-bytes", 100000, "--receive-bytes", 100000)["ok"] == 1
    counted.comes_to(1, "istio_tcp_connections_closed_total", reporter="source", source_workload="client", **labels)
    line = log.find(path="/about")
    assert (line["cluster"], line["upstream"], line["local"]) == (
        "PassthroughCluster",
        f"{bracketed(address)}:8080",
        f"{bracketed(address)}:8080",
    )


def test_a_server_outside_may_speak_first(outside: Lab) -> None:
    got = ask(outside, "client", "dial", OUTSIDE[0], 9002, "--until", "\n")
    assert got["received"].endswith(f"greets {outside.address('node1')}\r\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_getpeername_is_what_was_dialled(outside: Lab, version: int) -> None:
    pods = [address_of(outside, name, version) for name in ("local", "remote", "unmeshed")]
    for address in (
        *pods,
        cluster_ip(outside, "local", version),
        cluster_ip(outside, "remote", version),
        str(OUTSIDE[version == 6]),
    ):
        got = ask(outside, "client", "dial", address, 9002, "--until", "\n")
        assert got["peer"] == [address, 9002]


def place_address(lab: Lab, place: str, version: int) -> str:
    if place == "underlay":
        return str(OUTSIDE[version == 6])
    if place in ("service", "nobody"):
        return cluster_ip(lab, {"service": "local"}.get(place, place), version)
    return address_of(lab, place, version)


@pytest.mark.parametrize("place", ["local", "remote", "unmeshed", "node1", "node2", "underlay", "service", "nobody"])
def test_a_closed_port_refuses_at_once(mesh: Lab, place: str) -> None:
    for version in VERSIONS:
        address = place_address(mesh, place, version)
        for port in (7777, 9001 if place == "nobody" else 7778):
            got = ask(mesh, "client", "dial", address, port)
            assert got.get("error", got.get("ended")) in ("ECONNREFUSED", "ECONNRESET"), (address, got)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["local", "remote"])
def test_udp_is_untouched(mesh: Lab, name: str, version: int) -> None:
    before = captured(mesh)
    assert ask(mesh, "client", "udp", address_of(mesh, name, version), 9005)["received"] == "datagram"
    assert ask(mesh, "client", "udp", cluster_ip(mesh, name, version), 9005)["received"] == "datagram"
    assert captured(mesh) == before


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["local", "remote", "unmeshed"])
def test_the_node_and_pods_outside_the_mesh_reach_every_pod(mesh: Lab, name: str, version: int) -> None:
    address = address_of(mesh, name, version)
    for source in ("plain", "node1", "node2"):
        seen = eventually(lambda source=source: about(mesh, source, f"http://{bracketed(address)}:8080"), "an answer")
        assert seen["pod"] == name
        assert "x-forwarded-client-cert" not in seen["headers"]


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_server_on_ipv4_alone_behind_a_service_with_both(mesh: Lab, node: str) -> None:
    """A client takes the IPv6 ClusterIP first, is connected to the proxy, and cannot fall back by itself any more."""
    name = f"four-{node}"
    ready = "readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}"
    mesh.apply(
        text=pod(name, node, command='[python3, -m, http.server, "8080", --bind, 0.0.0.0]', container=ready)
        + service(name, f"app: {name}")
    )
    dialled = [
        f"{bracketed(cluster_ip(mesh, name, 6))}:80",
        f"{bracketed(cluster_ip(mesh, name, 6))}:81",
        f"{bracketed(address_of(mesh, name, 6))}:8080",
    ]
    assert [
        curl(mesh, "client", "-o", "/dev/null", "-w", "%{http_code}", f"http://{each}/").stdout for each in dialled
    ] == ["200"] * 3
