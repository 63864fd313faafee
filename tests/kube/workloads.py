"""Objects of applications, as the tests apply them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeagent.lab.kube.images import APPS

Document = dict[str, Any]
"""A Kubernetes object."""


def container(*command: str, **more: Any) -> Document:
    """Return a container of the applications' image that runs *command*."""
    return {"name": "app", "image": APPS, "imagePullPolicy": "Never", "command": list(command), **more}


def nginx(**more: Any) -> Document:
    """Return a container that answers HTTP at port 80."""
    command = ("nginx", "-g", "daemon off; error_log /dev/stderr;")
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1, "failureThreshold": 2}
    ports = [{"containerPort": 80, "name": "http"}]
    return container(*command, ports=ports, readinessProbe=probe, **more)


def client(
    namespace: str, node: str, *, name: str = "", labels: Mapping[str, str] | None = None, account: str = "default"
) -> Document:
    """Return a pod on *node* that waits for commands."""
    spec = {
        "nodeName": node,
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 1,
        "containers": [container("sh", "-c", "echo waits; exec sleep infinity")],
    }
    metadata = {"name": name or f"client-{node}", "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def deployment(name: str, namespace: str, *, replicas: int = 2, account: str = "default", **pod: Any) -> Document:
    """Return a Deployment of nginx, spread over the nodes; *pod*: other fields of its pods."""
    labels = {"app": name}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    spec = {
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 2,
        "topologySpreadConstraints": [spread],
        "containers": [nginx()],
        **pod,
    }
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def service(name: str, namespace: str, **spec: Any) -> Document:
    """Return a Service of both families for the pods of the app *name*."""
    ports = [{"port": 80, "name": "http", "targetPort": 80}]
    given = {"selector": {"app": name}, "ipFamilyPolicy": "RequireDualStack", "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": given}
