"""Other places and sizes: the agent below the captured cgroup as in a DaemonSet, two workers,
unknown pods denied; a hundred pods.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests.netns.world import (
    QUICK,
    about,
    account,
    address_of,
    admin,
    ask,
    bracketed,
    client,
    client_in,
    cluster,
    cluster_ip,
    curl,
    growth,
    memory,
    pod_row,
    scrape,
    server,
    service,
    workers,
)
from tests.waiting import eventually

TEXT = "".join(
    (
        account("client", "server"),
        client("client", "node1", account="client"),
        client("plain", "node1", annotations='nodeagent.io/enroll: "false"'),
        server("local", "node1", account="server"),
        server("remote", "node2", account="server"),
    )
)


@pytest.fixture(scope="module")
def kubepods() -> Iterator[Lab]:
    settings = merge(QUICK, {"redirect": {"unknownPods": "deny"}, "proxy": {"workers": 2}})
    with cluster("t-places", TEXT, agent=settings, agent_in_kubepods=True) as lab:
        yield lab


def test_the_agent_below_the_captured_cgroup_does_not_capture_itself(kubepods: Lab) -> None:
    group = kubepods.agent("node1").cgroup
    assert group.parent.name == "kubepods"
    for name in ("local", "remote"):
        assert about(kubepods, "client", f"http://{cluster_ip(kubepods, name)}")["pod"] == name
        assert (
            ask(
                kubepods,
                "client",
                "duplex",
                cluster_ip(kubepods, name),
                9001,
                "--send-bytes",
                100000,
                "--receive-bytes",
                100000,
            )["ok"]
            == 1
        )
    events = scrape(kubepods)
    assert events.sum("nodeagent_kernel_events_total", event="outbound_captured") == 4


@pytest.mark.parametrize("version", [4, 6])
def test_who_is_known_to_be_outside_is_left_alone_where_unknown_pods_are_denied(kubepods: Lab, version: int) -> None:
    counted = growth(kubepods)
    pod = bracketed(address_of(kubepods, "local", version))
    for address in (f"{pod}:8080", bracketed(cluster_ip(kubepods, "remote", version))):
        done = curl(kubepods, "plain", f"http://{address}/about")
        assert done.returncode == 0, done
    assert counted.of("nodeagent_kernel_events_total", event="outbound_left_alone") == 2
    assert counted.of("nodeagent_kernel_events_total", event="outbound_unknown_denied") == 0
    assert curl(kubepods, "node1", f"http://{kubepods.address('local')}:8080/about").returncode == 0


def test_both_workers_carry_traffic_and_one_of_them_may_die(kubepods: Lab) -> None:
    assert len(workers(kubepods, "node1")) == 2
    with client_in(kubepods, "client", "hold", cluster_ip(kubepods, "local"), 9000, "--connections", 60) as held:
        flows = [flow for flow in admin(kubepods, "node1", "/flows")["flows"] if not flow["closed"]]
        carried = {pid: sum(flow["worker"] == pid for flow in flows) for pid in workers(kubepods, "node1")}
        assert all(count > 5 for count in carried.values()), carried
        victim = next(iter(carried))
        os.kill(victim, signal.SIGKILL)
        assert held.say()["ok"] == 60 - carried[victim]
        eventually(
            lambda: len(workers(kubepods, "node1")) == 2 and victim not in workers(kubepods, "node1"), "it is replaced"
        )
    for _ in range(20):
        assert about(kubepods, "client", f"http://{cluster_ip(kubepods, 'remote')}")["pod"] == "remote"
    assert (
        scrape(kubepods).sum(
            "istio_requests_total", reporter="source", destination_workload="remote", response_code="200"
        )
        >= 20
    )


def test_a_hundred_pods() -> None:
    template = (
        "{metadata: {labels: {app: many}}, spec: {nodeName: node1, containers: [{name: c, command: [sleep, "
        "infinity]}]}}"
    )
    spec = f"{{replicas: 99, selector: {{matchLabels: {{app: many}}}}, template: {template}}}"
    text = f"\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many}}\nspec: {spec}\n"
    text += account("server") + server("local", "node1", account="server") + service("many", "app: many")
    with cluster("t-many", text, nodes=1, agent=merge(QUICK, {"redirect": {"checkIntervalSeconds": 1}})) as lab:
        agent = lab.agent("node1")
        assert scrape(lab).sum("nodeagent_enrolled_pods") == 100
        assert len(list((agent.pins / "links").glob("lookup-*"))) == 100
        some = [name.partition("/")[2] for name in lab.pods if "many" in name][::20]
        for name in some:
            assert about(lab, name, f"http://{cluster_ip(lab, 'local')}")["pod"] == "local"
        assert memory(agent.processes()) < 130e6
        agent.kill()
        begun = time.monotonic()
        agent.start()
        print(f"100 pods are enrolled again {time.monotonic() - begun:.2f} s after the start")
        assert scrape(lab).sum("nodeagent_enrolled_pods") == 100
        assert scrape(lab).sum("nodeagent_repairs_total") == 0
        assert {row["state"] for row in admin(lab, "node1", "/pods")} == {"enrolled"}
        assert about(lab, some[0], f"http://{cluster_ip(lab, 'local')}")["pod"] == "local"
        assert pod_row(lab, "local")["listeners"] == 4
        assert not re.search("ERROR|CRITICAL|Traceback", agent.log.read_text())
