"""Delivery: what the network forbids between two pods the agent does not carry, and an application
sees the pod that asks, whatever the path.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from nodeagent.lab.processes import inside
from tests.netns.world import (
    QUICK,
    about,
    account,
    address_of,
    ask,
    bracketed,
    client,
    client_argv,
    cluster,
    cluster_ip,
    curl,
    growth,
    server,
)

KERNEL = "nodeagent.io/path: kernel"
TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("other", "node1"),
        client("third", "node1"),
        server("local", "node1", account="server"),
        server("quick", "node1", account="server", annotations=KERNEL),
    )
)
VERSIONS = (4, 6)


@pytest.fixture(scope="module")
def network() -> Iterator[Lab]:
    """One node that delivers over the network."""
    with cluster("t-deliver", TEXT, nodes=1, agent=merge(QUICK, {"redirect": {"delivery": "network"}})) as lab:
        yield lab


@contextmanager
def forbidden(lab: Lab, source: str, destination: str) -> Iterator[None]:
    """Meanwhile the node drops what goes from pod to pod, as a CNI does."""
    pairs = [(address_of(lab, source, version), address_of(lab, destination, version)) for version in VERSIONS]
    rules = "".join(
        f"{family} saddr {one} {family} daddr {other} drop; "
        for family, (one, other) in zip(("ip", "ip6"), pairs, strict=True)
    )
    nft(lab, f"table inet forbidden {{ chain forward {{ type filter hook forward priority filter - 1; {rules} }}; }}")
    try:
        yield
    finally:
        nft(lab, "delete table inet forbidden")


def nft(lab: Lab, text: str) -> None:
    subprocess.run(inside(lab.netns("node1"), ["nft", "-f", "-"]), input=text, text=True, check=True)


def sees(lab: Lab, source: str, destination: str, version: int, *, service: bool = True) -> tuple[str, str]:
    """Return which client's address the application of *destination* sees when *source* asks it by HTTP, and by TCP."""
    there = cluster_ip(lab, destination, version) if service else address_of(lab, destination, version)
    seen = about(lab, source, f"http://{bracketed(there)}{'' if service else ':8080'}")["seen"]
    greeting = ask(lab, source, "dial", there, 9002, "--until", "\n")["received"]
    return seen, greeting.split()[-1]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("service", [True, False], ids=["service", "pod"])
def test_over_the_network_once_through_the_proxy(network: Lab, version: int, service: bool) -> None:
    """Input: a request on the node. It is counted by one proxy at both ends, its client is
    attested, and the application sees the client.
    """
    counted = growth(network)
    own = address_of(network, "client", version)
    assert sees(network, "client", "local", version, service=service) == (own, own)
    for reporter, security in (("source", "unknown"), ("destination", "kernel_attested")):
        counted.comes_to(
            1,
            "istio_requests_total",
            reporter=reporter,
            destination_workload="local",
            connection_security_policy=security,
        )
    assert counted.of("nodeagent_kernel_events_total", event="inbound_delivered") > 0
    assert counted.of("nodeagent_kernel_events_total", event="inbound_captured") == 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("destination", ["local", "quick"], ids=["proxy", "kernel path"])
def test_what_the_network_drops_is_not_delivered(network: Lab, destination: str, version: int) -> None:
    """Input: the node's firewall drops between two pods. The other pod is answered, this one is
    not, on the proxy's path as on the kernel's.
    """
    url = f"http://{bracketed(cluster_ip(network, destination, version))}/about"
    with forbidden(network, "client", destination):
        done = curl(network, "client", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", url)
        assert (done.stdout, done.returncode) in (("503", 0), ("000", 28)), done
        greeting = network.exec(
            "client",
            ["timeout", "5", *client_argv("dial", cluster_ip(network, destination, version), 9002, "--until", "\n")],
        )
        assert "220" not in greeting.stdout
        assert about(network, "other", url.removesuffix("/about"))["pod"] == destination
    own = address_of(network, "client", version)
    assert sees(network, "client", destination, version) == (own, own)


def test_the_answer_names_the_network(network: Lab) -> None:
    with forbidden(network, "third", "local"):
        done = curl(network, "third", f"http://{cluster_ip(network, 'local')}/about")
    assert "NetworkPolicy" in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("client", "local"),
        ("far", "local"),
        ("client", "remote"),
        ("client", "unmeshed"),
        ("plain", "local"),
        ("local", "local"),
    ],
    ids=["inside", "from another node", "to another node", "to a stranger", "from a stranger", "itself"],
)
def test_the_application_sees_the_client(mesh: Lab, source: str, destination: str, version: int) -> None:
    own = address_of(mesh, source, version)
    for service in (False,) if source == destination else (True, False):
        assert sees(mesh, source, destination, version, service=service) == (own, own)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_client_has_connections_of_its_own(mesh: Lab, version: int) -> None:
    """Input: clients in turn, whose connections to the server the proxy keeps. None is answered over another's."""
    for source in ("client", "local", "far", "client", "plain", "far"):
        url = f"http://{bracketed(address_of(mesh, 'local', version))}:8080"
        assert about(mesh, source, url)["seen"] == address_of(mesh, source, version)
