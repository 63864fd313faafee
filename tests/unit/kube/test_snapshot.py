"""What is kept of an object is what was read of it: whatever it holds, reading the kept document gives it again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.kube.lean import UNWRITTEN, rewritten
from nodeagent.kube.snapshot import SELDOM_SECONDS, SOON_SECONDS, SnapshotFile, document_of
from nodeagent.resources import objects
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import PodObject
from tests.unit.kube.api_scene import peer_authentication, pod

TEXT = st.text("abcz09-./", min_size=1, max_size=8)
TEXTS = st.dictionaries(TEXT, TEXT, max_size=3)
NAME = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
PORT = st.integers(1, 65535)
PROBE = st.one_of(
    st.fixed_dictionaries({"httpGet": st.fixed_dictionaries({"port": PORT, "path": TEXT, "host": st.just("")})}),
    st.fixed_dictionaries({"httpGet": st.fixed_dictionaries({"port": NAME, "scheme": st.just("HTTPS")})}),
    st.fixed_dictionaries({"tcpSocket": st.fixed_dictionaries({"port": NAME, "host": st.just("10.0.0.1")})}),
    st.fixed_dictionaries({"grpc": st.fixed_dictionaries({"port": PORT, "service": TEXT})}),
    st.fixed_dictionaries({"exec": st.just({"command": ["true"]})}),
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAME, "image": st.sampled_from(["web:1", "istio/proxyv2:1", "envoyproxy/envoy:v1", "ztunnel"])},
    optional={
        "ports": st.lists(
            st.fixed_dictionaries({"containerPort": PORT}, optional={"name": NAME, "protocol": st.just("UDP")}),
            max_size=2,
        ),
        "startupProbe": PROBE,
        "readinessProbe": PROBE,
        "livenessProbe": PROBE,
        "lifecycle": st.fixed_dictionaries({}, optional={"preStop": PROBE, "postStart": PROBE}),
    },
)
POD = st.fixed_dictionaries(
    {
        "kind": st.just("Pod"),
        "apiVersion": st.just("v1"),
        "metadata": st.fixed_dictionaries(
            {"name": NAME, "namespace": NAME, "uid": NAME, "labels": TEXTS, "annotations": TEXTS},
            optional={
                "deletionTimestamp": st.just("2026-01-31T12:00:00Z"),
                "creationTimestamp": st.just("2026-01-31T12:00:00Z"),
                "ownerReferences": st.lists(
                    st.fixed_dictionaries({"kind": NAME, "name": NAME, "controller": st.booleans()}), max_size=2
                ),
            },
        ),
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(CONTAINER, max_size=3)},
            optional={
                "nodeName": NAME,
                "serviceAccountName": NAME,
                "hostNetwork": st.booleans(),
                "volumes": st.just([{"csi": {"driver": "csi.nodeagent.io"}}, {"emptyDir": {}}]),
            },
        ),
        "status": st.fixed_dictionaries(
            {},
            optional={
                "phase": st.sampled_from(["Pending", "Running"]),
                "podIPs": st.just([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]),
                "conditions": st.just([{"type": "Ready", "status": "True"}]),
            },
        ),
    }
)
SERVICE = st.fixed_dictionaries(
    {
        "kind": st.just("Service"),
        "apiVersion": st.just("v1"),
        "metadata": st.fixed_dictionaries({"name": NAME, "namespace": NAME, "annotations": TEXTS}),
        "spec": st.fixed_dictionaries(
            {
                "type": st.sampled_from(["ClusterIP", "ExternalName", "NodePort"]),
                "selector": TEXTS,
                "clusterIPs": st.sampled_from([["10.96.0.1"], ["None"], ["10.96.0.1", "fd00::9"]]),
                "ports": st.lists(
                    st.fixed_dictionaries(
                        {"port": PORT},
                        optional={
                            "name": NAME,
                            "targetPort": st.one_of(PORT, NAME),
                            "protocol": st.sampled_from(["TCP", "UDP"]),
                            "appProtocol": NAME,
                        },
                    ),
                    max_size=2,
                ),
                "publishNotReadyAddresses": st.booleans(),
            }
        ),
    }
)
OTHER: list[dict[str, Any]] = [
    {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": "n"},
        "spec": {"podCIDRs": ["10.244.0.0/24", "fd00::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    },
    {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"}},
    },
    {
        "kind": "NetworkPolicy",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "podSelector": {
                "matchLabels": {"a": "b"},
                "matchExpressions": [
                    {"key": "c", "operator": "In", "values": ["x", "y"]},
                    {"key": "d", "operator": "Exists"},
                ],
            }
        },
    },
    {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["2001:db8::1"], "targetRef": {"kind": "Pod", "name": "db-0"}},
            {"addresses": ["2001:db8::2"], "conditions": {"ready": False}},
        ],
        "ports": [{"name": "pg", "port": 5432}, {"port": 80}],
    },
    {"kind": "NetworkPolicy", "apiVersion": "crd.antrea.io/v1", "metadata": {"name": "p", "namespace": "shop"}},
]


def again(document: dict[str, Any]) -> objects.KubernetesObject | None:
    """Return what is read of what is kept of *document*."""
    metadata = document["metadata"]
    found = objects.parse(document)
    change = Change(document["kind"], metadata.get("namespace", ""), metadata["name"], found)
    kept = orjson.loads(document_of(change))
    read = objects.parse(kept)
    return rewritten(read, kept[UNWRITTEN]) if isinstance(read, PodObject) else read


@given(st.one_of(POD, SERVICE))
def test_what_is_kept_is_what_was_read(document: dict[str, Any]) -> None:
    assert again(document) == objects.parse(document)


@pytest.mark.parametrize("document", OTHER)
def test_what_is_kept_of_other_kinds_too(document: dict[str, Any]) -> None:
    assert again(document) == objects.parse(document)


def change(document: dict[str, Any]) -> Change:
    metadata = document["metadata"]
    found = None if document["kind"] == "PeerAuthentication" else objects.parse(document)
    return Change(document["kind"], metadata["namespace"], metadata["name"], found)


@pytest.mark.parametrize(
    ("document", "seconds"),
    [
        (pod("web"), SOON_SECONDS),
        (peer_authentication("STRICT"), SOON_SECONDS),
        (pod("web", "node2"), SELDOM_SECONDS),
    ],
)
def test_it_is_written_soon_for_what_this_node_decides_by(
    tmp_path: Path, document: dict[str, Any], seconds: float
) -> None:
    clock = [0.0]
    written: list[float] = []

    def documents() -> list[Any]:
        written.append(clock[0])
        return []

    async def scene() -> None:
        kept = SnapshotFile(tmp_path, "node1", now=lambda: clock[0])
        kept.changed([change(document)], documents)
        keeping = asyncio.ensure_future(kept.keep())
        for now in (seconds / 2, seconds):
            clock[0] = now
            kept.changed([], documents)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(scene())
    assert written == [seconds]
