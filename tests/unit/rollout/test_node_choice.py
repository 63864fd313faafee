"""On which nodes a DaemonSet's pods run, as its controller decides."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.rollout.node_choice import chosen

LINUX = {"kubernetes.io/os": "linux", "cores": "8"}


def node(name: str = "a", labels: dict[str, str] | None = None, *taints: dict[str, str]) -> Any:
    return {"metadata": {"name": name, "labels": LINUX if labels is None else labels}, "spec": {"taints": list(taints)}}


def taint(key: str, effect: str = "NoSchedule", value: str = "") -> dict[str, str]:
    return {"key": key, "effect": effect, "value": value}


def required(*terms: Any) -> Any:
    selector = {"nodeSelectorTerms": list(terms)}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}}


def expression(key: str, operator: str, *values: str) -> Any:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("spec", "found", "runs"),
    [
        ({}, node(), True),
        ({"nodeSelector": {"kubernetes.io/os": "linux"}}, node(), True),
        ({"nodeSelector": {"kubernetes.io/os": "linux"}}, node(labels={"kubernetes.io/os": "windows"}), False),
        (required(expression("cores", "In", "4", "8")), node(), True),
        (required(expression("cores", "In", "4")), node(), False),
        (required(expression("cores", "NotIn", "4")), node(), True),
        (required(expression("pool", "NotIn", "gpu")), node(), True),
        (required(expression("pool", "Exists")), node(), False),
        (required(expression("pool", "DoesNotExist")), node(), True),
        (required(expression("cores", "Gt", "4")), node(), True),
        (required(expression("cores", "Lt", "4")), node(), False),
        (required(expression("pool", "Gt", "4")), node(), False),
        (required(expression("pool", "Exists"), expression("cores", "Exists")), node(), True),
        (required({}), node(), False),
        (required({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}), node(), True),
        (required({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}), node(), False),
        ({}, node("a", None, taint("mine")), False),
        ({}, node("a", None, taint("mine", "PreferNoSchedule")), True),
        ({}, node("a", None, taint("node.kubernetes.io/unreachable", "NoExecute")), True),
        ({"tolerations": [{"operator": "Exists"}]}, node("a", None, taint("mine", "NoExecute")), True),
        ({"tolerations": [{"key": "mine", "operator": "Exists"}]}, node("a", None, taint("mine")), True),
        ({"tolerations": [{"key": "other", "operator": "Exists"}]}, node("a", None, taint("mine")), False),
        ({"tolerations": [{"key": "mine", "value": "x"}]}, node("a", None, taint("mine", value="x")), True),
        ({"tolerations": [{"key": "mine", "value": "x"}]}, node("a", None, taint("mine", value="y")), False),
        (
            {"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]},
            node("a", None, taint("mine", "NoExecute")),
            False,
        ),
    ],
)
def test_a_pod_runs_where_selector_affinity_and_tolerations_let_it(spec: Any, found: Any, runs: bool) -> None:
    assert [each["metadata"]["name"] for each in chosen(spec, [found])] == (["a"] if runs else [])
