"""Which pods bring their own proxy: manifests as people and injectors write them, case by case."""

from __future__ import annotations

import pytest
import yaml

from nodeagent.errors import ResourceError
from nodeagent.resources.objects import PodObject, parse

ARTICLE = """
containers:
  - name: app
    image: my-service:latest
    ports: [{containerPort: 8080}]
  - name: envoy-sidecar
    image: envoyproxy/envoy:v1.28.0
    ports: [{containerPort: 15001}, {containerPort: 15006}, {containerPort: 15090}]
    args: [-c, /etc/envoy/envoy.yaml]
initContainers:
  - name: init-networking
    image: istio/proxyv2:latest
    securityContext: {capabilities: {add: [NET_ADMIN]}}
    command: [iptables, -t, nat, -A, PREROUTING, -p, tcp, --dport, "8080", -j, REDIRECT, --to-port, "15001"]
"""
"""The pod that explains the sidecar pattern everywhere: an Envoy that somebody wrote in by hand."""


def pod(spec: str, labels: dict[str, str] | None = None) -> PodObject:
    metadata = {"name": "p", "namespace": "shop", "uid": "u", "labels": labels}
    found = parse({"kind": "Pod", "metadata": metadata, "spec": yaml.safe_load(spec)})
    assert isinstance(found, PodObject)
    return found


def test_a_hand_written_envoy_to_which_traffic_is_redirected() -> None:
    found = pod(ARTICLE).proxy
    assert found is not None
    assert (found.words, found.certain) == ("its container envoy-sidecar (envoyproxy/envoy:v1.28.0)", True)


@pytest.mark.parametrize(
    "spec",
    [
        "containers: [{name: app, image: a}, {name: istio-proxy, image: 'registry:5000/any:1'}]",
        "containers: [{name: app, image: a}, {name: linkerd-proxy, image: 'cr.l5d.io/linkerd/proxy:1'}]",
        "containers: [{name: istio-proxy, image: auto}]",
        "{containers: [{name: app}], initContainers: [{name: istio-proxy, restartPolicy: Always}]}",
        "containers: [{name: app}, {name: mine, image: 'docker.io/istio/proxyv2:1.20@sha256:00'}]",
    ],
)
def test_containers_that_are_a_meshs_for_certain(spec: str) -> None:
    found = pod(spec).proxy
    assert found is not None
    assert found.certain


@pytest.mark.parametrize(
    ("spec", "certain"),
    [
        ("containers: [{name: a}, {name: e, image: 'envoyproxy/envoy:v1'}]", False),
        ("containers: [{name: a}, {name: e, image: 'localhost:5000/envoyproxy/envoy-distroless@sha256:0'}]", False),
        ("{containers: [{name: a}], initContainers: [{name: e, image: envoy, restartPolicy: Always}]}", False),
        (
            "{containers: [{name: a}, {name: e, image: envoy}], initContainers: [{name: i, args: ['iptables -L']}]}",
            True,
        ),
        (
            "{containers: [{name: a}, {name: e, image: envoy}], initContainers: [{name: i, command: [xiptables]}]}",
            False,
        ),
    ],
)
def test_an_envoy_beside_an_application(spec: str, certain: bool) -> None:
    found = pod(spec).proxy
    assert found is not None
    assert found.certain == certain


@pytest.mark.parametrize(
    "spec",
    [
        "containers: [{name: envoy, image: 'envoyproxy/envoy:v1'}]",  # the application: an edge proxy
        "containers: [{name: a, image: nginx}, {name: b, image: 'envoyproxy/envoy/fork/other:1'}]",
        "containers: [{name: a, image: my-envoy}, {name: b}]",
        "{containers: [{name: a}], initContainers: [{name: istio-proxy}, {name: i, command: [iptables]}]}",
        "{}",
    ],
)
def test_pods_without_a_proxy_of_their_own(spec: str) -> None:
    assert pod(spec).proxy is None


def test_pods_alike_share_what_is_known_of_them() -> None:
    assert pod(ARTICLE).proxy is pod(ARTICLE).proxy


def test_an_image_that_is_no_text_is_named() -> None:
    with pytest.raises(ResourceError, match=r"spec\.containers\[0\]\.image: 5: a text is expected"):
        pod("containers: [{name: a, image: 5}]")


@pytest.mark.parametrize(
    ("spec", "labels", "part"),
    [
        ("containers: [{name: istio-proxy, image: 'docker.io/istio/ztunnel:1.24'}]", {}, "ztunnel"),
        ("containers: [{name: x}]", {"app": "ztunnel"}, "ztunnel"),
        ("containers: [{name: install-cni, image: 'docker.io/istio/install-cni:1.24'}]", {}, "istio-cni"),
        ("containers: [{name: x}]", {"k8s-app": "istio-cni-node"}, "istio-cni"),
        ("containers: [{name: x, image: nginx}]", {"app": "ztunnels"}, ""),
    ],
)
def test_istios_own_programs(spec: str, labels: dict[str, str], part: str) -> None:
    assert pod(spec, labels).istio_part == part
