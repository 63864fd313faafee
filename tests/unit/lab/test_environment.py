"""A container's environment and command line."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.errors import LabError
from nodeagent.lab.environment import PATH, command, environment, expand
from nodeagent.resources.pod import Container

POD: dict[str, Any] = {
    "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "web"}, "annotations": {}},
    "spec": {"nodeName": "node1", "serviceAccountName": "web"},
    "status": {
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
        "hostIP": "172.18.0.11",
        "hostIPs": [{"ip": "172.18.0.11"}],
    },
}


def container(**fields: Any) -> Container:
    return Container.model_validate({"name": "c", "command": ("echo",), **fields}, strict=False)


def field(path: str) -> dict[str, Any]:
    return {"fieldRef": {"fieldPath": path}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$(NOPE)", "$(NOPE)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$$$$", "$$"),
    ],
)
def test_references(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_values_fields_and_config_maps() -> None:
    spec = container(
        args=["$(NAME)", "$(LATER)"],
        envFrom=[{"configMapRef": {"name": "m"}, "prefix": "M_"}, {"configMapRef": {"name": "none", "optional": True}}],
        env=[
            {"name": "NAME", "valueFrom": field("metadata.name")},
            {"name": "APP", "valueFrom": field("metadata.labels['app']")},
            {"name": "IPS", "valueFrom": field("status.podIPs")},
            {"name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x", "optional": True}}},
            {"name": "BOTH", "value": "$(NAME)-$(M_k)"},
        ],
    )
    found = environment(spec, POD, {"m": {"k": "v"}}.get)
    assert found == {
        "PATH": PATH,
        "HOME": "/root",
        "HOSTNAME": "a",
        "M_k": "v",
        "NAME": "a",
        "APP": "web",
        "IPS": "10.0.0.1,fd00::1",
        "ACCOUNT": "web",
        "KEY": "v",
        "BOTH": "a-v",
    }
    assert command(spec, found) == ("echo", "a", "$(LATER)")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(LabError, match="container c: envFrom: ConfigMap m does not exist"):
        environment(container(envFrom=[{"configMapRef": {"name": "m"}}]), POD, {}.get)
    with pytest.raises(LabError, match="env: ConfigMap m has no key k"):
        environment(
            container(env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]),
            POD,
            {"m": {}}.get,
        )
