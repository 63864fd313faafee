"""The agents while the way to the API server is as bad as networks and API servers are (``faults.py``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeagent.lab.kube import Kube
from tests.kube import faults
from tests.kube.faults import Faults
from tests.kube.mesh import (
    ACCOUNT,
    SECONDS,
    SYSTEM,
    apply,
    curl,
    enrolled,
    namespace,
    ready,
    rolled_out,
    states,
)
from tests.kube.workloads import client, deployment, service
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(400)  # the first one waits for cluster, image and agents
WEB = "http://web.days/"
KINDS = 5
"""Watches of an agent at least: pods, Services, namespaces, nodes, policies."""


@pytest.fixture(scope="module")
def api(mesh: Kube) -> Iterator[Faults]:
    """What stands between the agents and the API server; the agents begin anew, through it."""
    with faults.before(mesh, ACCOUNT) as found:
        mesh.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/nodeagent")
        rolled_out(mesh)
        eventually(lambda: found.watches >= 2 * KINDS, "watches through the proxy", SECONDS)
        yield found


@pytest.fixture(scope="module")
def days(mesh: Kube, api: Faults) -> Iterator[Kube]:
    apply(
        mesh,
        namespace("days", **{"nodeagent.io/dataplane": "enabled"}),
        deployment("web", "days"),
        service("web", "days"),
        client("days", "node-a"),
    )
    mesh.kubectl("rollout", "status", "-n", "days", "deployment/web", f"--timeout={SECONDS:g}s")
    ready(mesh, "days")
    enrolled(mesh, "node-a", "days/client-node-a")
    yield mesh
    mesh.kubectl("delete", "namespace", "days", "--wait=false")


def arrives(kube: Kube, name: str) -> None:
    """A pod that is made now is enrolled, and reaches the Service."""
    apply(kube, client("days", "node-a", name=name))
    ready(kube, "days", name)
    enrolled(kube, "node-a", f"days/{name}")
    assert curl(kube, f"days/{name}", WEB).stdout == "200"
    kube.kubectl("delete", "pod", "-n", "days", name)
    eventually(lambda: f"days/{name}" not in states(kube, "node-a"), f"{name} gone", SECONDS)


def test_watches_that_are_torn_are_taken_up_again(days: Kube, api: Faults) -> None:
    for _ in range(3):
        assert api.tear() >= 2 * KINDS
        eventually(lambda: api.watches >= 2 * KINDS, "watches again", SECONDS)
    arrives(days, "torn")


def test_a_version_that_is_too_old_is_listed_anew(days: Kube, api: Faults) -> None:
    begun = len(api.requests)
    api.expired = True
    api.tear()
    eventually(lambda: sum("watch=" in each for each in api.requests[begun:]) >= 2 * KINDS, "refused watches", SECONDS)
    api.expired = False
    arrives(days, "expired")
    listed = [each for each in api.requests[begun:] if "/pods" in each and "watch=" not in each]
    assert listed, api.requests[begun:]


def test_events_that_come_twice_late_and_out_of_order_end_in_the_truth(days: Kube, api: Faults) -> None:
    api.duplicate = True
    api.reorder = True
    api.delay = 0.05
    for replicas in (4, 1, 2):
        days.kubectl("scale", "-n", "days", "deployment/web", f"--replicas={replicas}")
        days.kubectl("rollout", "status", "-n", "days", "deployment/web", f"--timeout={SECONDS:g}s")
    api.duplicate = api.reorder = False
    api.delay = 0.0
    arrives(days, "late")
    for _ in range(4):
        assert curl(days, "days/client-node-a", WEB).stdout == "200"
