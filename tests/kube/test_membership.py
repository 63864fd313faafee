"""Which pods of a real cluster are in the mesh, and that they are from their first packet on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from nodeagent.lab.kube import Kube
from tests.kube.agents import Agents, agents
from tests.kube.workloads import Document, client, container, deployment, service
from tests.waiting import eventually

PODS = 12
REQUEST = "GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n"
FIRST = f"exec 3<>/dev/tcp/$WEB/80 && printf '{REQUEST}' >&3 && read -r line <&3 && [[ $line == *200* ]]"
"""One request, by the shell alone."""
PERSISTENT = f"tries=0; until ({FIRST}) 2> /dev/null; do tries=$((tries + 1)); sleep 0.2; done; echo $tries"
"""The first instruction of a pod: a request, and again until one is answered; how many were not."""


def namespace(name: str, **labels: str) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def strict(name: str) -> Document:
    metadata = {"name": "default", "namespace": name}
    kind = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
    return {**kind, "metadata": metadata, "spec": {"mtls": {"mode": "STRICT"}}}


def hasty(name: str, node: str, address: str) -> Document:
    """Return a pod that asks the server at *address* as its first instruction, and ends when it was answered."""
    pod = client("mesh", node, name=name)
    pod["spec"]["restartPolicy"] = "Never"
    pod["spec"]["containers"] = [container("bash", "-c", PERSISTENT, env=[{"name": "WEB", "value": address}])]
    return pod


def apply(kube: Kube, *documents: Document) -> None:
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


def get(kube: Kube, *what: str) -> Any:
    return json.loads(kube.kubectl("get", *what, "-o", "json"))


@pytest.fixture(scope="module")
def mesh(kube: Kube) -> Iterator[Agents]:
    """A server in the mesh, STRICT, on both nodes; and a namespace outside."""
    enabled = {"nodeagent.io/dataplane": "enabled"}
    apply(kube, namespace("mesh", **enabled), namespace("outside"))
    with agents(kube) as found:
        apply(kube, strict("mesh"), deployment("web", "mesh"), service("web", "mesh"))
        for node in ("node-a", "node-b"):
            apply(kube, client("outside", node), client("outside", node, name=f"asks-{node}", labels=enabled))
        for each in ("mesh", "outside"):
            kube.kubectl("wait", "-n", each, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
        yield found
    kube.kubectl("delete", "namespace", "mesh", "outside", "--wait=false")


def test_pods_are_in_the_mesh_that_ask_for_it_and_no_others(mesh: Agents) -> None:
    for node in ("node-a", "node-b"):
        rows = mesh.pods(node)
        states = {name: row["state"] for name, row in rows.items()}
        assert states[f"outside/client-{node}"] == "left alone"
        assert states[f"outside/asks-{node}"] == "enrolled"
        assert {state for name, state in states.items() if name.startswith("kube-system/")} <= {"left alone"}
        assert {state for name, state in states.items() if name.startswith("mesh/web-")} == {"enrolled"}
        assert "neither it nor its namespace" in rows[f"outside/client-{node}"]["why"]


def test_the_label_of_a_namespace_takes_effect_on_pods_that_run(kube: Kube, mesh: Agents) -> None:
    def state() -> str:
        return str(mesh.pods("node-a")["outside/client-node-a"]["state"])

    kube.kubectl("label", "namespace", "outside", "nodeagent.io/dataplane=enabled")
    eventually(lambda: state() == "enrolled", "it is enrolled")
    kube.kubectl("label", "namespace", "outside", "nodeagent.io/dataplane-")
    eventually(lambda: state() == "left alone", "it is left alone")


def test_who_is_outside_of_the_mesh_is_refused_under_strict(kube: Kube, mesh: Agents) -> None:
    """What the next test stands on."""
    address = get(kube, "service", "-n", "mesh", "web")["spec"]["clusterIP"]
    asks = f"WEB={address}; {FIRST}"
    for node in ("node-a", "node-b"):
        for pod, answered in ((f"client-{node}", False), (f"asks-{node}", True)):
            said = kube.kubectl("exec", "-n", "outside", pod, "--", "bash", "-c", f"({asks}) 2> /dev/null; echo $?")
            assert (said.strip() == "0") == answered, (pod, said)  # not 0: it read nothing, or wrote to what was reset


def test_pods_are_in_the_mesh_from_their_first_packet_on(kube: Kube, mesh: Agents) -> None:
    """Input: pods that are all made at once, whose first instruction is a request to a STRICT server.
    Verdict: each gets in; whoever was not captured yet was refused, and none of them asked in plaintext
    with an answer. How many got in at once is printed: on a machine that is busy with other things it is
    no statement about the agent.
    """
    address = get(kube, "service", "-n", "mesh", "web")["spec"]["clusterIP"]
    names = [f"hasty-{number}" for number in range(PODS)]
    pods = [hasty(name, f"node-{'ab'[number % 2]}", address) for number, name in enumerate(names)]
    apply(kube, *pods)

    def ended() -> bool:
        found = {each["metadata"]["name"]: each["status"]["phase"] for each in get(kube, "pods", "-n", "mesh")["items"]}
        return all(found[name] == "Succeeded" for name in names)

    eventually(ended, "all of them were answered", 60 + 6 * PODS)
    tries = [int(kube.kubectl("logs", "-n", "mesh", name)) for name in names]
    print(f"{tries.count(0)} of {PODS} pods were in the mesh with their first packet")

    def let_go() -> bool:
        names = [*mesh.pods("node-a"), *mesh.pods("node-b")]
        return not any(name.startswith("mesh/hasty-") for name in names)

    eventually(let_go, "who has ended is let go, with the sandbox", 60)
