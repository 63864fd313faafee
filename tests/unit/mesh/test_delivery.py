"""Delivery on the client's own node: over the network wherever a policy for the network may concern either pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodeagent.config import DeliverySetting
from nodeagent.errors import ResourceError
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.delivery import delivery
from nodeagent.mesh.entries import UNREAD, UnreadPolicies, Workload
from nodeagent.mesh.entry_json import from_json, to_json
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import UnreadPolicy, parse
from tests.unit.mesh.test_compile import pod


def network_policy(name: str, selector: dict[str, Any], namespace: str = "default") -> Change:
    return other("networking.k8s.io/v1", "NetworkPolicy", name, namespace, podSelector=selector)


def other(version: str, kind: str, name: str, namespace: str = "default", **spec: Any) -> Change:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    return Change(kind, namespace, name, parse(document))


class World:
    """Pods *client* and *server* of one node, and what is decided for them."""

    def __init__(self) -> None:
        self.mesh = Mesh("node1", "cluster.local")
        self.mesh.apply(
            [
                pod("client", "10.244.1.5", app="client"),
                pod("server", "10.244.1.6", app="server"),
                pod("far", "10.244.2.5", node="node2"),
            ]
        )

    def put(self, *changes: Change) -> World:
        self.mesh.apply(changes)
        return self

    def workload(self, name: str) -> Workload:
        found = next(entry for entry in self.mesh.entries().upserts if entry.key == f"workload/uid-{name}")
        assert isinstance(found, Workload)
        return found

    def way(self, setting: DeliverySetting = "auto", client: str = "client") -> tuple[str, str]:
        unread = next((entry for entry in self.mesh.entries().upserts if entry.key == UNREAD), None)
        found = delivery(setting, self.workload(client), self.workload("server"), unread)
        return found.way, found.why


def gone(change: Change) -> Change:
    return Change(change.kind, change.namespace, change.name, None)


def test_without_a_policy_delivery_is_inside() -> None:
    assert World().way() == ("inside", "no NetworkPolicy selects either pod")


@pytest.mark.parametrize("which", ["client", "server"])
@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"app": "WHICH"}},
        {"matchExpressions": [{"key": "app", "operator": "In", "values": ["WHICH", "x"]}]},
        {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}], "matchLabels": {"app": "WHICH"}},
        {
            "matchExpressions": [{"key": "app", "operator": "Exists"}, {"key": "zone", "operator": "DoesNotExist"}],
            "matchLabels": {"app": "WHICH"},
        },
    ],
)
def test_a_policy_that_selects_either_pod_makes_it_the_network_while_it_is_there(
    which: str, selector: dict[str, Any]
) -> None:

    policy = network_policy("some", json.loads(json.dumps(selector).replace("WHICH", which)))
    world = World().put(policy)
    assert world.way() == ("network", f"NetworkPolicy default/some selects default/{which}")
    assert world.put(gone(policy)).way()[0] == "inside"


@pytest.mark.parametrize(
    "policy",
    [
        network_policy("elsewhere", {}, "other"),
        network_policy("nobody", {"matchLabels": {"app": "nobody"}}),
        network_policy("nobody", {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}),
        network_policy("nobody", {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}),
    ],
)
def test_a_policy_for_others_changes_nothing(policy: Change) -> None:
    assert World().put(policy).way()[0] == "inside"


def test_an_empty_selector_is_every_pod_of_the_namespace() -> None:
    world = World().put(network_policy("all", {}))
    assert world.way()[0] == "network"
    assert world.workload("far").network_policy == "default/all"


@pytest.mark.parametrize(
    ("version", "kind", "namespace"),
    [
        ("cilium.io/v2", "CiliumNetworkPolicy", "default"),
        ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", ""),
        ("crd.projectcalico.org/v1", "NetworkPolicy", "other"),
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy", ""),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", ""),
        ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", ""),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy", ""),
        ("example.org/v1", "SomeNetworkPolicy", "default"),
    ],
)
def test_policies_that_cannot_be_read_may_be_for_any_pod(version: str, kind: str, namespace: str) -> None:
    policy = other(version, kind, "theirs", namespace)
    world = World().put(policy)
    way, why = world.way()
    assert way == "network"
    assert f"{kind} {namespace + '/' if namespace else ''}theirs" in why
    assert world.put(gone(policy)).way()[0] == "inside"


def test_the_setting_goes_first_and_a_pod_passes_no_network_to_itself() -> None:
    world = World().put(network_policy("all", {}))
    assert world.way("inside") == ("inside", "redirect.delivery is inside")
    assert World().way("network") == ("network", "redirect.delivery is network")
    assert world.way("network", client="server")[0] == "inside"
    assert delivery("auto", None, world.workload("server"), None).way == "network"


def test_entries_go_through_json() -> None:
    for entry in (
        World().put(network_policy("all", {}), other("cilium.io/v2", "CiliumNetworkPolicy", "c")).mesh.entries().upserts
    ):
        assert from_json(to_json(entry)) == entry
    assert UnreadPolicies("x").key == UNREAD


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"podSelector": []},
        {"podSelector": {"matchLabels": {"a": 1}}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
    ],
)
def test_a_wrong_policy_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ResourceError, match=r"spec\.podSelector"):
        other("networking.k8s.io/v1", "NetworkPolicy", "wrong", **spec)


def test_what_cannot_be_read_is_not_parsed() -> None:
    assert (
        parse({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "x"}, "spec": []})
        == UnreadPolicy()
    )
