"""Services whose endpoints no selector names: what EndpointSlices say, and whose the addresses in them are."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.errors import ResourceError
from nodeagent.mesh.compile import Mesh
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import EndpointSliceObject, SliceEndpoint, SlicePort, parse
from tests.unit.mesh.test_compile import entry, gone, keys, mesh, pod, service

OUTSIDE = "192.0.2.7"
PORTS = [{"name": "http", "port": 80}]


def slice_of(name: str, *addresses: str, of: str = "db", port: int = 5432, **more: Any) -> Change:
    """Return an EndpointSlice with one endpoint an address, each *more* of one."""
    namespace = more.pop("namespace", "default")
    document = {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv6" if ":" in "".join(addresses) else "IPv4",
        "endpoints": [{"addresses": [address], **more} for address in addresses],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }
    return Change("EndpointSlice", namespace, name, parse(document))


def endpoints(made: Mesh, key: str = "service/default/db") -> list[tuple[str, int, str]]:
    return [(each.address, each.port, each.uid) for each in entry(made, key).ports[0].endpoints]


def test_a_service_without_a_selector_is_served_as_its_slices_say() -> None:
    """Input: a mesh pod, a pod on its node's network and something outside, in two families and slices. Verdict:
    each is an endpoint; who is a pod is known by the address, whatever the slice refers to.
    """
    made = mesh(
        pod("db-0", "10.0.0.1", app="db"),
        pod("host", "172.18.0.11", app="db", host_network=True),
        service("db", None),
        slice_of("db-a", "10.0.0.1", OUTSIDE),
        slice_of("db-b", "2001:db8::7", targetRef={"kind": "Pod", "name": "db-0"}),
        slice_of("db-c", "172.18.0.11", targetRef={"kind": "Pod", "name": "host"}),
        slice_of("other", "192.0.2.9", of="other"),
    )
    assert endpoints(made) == [
        ("10.0.0.1", 5432, "uid-db-0"),
        (OUTSIDE, 5432, ""),
        ("2001:db8::7", 5432, ""),
        ("172.18.0.11", 5432, "uid-host"),
    ]


def test_a_reference_to_a_pod_that_is_not_there_proves_nothing() -> None:
    """Input: a slice says that the loopback of another, and an address outside, are a pod's. Verdict: nothing is
    dialled for that pod, which would be done from within it.
    """
    claim = {"targetRef": {"kind": "Pod", "name": "db-0"}}
    made = mesh(pod("db-0", "10.0.0.1"), service("db", None), slice_of("db-a", OUTSIDE, "127.0.0.1", **claim))
    assert endpoints(made) == [(OUTSIDE, 5432, "")]


def test_a_pod_that_comes_to_an_address_or_leaves_it_changes_the_service() -> None:
    made = mesh(service("db", None), slice_of("db-a", "10.0.0.1"))
    assert keys(made.apply([pod("db-0", "10.0.0.1")]).upserts) == ["service/default/db", "workload/uid-db-0"]
    assert endpoints(made) == [("10.0.0.1", 5432, "uid-db-0")]
    assert keys(made.apply([gone(pod("db-0"))]).upserts) == ["service/default/db"]
    assert endpoints(made) == [("10.0.0.1", 5432, "")]


def test_only_ready_endpoints_with_the_ports_name_serve() -> None:
    """Input: endpoints that are ready, not ready and unknown, which counts as ready; a port of another name."""
    two = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    made = mesh(
        service("db", None, ports=two),
        slice_of("a", "192.0.2.1", conditions={"ready": True}),
        slice_of("b", "192.0.2.2", conditions={"ready": False}),
        slice_of("c", "192.0.2.3", conditions={"ready": None}),
    )
    assert [address for address, _, _ in endpoints(made)] == ["192.0.2.1", "192.0.2.3"]
    assert entry(made, "service/default/db").ports[1].endpoints == ()


@pytest.mark.parametrize("terminating", [True, False, None])
@pytest.mark.parametrize("serving", [True, False, None])
@pytest.mark.parametrize("ready", [True, False, None])
def test_conditions_are_read_as_kube_proxy_reads_them(
    ready: bool | None, serving: bool | None, terminating: bool | None
) -> None:
    """Input: an endpoint with each combination, alone, beside one that is ready, and beside one that ends and serves.
    Verdict: what is ready is taken; where nothing is, what serves on while it ends. Not said is ready, serving
    and not terminating.
    """
    conditions = {"ready": ready, "serving": serving, "terminating": terminating}
    judged = slice_of("a", "192.0.2.1", conditions=conditions)
    ends = {"ready": False, "serving": True, "terminating": True}
    which = "ready" if ready is not False else "neither"
    if (ready, serving, terminating) in ((False, True, True), (False, None, True)):
        which = "ending"
    alone = endpoints(mesh(service("db", None), judged))
    beside_ready = endpoints(mesh(service("db", None), judged, slice_of("b", "192.0.2.2")))
    beside_ending = endpoints(mesh(service("db", None), judged, slice_of("b", "192.0.2.2", conditions=ends)))
    told = tuple([address for address, _, _ in found] for found in (alone, beside_ready, beside_ending))
    one, other = "192.0.2.1", "192.0.2.2"
    wanted = {
        "ready": ([one], [one, other], [one]),
        "ending": ([one], [other], [one, other]),
        "neither": ([], [other], [other]),
    }
    assert told == wanted[which]


def test_of_pods_and_slices_together_those_that_end_serve_only_where_none_is_ready() -> None:
    """Input: a Service with a selector and a slice. Verdict: a ready endpoint of either keeps those of both that
    end from being taken; of a port that it has not, it says nothing.
    """
    ends = {"ready": False, "serving": True, "terminating": True}
    pod_ending = pod("a", "10.0.0.1", deleted="2026-01-03T00:00:00Z")
    slice_ending = slice_of("more", OUTSIDE, of="web", port=80, conditions=ends)
    web = service(ports=PORTS)
    both = endpoints(mesh(pod_ending, web, slice_ending), "service/default/web")
    assert both == [("10.0.0.1", 80, "uid-a"), (OUTSIDE, 80, "")]
    ready = slice_of("ready", "192.0.2.9", of="web", port=80)
    assert endpoints(mesh(pod_ending, web, slice_ending, ready), "service/default/web") == [("192.0.2.9", 80, "")]
    other_port = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    made = mesh(pod_ending, service(ports=other_port), ready)
    assert [each.address for each in entry(made, "service/default/web").ports[1].endpoints] == ["10.0.0.1"]


def test_an_endpoint_that_begins_to_end_changes_the_service() -> None:
    ends = {"ready": False, "serving": True, "terminating": True}
    made = mesh(service("db", None), slice_of("a", OUTSIDE), slice_of("b", "192.0.2.2"))
    assert keys(made.apply([slice_of("a", OUTSIDE, conditions=ends)]).upserts) == ["service/default/db"]
    assert [address for address, _, _ in endpoints(made)] == ["192.0.2.2"]
    made.apply([slice_of("b", "192.0.2.2", conditions=ends)])
    assert [address for address, _, _ in endpoints(made)] == [OUTSIDE, "192.0.2.2"]


def test_slices_come_to_what_a_selector_names() -> None:
    """Input: a slice for a Service with a selector, with one of its pods in it. Verdict: both count, once."""
    made = mesh(pod("a", "10.0.0.1"), service(ports=PORTS), slice_of("more", "10.0.0.1", OUTSIDE, of="web", port=80))
    assert endpoints(made, "service/default/web") == [("10.0.0.1", 80, "uid-a"), (OUTSIDE, 80, "")]


def test_without_any_slice_the_node_routes_it() -> None:
    """Verdict: the Service comes with its first slice, is refused while none in it is ready, and goes with the last."""
    made = mesh(service("db", None))
    assert entry(made, "service/default/db") is None
    made.apply([slice_of("db-a", OUTSIDE, conditions={"ready": False})])
    assert endpoints(made) == []
    assert made.apply([gone(slice_of("db-a"))]).removals == ("service/default/db",)


def test_a_slice_may_change_its_service() -> None:
    made = mesh(service("db", None), service("dc", None, addresses=["10.96.0.9"]), slice_of("a", OUTSIDE))
    delta = made.apply([slice_of("a", OUTSIDE, of="dc")])
    assert (keys(delta.upserts), delta.removals) == (["service/default/dc"], ("service/default/db",))


def test_a_headless_one_has_endpoints_and_an_alias_none() -> None:
    made = mesh(
        service("db", None, addresses=["None"]),
        slice_of("a", OUTSIDE),
        service("alias", type="ExternalName", addresses=[]),
        slice_of("b", OUTSIDE, of="alias"),
    )
    assert entry(made, "service/default/db").addresses == ()
    assert endpoints(made) == [(OUTSIDE, 5432, "")]
    assert entry(made, "service/default/alias") is None


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1"])
def test_what_no_api_server_takes_is_no_endpoint(address: str) -> None:
    found = slice_of("a", address, OUTSIDE if ":" not in address else "2001:db8::1").object
    assert isinstance(found, EndpointSliceObject)
    assert len(found.endpoints) == 1


def test_names_are_no_addresses_and_a_port_without_a_number_serves_nothing() -> None:
    document = {
        "kind": "EndpointSlice",
        "metadata": {"name": "a", "namespace": "default"},
        "addressType": "FQDN",
        "endpoints": [{"addresses": ["db.example.org"]}],
        "ports": [{"name": "any"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 80}],
    }
    assert parse(document) == EndpointSliceObject("default", "a", "", (), (SlicePort("", 80),))
    read = parse({**document, "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1", "192.0.2.2"]}, {}]})
    assert isinstance(read, EndpointSliceObject)
    assert [endpoint.address for endpoint in read.endpoints] == ["192.0.2.1"]
    with pytest.raises(ResourceError, match=r"endpoints\[0\].addresses"):
        parse({**document, "addressType": "IPv4", "endpoints": [{"addresses": ["db.example.org"]}]})


def test_conditions_and_references_are_read() -> None:
    found = slice_of("a", OUTSIDE, conditions={"ready": False}, targetRef={"kind": "Pod", "name": "p"}).object
    assert isinstance(found, EndpointSliceObject)
    assert found.endpoints == (SliceEndpoint(OUTSIDE, False, "p"),)  # type: ignore[arg-type]
