"""Which pods of a real cluster are in the mesh, and that they are from their first packet on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeagent.lab.kube import Kube
from tests.kube.agents import Agents, agents
from tests.kube.hasty import FIRST, strict_server, tried
from tests.kube.mesh import apply, get, namespace
from tests.kube.workloads import client
from tests.waiting import eventually

PODS = 12


@pytest.fixture(scope="module")
def mesh(kube: Kube) -> Iterator[Agents]:
    """A server in the mesh, STRICT, on both nodes; and a namespace outside."""
    enabled = {"nodeagent.io/dataplane": "enabled"}
    apply(kube, namespace("outside"))
    with agents(kube) as found:
        strict_server(kube)
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
    tries = tried(kube, PODS)
    print(f"{tries.count(0)} of {PODS} pods were in the mesh with their first packet")

    def let_go() -> bool:
        names = [*mesh.pods("node-a"), *mesh.pods("node-b")]
        return not any(name.startswith("mesh/hasty-") for name in names)

    eventually(let_go, "who has ended is let go, with the sandbox", 60)
