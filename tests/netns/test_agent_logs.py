"""Logs end to end: what pods write on their standard streams and into their volumes reaches the sinks, once
each, with whose it is, whatever dies meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from tests.netns.world import cluster
from tests.waiting import eventually

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: talks, labels: {app: talks, app.kubernetes.io/part-of: shop}}
spec:
  containers:
  - {name: app, command: [sh, -c, "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"]}
---
apiVersion: v1
kind: Pod
metadata: {name: writes, annotations: {nodeagent.io/log-files: "varlog/app/*.log, ../etc/passwd"}}
spec:
  containers:
  - name: app
    command: [sh, -c, 'mkdir -p /var/log/app; ln -s /etc/passwd /var/log/app/evil.log; mkfifo /var/log/app/fifo.log;
      i=0; while :; do i=$((i+1)); echo "{\\"n\\": $i}" >> /var/log/app/a.log; sleep 0.05; done']
    volumeMounts: [{name: varlog, mountPath: /var/log}]
  volumes: [{name: varlog, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: silent, annotations: {fluentbit.io/exclude: "true"}}
spec:
  containers: [{name: app, command: [sh, -c, "echo secret; exec sleep infinity"]}]
"""


def collected(lab: Lab, node: str = "node1") -> Path:
    return lab.layout.node(node) / "collected" / "all.jsonl"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One node, whose agent delivers into a file of the node."""
    path = "/run/nodeagent/lab/t-logs/node1/collected/all.jsonl"
    agent = {"logs": {"sinks": [{"name": "all", "file": {"path": path}}], "stopSeconds": 2}}
    with cluster("t-logs", PODS, agent=agent, nodes=1) as lab:
        yield lab


def records(lab: Lab) -> list[dict[str, Any]]:
    path = collected(lab)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def of(lab: Lab, pod: str) -> list[dict[str, Any]]:
    return [each for each in records(lab) if each["kubernetes"]["pod_name"] == pod]


def test_output_arrives_with_whose_it_is(lab: Lab) -> None:
    found = eventually(lambda: len(rows := of(lab, "talks")) > 5 and rows, "records of the pod's output")
    first = found[0]
    uid = lab.pod("talks")["metadata"]["uid"]
    assert first["log"] == "line 1"
    assert first["stream"] == "stdout"
    assert first["kubernetes"] == {
        "namespace_name": "default",
        "pod_name": "talks",
        "pod_id": uid,
        "container_name": "app",
        "host": "node1",
        "labels": {"app": "talks", "app_kubernetes_io_part-of": "shop"},
    }


def test_files_of_a_volume_arrive_and_nothing_else_that_is_there(lab: Lab) -> None:
    found = eventually(lambda: len(rows := of(lab, "writes")) > 5 and rows, "records of the pod's file")
    assert [each["n"] for each in found[:5]] == [1, 2, 3, 4, 5]
    assert {each.get("log_file") for each in found} == {"varlog/app/a.log"}


def test_who_asks_to_be_left_out_is(lab: Lab) -> None:
    eventually(lambda: len(of(lab, "talks")) > 5)
    assert of(lab, "silent") == []
