"""A pod that does its worst to who reads its logs: the daemon lives, and others' logs and its own still arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from tests.netns.world import admin, cluster, control, scrape
from tests.waiting import eventually

WORST = r"""
set -e
cd /var/log
mkdir app && cd app
echo of any bytes > "$(printf '\377\376').log"
for i in $(seq 300); do : > "$(printf -- '-1%.0s' $(seq 120))$i"; done
: | gzip > none
for i in $(seq 10); do cat none none > more; mv more none; done
for i in $(seq 20); do cat none; done > members.log
gzip -c /dev/null > empty.log
truncate -s 1T hole.log
for i in $(seq 40); do mkfifo fifo$i.log; ln -s /etc/shadow link$i.log; done
(while :; do mkdir a; : > a/b.log; mv a ../away; rm -r ../away; done) &
(while :; do : > flood.log; rm flood.log; done) &
i=0
while :; do i=$((i+1)); echo still $i; sleep 0.05; done
"""
PODS = f"""
apiVersion: v1
kind: Pod
metadata: {{name: talks}}
spec:
  containers:
  - {{name: app, command: [sh, -c, "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"]}}
---
apiVersion: v1
kind: Pod
metadata:
  name: hostile
  annotations:
    nodeagent.io/log-files: "varlog/app/*.log, varlog/app/**/*.log"
    nodeagent.io/log-sinks: {json.dumps(",".join(map(str, range(20_000))))}
spec:
  containers:
  - name: app
    command: [sh, -c, {json.dumps(WORST)}]
    volumeMounts: [{{name: varlog, mountPath: /var/log}}]
  volumes: [{{name: varlog, emptyDir: {{}}}}]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    path = "/run/nodeagent/lab/t-worst/node1/collected/all.jsonl"
    agent = {"logs": {"sinks": [{"name": "all", "file": {"path": path}}], "stopSeconds": 2}}
    with cluster("t-worst", PODS, agent=agent, nodes=1) as lab:
        yield lab


def of(lab: Lab, pod: str) -> list[dict[str, Any]]:
    path: Path = lab.layout.node("node1") / "collected" / "all.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [each for each in map(json.loads, lines) if each["kubernetes"]["pod_name"] == pod]


def test_everybodys_logs_arrive_and_nothing_dies(lab: Lab) -> None:
    before = control(lab, "node1")
    eventually(lambda: [each for each in of(lab, "hostile") if each["log"] == "of any bytes"], "a file of that name")
    eventually(lambda: [each for each in of(lab, "hostile") if each["log"] == "still 20"], "the pod's own output")
    seen = len(of(lab, "talks"))
    eventually(lambda: len(of(lab, "talks")) > seen + 50, "the other pod's output")
    numbers = [each["log"] for each in of(lab, "talks")]
    assert numbers == [f"line {number}" for number in range(1, len(numbers) + 1)]
    assert control(lab, "node1") == before
    assert scrape(lab).sum("nodeagent_log_collector_restarts_total") == 0
    assert not [each for each in of(lab, "hostile") if "root:" in each["log"]]
    words = [each["refusal"] for each in admin(lab, "node1", "/logs")["refused"] if each["pod"] == "default/hostile"]
    assert 3 <= len(words) <= 70, words
    assert any(each.endswith(" more") for each in words), words
