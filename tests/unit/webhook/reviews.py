"""Reviews as the API server sends them."""

from __future__ import annotations

import json
from typing import Any

from nodeagent.inject import InjectionSettings
from nodeagent.webhook.review import Review, parse

SETTINGS = InjectionSettings(values={"meshRanges": ["10.244.0.0/16", "10.96.0.0/12"]})
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "containers": [
            {
                "name": "web",
                "image": "web:1",
                "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
            }
        ],
        "serviceAccountName": "web",
    },
}


def body(pod: Any, namespace: str = "shop", uid: str = "uid-1") -> bytes:
    """Return the AdmissionReview of *pod*."""
    request = {
        "uid": uid,
        "operation": "CREATE",
        "namespace": namespace,
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def review_of(pod: Any, namespace: str = "shop") -> Review:
    """Return the parsed review of *pod*."""
    return parse(body(pod, namespace))
