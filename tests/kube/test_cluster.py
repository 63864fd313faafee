"""The lab's Kubernetes is one: what a user of it relies on, without an agent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.errors import LabError
from nodeagent.lab.kube import Kube, construction
from nodeagent.lab.kube.cluster import KubeShape
from nodeagent.lab.kube.config import TUNABLES
from nodeagent.lab.kube.construction import destroy
from nodeagent.lab.kube.layout import FOLDER_PREFIX, FOLDERS, STATE_ROOT, KubeLayout
from nodeagent.lab.kube.node import v1_hierarchies
from tests.kube.workloads import client, deployment, service


def traces(identifier: str) -> set[str]:
    """Return what the cluster *identifier* has on a machine while it is up; others stand in other rooms."""
    found = {str(path) for path in FOLDERS.glob(f"{FOLDER_PREFIX}{identifier}")}
    for hierarchy in v1_hierarchies():
        found |= {str(path) for path in hierarchy.glob(f"kube-{identifier}*")}
    return found


def tunables() -> dict[str, str]:
    """Return the machine's settings that a kubelet wants to change."""
    return {name: Path("/proc/sys", name).read_text() for name in TUNABLES}


@pytest.fixture(scope="module")
def shop(kube: Kube) -> Iterator[Kube]:
    """A server and a client on each node."""
    documents = [deployment("web", "shop"), service("web", "shop"), client("shop", "node-a"), client("shop", "node-b")]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([namespace, *documents]))
    kube.kubectl("wait", "-n", "shop", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
    kube.kubectl("wait", "-n", "shop", "--for=condition=Available", "deployment/web", "--timeout=60s")
    yield kube
    kube.kubectl("delete", "namespace", "shop", "--wait=false")


def get(kube: Kube, *what: str) -> Any:
    return json.loads(kube.kubectl("get", *what, "-o", "json"))


def test_nodes_are_ready_with_both_families(kube: Kube) -> None:
    nodes = get(kube, "nodes")["items"]
    addresses = {
        each["metadata"]["name"]: [one["address"] for one in each["status"]["addresses"] if one["type"] == "InternalIP"]
        for each in nodes
    }
    assert addresses == {own.name: [str(address) for address in own.addresses] for own in kube.nodes}


@pytest.mark.parametrize("node", ["node-a", "node-b"])
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_service_is_reached_by_name_from_every_node(shop: Kube, node: str, family: str) -> None:
    answer = shop.kubectl("exec", "-n", "shop", f"client-{node}", "--", "curl", "-s", family, "http://web.shop/")
    assert answer == "answered by nginx\n"


def test_pods_run_on_both_nodes_and_have_both_families(shop: Kube) -> None:
    pods = get(shop, "pods", "-n", "shop", "-l", "app=web")["items"]
    assert {each["spec"]["nodeName"] for each in pods} == {"node-a", "node-b"}
    for each in pods:
        assert len(each["status"]["podIPs"]) == 2


def test_logs_come_through_the_kubelet(shop: Kube) -> None:
    assert shop.kubectl("logs", "-n", "shop", "client-node-b") == "waits\n"


def test_a_kubelet_answers_nobody_without_rights(kube: Kube) -> None:
    address = kube.nodes[0].addresses[0]
    status = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://{address}:10250/pods"]
    done = subprocess.run(kube.command("control", status), capture_output=True, text=True, check=False)
    assert done.stdout == "401"


def test_a_node_sees_only_itself(kube: Kube) -> None:
    """Its name, its processes and its cgroup as the root; what it writes stays its own."""
    script = "hostname; cat /proc/self/cgroup; touch /etc/nodeagent-was-here; cat /proc/1/comm"
    done = subprocess.run(kube.command("node-b", ["sh", "-c", script]), capture_output=True, text=True, check=True)
    name, *groups, first = done.stdout.splitlines()
    assert (name, first) == ("node-b", "bash")
    assert {line.rpartition(":")[2] for line in groups} <= {"/", "/init"}
    assert not Path("/etc/nodeagent-was-here").exists()


def test_containerd_comes_back_and_pods_outlive_it(shop: Kube) -> None:
    before = get(shop, "pods", "-n", "shop")["items"]
    subprocess.run(shop.command("node-a", ["pkill", "-x", "containerd"]), check=True)
    pod = yaml.safe_dump(client("shop", "node-a", name="after"))
    shop.kubectl("apply", "-f", "-", stdin=pod)
    shop.kubectl("wait", "-n", "shop", "--for=condition=Ready", "pod/after", "--timeout=60s")
    restarts = {
        each["metadata"]["uid"]: each["status"]["containerStatuses"][0]["restartCount"]
        for each in get(shop, "pods", "-n", "shop")["items"]
    }
    for each in before:
        assert restarts[each["metadata"]["uid"]] == each["status"]["containerStatuses"][0]["restartCount"]


def test_clusters_stand_side_by_side_and_leave_nothing(kube: Kube, binary: Path) -> None:
    states, settings = set(STATE_ROOT.glob("*")), tunables()
    with Kube.up(name="other", shape=KubeShape(nodes=1, cni="bridge", dns=False), binary=binary) as other:
        assert [each["metadata"]["name"] for each in get(other, "nodes")["items"]] == ["node-a"]
        assert len(get(kube, "nodes")["items"]) == 2
        other.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(client("default", "node-a")))
        other.kubectl("wait", "--for=condition=Ready", "pod/client-node-a", "--timeout=60s")
        assert traces(other.layout.identifier), "this is where they are"
    assert traces(other.layout.identifier) == set()
    assert set(STATE_ROOT.glob("*")) == states
    assert tunables() == settings
    assert Kube.open("test").layout == kube.layout


def test_one_that_does_not_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    destroyed: list[KubeLayout] = []

    def noted(layout: KubeLayout) -> None:
        destroyed.append(layout)
        destroy(layout)

    monkeypatch.setattr(construction, "destroy", noted)
    with pytest.raises(LabError, match="control/apiserver has ended"):
        Kube.up(name="broken", binary=Path("/bin/false"))
    (layout,) = destroyed
    assert traces(layout.identifier) == set()
