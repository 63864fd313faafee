"""Istio's rules, case by case."""

from __future__ import annotations

import pytest

from nodeagent.mesh import rules
from nodeagent.mesh.entries import DeclaredProbe
from nodeagent.mesh.local import EXCLUDE_INBOUND, EXCLUDE_OUTBOUND, MAX_EXCLUDED, local_pod
from nodeagent.places.place import Place
from nodeagent.resources.objects import PodObject, ServiceObjectPort, parse
from nodeagent.vocabulary import Address, SpiffeId


def pod(
    labels: dict[str, str] | None = None,
    owners: list[dict[str, object]] | None = None,
    *,
    annotations: dict[str, str] | None = None,
    **spec: object,
) -> PodObject:
    found = parse(
        {
            "kind": "Pod",
            "metadata": {
                "name": "p-1",
                "namespace": "d",
                "uid": "u",
                "labels": labels,
                "annotations": annotations or {},
                "ownerReferences": owners,
            },
            "spec": {"nodeName": "node1", **spec},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }
    )
    assert isinstance(found, PodObject)
    return found


@pytest.mark.parametrize(
    ("name", "app_protocol", "port", "expected"),
    [
        ("http", "", 80, "http"),
        ("http-web", "", 80, "http"),
        ("HTTP-web", "", 80, "http"),
        ("httpx", "", 80, "auto"),
        ("http2", "", 80, "http2"),
        ("grpc", "", 80, "grpc"),
        ("grpc-api", "", 80, "grpc"),
        ("gRPC-Web", "", 80, "grpc-web"),
        ("grpc-web-shop", "", 80, "grpc-web"),
        ("grpcx", "", 80, "auto"),
        ("h2c", "", 80, "http2"),
        ("hbone", "", 15008, "http2"),
        ("tcp", "grpc", 80, "grpc"),
        ("tcp", "http2", 80, "http2"),
        ("http", "h2", 443, "tcp"),
        ("grpc", "tls", 443, "tcp"),
        ("https", "", 443, "tcp"),
        ("tls-x", "", 443, "tcp"),
        ("tcp", "", 80, "tcp"),
        ("mongo", "", 80, "tcp"),
        ("redis-1", "", 80, "tcp"),
        ("mysql", "", 80, "tcp"),
        ("", "", 80, "auto"),
        ("web", "", 80, "auto"),
        ("", "", 3306, "tcp"),
        ("db", "", 27017, "tcp"),
        ("tcp", "http", 80, "http"),
        ("http", "tcp", 80, "tcp"),
        ("http", "kubernetes.io/h2c", 80, "http2"),
        ("tcp", "kubernetes.io/ws", 80, "http"),
        ("http", "kubernetes.io/wss", 80, "tcp"),
        ("http", "example.com/own", 80, "auto"),
    ],
)
def test_port_protocol(name: str, app_protocol: str, port: int, expected: str) -> None:
    assert rules.port_protocol(ServiceObjectPort(name, port, "TCP", app_protocol, port)) == expected


@pytest.mark.parametrize(
    ("labels", "owner", "expected"),
    [
        ({}, None, "p-1"),
        ({}, ("Deployment", "web"), "web"),
        ({"pod-template-hash": "5f6d"}, ("ReplicaSet", "web-5f6d"), "web"),
        ({"pod-template-hash": "5f6d"}, ("ReplicaSet", "web-other"), "web-other"),
        ({"rollouts-pod-template-hash": "77"}, ("ReplicaSet", "web-77"), "web"),
        ({}, ("ReplicaSet", "web-5f6d"), "web-5f6d"),
        ({}, ("StatefulSet", "db"), "db"),
        ({}, ("DaemonSet", "ds-12345678"), "ds-12345678"),
        ({}, ("Job", "tick-28371234"), "tick"),
        ({}, ("Job", "once"), "once"),
        ({"deploymentconfig": "dc"}, ("ReplicationController", "dc-1"), "dc"),
    ],
)
def test_workload_name(labels: dict[str, str], owner: tuple[str, str] | None, expected: str) -> None:
    owners: list[dict[str, object]] = [{"kind": owner[0], "name": owner[1]}] if owner else []
    assert rules.workload_name(pod(labels, owners)) == expected


def test_the_controller_decides_among_owners() -> None:
    assert (
        rules.workload_name(
            pod(owners=[{"kind": "X", "name": "x"}, {"kind": "Deployment", "name": "web", "controller": True}])
        )
        == "web"
    )
    assert rules.workload_name(pod(owners=[{"kind": "X", "name": "x"}, {"kind": "Y", "name": "y"}])) == "p-1"


def test_canonical_names_by_precedence() -> None:
    labels = {"app": "a", "version": "v1"}
    assert (rules.canonical_service(labels, "w"), rules.canonical_revision(labels)) == ("a", "v1")
    labels |= {"app.kubernetes.io/name": "b", "app.kubernetes.io/version": "v2"}
    assert (rules.canonical_service(labels, "w"), rules.canonical_revision(labels)) == ("b", "v2")
    labels |= {"service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "v3"}
    assert (rules.canonical_service(labels, "w"), rules.canonical_revision(labels)) == ("c", "v3")
    assert (rules.canonical_service({"app": ""}, "w"), rules.canonical_revision({})) == ("w", "latest")


def test_probes_by_number_and_once() -> None:
    containers = [
        {
            "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}],
            "readinessProbe": {"httpGet": {"port": "web", "path": "/ready?x=1"}},
            "livenessProbe": {"httpGet": {"port": 8080, "path": "/ready?x=1"}},
            "startupProbe": {"tcpSocket": {"port": "dns"}},
        },
        {
            "livenessProbe": {"grpc": {"port": 9000, "service": "shop"}},
            "readinessProbe": {"exec": {"command": ["true"]}},
            "startupProbe": {"httpGet": {"port": "web"}},
        },
        {
            "livenessProbe": {"httpGet": {"port": 8443, "scheme": "HTTPS", "path": "/x"}},
            "readinessProbe": {"httpGet": {"port": 80, "host": "10.9.9.9"}},
        },
        {"livenessProbe": {"httpGet": {"port": "81", "host": "10.0.0.1", "path": "x"}}},
        {
            "lifecycle": {
                "postStart": {"exec": {"command": ["true"]}},
                "preStop": {"httpGet": {"port": 82, "path": "/bye"}},
            }
        },
    ]
    assert rules.probes(pod(containers=containers)) == (
        DeclaredProbe("http", 8080, "/ready?x=1"),
        DeclaredProbe("grpc", 9000, "shop"),
        DeclaredProbe("tcp", 8443, ""),
        DeclaredProbe("http", 81, "/x"),
        DeclaredProbe("http", 82, "/bye"),
    )


SCRAPE = "prometheus.io/scrape"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, []),
        ({"prometheus.io/port": "80"}, []),
        ({SCRAPE: "false", "prometheus.io/port": "80"}, []),
        ({SCRAPE: "true", "prometheus.io/port": "9100"}, [(9100, "/metrics")]),
        ({SCRAPE: "true", "prometheus.io/port": "9100", "prometheus.io/path": "/a?b=c"}, [(9100, "/a?b=c")]),
        ({SCRAPE: "true"}, [(8080, "/metrics"), (9000, "/metrics")]),
        ({SCRAPE: "true", "prometheus.io/port": "9100", "prometheus.io/scheme": "https"}, []),
    ],
)
def test_declared_metrics(said: dict[str, str], expected: list[tuple[int, str]]) -> None:
    containers = [{"ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}]
    containers += [{"ports": [{"containerPort": 9000}, {"containerPort": 8080}]}]
    faults: list[str] = []
    found = rules.scrapes(pod(annotations=said, containers=containers), faults)
    assert [(each.port, each.path) for each in found] == expected
    assert {each.kind for each in found} <= {"scrape"}
    assert faults == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scrape", "yes"),
        ("port", "0"),
        ("port", "metrics"),
        ("port", "9" * 5000),
        ("path", "metrics"),
        ("path", "/a b"),
        ("path", "/" + "x" * 5000),
        ("path", "/\n"),
    ],
)
def test_wrongly_declared_metrics_open_nothing(name: str, text: str) -> None:
    said = {SCRAPE: "true", "prometheus.io/port": "9100", f"prometheus.io/{name}": text}
    faults: list[str] = []
    assert rules.scrapes(pod(annotations=said), faults) == ()
    (fault,) = faults
    assert f"prometheus.io/{name}" in fault
    assert len(fault) < 300


ADDRESSES = (Address("10.0.0.1"),)
PLACE = Place("/run/netns/p", "")
IDENTITY = SpiffeId("spiffe://x/ns/d/sa/default")


def test_exclusions() -> None:
    local = local_pod(
        pod(annotations={EXCLUDE_INBOUND: "22, 80,", EXCLUDE_OUTBOUND: "3306"}), PLACE, ADDRESSES, IDENTITY, []
    )
    assert local is not None
    assert (local.exclude_inbound, local.exclude_outbound, local.faults) == (
        frozenset((22, 80)),
        frozenset((3306,)),
        (),
    )


@pytest.mark.parametrize("text", ["80;81", "http", "0", "65536", "-1", "*", "80,*", "²", "8e1", "1" * 5000])
def test_a_wrong_exclusion_opens_nothing(text: str) -> None:
    local = local_pod(pod(annotations={EXCLUDE_INBOUND: text, EXCLUDE_OUTBOUND: "443"}), PLACE, ADDRESSES, IDENTITY, [])
    assert local is not None
    assert local.exclude_inbound == frozenset()
    assert local.exclude_outbound == {443}
    assert len(local.faults) == 1
    assert EXCLUDE_INBOUND in local.faults[0]
    assert len(local.faults[0]) < 300


def test_more_exclusions_than_a_pod_may_have_open_nothing() -> None:
    most = ",".join(map(str, range(1, MAX_EXCLUDED + 1)))
    wished = {EXCLUDE_INBOUND: f"{most},{MAX_EXCLUDED + 1}", EXCLUDE_OUTBOUND: f"{most},1"}
    local = local_pod(pod(annotations=wished), PLACE, ADDRESSES, IDENTITY, [])
    assert local is not None
    assert (len(local.exclude_inbound), len(local.exclude_outbound)) == (0, MAX_EXCLUDED)
    (fault,) = local.faults
    assert f"[{EXCLUDE_INBOUND}]: {MAX_EXCLUDED + 1} ports: {MAX_EXCLUDED} are allowed at most" in fault


def test_a_pod_without_an_address_or_a_place_waits() -> None:
    assert local_pod(pod(), None, ADDRESSES, IDENTITY, []) is None
    assert local_pod(pod(), PLACE, (), IDENTITY, []) is None
    assert local_pod(pod(), PLACE, ADDRESSES, IDENTITY, []) is not None
