"""What is kept of an object is what was read of it: whatever it holds, reading the kept document gives it again."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.kube.lean import MAX_TEXTS, UNWRITTEN, rewritten
from nodeagent.kube.snapshot import SELDOM_SECONDS, SOON_SECONDS, SnapshotFile, document_of
from nodeagent.kube.source import KubernetesSource
from nodeagent.mesh.compile import Mesh
from nodeagent.places.place import Place
from nodeagent.resources import objects
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import Address
from tests.unit.kube.api_scene import Box, Runtime, peer_authentication, pod

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
        "metadata": st.fixed_dictionaries(
            {"name": NAME, "namespace": NAME, "annotations": TEXTS},
            optional={"creationTimestamp": st.sampled_from(["2026-01-31T12:00:00Z", "2026-02-01T12:00:00Z"])},
        ),
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
            },
            optional={"internalTrafficPolicy": st.sampled_from(["Local", "Cluster"])},
        ),
    }
)
CONDITION = st.sampled_from([True, False, None])
SLICE = st.fixed_dictionaries(
    {
        "kind": st.just("EndpointSlice"),
        "apiVersion": st.just("discovery.k8s.io/v1"),
        "metadata": st.fixed_dictionaries(
            {"name": NAME, "namespace": NAME}, optional={"labels": st.just({"kubernetes.io/service-name": "a"})}
        ),
        "addressType": st.just("IPv4"),
        "endpoints": st.lists(
            st.fixed_dictionaries(
                {"addresses": st.sampled_from([["10.0.0.1"], ["192.0.2.7"]])},
                optional={
                    "conditions": st.fixed_dictionaries(
                        {}, optional={"ready": CONDITION, "serving": CONDITION, "terminating": CONDITION}
                    ),
                    "targetRef": st.just({"kind": "Pod", "name": "a"}),
                    "nodeName": st.sampled_from(["node1", "node2"]),
                },
            ),
            max_size=3,
        ),
        "ports": st.lists(st.fixed_dictionaries({"port": PORT}, optional={"name": NAME}), max_size=2),
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


@given(st.one_of(POD, SERVICE, SLICE))
def test_what_is_kept_is_what_was_read(document: dict[str, Any]) -> None:
    assert again(document) == objects.parse(document)


@pytest.mark.parametrize("document", OTHER)
def test_what_is_kept_of_other_kinds_too(document: dict[str, Any]) -> None:
    assert again(document) == objects.parse(document)


def placed(document: dict[str, Any], name: str, life: int, node: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return *document*, a pod's, as the one of *name* in its *life*th life, on *node*."""
    metadata = {**document["metadata"], "namespace": "shop", "name": name, "uid": f"uid-{name}-{life}"}
    spec = {**document["spec"], "nodeName": node}
    return {**document, "metadata": {**metadata, "labels": labels}, "spec": spec}


def renamed(document: dict[str, Any], name: str, **spec: Any) -> dict[str, Any]:
    """Return *document* as the one of *name*, with *spec* in its own."""
    metadata = {**document["metadata"], "namespace": "shop", "name": name}
    return {**document, "metadata": metadata, **({"spec": {**document["spec"], **spec}} if spec else {})}


SHORT = st.sampled_from("ab")
LABELS = st.sampled_from([{"app": "a"}, {"app": "b"}, {"app": "a", **{f"l{n}": "x" for n in range(MAX_TEXTS)}}])
_ISTIO = "security.istio.io/v1"
WHOLE_CLUSTER = st.lists(
    st.one_of(
        st.builds(placed, POD, SHORT, st.integers(0, 2), st.sampled_from(["node1", "node2"]), LABELS),
        st.builds(renamed, SERVICE, SHORT, selector=st.sampled_from([{}, {"app": "a"}, {"app": "b"}])),
        st.builds(renamed, SLICE, SHORT),
        st.builds(
            lambda labels: {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop", "labels": labels}},
            st.sampled_from([{}, {"nodeagent.io/dataplane": "enabled"}]),
        ),
        st.builds(
            lambda kind, name, spec: {
                "kind": kind,
                "apiVersion": "networking.k8s.io/v1" if kind == "NetworkPolicy" else _ISTIO,
                "metadata": {"name": name, "namespace": "shop"},
                "spec": spec,
            },
            st.sampled_from(["PeerAuthentication", "AuthorizationPolicy", "NetworkPolicy"]),
            SHORT,
            st.sampled_from(
                [
                    {},
                    {"mtls": {"mode": "STRICT"}},
                    {"selector": {"matchLabels": {"app": "a"}}, "mtls": {"mode": "SOMETIMES"}},
                    {"selector": {"matchLabels": {"app": "b"}}, "action": "DENY", "rules": [{}]},
                    {"podSelector": {"matchLabels": {"app": "a"}}},
                ]
            ),
        ),
        st.builds(
            lambda name, ranges: {
                "kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"podCIDRs": ranges},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.9.0.1"}]},
            },
            st.sampled_from(["node1", "node2"]),
            st.sampled_from([[], ["10.0.0.0/24"]]),
        ),
        st.builds(
            lambda uids: {"kind": "NodeStatus", "metadata": {"name": "node2"}, "status": {
                "enrolled": uids, "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00Z"}},
            st.sampled_from([[], ["uid-a-0"], ["uid-a-0", "uid-b-1"]]),
        ),
    ),
    max_size=8,
)  # fmt: skip


class Following:
    """A node's source that is told documents without an API server, and what is made of them."""

    def __init__(self, runtime: Runtime) -> None:
        client: Any = None
        self.source = KubernetesSource(client, "node1", runtime)
        self.mesh = Mesh("node1", "cluster.local", runtime)

    def put(self, document: dict[str, Any]) -> None:
        self.source._kinds[document["kind"]].put(copy.deepcopy(document))

    def lose(self, names: set[str]) -> None:
        """Have a listing of pods that does not bring those called *names*."""
        pods = self.source._kinds["Pod"]
        pods.begin()
        assert pods._seen is not None
        pods._seen |= {name for name in pods.objects if name[1] not in names}
        pods.listed()

    def kept(self) -> list[dict[str, Any]]:
        lines = (document_of(each.change, each.document) for each in self.source.held())
        return [orjson.loads(line) for line in lines if line]

    def decided(self) -> tuple[object, ...]:
        """Return what the node decides by."""
        self.mesh.apply(self.source._batch())
        return (
            {entry.key: entry for entry in self.mesh.entries().upserts},
            sorted(self.mesh.node_pods, key=str),
            self.source.here(),
            sorted(self.source.unread_pods()),
        )


@settings(max_examples=300)
@given(WHOLE_CLUSTER, st.sets(SHORT))
def test_who_starts_by_what_was_kept_decides_the_same(documents: list[dict[str, Any]], lost: set[str]) -> None:
    """Input: whatever a cluster has, pods of both nodes in several lives among it, of which some go while their
    sandboxes stay. Verdict: pods, Services, policies and verdicts are those of the agent that heard of it.
    """
    runtime = Runtime()
    pods = {each["metadata"]["uid"]: each["metadata"] for each in documents if each["kind"] == "Pod"}
    for number, (uid, metadata) in enumerate(pods.items()):
        where = Place(f"/run/netns/{uid}", "")
        runtime.boxes[uid] = Box("shop", metadata["name"], where, (Address(f"10.0.0.{number + 1}"),))
    before = Following(runtime)
    for document in documents:
        before.put(document)
    before.lose(lost)
    decided = before.decided()
    after = Following(runtime)
    runtime.answers = False
    after.source._restore(before.kept())
    runtime.answers = True
    assert after.decided() == decided


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
