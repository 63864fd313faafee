"""The snapshot: what objects become, what a change costs, and that the order of changes never matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.mesh import compile as compiler
from nodeagent.mesh import rules
from nodeagent.mesh.cluster_state import ClusterState
from nodeagent.mesh.compile import Mesh
from nodeagent.mesh.entries import Delta, Endpoint, Entry, Service, ServicePort, Workload, by_age
from nodeagent.mesh.entry_json import from_json, to_json
from nodeagent.mesh.kernel_plan import KernelPlanner, KernelPlanSettings
from nodeagent.mesh.membership import MembershipRules
from nodeagent.mesh.policies import Policies
from nodeagent.mesh.selection import PodLabels
from nodeagent.places.annotation import AnnotationPlaces
from nodeagent.places.place import Place
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.proxy.view import ClusterView, Resolved
from nodeagent.resources import objects, security
from nodeagent.resources.changes import AnyChange, Change, EnrolledChange
from nodeagent.resources.objects import parse
from nodeagent.vocabulary import Address, PodUid

DOMAIN = "cluster.local"


def pod(
    name: str,
    address: str | None = "10.244.1.5",
    *,
    uid: str = "",
    app: str = "web",
    ready: bool = True,
    node: str = "node1",
    **more: Any,
) -> Change:
    metadata = {
        "name": name,
        "namespace": more.get("namespace", "default"),
        "uid": uid or f"uid-{name}",
        "labels": {"app": app, **more.get("labels", {})},
        "annotations": {"lab.nodeagent.io/netns": f"/run/netns/{name}", **more.get("annotations", {})},
        "ownerReferences": [{"kind": "Deployment", "name": app}],
        "creationTimestamp": more.get("created"),
        "deletionTimestamp": more.get("deleted"),
    }
    spec = {
        "nodeName": node,
        "serviceAccountName": app,
        "hostNetwork": more.get("host_network", False),
        "containers": [
            {
                "ports": [{"name": "web", "containerPort": more.get("port", 8080)}],
                "readinessProbe": {"httpGet": {"port": "web", "path": "/ready"}},
            }
        ],
    }
    addresses = [{"ip": text} for text in (address, more.get("address6")) if text]
    status = {
        "phase": more.get("phase", "Running"),
        "podIPs": addresses,
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    return Change(
        "Pod", metadata["namespace"], name, parse({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
    )


def service(
    name: str = "web", app: str | None = "web", ports: Sequence[dict[str, Any]] | None = None, **more: Any
) -> Change:
    metadata = {
        "name": name,
        "namespace": more.get("namespace", "default"),
        "creationTimestamp": more.get("created"),
        "annotations": more.get("annotations"),
    }
    spec = {
        "clusterIPs": more.get("addresses", ["10.96.0.7", "fd00:10:96::7"]),
        "selector": {"app": app, **more.get("selector", {})} if app else None,
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}] if ports is None else ports,
        "type": more.get("type", "ClusterIP"),
        "publishNotReadyAddresses": more.get("publish_not_ready", False),
        "internalTrafficPolicy": more.get("internal", "Cluster"),
    }
    return Change(
        "Service", metadata["namespace"], name, parse({"kind": "Service", "metadata": metadata, "spec": spec})
    )


def policy(
    kind: str,
    spec: dict[str, Any],
    *,
    name: str = "p",
    namespace: str = "default",
    created: str | None = None,
    file: str = "",
) -> Change:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return Change(
        kind,
        namespace,
        name,
        security.parse({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}),
        file,
    )


def namespace(name: str, labels: dict[str, str] | None = None, **annotations: str) -> Change:
    metadata = {"name": name, "labels": labels or {}, "annotations": annotations}
    return Change("Namespace", "", name, parse({"kind": "Namespace", "metadata": metadata}))


def gone(change: Change) -> Change:
    return Change(change.kind, change.namespace, change.name, None)


def mesh(*changes: AnyChange) -> Mesh:
    made = Mesh("node1", DOMAIN, AnnotationPlaces())
    made.apply(changes)
    return made


def entry(made: Mesh, key: str) -> Any:
    return next((found for found in made.entries().upserts if found.key == key), None)


def keys(entries: Sequence[Entry]) -> list[str]:
    return [found.key for found in entries]


def test_a_pod_and_its_service() -> None:
    made = mesh(pod("web-1", address6="FD00:10:244:1:0::5"), service())
    assert entry(made, "workload/uid-web-1") == Workload(
        uid=PodUid("uid-web-1"),
        pod="web-1",
        namespace="default",
        node="node1",
        addresses=("10.244.1.5", "fd00:10:244:1::5"),
        service_account="web",
        identity="spiffe://cluster.local/ns/default/sa/web",
        workload="web",
        app="web",
        version="",
        canonical_service="web",
        canonical_revision="latest",
        ready=True,
        enrolled=False,
        ports=((8080, "http"),),
        probes=entry(made, "workload/uid-web-1").probes,
        services=((8080, "default/web"),),
    )
    endpoints = (Endpoint("10.244.1.5", 8080, "uid-web-1"), Endpoint("fd00:10:244:1::5", 8080, "uid-web-1"))
    assert entry(made, "service/default/web") == Service(
        "web",
        "default",
        "web.default.svc.cluster.local",
        ("10.96.0.7", "fd00:10:96::7"),
        (ServicePort(80, "http", "http", endpoints),),
    )


def test_entries_survive_the_channel() -> None:
    for found in mesh(pod("web-1"), service()).entries().upserts:
        assert from_json(to_json(found)) == found


def test_only_ready_pods_are_endpoints() -> None:
    made = mesh(
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2", ready=False),
        pod("c", "10.0.0.3", deleted="2026-01-01T00:00:00Z"),
        pod("d", "10.0.0.4", phase="Failed"),
        service(),
    )
    assert [endpoint.address for endpoint in entry(made, "service/default/web").ports[0].endpoints] == ["10.0.0.1"]
    assert entry(made, "workload/uid-b").ready is False
    assert entry(made, "workload/uid-d") is None
    made.apply([service(publish_not_ready=True)])
    assert [endpoint.address for endpoint in entry(made, "service/default/web").ports[0].endpoints] == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
    ]


def endpoints(made: Mesh) -> list[str]:
    found = entry(made, "service/default/web")
    return [each.address for each in found.ports[0].endpoints]


def test_a_service_that_keeps_to_the_node_has_its_own_endpoints_alone() -> None:
    here, there = pod("a", "10.0.0.1"), pod("b", "10.0.1.1", node="node2")
    assert endpoints(mesh(here, there, service())) == ["10.0.0.1", "10.0.1.1"]
    assert endpoints(mesh(here, there, service(internal="Local"))) == ["10.0.0.1"]
    assert endpoints(mesh(there, service(internal="Local"))) == []
    assert endpoints(mesh(pod("a", "10.0.0.1", ready=False), there, service(internal="Local"))) == []
    outside = [
        {"addresses": [address], "nodeName": node}
        for address, node in (("192.0.2.1", "node1"), ("192.0.2.2", "node2"), ("192.0.2.3", None))
    ]
    metadata = {"name": "s", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}}
    ports = [{"name": "http", "port": 80}]
    slices = parse(
        {"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "endpoints": outside, "ports": ports}
    )
    whole = mesh(service(app=None, internal="Local"), Change("EndpointSlice", "default", "s", slices))
    assert endpoints(whole) == ["192.0.2.1"]


def test_where_no_endpoint_is_ready_those_that_end_serve_on() -> None:
    ending = pod("a", "10.0.0.1", deleted="2026-01-03T00:00:00Z")
    assert endpoints(mesh(ending, service())) == ["10.0.0.1"]
    assert endpoints(mesh(ending, pod("b", "10.0.1.1", node="node2"), service())) == ["10.0.1.1"]
    assert endpoints(mesh(ending, pod("b", "10.0.1.1", node="node2"), service(internal="Local"))) == ["10.0.0.1"]
    unready = pod("a", "10.0.0.1", deleted="2026-01-03T00:00:00Z", ready=False)
    assert endpoints(mesh(unready, service())) == []
    done = pod("a", "10.0.0.1", deleted="2026-01-03T00:00:00Z", phase="Succeeded")
    assert endpoints(mesh(done, service())) == []


def test_ports_by_number_by_name_and_by_default() -> None:
    ports = [
        {"name": "a", "port": 1, "targetPort": 9000},
        {"name": "b", "port": 2, "targetPort": "web"},
        {"name": "c", "port": 8080},
        {"name": "d", "port": 4, "targetPort": "nowhere"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "s", "port": 54, "protocol": "SCTP"},
        {"name": "e", "port": 5, "targetPort": "9001"},
    ]
    made = mesh(pod("a", "10.0.0.1"), pod("b", "10.0.0.2", port=7070), service(ports=ports))
    found = {
        port.port: [(endpoint.address, endpoint.port) for endpoint in port.endpoints]
        for port in entry(made, "service/default/web").ports
    }
    assert found == {
        1: [("10.0.0.1", 9000), ("10.0.0.2", 9000)],
        2: [("10.0.0.1", 8080), ("10.0.0.2", 7070)],
        8080: [("10.0.0.1", 8080), ("10.0.0.2", 8080)],
        4: [],
        5: [("10.0.0.1", 9001), ("10.0.0.2", 9001)],
    }


def test_a_headless_service_has_endpoints_but_no_address() -> None:
    found = entry(mesh(pod("a"), service(addresses=["None"])), "service/default/web")
    assert found.addresses == ()
    assert found.ports[0].endpoints


def test_services_whose_endpoints_are_not_known_here_are_left_to_the_node() -> None:
    made = mesh(service("manual", None), service("alias", type="ExternalName", addresses=[]))
    assert made.entries() == Delta()


def test_the_oldest_service_decides_a_ports_protocol() -> None:
    young = service("a-young", created="2026-02-01T00:00:00Z", ports=[{"name": "tcp", "port": 1, "targetPort": 8080}])
    old = service("z-old", created="2026-01-01T00:00:00Z", ports=[{"name": "http", "port": 1, "targetPort": 8080}])
    made = mesh(pod("a"), young, old)
    assert entry(made, "workload/uid-a").ports == ((8080, "http"),)
    assert entry(made, "workload/uid-a").services == ((8080, "default/z-old"),)
    made.apply([gone(old)])
    assert entry(made, "workload/uid-a").ports == ((8080, "tcp"),)


@pytest.mark.parametrize("names", [("any", "tcp"), ("tcp", "any"), ("any", "tcp", "http")])
def test_of_two_ports_of_a_service_the_declared_one_says_what_the_workloads_is(names: tuple[str, ...]) -> None:
    old = service(
        "z-old",
        created="2026-01-01T00:00:00Z",
        ports=[{"name": name, "port": at, "targetPort": 8080} for at, name in enumerate(names, 1)],
    )
    young = service("a-young", created="2026-02-01T00:00:00Z", ports=[{"name": "http", "port": 1, "targetPort": 8080}])
    assert entry(mesh(pod("a"), young, old), "workload/uid-a").ports == ((8080, "tcp"),)


def test_another_service_does_not_declare_what_the_oldest_leaves_open() -> None:
    old = service("z-old", created="2026-01-01T00:00:00Z", ports=[{"name": "any", "port": 1, "targetPort": 8080}])
    young = service("a-young", created="2026-02-01T00:00:00Z", ports=[{"name": "tcp", "port": 1, "targetPort": 8080}])
    assert entry(mesh(pod("a"), young, old), "workload/uid-a").ports == ((8080, "auto"),)


def test_a_change_touches_its_pod_and_the_services_that_select_it() -> None:
    made = mesh(
        *(
            pod(f"{app}-{number}", f"10.{place}.0.{number}", app=app)
            for place, app in enumerate(("web", "shop"))
            for number in range(1, 6)
        ),
        service(),
        service("shop", "shop"),
    )
    delta = made.apply([pod("web-1", "10.0.0.1", ready=False)])
    assert keys(delta.upserts) == ["service/default/web", "workload/uid-web-1"]
    assert made.apply([pod("web-1", "10.0.0.1", ready=False)]) == Delta()
    delta = made.apply([pod("web-1", "10.0.0.1", app="shop")])
    assert keys(delta.upserts) == ["service/default/shop", "workload/uid-web-1"]
    delta = made.apply([gone(pod("web-2"))])
    assert (keys(delta.upserts), delta.removals) == (["service/default/web"], ("workload/uid-web-2",))
    assert made.apply([gone(pod("never"))]) == Delta()


def test_a_change_recompiles_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mesh(
        *(pod(f"p{number}", f"10.0.0.{number}", app=f"app{number % 10}") for number in range(1, 101)),
        *(service(f"app{number}", f"app{number}") for number in range(10)),
    )
    seen: list[object] = []

    def spied(original: Callable[[Mesh, Any], Any]) -> Callable[[Mesh, Any], Any]:
        return lambda self, key: (seen.append(key), original(self, key))[1]

    monkeypatch.setattr(compiler.Mesh, "_workload", spied(Mesh._workload))
    monkeypatch.setattr(compiler.Mesh, "_service", spied(Mesh._service))
    made.apply([pod("p5", "10.0.0.5", app="app5", ready=False)])
    assert sorted(seen) == [("default", "app5"), ("default", "p5")]


def test_a_policy_recompiles_those_whose_entries_say_something_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: pods of this node and of another, and policies for all of a namespace. Verdict: a pod of another node is
    made anew for a PeerAuthentication, and for a NetworkPolicy that selects it, and is asked about no others.
    """
    made = mesh(*(pod(name, f"10.0.0.{name}", node=f"node{name}", app=f"app{name}") for name in "12"))
    seen: list[str] = []
    original = Mesh._governed

    def spied(self: Mesh, key: tuple[str, str], workload: Workload) -> Workload:
        seen.append(key[1])
        return original(self, key, workload)

    def asked(change: AnyChange) -> list[str]:
        seen.clear()
        made.apply([change])
        return sorted(seen)

    monkeypatch.setattr(Mesh, "_governed", spied)
    assert asked(policy("AuthorizationPolicy", {"action": "DENY", "rules": [{}]})) == ["1"]
    assert asked(policy("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, name="q")) == ["1", "2"]
    network = {"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "n"}}
    for labels, expected in (({"app": "app2"}, ["2"]), ({"app": "app1"}, ["1", "2"]), ({"app": "app3"}, ["1"])):
        spec = {"podSelector": {"matchLabels": labels}}
        assert asked(Change("NetworkPolicy", "default", "n", parse({**network, "spec": spec}))) == expected
    monkeypatch.setattr("nodeagent.mesh.policies.Policies.of", lambda *_: pytest.fail("it is of another node"))
    made.apply([pod("2", "10.0.0.2", node="node2", app="app2", ready=False)])
    assert entry(made, "workload/uid-2").mtls == "STRICT"


@pytest.mark.parametrize("pods_first", [True, False])
def test_what_is_alike_is_worked_out_once(monkeypatch: pytest.MonkeyPatch, pods_first: bool) -> None:
    """Input: 30 pods with the same labels, 40 Services with the same selector, then a policy for all, then no
    Services. Verdict: labels are compared, ports worked out and endpoints made for one pod and one Service.
    """
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*given: Any) -> Any:
            counts[name] += 1
            return real(*given)

        monkeypatch.setattr(owner, name, call)

    counted(PodLabels, "matches")
    counted(rules, "served")
    counted(compiler, "_endpoints")
    counted(Policies, "mtls")
    pods = [pod(f"p{number}", f"10.0.0.{number}") for number in range(1, 31)]
    services = [service(f"s{number:02}") for number in range(40)]
    made = mesh(*(pods + services if pods_first else services + pods))
    assert [len(entry(made, f"service/default/{each.name}").ports[0].endpoints) for each in services] == [30] * 40
    (ports,) = {tuple(entry(made, f"workload/uid-p{number}").services) for number in range(1, 31)}
    assert ports == ((8080, "default/s00"),)
    assert counts["served"] == counts["mtls"] == 1
    assert counts["_endpoints"] == 2, "of the ready ones, and of those that end"
    assert counts["matches"] <= 40 * 2 + 30 * 2, counts
    counts.clear()
    made.apply([policy("PeerAuthentication", {"mtls": {"mode": "STRICT"}})])
    assert {entry(made, f"workload/uid-p{number}").mtls for number in range(1, 31)} == {"STRICT"}
    assert counts["mtls"] == 1 and counts["matches"] <= 40 + 2, counts
    counts.clear()
    made.apply([gone(each) for each in services])
    assert counts["matches"] <= 40 * 2 + 30 * 2, counts


def test_enrolment_marks_may_come_before_the_pod_and_stay() -> None:
    made = mesh(EnrolledChange(PodUid("uid-a"), True), pod("a"))
    assert entry(made, "workload/uid-a").enrolled
    delta = made.apply([EnrolledChange(PodUid("uid-a"), False)])
    assert keys(delta.upserts) == ["workload/uid-a"]
    assert not entry(made, "workload/uid-a").enrolled
    assert made.apply([EnrolledChange(PodUid("nobody"), True)]) == Delta()


def test_no_node_says_of_anothers_pod_that_it_is_enrolled_or_is_no_more() -> None:
    """Input: node2's status names a pod of node1, and then does not, as one that was taken over may. Verdict:
    others send the pod mTLS while node1 says so, and not otherwise.
    """
    made = mesh(EnrolledChange(PodUid("uid-a"), True, "node2"), pod("a"))
    assert not entry(made, "workload/uid-a").enrolled
    made.apply([EnrolledChange(PodUid("uid-a"), True, "node1")])
    assert entry(made, "workload/uid-a").enrolled
    made.apply([EnrolledChange(PodUid("uid-a"), False, "node2")])
    assert entry(made, "workload/uid-a").enrolled
    made.apply([EnrolledChange(PodUid("uid-a"), False, "node1")])
    assert not entry(made, "workload/uid-a").enrolled


def test_an_address_goes_to_the_younger_pod() -> None:
    old, young = pod("old", created="2026-01-01T00:00:00Z"), pod("young", created="2026-01-02T00:00:00Z", app="shop")
    made = mesh(young, old, service())
    assert entry(made, "workload/uid-young").addresses == ("10.244.1.5",)
    assert entry(made, "workload/uid-old").addresses == ()
    assert entry(made, "service/default/web").ports[0].endpoints == ()
    assert [local.pod for local in made.local_pods()] == ["young"]
    delta = made.apply([gone(young)])
    assert keys(delta.upserts) == ["service/default/web", "workload/uid-old"]
    assert entry(made, "workload/uid-old").addresses == ("10.244.1.5",)


FORGED = {
    "never scheduled": {"node": ""},
    "of another node": {"node": "node2"},
    "of another node, and older": {"node": "node2", "created": "2025-01-01T00:00:00Z"},
    "of this node, and not seen to run": {"annotations": {"lab.nodeagent.io/netns": ""}},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_no_status_takes_the_address_of_a_pod_that_runs_here(forged: dict[str, Any]) -> None:
    """Input: a pod whose status, which others may write, has the address of a pod that is seen to run on this
    node. Verdict: that one stays captured, and it alone has the address, whichever came first.
    """
    victim = pod("db", created="2026-01-01T00:00:00Z")
    ghost = pod("ghost", **{"namespace": "evil", "created": "2026-01-02T00:00:00Z", "app": "shop", **forged})
    for changes in ((victim, ghost), (ghost, victim)):
        made = mesh(*changes)
        assert [(local.pod, local.addresses) for local in made.local_pods()] == [("db", ("10.244.1.5",))]
        assert entry(made, "workload/uid-ghost").addresses == ()
    made.apply([gone(victim)])
    held = entry(made, "workload/uid-ghost").addresses
    assert held == (() if forged.get("node") == "" else ("10.244.1.5",))


def node(name: str, *ranges: str) -> Change:
    return Change(
        "Node", "", name, parse({"kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": list(ranges)}})
    )


def test_what_pods_of_two_nodes_claim_is_the_olders() -> None:
    old = pod("old", node="node2", created="2026-01-01T00:00:00Z")
    young = pod("young", node="node3", created="2026-01-02T00:00:00Z")
    made = mesh(young, old)
    assert entry(made, "workload/uid-old").addresses == ("10.244.1.5",)
    assert entry(made, "workload/uid-young").addresses == ()
    made.apply([pod("old", node="node2", created="2026-01-01T00:00:00Z", deleted="2026-01-03T00:00:00Z")])
    assert entry(made, "workload/uid-young").addresses == ("10.244.1.5",), "the older is on its way out"


def test_what_pods_of_two_nodes_claim_is_the_nodes_whose_range_has_it() -> None:
    made = mesh(
        pod("old", node="node2", created="2026-01-01T00:00:00Z"),
        pod("young", node="node3", created="2026-01-02T00:00:00Z"),
        node("node2", "10.244.2.0/24"),
    )
    assert entry(made, "workload/uid-old").addresses == ("10.244.1.5",)
    delta = made.apply([node("node3", "10.244.1.0/24", "fd00::/64")])
    assert keys(delta.upserts) == ["workload/uid-old", "workload/uid-young"]
    assert entry(made, "workload/uid-young").addresses == ("10.244.1.5",)
    assert made.apply([node("node3", "10.244.1.0/24", "fd00::/64")]) == Delta()
    made.apply([gone(node("node3"))])
    assert entry(made, "workload/uid-old").addresses == ("10.244.1.5",)


def test_a_pod_on_its_way_out_gives_its_address_up() -> None:
    leaving, fresh = (
        pod("leaving", created="2026-01-02T00:00:00Z", deleted="2026-01-03T00:00:00Z"),
        pod("fresh", created="2026-01-01T00:00:00Z"),
    )
    assert entry(mesh(leaving, fresh), "workload/uid-fresh").addresses == ("10.244.1.5",)


def test_a_pod_that_ended_holds_no_address() -> None:
    made = mesh(
        pod("done", phase="Succeeded", created="2026-01-02T00:00:00Z"), pod("next", created="2026-01-01T00:00:00Z")
    )
    assert entry(made, "workload/uid-next").addresses == ("10.244.1.5",)
    assert [local.pod for local in made.local_pods()] == ["next"]


def test_a_pod_of_the_same_name_is_another_pod() -> None:
    made = mesh(pod("db-0", uid="first"), service())
    delta = made.apply([pod("db-0", uid="second")])
    assert (keys(delta.upserts), delta.removals) == (["service/default/web", "workload/second"], ("workload/first",))
    assert [local.uid for local in made.local_pods()] == ["second"]


def test_pods_on_the_nodes_network_have_no_address_of_their_own() -> None:
    made = mesh(
        pod("agent", "172.18.0.11", host_network=True, labels={"k": "v"}),
        pod("web", "172.18.0.12"),
        service(),
        EnrolledChange(PodUid("uid-agent"), True),
    )
    assert entry(made, "workload/uid-agent").addresses == ()
    assert not entry(made, "workload/uid-agent").enrolled
    assert {endpoint.address for endpoint in entry(made, "service/default/web").ports[0].endpoints} == {
        "172.18.0.11",
        "172.18.0.12",
    }
    assert [local.pod for local in made.local_pods()] == ["web"]


def test_namespaces_are_apart() -> None:
    made = mesh(
        pod("a", "10.0.0.1"), pod("a", "10.0.0.2", namespace="other", uid="o"), service(), service(namespace="other")
    )
    assert [endpoint.uid for endpoint in entry(made, "service/other/web").ports[0].endpoints] == ["o"]
    assert entry(made, "workload/o").identity == "spiffe://cluster.local/ns/other/sa/web"


def test_local_pods_follow() -> None:
    made = mesh(pod("a", "10.0.0.1"), pod("far", "10.0.0.2", node="node2"), pod("waiting", None))
    assert [local.pod for local in made.local_pods()] == ["a"]
    made.apply([pod("a", "10.0.0.1", labels={"nodeagent.io/enroll": "false"})])
    assert made.local_pods() == ()
    made.apply([pod("waiting", "10.0.0.3"), gone(pod("a"))])
    assert [local.pod for local in made.local_pods()] == ["waiting"]
    made.apply([gone(pod("waiting"))])
    assert made.local_pods() == ()


def test_a_pod_is_captured_where_and_as_soon_as_its_place_is_known() -> None:
    """Input: places that somebody else than the pod's annotations knows, later than the pod."""

    class Runtime:
        def __init__(self) -> None:
            self.known: dict[PodUid, Place] = {}

        def of(self, pod: objects.PodObject) -> Place | None:
            return self.known.get(pod.uid)

    runtime = Runtime()
    made = Mesh("node1", DOMAIN, runtime)
    made.apply([pod("a", "10.0.0.1")])
    assert made.local_pods() == ()
    for place in (Place("/run/netns/first", "/first"), Place("/run/netns/second", "/second")):
        runtime.known[PodUid("uid-a")] = place
        assert not made.apply([pod("a", "10.0.0.1")])
        assert [local.place for local in made.local_pods()] == [place]
    assert made.asking_pods() == ()


def test_a_change_that_cannot_be_taken_in_is_named_and_takes_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a batch in which taking in one pod fails, as nobody foresaw. Verdict: the others are in
    the snapshot, the fault names the pod, and goes when the pod is told anew.
    """
    made = mesh()
    put_pod = ClusterState._put_pod

    def failing(self: ClusterState, key: tuple[str, str], found: objects.PodObject | None) -> None:
        if key[1] == "odd":
            raise RuntimeError("nobody foresaw this")
        put_pod(self, key, found)

    monkeypatch.setattr(ClusterState, "_put_pod", failing)
    delta = made.apply([pod("first", "10.0.0.1"), pod("odd", "10.0.0.2"), pod("last", "10.0.0.3")])
    assert [each.key for each in delta.upserts] == ["workload/uid-first", "workload/uid-last"]
    assert made.faults == {"the change of Pod default/odd": "RuntimeError: 'nobody foresaw this'"}
    monkeypatch.undo()
    assert [each.key for each in made.apply([pod("odd", "10.0.0.2")]).upserts] == ["workload/uid-odd"]
    assert made.faults == {}


def test_node_addresses() -> None:
    node = {
        "kind": "Node",
        "metadata": {"name": "node1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "172.18.0.11"}, {"type": "Hostname", "address": "node1"}]
        },
    }
    made = mesh(Change("Node", "", "node1", parse(node)))
    assert made.node_addresses() == ("172.18.0.11",)
    made.apply([Change("Node", "", "node1", None)])
    assert made.node_addresses() == ()


def test_a_service_account_that_makes_no_identity_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    made = mesh(pod("a", app="a/../b"), service(app="a/../b"))
    assert entry(made, "workload/uid-a") is None
    assert made.local_pods() == ()
    assert "Pod default/a: spec.serviceAccountName" in caplog.text


# -- the order of changes, and what came before, never matter --

_APPS = st.sampled_from(["web", "shop"])
_POD = st.builds(
    pod,
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", None]),
    uid=st.sampled_from(["u1", "u2", "u3", "u4", "u5"]),
    app=_APPS,
    ready=st.booleans(),
    node=st.sampled_from(["node1", "node1", "node2", "node3", ""]),
    created=st.sampled_from([None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
    deleted=st.sampled_from([None, None, "2026-01-03T00:00:00Z"]),
    phase=st.sampled_from(["Running", "Running", "Succeeded"]),
    port=st.sampled_from([80, 8080]),
    host_network=st.sampled_from([False, False, True]),
    labels=st.sampled_from([{}, {"tier": "x"}, {"nodeagent.io/dataplane": "enabled"}, {"app": "ztunnel"}]),
    namespace=st.sampled_from(["default", "default", "other", "istio-system"]),
)
_SERVICE = st.builds(
    service,
    st.sampled_from(["s", "t"]),
    st.sampled_from(["web", "shop", None]),
    st.sampled_from(
        [
            [{"port": 80, "targetPort": "web"}],
            [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp-x", "port": 81, "targetPort": 8081}],
        ]
    ),
    selector=st.sampled_from([{}, {"tier": "x"}]),
    addresses=st.sampled_from([["10.96.0.7", "fd00:10:96::7"], ["10.96.0.7"], ["10.96.0.8", "fd00:10:96::7"], []]),
    namespace=st.sampled_from(["default", "default", "other"]),
    publish_not_ready=st.booleans(),
    internal=st.sampled_from(["Cluster", "Local"]),
    type=st.sampled_from(["ClusterIP", "ClusterIP", "ExternalName"]),
)
_MARK = st.builds(EnrolledChange, st.sampled_from([PodUid("u1"), PodUid("u2")]), st.booleans())
_SCOPE = st.sampled_from(
    [{}, {}, {"selector": {"matchLabels": {"app": "web"}}}, {"selector": {"matchLabels": {"app": "web", "tier": "x"}}}]
)
_MODE = st.sampled_from(["UNSET", "STRICT", "PERMISSIVE", "DISABLE"])
_PEER = st.builds(
    lambda name, namespace, scope, mode, port, created: policy(
        "PeerAuthentication",
        {**scope, "mtls": {"mode": mode}, **({"portLevelMtls": {"8080": {"mode": port}}} if scope and port else {})},
        name=name,
        namespace=namespace,
        created=created,
    ),
    st.sampled_from(["m", "n"]),
    st.sampled_from(["default", "other", "istio-system"]),
    _SCOPE,
    _MODE,
    st.one_of(st.none(), _MODE),
    st.sampled_from([None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
)


def ports_rule(*ports: str) -> dict[str, Any]:
    return {"action": "DENY", "rules": [{"to": [{"operation": {"ports": list(ports)}}]}]}


_RULES = st.builds(
    lambda kind, name, namespace, scope, rules: policy(
        kind, {**scope, **(rules if kind == "AuthorizationPolicy" else {})}, name=name, namespace=namespace
    ),
    st.sampled_from(["AuthorizationPolicy", "RequestAuthentication"]),
    st.sampled_from(["m", "n"]),
    st.sampled_from(["default", "other", "istio-system"]),
    st.one_of(_SCOPE, st.just({"targetRefs": [{"kind": "Service", "name": "s"}]})),
    st.sampled_from([{}, {"rules": [{}]}, {"action": "DENY", "rules": [{}]}, ports_rule("80"), ports_rule("80", "9")]),
)
_POLICY = st.one_of(_PEER, _RULES)
_NAMESPACE = st.builds(
    lambda name, path, labels: namespace(name, labels, **({"nodeagent.io/path": path} if path else {})),
    st.sampled_from(["default", "other"]),
    st.sampled_from(["kernel", "proxy", "wrong", None]),
    st.sampled_from([{}, {"nodeagent.io/dataplane": "enabled"}, {"istio.io/dataplane-mode": "ambient"}]),
)
_SLICE = st.builds(
    lambda name, namespace, of, addresses, ready, refers, number: Change(
        "EndpointSlice",
        namespace,
        name,
        objects.EndpointSliceObject(
            namespace,
            name,
            of,
            tuple(objects.SliceEndpoint(Address(address), ready, refers) for address in addresses),
            (objects.SlicePort("", 80), objects.SlicePort("http", number)),
        ),
    ),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["default", "other"]),
    st.sampled_from(["s", "t", ""]),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "192.0.2.1"]), max_size=3),
    st.booleans(),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from([8080, 8081]),
)
_NODE = st.builds(node, st.sampled_from(["node1", "node2", "node3"]), st.sampled_from(["10.0.0.0/31", "10.0.0.2/31"]))
_OBJECT = (_POD, _SERVICE, _SLICE, _POLICY, _NAMESPACE, _NODE)
_CHANGES = st.lists(st.one_of(*_OBJECT, *(each.map(gone) for each in _OBJECT), _MARK), max_size=25)


def last_of_each(changes: Sequence[AnyChange]) -> list[AnyChange]:
    final: dict[object, AnyChange] = {}
    for change in changes:
        final[change.uid if isinstance(change, EnrolledChange) else (change.kind, change.namespace, change.name)] = (
            change
        )
    return list(final.values())


@settings(max_examples=400)
@given(_CHANGES, st.integers(1, 6), st.randoms(use_true_random=False))
def test_incremental_equals_whole(changes: list[AnyChange], batch: int, random: Any) -> None:
    rules = MembershipRules(random.choice(["all", "labelled"]), ambient_labels=random.choice([True, False]))
    incremental = Mesh("node1", DOMAIN, AnnotationPlaces(), membership=rules)
    seen: dict[str, Entry] = {}
    for at in range(0, len(changes), batch):
        delta = incremental.apply(changes[at : at + batch])
        for key in delta.removals:
            del seen[key]
        for found in delta.upserts:
            assert seen.get(found.key) != found, "an entry that did not change"
            seen[found.key] = found
    rest = last_of_each(changes)
    random.shuffle(rest)
    whole = Mesh("node1", DOMAIN, AnnotationPlaces(), membership=rules)
    whole.apply(rest)
    assert incremental.entries() == whole.entries()
    assert incremental.policies() == whole.policies()
    assert {found.key: found for found in whole.entries().upserts} == seen
    assert sorted(incremental.node_pods, key=str) == sorted(whole.node_pods, key=str)


_DIALLED = ("10.96.0.7", "10.96.0.8", "fd00:10:96::7", "10.0.0.1", "10.0.0.2", "10.0.0.3")
_KERNEL = KernelPlanSettings("node1", MeshSettings(DOMAIN), client_cert=False)


def resolved(view: ClusterView) -> dict[tuple[str, int], Resolved]:
    return {where: view.resolve(*where) for where in product(_DIALLED, (80, 81, 8080))}


@settings(max_examples=400)
@given(_CHANGES, st.integers(1, 6))
def test_a_worker_and_the_kernel_that_heard_of_each_change_know_what_new_ones_do(
    changes: list[AnyChange], batch: int
) -> None:
    made = Mesh("node1", DOMAIN, AnnotationPlaces())
    view = ClusterView()
    planner = KernelPlanner(_KERNEL)
    for at in range(0, len(changes), batch):
        view.apply(made.apply(changes[at : at + batch]))
        new = ClusterView()
        new.apply(made.entries())
        assert resolved(view) == resolved(new)
        entries = made.entries().upserts
        captured = made.node_pods.captured()
        assert planner.plan(reversed(entries), captured) == KernelPlanner(_KERNEL).plan(entries, captured)


@pytest.mark.parametrize("first", ["s", "t"])
def test_a_cluster_ip_that_passes_to_another_service_is_that_ones(first: str) -> None:
    other = {"s": "t", "t": "s"}[first]
    made = Mesh("node1", DOMAIN, AnnotationPlaces())
    view = ClusterView()
    view.apply(made.apply([service(first, addresses=["10.96.0.7"]), service(other, addresses=["10.96.0.8"])]))
    view.apply(made.apply([service(first, addresses=["10.96.0.8"]), service(other, addresses=["10.96.0.7"])]))
    assert [found.name for at in (7, 8) if (found := view.resolve(f"10.96.0.{at}", 80).service)] == [other, first]
    view.apply(made.apply([service("new", addresses=["10.96.0.8"])]))
    view.apply(made.apply([gone(service(first))]))
    found = view.resolve("10.96.0.8", 80)
    assert found.service is not None and found.service.name == "new" and not found.passthrough
    view.apply(made.apply([gone(service("new"))]))
    assert view.resolve("10.96.0.8", 80).passthrough


@pytest.mark.parametrize(
    ("before", "after"), [("a", "z"), ("z", "a")], ids=["its name sorts later", "its name sorts earlier"]
)
@pytest.mark.parametrize("first", [True, False], ids=["told last", "told first"])
def test_a_cluster_ip_of_two_services_is_the_younger_ones(before: str, after: str, first: bool) -> None:
    """Input: one that was made anew under another name is told while the other is not gone yet, in either order.
    Verdict: workers, the kernel's plan and ``explain`` give the address to the one that was made later.
    """
    old = service(before, addresses=["10.96.0.8"], created="2026-01-01T00:00:00Z")
    new = service(after, addresses=["10.96.0.8"], created="2026-01-01T00:00:09Z")
    made = mesh(pod("web", "10.0.0.1"))
    view = ClusterView()
    for change in (old, new) if first else (new, old):
        view.apply(made.apply([change]))
    again = ClusterView()
    again.apply(made.entries())
    assert [found.name for each in (view, again) if (found := each.resolve("10.96.0.8", 80).service)] == [after, after]
    held = [found for found in made.entries().upserts if isinstance(found, Service)]
    assert [found.name for found in by_age(held)] == [before, after]
    view.apply(made.apply([gone(old)]))
    found = view.resolve("10.96.0.8", 80).service
    assert found is not None and found.name == after


@given(_CHANGES)
def test_no_address_is_two_workloads(changes: list[AnyChange]) -> None:
    held = [
        address
        for found in mesh(*changes).entries().upserts
        if isinstance(found, Workload)
        for address in found.addresses
    ]
    assert len(held) == len(set(held))


def asks(**annotations: str) -> Mesh:
    return mesh(
        pod("web", annotations={f"nodeagent.io/{name.replace('_', '-')}": text for name, text in annotations.items()})
    )


@pytest.mark.parametrize(
    ("text", "place"), [("enabled", "/run/nodeagent"), ("/var/run/api", "/var/run/api"), ("/x", "/x")]
)
def test_a_pod_asks_for_its_certificate_by_annotation(text: str, place: str) -> None:
    (asking,) = asks(workload_api=text).asking_pods()
    assert (asking.uid, asking.identity, asking.mount_at) == (
        "uid-web",
        "spiffe://cluster.local/ns/default/sa/web",
        place,
    )


@pytest.mark.parametrize("text", ["", "disabled"])
def test_a_pod_that_does_not_ask_gets_nothing(text: str) -> None:
    made = asks(workload_api=text)
    assert made.asking_pods() == ()
    assert made.local_pods()[0].faults == ()


@pytest.mark.parametrize("text", ["yes", "relative/path", "/", "//", "/a/../etc", "/a//b", "/a/", "/./a", ".."])
def test_a_place_that_makes_no_sense_is_told_and_has_no_effect(text: str) -> None:
    made = asks(workload_api=text)
    assert made.asking_pods() == ()
    assert "nodeagent.io/workload-api" in made.local_pods()[0].faults[0]


def test_a_pod_asks_with_a_sidecar_and_without_enrolment_but_never_without_a_network_of_its_own() -> None:
    wish = {"nodeagent.io/workload-api": "enabled"}
    made = mesh(
        pod("sidecar", "10.244.1.6", annotations={**wish, "sidecar.istio.io/status": "{}"}),
        pod("left", "10.244.1.7", annotations={**wish, "nodeagent.io/enroll": "false"}),
        pod("host", "10.244.1.8", annotations=wish, host_network=True),
        pod("far", "10.244.2.5", annotations=wish, node="node2"),
        pod("done", "10.244.1.9", annotations=wish, phase="Succeeded"),
    )
    assert sorted(asking.pod for asking in made.asking_pods()) == ["left", "sidecar"]
    made.apply([gone(pod("sidecar"))])
    assert [asking.pod for asking in made.asking_pods()] == ["left"]


@pytest.mark.parametrize(
    ("more", "enrolled", "expected"),
    [
        ({"annotations": {"ambient.istio.io/redirection": "enabled"}}, False, (True, True)),
        ({"labels": {"networking.istio.io/tunnel": "http"}}, False, (True, True)),
        ({"labels": {"networking.istio.io/tunnel": "http"}}, True, (True, False)),
        (
            {
                "labels": {"networking.istio.io/tunnel": "http"},
                "annotations": {"sidecar.istio.io/status": "{}"},
            },
            False,
            (True, False),
        ),
        ({"labels": {"networking.istio.io/tunnel": "none"}}, False, (False, False)),
        ({"annotations": {"ambient.istio.io/redirection": "disabled"}}, False, (False, False)),
    ],
)
def test_a_pod_says_that_it_takes_hbone_and_is_an_ambient_meshs_where_nothing_else_takes_mtls(
    more: dict[str, Any], enrolled: bool, expected: tuple[bool, bool]
) -> None:
    made = Mesh("node1", DOMAIN)
    made.apply([pod("web", **more), EnrolledChange(PodUid("uid-web"), enrolled)])
    (found,) = [entry for entry in made.entries().upserts if isinstance(entry, Workload)]
    assert (found.hbone, found.ambient) == expected
