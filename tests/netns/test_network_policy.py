"""NetworkPolicies, which the lab's nodes enforce as a CNI plugin does, hold with the agent as
without: on every path, for every new connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.layout import write_json
from tests.netns.world import (
    QUICK,
    about,
    account,
    address_of,
    admin,
    bracketed,
    client,
    client_argv,
    cluster,
    cluster_ip,
    curl,
    eventually,
    pod_row,
    server,
)  # fmt: skip

VERSIONS = (4, 6)
TEXT = "".join(
    (
        account("client"),
        client("client", "node1", account="client"),
        client("other", "node1"),
        client("far", "node2"),
        server("local", "node1"),
        server("quick", "node1", annotations="nodeagent.io/path: kernel"),
        server("remote", "node2"),
    )
)
ALLOW = "podSelector: {matchLabels: {app: NAME}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster("t-policy", TEXT, agent=QUICK) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_policy_stays(lab: Lab) -> Iterator[None]:
    yield
    for path in lab.layout.objects.glob("*NetworkPolicy.*.json"):
        kind, namespace, name, _ = path.name.split(".")
        lab.delete((kind, namespace, name)) if kind == "NetworkPolicy" else path.unlink()
    eventually(lambda: pod_row(lab, "local")["delivery"].startswith("inside"), "no policy is known any more")


def put(lab: Lab, name: str, spec: str) -> None:
    """Apply a NetworkPolicy; it is in force on the nodes when this returns."""
    lab.apply(
        text=f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )


def known(lab: Lab, name: str) -> str:
    """Wait until the agent delivers to the pod over the network; return why."""
    return str(
        eventually(
            lambda: (found := pod_row(lab, name)["delivery"]).startswith("network") and found,
            f"{name} is reached over the network",
        )
    )


def reaches(lab: Lab, source: str, destination: str, version: int = 4, limit: str = "3") -> bool:
    """Say whether the application of *destination* answers *source* by HTTP or by TCP."""
    there = cluster_ip(lab, destination, version)
    http = (
        curl(
            lab,
            source,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            limit,
            f"http://{bracketed(there)}/about",
        ).stdout
        == "200"
    )
    tcp = "220" in lab.exec(source, ["timeout", limit, *client_argv("dial", there, 9002, "--until", "\n")]).stdout
    return http or tcp


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "destination", ["local", "quick", "remote"], ids=["proxy", "kernel path", "from the other node"]
)
def test_one_client_may_and_others_may_not(lab: Lab, destination: str, version: int) -> None:
    """Input: a policy lets one client in, after everybody was served. New connections of the others
    are not answered, from either node, nor over a kept one.
    """
    near, far = ("far", "other") if destination == "remote" else ("other", "far")
    eventually(lambda: reaches(lab, near, destination, version))
    eventually(lambda: reaches(lab, far, destination, version))
    put(lab, "allow", ALLOW.replace("NAME", destination))
    assert known(lab, destination) == f"network: NetworkPolicy default/allow selects default/{destination}"
    eventually(lambda: reaches(lab, "client", destination, version))
    assert not reaches(lab, near, destination, version)
    eventually(lambda: not reaches(lab, far, destination, version), "the other node's agent knows too")
    assert (
        about(
            lab,
            lab.pod(destination)["spec"]["nodeName"],
            f"http://{bracketed(address_of(lab, destination, version))}:8080",
        )["pod"]
        == destination
    )
    lab.delete(("NetworkPolicy", "default", "allow"))
    eventually(lambda: reaches(lab, near, destination, version))


def test_egress(lab: Lab) -> None:
    """Input: a client may leave for one server alone. It reaches that, and nothing else on either
    node; others are free.
    """
    put(
        lab,
        "leave",
        "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: "
        "{matchLabels: {app: local}}}]}]",
    )
    eventually(
        lambda: (
            "over the pods' interfaces: NetworkPolicy default/leave selects default/client"
            in delivery(lab, "client", "local")
        ),
        "the agent knows",
    )
    eventually(lambda: reaches(lab, "client", "local"))
    assert not reaches(lab, "client", "quick")
    assert not reaches(lab, "client", "remote")
    eventually(lambda: reaches(lab, "other", "local"))
    assert (
        delivery(lab, "other", "local")
        == "the proxy dials within the server's pod: no NetworkPolicy selects either pod"
    )


def delivery(lab: Lab, source: str, destination: str) -> str:
    """Return what ``explain`` says of how one reaches the other."""
    steps = admin(lab, "node1", f"/explain?source={source}&destination={destination}:80")["steps"]
    return str(next(step["words"] for step in steps if step["stage"] == "delivery"))


def test_default_deny_and_a_port_by_name(lab: Lab) -> None:
    """Input: nobody may come in, but to one port. That port alone answers."""
    put(lab, "deny", "podSelector: {}, ingress: []")
    known(lab, "local")
    assert not reaches(lab, "client", "local")
    put(lab, "http", "podSelector: {matchLabels: {app: local}}, ingress: [{ports: [{port: 8080}]}]")
    assert about(lab, "client", f"http://{cluster_ip(lab, 'local')}")["pod"] == "local"
    assert (
        "220"
        not in lab.exec(
            "client", ["timeout", "3", *client_argv("dial", cluster_ip(lab, "local"), 9002, "--until", "\n")]
        ).stdout
    )


@pytest.mark.parametrize(
    "document",
    [
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "theirs", "namespace": "default"},
            "spec": {},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "wrong", "namespace": "default"},
            "spec": {"podSelector": 1},
        },
    ],
    ids=["foreign", "wrong"],
)
def test_what_cannot_be_read_makes_everything_go_over_the_network(
    lab: Lab, document: dict[str, dict[str, str]]
) -> None:
    kind, name = str(document["kind"]), document["metadata"]["name"]
    write_json(lab.layout.object_file(kind, "default", name), json.loads(json.dumps(document)))
    assert known(lab, "local") == f"network: {kind} default/{name} is not read, and may be for either pod"
    lab.layout.object_file(kind, "default", name).unlink()
