"""What the Prometheus Operator makes of a PodMonitor (its v0.85, promcfg.go: generatePodMonitorConfig), and what
Prometheus finds of a pod (its documents: kubernetes_sd_config, role pod).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DEFINITIONS = Path(__file__).parent / "kube" / "monitoring.yaml"
"""Of its kinds."""
Labels = dict[str, str]


def discovered(pod: Mapping[str, Any]) -> Iterator[Labels]:
    """Yield the labels of *pod*'s targets: one for each port declared, and one for a container without any."""
    metadata, status = pod["metadata"], pod["status"]
    address = status["podIP"]
    host = f"[{address}]" if ":" in address else address
    found = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_ip": address,
        "__meta_kubernetes_pod_node_name": pod["spec"]["nodeName"],
        "__meta_kubernetes_pod_phase": status["phase"],
    }
    for name, value in metadata["labels"].items():
        safe = _safe(name)
        found |= {f"__meta_kubernetes_pod_label_{safe}": value, f"__meta_kubernetes_pod_labelpresent_{safe}": "true"}
    for container in pod["spec"]["containers"]:
        own = {**found, "__meta_kubernetes_pod_container_name": container["name"]}
        for port in container.get("ports", ()):
            number = str(port["containerPort"])
            declared = {"__meta_kubernetes_pod_container_port_name": port.get("name", "")}
            declared["__meta_kubernetes_pod_container_port_number"] = number
            yield {**own, **declared, "__address__": f"{host}:{number}"}
        if not container.get("ports"):
            yield {**own, "__address__": address}


def job(monitor: Mapping[str, Any]) -> str:
    """Return the label ``job`` of what *monitor* chooses."""
    metadata = monitor["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


def relabelings(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rules, with a PodMonitor's names of fields, that choose the targets of an *endpoint* of *monitor*."""
    yield {"action": "drop", "sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}
    selector = monitor["spec"]["selector"]
    chosen = {name: [value] for name, value in selector.get("matchLabels", {}).items()}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        chosen[expression["key"]] = expression["values"]
    for name, values in chosen.items():
        sources = [f"__meta_kubernetes_pod_label{each}_{_safe(name)}" for each in ("", "present")]
        yield {"action": "keep", "sourceLabels": sources, "regex": f"({'|'.join(values)});true"}
    for field, label in (("port", "name"), ("portNumber", "number")):
        if field in endpoint:
            source = f"__meta_kubernetes_pod_container_port_{label}"
            yield {"action": "keep", "sourceLabels": [source], "regex": str(endpoint[field])}
    for label, source in (("namespace", "namespace"), ("container", "pod_container_name"), ("pod", "pod_name")):
        yield {"sourceLabels": [f"__meta_kubernetes_{source}"], "targetLabel": label}
    yield {"targetLabel": "job", "replacement": job(monitor)}
    if "port" in endpoint:
        yield {"targetLabel": "endpoint", "replacement": endpoint["port"]}
    yield from endpoint.get("relabelings", ())


def scrapes(monitor: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield Prometheus's ``scrape_configs`` for *monitor*, which lack where pods are found."""
    for number, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"]):
        rules = [{_snake(field): value for field, value in each.items()} for each in relabelings(monitor, endpoint)]
        yield {
            "job_name": f"podMonitor/{job(monitor)}/{number}",
            "metrics_path": endpoint["path"],
            "relabel_configs": rules,
        }


def _safe(name: str) -> str:
    """Return *name* as a part of a label's name."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
