"""Pods in protobuf are the pods that JSON says: what the quick reader makes of one is what the careful
one makes of it, or it leaves it to the careful one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.kube import pod_messages
from nodeagent.kube.access import ApiError
from nodeagent.kube.lean import Lean, trim
from nodeagent.resources.objects import PodObject, parse
from tests.fakes.kube_protobuf import encoded, message

Document = dict[str, Any]
HERE = "node1"


def documents() -> st.SearchStrategy[Document]:
    """Pods of all sorts, right and wrong."""
    names = st.sampled_from(["web", "istio-proxy", "envoy", "a-b.c", ""])
    images = st.sampled_from(["web:1", "r.example.org/envoy:v1", "istio/proxyv2:1", "ztunnel@sha256:0", ""])
    numbers = st.sampled_from([0, 80, 8080, 65535, 65536])
    ports = st.fixed_dictionaries(
        {"containerPort": numbers}, optional={"name": names, "protocol": st.sampled_from(["TCP", "UDP"])}
    )
    handlers = st.sampled_from(
        [
            {"exec": {"command": ["true"]}},
            {"httpGet": {"port": "http", "path": "/ready", "scheme": "HTTPS"}},
            {"httpGet": {"port": 80}},
            {"tcpSocket": {"port": 81, "host": "10.0.0.1"}},
            {"grpc": {"port": 82, "service": "s"}},
        ]
    )
    containers = st.fixed_dictionaries(
        {"name": names, "image": images},
        optional={
            "ports": st.lists(ports, max_size=2),
            "readinessProbe": handlers,
            "lifecycle": st.fixed_dictionaries({"preStop": handlers}),
            "command": st.sampled_from([["iptables", "-t", "nat"], ["web"]]),
            "restartPolicy": st.just("Always"),
        },
    )
    addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::0001", "10.0.0.01", "::ffff:10.0.0.1", "no"])
    labels = st.dictionaries(
        st.sampled_from(["app", "k8s-app", "version"]), st.sampled_from(["web", "ztunnel", "istio-cni-node", ""])
    )
    annotations = st.dictionaries(
        st.sampled_from(["nodeagent.io/path", "prometheus.io/scrape", "example.org/a"]), st.sampled_from(["true", ""])
    )
    owners = st.fixed_dictionaries(
        {"kind": st.sampled_from(["ReplicaSet", ""]), "name": names}, optional={"controller": st.booleans()}
    )
    moments = st.sampled_from(["2026-01-31T12:00:00Z", "1999-12-31T23:59:59Z"])
    metadata = st.fixed_dictionaries(
        {
            "name": st.sampled_from(["web-1", "Web", "a.b", ""]),
            "namespace": st.sampled_from(["default", "shop", "-", ""]),
            "uid": st.sampled_from(["0d1c-22", "uid/1", ""]),
        },
        optional={
            "creationTimestamp": moments,
            "deletionTimestamp": moments,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": st.lists(owners, max_size=2),
            "resourceVersion": st.just("7"),
        },
    )
    spec = st.fixed_dictionaries(
        {"nodeName": st.sampled_from([HERE, "node2", ""]), "containers": st.lists(containers, max_size=3)},
        optional={
            "initContainers": st.lists(containers, max_size=2),
            "serviceAccountName": names,
            "hostNetwork": st.booleans(),
            "volumes": st.lists(st.sampled_from([{"name": "v", "csi": {"driver": "d"}}, {"name": "v"}]), max_size=2),
        },
    )
    conditions = st.fixed_dictionaries(
        {"type": st.sampled_from(["Ready", "Initialized", ""]), "status": st.sampled_from(["True", "False"])}
    )
    status = st.fixed_dictionaries(
        {},
        optional={
            "phase": st.sampled_from(["Running", "Succeeded", "Pending"]),
            "podIP": addresses,
            "podIPs": st.lists(st.fixed_dictionaries({"ip": addresses}), max_size=2),
            "conditions": st.lists(conditions, max_size=3),
        },
    )
    return st.fixed_dictionaries({"metadata": metadata, "spec": spec, "status": status})


def read(document: Document, *, full: bool) -> PodObject | str:
    """Return the pod that the careful reader makes of *document*, or the field that is wrong."""
    shaped = copy.deepcopy(document) | {"kind": "Pod", "apiVersion": "v1"}
    if not full:
        trim(shaped)
    try:
        found = parse(shaped)
    except ResourceError as error:
        return str(error).partition(":")[0]
    assert isinstance(found, PodObject)
    return Lean().pod(found, full=full)


@given(documents())
def test_both_readers_say_the_same(document: Document) -> None:
    """Verdict: what JSON says is what protobuf says, for pods of this node and of others, and where
    a field is wrong it is the same one; the quick reader says it too, or nothing.
    """
    pod = message(document)
    here = document["spec"]["nodeName"] == HERE
    expected = read(document, full=here)
    assert read(pod_messages.document(pod), full=here) == expected
    quick = pod_messages.ordinary(pod, HERE, Lean())
    assert quick is None or (not here and quick == expected)


def test_the_pods_that_most_are_need_no_second_reader() -> None:
    """Input: a pod of another node with an init container, two containers, labels and an owner."""
    document: Document = {
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "uid": "1",
            "creationTimestamp": "2026-01-31T12:00:00Z",
            "labels": {"app": "web"},
            "annotations": {"nodeagent.io/path": "proxy", "example.org/a": "b"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": True}],
        },
        "spec": {
            "nodeName": "node2",
            "containers": [
                {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 80}]},
                {"name": "log", "image": "log:1"},
            ],
            "initContainers": [{"name": "first", "image": "first:1"}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    found = pod_messages.ordinary(message(document), HERE, Lean())
    assert found is not None
    assert found == read(document, full=False)
    assert found.ready and found.addresses == ("10.0.0.1", "fd00::1") and found.created == "2026-01-31T12:00:00Z"
    assert pod_messages.ordinary(message(document), "node2", Lean()) is None


def test_a_list_says_where_it_goes_on() -> None:
    content = encoded([{"metadata": {"name": "web"}}], {"resourceVersion": "12", "continue": "more"})
    found = pod_messages.read_list(content)
    assert [each.metadata.name for each in found.items] == ["web"]
    assert (found.metadata.resourceVersion, getattr(found.metadata, "continue")) == ("12", "more")


def test_what_is_no_message_is_told() -> None:
    with pytest.raises(ApiError, match="a list of pods is no protobuf message"):
        pod_messages.read_list(pod_messages.MAGIC + b"\x12\xff")
