"""Whom Prometheus scrapes by daemonset/overlays/prometheus-operator: the operator's rules for a PodMonitor, applied
to the pods of the manifests as Prometheus finds and relabels them (its documents: relabel_config).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.telemetry import metrics
from nodeagent.telemetry.metrics import Metric
from tests.prometheus_operator import Labels, discovered, relabelings

DAEMONSET = Path(__file__).parents[3] / "daemonset"
OVERLAY = DAEMONSET / "overlays" / "prometheus-operator"
WORKLOADS = ("base/daemonset.yaml", "ca/service.yaml", "webhook/service.yaml")
NAMESPACE = "nodeagent-system"
Target = frozenset[tuple[str, str]]
"""The labels of what is scraped, and its address: two that are equal are one."""


def read(path: Path) -> Iterator[dict[str, Any]]:
    yield from (each for each in yaml.safe_load_all(path.read_text()) if each)


MONITORS = {each["metadata"]["name"]: each for each in read(OVERLAY / "monitors.yaml")}
TEMPLATES = {
    each["metadata"]["name"]: each["spec"]["template"]
    for path in WORKLOADS
    for each in read(DAEMONSET / path)
    if each["kind"] in ("DaemonSet", "Deployment")
}  # fmt: skip


def running(template: Mapping[str, Any], name: str, node: str, address: str) -> list[Labels]:
    """Return the targets of a pod of *template*."""
    metadata = {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
    spec = {**template["spec"], "nodeName": node}
    return list(discovered({"metadata": metadata, "spec": spec, "status": {"podIP": address, "phase": "Running"}}))


def relabelled(labels: Labels, steps: Iterator[dict[str, Any]]) -> Labels | None:
    """Return *labels* after *steps*; None: nobody is scraped."""
    found = dict(labels)
    for step in steps:
        action = step.get("action", "replace")
        expression = re.compile(step.get("regex", "(.*)"))
        if action == "labeldrop":
            found = {name: value for name, value in found.items() if not expression.fullmatch(name)}
            continue
        matched = expression.fullmatch(";".join(found.get(name, "") for name in step.get("sourceLabels", ())))
        if action in ("keep", "drop"):
            if (matched is None) == (action == "keep"):
                return None
            continue
        assert action == "replace"
        if matched is not None:
            made = re.sub(r"\$\{?(\d)\}?", r"\\g<\1>", step.get("replacement", "$1"))
            found[step["targetLabel"]] = matched.expand(made)
    return found


def scraped(monitor: str, *pods: Labels) -> set[Target]:
    """Return whom Prometheus scrapes of *pods* by *monitor*."""
    document = {**MONITORS[monitor], "metadata": {"name": monitor, "namespace": NAMESPACE}}
    found = set()
    for endpoint in document["spec"]["podMetricsEndpoints"]:
        for pod in pods:
            made = relabelled(pod, relabelings(document, endpoint))
            if made is not None:
                kept = {**made, "instance": made["__address__"], "__path__": endpoint["path"]}
                found.add(frozenset(item for item in kept.items() if not item[0].startswith("__meta")))
    return found


def everything(address: str) -> list[Labels]:
    found: list[Labels] = []
    for name, template in TEMPLATES.items():
        found += running(template, f"{name}-x", "a", address)
    return found


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_each_agent_is_scraped_at_its_port(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    (target,) = scraped("nodeagent", *everything(address))
    assert dict(target) == {
        "__address__": f"{host}:15020",
        "__path__": "/metrics",
        "instance": f"{host}:15020",
        "job": f"{NAMESPACE}/nodeagent",
        "node": "a",
    }


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_a_prometheus_without_the_operator_scrapes_the_same(address: str) -> None:
    """Input: the scrape_config of docs/kubernetes.md. Verdict: job, node and address as the rules ask for."""
    document = (DAEMONSET.parent / "docs" / "kubernetes.md").read_text()
    (config,) = yaml.safe_load(document.partition("```yaml\nscrape_configs:")[2].partition("```")[0])
    camel = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    steps = [{camel.get(field, field): value for field, value in each.items()} for each in config["relabel_configs"]]
    made = [found for pod in everything(address) if (found := relabelled(pod, iter(steps))) is not None]
    kept = {(config["job_name"], found["node"], found["__address__"]) for found in made}
    (target,) = map(dict, scraped("nodeagent", *everything(address)))
    assert kept == {(target["job"], target["node"], target["__address__"])}


def test_a_node_whose_old_agent_drains_is_scraped_once() -> None:
    agents = running(TEMPLATES["nodeagent"], "nodeagent-old", "a", "10.0.0.1")
    agents += running(TEMPLATES["nodeagent"], "nodeagent-new", "a", "10.0.0.1")
    agents += running(TEMPLATES["nodeagent"], "nodeagent-b", "b", "10.0.0.2")
    assert {dict(each)["node"] for each in scraped("nodeagent", *agents)} == {"a", "b"}
    assert len(scraped("nodeagent", *agents)) == 2


def test_no_label_of_the_scrape_takes_the_place_of_an_agents_own() -> None:
    (target,) = scraped("nodeagent", *everything("10.0.0.1"))
    own = {label for each in vars(metrics).values() if isinstance(each, Metric) for label in each.labels}
    assert own & dict(target).keys() <= {"node"}, "Prometheus would call the agent's exported_…"


@pytest.mark.parametrize("name", ["nodeagent-ca", "nodeagent-webhook"])
def test_authority_and_webhook_are_scraped_at_their_own_ports(name: str) -> None:
    (target,) = map(dict, scraped(name, *everything("10.0.0.1")))
    assert (target["pod"], target["__address__"]) == (f"{name}-x", "10.0.0.1:15014")
    assert (target["job"], target["node"]) == (f"{NAMESPACE}/{name}", "a")
