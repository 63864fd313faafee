"""Whatever a file holds: an object, nothing, or one error that names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import ResourceError
from nodeagent.mesh.compile import Mesh
from nodeagent.resources.changes import Change
from nodeagent.resources.objects import PodObject, ServiceObject, parse

_WORDS = st.sampled_from(
    [
        "Pod",
        "Service",
        "Node",
        "metadata",
        "spec",
        "status",
        "name",
        "namespace",
        "uid",
        "labels",
        "annotations",
        "ports",
        "port",
        "targetPort",
        "containers",
        "podIPs",
        "ip",
    ]
)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), _WORDS, st.just("10.0.0.1")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=4)),
    max_leaves=12,
)


@given(st.sampled_from(["Pod", "Service", "EndpointSlice", "Node", "ConfigMap"]), _JSON, _JSON, _JSON, _JSON)
def test_any_json_is_an_object_or_one_error(kind: str, metadata: Any, spec: Any, status: Any, other: Any) -> None:
    base = {"name": "n", "namespace": "d", "uid": "u"}
    for document in (
        other,
        {"kind": kind, "metadata": metadata, "spec": spec, "status": status},
        {
            "kind": kind,
            "metadata": base | (metadata if isinstance(metadata, dict) else {}),
            "spec": spec,
            "status": status,
        },
        {
            "kind": kind,
            "metadata": base,
            "spec": {"ports": [spec], "selector": other, "containers": [{"ports": [spec], "livenessProbe": other}]},
            "status": {"podIPs": [status]},
            "addressType": "IPv4",
            "endpoints": [{"addresses": other, "conditions": spec, "targetRef": status}],
            "ports": [spec],
        },
    ):
        try:
            found = parse(document)
        except ResourceError:
            continue
        if found is not None and kind != "Node":
            Mesh("node1", "cluster.local").apply([Change(kind, "d", "n", found)])


def test_what_an_api_server_leaves_out_has_its_default() -> None:
    found = parse({"kind": "Pod", "metadata": {"name": "n", "namespace": "d", "uid": "u"}, "spec": {}, "status": None})
    assert isinstance(found, PodObject)
    assert (found.service_account, found.addresses, found.ready, found.phase, found.node) == (
        "",
        (),
        False,
        "Pending",
        "",
    )


def test_the_older_single_fields_are_read() -> None:
    pod = parse(
        {"kind": "Pod", "metadata": {"name": "n", "namespace": "d", "uid": "u"}, "status": {"podIP": "::FFFF:10.0.0.1"}}
    )
    assert isinstance(pod, PodObject)
    assert len(pod.addresses) == 1
    service = parse(
        {"kind": "Service", "metadata": {"name": "n", "namespace": "d"}, "spec": {"clusterIP": "10.96.0.1"}}
    )
    assert isinstance(service, ServiceObject)
    assert service.addresses == ("10.96.0.1",)


def test_restartable_init_containers_are_containers() -> None:
    spec = {
        "initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "a", "containerPort": 1}]},
            {"ports": [{"name": "b", "containerPort": 2}]},
        ]
    }
    pod = parse({"kind": "Pod", "metadata": {"name": "n", "namespace": "d", "uid": "u"}, "spec": spec})
    assert isinstance(pod, PodObject)
    assert [port.name for container in pod.containers for port in container.ports] == ["a"]


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ([{"port": 0}], "spec.ports[0].port: 0: a port from 1 to 65535 is expected"),
        ([{"port": 80}, {"port": True}], "spec.ports[1].port: True"),
        (
            [{"port": 80, "targetPort": 1.5}],
            "spec.ports[0].targetPort: 1.5: a port from 1 to 65535 is expected, or its name",
        ),
        ([{"port": 80, "targetPort": ""}], "spec.ports[0].targetPort: ''"),
        ([{"port": 80, "targetPort": "70000"}], "spec.ports[0].targetPort: '70000'"),
        ({}, "spec.ports: {}: a list is expected"),
        (["x"], "spec.ports[0]: 'x': a mapping is expected"),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(ports: Any, words: str) -> None:
    with pytest.raises(ResourceError) as wrong:
        parse({"kind": "Service", "metadata": {"name": "n", "namespace": "d"}, "spec": {"ports": ports}})
    assert words in str(wrong.value)
