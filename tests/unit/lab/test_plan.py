"""From resources to pods with nodes and addresses: who gets what, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.lab import plan
from nodeagent.lab.layout import ADDRESSES, Node
from nodeagent.resources.load import parse

NODES = (Node(1), Node(2))


def pod(name: str, extra: str = "", metadata: str = "") -> str:
    return (
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{metadata}}}\nspec: "
        f"{{containers: [{{name: c, command: [sleep, '1']}}]{extra}}}\n"
    )


def deployment(name: str, replicas: int, extra: str = "") -> str:
    return (
        f"---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: "
        f"{replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n"
        "  template: "
        f"{{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: c, command: [sleep, '1']{extra}}}]}}}}\n"  # noqa: E501
    )


def service(name: str, extra: str = "") -> str:
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]{extra}}}\n"


class Cluster:
    """Applies plans, in memory."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self._uids = (f"uid-{number}" for number in itertools.count())

    def apply(self, text: str) -> plan.Plan:
        made = plan.make(
            parse(text, "f.yaml"), self.objects.values(), self.pods.values(), NODES, lambda: next(self._uids)
        )
        self.objects |= {
            (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each
            for each in made.objects
        }
        for each in made.removed:
            del self.pods[each["metadata"]["uid"]]
        self.pods |= {each["metadata"]["uid"]: each for each in made.pods}
        return made

    def ips(self) -> dict[str, str]:
        return {each["metadata"]["name"]: each["status"]["podIP"] for each in self.pods.values()}


def test_pods_spread_over_nodes_and_get_both_families() -> None:
    cluster = Cluster()
    cluster.apply(pod("a") + pod("b") + pod("c"))
    assert cluster.ips() == {"a": "10.244.1.2", "b": "10.244.2.2", "c": "10.244.1.3"}
    assert cluster.pods["uid-2"]["status"]["podIPs"] == [{"ip": "10.244.1.3"}, {"ip": "fd00:10:244:1::3"}]


def test_applying_twice_changes_nothing() -> None:
    cluster = Cluster()
    text = pod("a") + deployment("d", 3) + service("s")
    cluster.apply(text)
    before = dict(cluster.pods), dict(cluster.objects)
    made = cluster.apply(text)
    assert (made.pods, made.removed) == ((), ())
    assert (cluster.pods, cluster.objects) == before


def test_a_pod_whose_spec_changed_is_replaced_and_its_address_is_free_again() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", ", nodeName: node1"))
    made = cluster.apply(pod("a", ", nodeName: node1, hostname: other"))
    assert [each["metadata"]["uid"] for each in made.removed] == ["uid-0"]
    assert [each["metadata"]["uid"] for each in made.pods] == ["uid-1"]
    assert cluster.ips() == {"a": "10.244.1.2"}


def test_new_labels_keep_the_pod() -> None:
    cluster = Cluster()
    cluster.apply(pod("a"))
    made = cluster.apply(pod("a", metadata=", labels: {app: b}"))
    assert made.removed == ()
    assert (made.pods[0]["metadata"]["uid"], made.pods[0]["metadata"]["labels"]) == ("uid-0", {"app": "b"})


def test_a_deployment_scales_and_rolls() -> None:
    cluster = Cluster()
    cluster.apply(deployment("d", 3))
    names = sorted(cluster.ips())
    cluster.apply(deployment("d", 2) + pod("other"))
    kept = sorted(name for name in cluster.ips() if name != "other")
    assert len(kept) == 2
    assert set(kept) < set(names)
    cluster.apply(deployment("d", 2, ", args: [x]"))
    assert not set(names) & set(cluster.ips())
    assert {each["metadata"].get("ownerReferences", [{"name": ""}])[0]["name"] for each in cluster.pods.values()} == {
        "",
        "d",
    }


def test_a_long_deployment_name_still_gives_pod_names() -> None:
    cluster = Cluster()
    cluster.apply(deployment("d" * 63, 2))
    assert all(len(name) <= 63 for name in cluster.ips())
    assert len(cluster.ips()) == 2


def test_cluster_ips_stay_and_may_be_asked_for() -> None:
    cluster = Cluster()
    both = ", ipFamilyPolicy: PreferDualStack"
    asked = service("b", f", clusterIP: 10.96.0.10{both}")
    cluster.apply(
        service("a", both) + asked + service("h", ", clusterIP: None") + service("six", ", ipFamilies: [IPv6]")
    )
    ips = {key[2]: each["spec"]["clusterIPs"] for key, each in cluster.objects.items() if key[0] == "Service"}
    assert ips == {
        "b": ["10.96.0.10", "fd00:10:96::a"],
        "a": ["10.96.0.11", "fd00:10:96::b"],
        "h": ["None"],
        "six": ["fd00:10:96::c"],
    }
    cluster.apply(service("a", both) + service("z"))
    assert cluster.objects["Service", "default", "a"]["spec"]["clusterIPs"] == ips["a"]
    assert cluster.objects["Service", "default", "z"]["spec"]["clusterIPs"] == ["10.96.0.12"]


@pytest.mark.parametrize(
    ("extra", "families"),
    [
        ("", ["IPv4"]),
        (", ipFamilies: [IPv6]", ["IPv6"]),
        (", ipFamilyPolicy: RequireDualStack", ["IPv4", "IPv6"]),
        (", ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", ["IPv6", "IPv4"]),
        (", clusterIPs: [10.96.0.9, 'fd00:10:96::9']", ["IPv4", "IPv6"]),
        (", clusterIP: 'fd00:10:96::50'", ["IPv6"]),
        (", clusterIP: None", ["IPv4"]),
        (", clusterIP: None, ipFamilyPolicy: PreferDualStack", ["IPv4", "IPv6"]),
    ],
)
def test_a_service_has_one_family_unless_it_asks_for_both(extra: str, families: list[str]) -> None:
    cluster = Cluster()
    cluster.apply(service("a", extra))
    spec = cluster.objects["Service", "default", "a"]["spec"]
    assert spec["ipFamilies"] == families
    assert (
        spec["clusterIPs"] == ["None"] or ["IPv6" if ":" in each else "IPv4" for each in spec["clusterIPs"]] == families
    )


def test_addresses_may_be_asked_for() -> None:
    cluster = Cluster()
    cluster.apply(pod("first") + pod("a", metadata=f", annotations: {{{ADDRESSES}: '10.244.2.2,fd00:10:244:2::2'}}"))
    assert cluster.ips() == {"first": "10.244.1.2", "a": "10.244.2.2"}


def test_a_host_network_pod_has_the_nodes_addresses() -> None:
    cluster = Cluster()
    cluster.apply(pod("a", ", hostNetwork: true, nodeName: node2") + pod("b", ", nodeName: node2"))
    assert cluster.ips() == {"a": "172.18.0.12", "b": "10.244.2.2"}
    cluster.apply(pod("c", ", nodeName: node2"))
    assert cluster.ips()["c"] == "10.244.2.3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            pod("a") + pod("a"),
            'document 2 (Pod default/a): metadata.name: "a": allowed: a name that differs from f.yaml: document 1',
        ),
        (
            pod("a", metadata=", namespace: shop"),
            'metadata.namespace: "shop": allowed: a Namespace that exists or stands in the input: default',
        ),
        (pod("a", ", nodeName: node9"), 'spec.nodeName: "node9": allowed: node1, node2'),
        (
            pod("a", ", serviceAccountName: web"),
            'spec.serviceAccountName: "web": allowed: a ServiceAccount of namespace default: default',
        ),
        (
            pod("a", ", volumes: [{name: v, configMap: {name: m}}]"),
            'spec.volumes[0].configMap.name: "m": allowed: a ConfigMap of namespace default: there',
        ),
        (
            deployment("d", 1, ", envFrom: [{configMapRef: {name: m}}]"),
            'spec.template.spec.containers[0].envFrom[0].configMapRef.name: "m": allowed: ',
        ),
        (
            pod("a", metadata=f", annotations: {{{ADDRESSES}: 10.9.9.9}}"),
            f'metadata.annotations[{ADDRESSES}]: "10.9.9.9": allowed: addresses of one host',
        ),
        (
            pod("a", metadata=f", annotations: {{{ADDRESSES}: '10.244.1.2,fd00:10:244:1::3'}}"),
            "allowed: addresses of one host",
        ),
        (
            pod("a", metadata=f", annotations: {{{ADDRESSES}: 10.244.1.9}}")
            + pod("b", metadata=f", annotations: {{{ADDRESSES}: 10.244.1.9}}"),
            (
                'document 2 (Pod default/b): metadata.annotations[lab.nodeagent.io/addresses]: "10.244.1.9": '
                "allowed: addresses that no other pod has"
            ),
        ),
        (
            service("a", ", clusterIP: 10.97.0.1"),
            'spec.clusterIP: "10.97.0.1": allowed: None, or an address of 10.96.0.0/16',
        ),
        (
            service("a", ", clusterIP: 10.96.0.7") + service("b", ", clusterIP: 10.96.0.7"),
            "allowed: an address that Service default/a does not have",
        ),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    cluster = Cluster()
    with pytest.raises(ResourceError) as caught:
        cluster.apply(text)
    assert message in str(caught.value)


def test_a_full_node_is_refused() -> None:
    with pytest.raises(ResourceError, match="a node with fewer than 253 pods"):
        Cluster().apply(deployment("d", 507))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6)), min_size=1, max_size=8))
def test_addresses_are_never_shared_and_replicas_always_right(steps: list[tuple[str, int]]) -> None:
    cluster = Cluster()
    for name, replicas in steps:
        cluster.apply(deployment(name, replicas))
        taken = [each["ip"] for one in cluster.pods.values() for each in one["status"]["podIPs"]]
        assert len(taken) == len(set(taken))
        assert sum(one["metadata"]["ownerReferences"][0]["name"] == name for one in cluster.pods.values()) == replicas


def test_policies_and_namespaces_are_kept_as_they_are() -> None:
    cluster = Cluster()
    text = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {nodeagent.io/path: proxy}, labels: {a: b}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  selector: {matchLabels: {app: web}}
  portLevelMtls:
    8080: {mode: STRICT}
"""
    made = {each["kind"]: each for each in cluster.apply(text).objects if "shop" in each["metadata"].values()}
    assert made["Namespace"]["metadata"] == {
        "name": "shop",
        "annotations": {"nodeagent.io/path": "proxy"},
        "labels": {"a": "b"},
    }
    assert made["PeerAuthentication"] == {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"8080": {"mode": "STRICT"}}},
    }
    changed = cluster.apply(text.replace("STRICT", "DISABLE")).objects
    assert [each["spec"]["portLevelMtls"] for each in changed if each["kind"] == "PeerAuthentication"] == [
        {"8080": {"mode": "DISABLE"}}
    ]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "kind: PeerAuthentication, metadata: {name: p}, spec: {mtls: {mode: ON}}",
            "(PeerAuthentication default/p): spec.mtls.mode: True: allowed: UNSET",
        ),
        (
            "kind: AuthorizationPolicy, metadata: {name: p}, spec: {action: DENY}",
            "document 1 (AuthorizationPolicy default/p): spec.rules: a DENY policy",
        ),
        ("kind: PeerAuthentication, metadata: {name: p}, data: 1", "data: 1: unknown field"),
        (
            "kind: PeerAuthentication, metadata: {name: p, namespace: nowhere}",
            'metadata.namespace: "nowhere": allowed: a Namespace that exists',
        ),
    ],
)
def test_a_wrong_policy_is_refused(policy: str, message: str) -> None:
    with pytest.raises(ResourceError) as caught:
        Cluster().apply(f"{{apiVersion: security.istio.io/v1, {policy}}}")
    assert message in str(caught.value)
