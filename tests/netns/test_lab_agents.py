"""The agents of a lab: started on every node, their pods enrolled, and to be killed, stopped and started by a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import LabError
from nodeagent.lab import Lab

NAME = "t-lab-agents"
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node2
  containers:
  - name: web
    command: [python3, -m, http.server, "8080", --bind, "::"]
    workingDir: /usr/share/doc/python3
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: c, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, annotations: {nodeagent.io/enroll: "false"}}
spec: {nodeName: node1, containers: [{name: c, command: [sleep, infinity]}]}
"""


@pytest.fixture(scope="module", params=[False, True], ids=["beside kubepods", "in kubepods"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab.up(
        text=PODS,
        name=NAME,
        mode="nodeagent",
        agent={"redirect": {"heartbeatTimeoutSeconds": 0.5}},
        agent_in_kubepods=request.param,
    ) as made:
        yield made
    assert not list(Path("/sys/fs/bpf").glob(f"nodeagent-lab-{NAME}-*"))


def test_up_waits_until_the_pods_are_enrolled(lab: Lab) -> None:
    uids = {name: pod["metadata"]["uid"] for name, pod in lab.pods.items()}
    assert {path.name for path in (lab.state / "enrolled").iterdir()} == {uids["default/web"], uids["default/client"]}
    assert [node["agent"] for node in lab.status()["nodes"]] == ["running", "running"]


def test_the_overlay_is_merged(lab: Lab) -> None:
    config = lab.agent("node1").config()
    assert config["redirect"]["heartbeatTimeoutSeconds"] == 0.5
    assert config["redirect"]["pinDirectory"] == f"/sys/fs/bpf/nodeagent-lab-{NAME}-node1"


def test_traffic_goes_through_the_agents(lab: Lab) -> None:
    done = lab.exec("client", ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://web/"])
    assert (done.stdout, done.stderr) == ("200", "")


def test_an_agent_is_stopped_killed_and_started(lab: Lab) -> None:
    agent = lab.agent("node1")
    first = agent.pid
    agent.start()
    assert agent.pid == first
    agent.stop()
    assert not agent.alive
    with pytest.raises(LabError, match="the agent does not run"):
        _ = agent.pid
    agent.start()
    agent.kill()
    assert agent.processes() == []
    Lab.up(text=PODS, name=NAME, mode="nodeagent", agent=lab.shape.agent, agent_in_kubepods=lab.shape.agent_in_kubepods)
    assert agent.alive
    lab.wait_ready()


def test_a_lab_without_agents_has_none_to_give() -> None:
    with (
        Lab.up(name=f"{NAME}-none", nodes=1) as direct,
        pytest.raises(LabError, match="no agent: this lab has node1 and its mode is direct"),
    ):
        direct.agent("node1")
