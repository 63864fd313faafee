"""Pods as people write them, by what is special about them; the tests of injection run over all of them."""

from __future__ import annotations

from typing import Any

from nodeagent.inject import Injected, InjectionSettings, PodNamespace, inject

Json = dict[str, Any]
ENABLED = PodNamespace("default", {"istio-injection": "enabled"})
RANGES = ("10.244.0.0/16", "10.96.0.0/16", "fd00:10:244::/48")
ENVOY = InjectionSettings(values={"meshRanges": RANGES})
NODEAGENT = InjectionSettings("nodeagent")


def container(name: str = "app", **fields: Any) -> Json:
    return {"name": name, "image": "registry.example/app:1"} | fields


def pod(
    *containers: Json, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **spec: Any
) -> Json:
    metadata: Json = {"name": "web"}
    metadata |= {"labels": labels} if labels is not None else {}
    metadata |= {"annotations": annotations} if annotations is not None else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": list(containers) or [container()]} | spec,
    }


def injected(given: Json, settings: InjectionSettings = ENVOY, namespace: PodNamespace = ENABLED) -> Json:
    """Return *given* with its sidecar, which it must get."""
    found = inject(given, namespace, settings)
    assert isinstance(found, Injected), found
    return found.pod


def named(items: list[Json] | None, name: str) -> Json:
    (found,) = [item for item in items or () if item["name"] == name]
    return found


def names(items: list[Json] | None) -> list[str]:
    return [item["name"] for item in items or ()]


HTTP = {"name": "http", "containerPort": 8080}
HTTP_PROBE = {"httpGet": {"path": "/healthy?deep=1", "port": "http"}, "initialDelaySeconds": 3, "timeoutSeconds": 5}
HTTPS_PROBE = {
    "httpGet": {"path": "/ready", "port": 8443, "scheme": "HTTPS", "httpHeaders": [{"name": "X-Probe", "value": "1"}]},
    "periodSeconds": 2,
}
TCP_PROBE = {"tcpSocket": {"port": "http"}, "failureThreshold": 9}
GRPC_PROBE = {"grpc": {"port": 9000, "service": "app.v1.Health"}}
EXEC_PROBE = {"exec": {"command": ["true"]}}

PODS: dict[str, Json] = {
    "smallest": pod(),
    "without metadata": {"spec": {"containers": [container()]}},
    "metadata after spec, nulls": {
        "spec": {"containers": [container(ports=None)], "volumes": None, "initContainers": None},
        "metadata": {"labels": None},
    },
    "empty lists": pod(labels={}, annotations={}, initContainers=[], volumes=[]),
    "labels and annotations": pod(
        labels={"app": "web", "version": "v2", "tier": "front"}, annotations={"note": "kept", "number": "1"}
    ),
    "its own canonical name": pod(labels={"service.istio.io/canonical-name": "shop", "app.kubernetes.io/name": "web"}),
    "several containers": pod(
        container("one"), container("two", ports=[HTTP]), container("three", command=["sleep", "infinity"])
    ),
    "init containers": pod(initContainers=[container("migrate"), container("seed", command=["true"])]),
    "a native sidecar of its own": pod(
        initContainers=[container("logs", restartPolicy="Always", readinessProbe=HTTP_PROBE, ports=[HTTP])]
    ),
    "volumes": pod(
        container(
            volumeMounts=[
                {"name": "data", "mountPath": "/data"},
                {"name": "settings", "mountPath": "/etc/app", "subPath": "a"},
            ]
        ),
        volumes=[
            {"name": "data", "emptyDir": {}},
            {"name": "settings", "configMap": {"name": "app"}},
            {"name": "key", "secret": {"secretName": "key"}},
        ],
    ),
    "a log shipper beside it": pod(
        container(),
        container("fluent-bit", volumeMounts=[{"name": "logs", "mountPath": "/logs"}]),
        volumes=[{"name": "logs", "emptyDir": {}}],
    ),
    "http probes": pod(container(ports=[HTTP], readinessProbe=HTTP_PROBE, livenessProbe=HTTPS_PROBE)),
    "tcp probes": pod(container(ports=[HTTP], readinessProbe=TCP_PROBE, livenessProbe={"tcpSocket": {"port": 8080}})),
    "grpc probes": pod(container(readinessProbe=GRPC_PROBE, startupProbe={"grpc": {"port": 9000}})),
    "exec probes": pod(container(readinessProbe=EXEC_PROBE, livenessProbe=EXEC_PROBE, startupProbe=EXEC_PROBE)),
    "hooks": pod(
        container(
            ports=[HTTP],
            lifecycle={
                "preStop": {"httpGet": {"path": "/stop", "port": "http"}},
                "postStart": {"httpGet": {"port": 8443, "scheme": "HTTPS"}},
            },
        ),
        container(
            "two", lifecycle={"preStop": {"exec": {"command": ["true"]}}, "postStart": {"sleep": {"seconds": 1}}}
        ),
        container("three", lifecycle={"preStop": {"httpGet": {"host": "status.example", "port": 80}}}),
    ),
    "probes of every kind": pod(
        container("one", ports=[HTTP], readinessProbe=HTTP_PROBE, livenessProbe=TCP_PROBE, startupProbe=GRPC_PROBE),
        container("two", ports=[HTTP | {"containerPort": 9090}], readinessProbe=EXEC_PROBE, livenessProbe=HTTP_PROBE),
    ),
    "a probe of another host": pod(container(livenessProbe={"httpGet": {"host": "status.example", "port": 80}})),
    "a probe that Kubernetes would expand": pod(
        container(readinessProbe={"httpGet": {"path": "/$(POD_IP)/$$", "port": 8080}})
    ),
    "probes left alone": pod(
        container(ports=[HTTP], readinessProbe=HTTP_PROBE),
        annotations={"sidecar.istio.io/rewriteAppHTTPProbers": "false"},
    ),
    "capture annotations": pod(
        annotations={
            "traffic.sidecar.istio.io/includeInboundPorts": "80, 8080",
            "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
            "traffic.sidecar.istio.io/excludeOutboundPorts": "5432,3306",
            "traffic.sidecar.istio.io/includeOutboundPorts": "443",
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
            "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
        }
    ),
    "resources": pod(annotations={"sidecar.istio.io/proxyCPU": "50m", "sidecar.istio.io/proxyMemoryLimit": "256Mi"}),
    "native by annotation": pod(annotations={"sidecar.istio.io/nativeSidecar": "true"}),
    "an image of its own": pod(annotations={"sidecar.istio.io/proxyImage": "registry.example/envoy:dev"}),
    "security": pod(
        container(securityContext={"runAsUser": 1000, "runAsNonRoot": True}),
        securityContext={"runAsNonRoot": True, "fsGroup": 1000},
    ),
    "a long name": pod() | {"metadata": {"name": "x" * 253}},
}
