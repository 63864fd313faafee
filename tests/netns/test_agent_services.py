"""A service of the machine in the mesh: a real program in a network namespace and a cgroup as systemd
makes them, of which a program of this test says what systemd would.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.lab import Lab, cgroup, linux
from nodeagent.lab.agent import merge
from nodeagent.lab.layout import Node
from nodeagent.lab.network import Addresses, add_pod_link, connect_pod, keep_namespace
from nodeagent.links import opened
from tests.netns.world import (
    QUICK,
    SERVER,
    access_log,
    account,
    admin,
    client,
    cluster,
    curl,
    get,
    scrape,
    server,
)
from tests.unit.logs.journal_files import written
from tests.waiting import eventually

NAMESPACE = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: machines}\n"
TEXT = "".join(
    (
        NAMESPACE,
        account("client", "server"),
        client("client", "node2", account="client"),
        client("stranger", "node2"),
        server("remote", "node2", account="server"),
    )
)
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: legacy, namespace: machines}
spec:
  selector: {matchLabels: {app: legacy}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]
"""
UNIT, HOST, POD = "legacy.service", 200, "legacy-node1"
SERVICES = [{"unit": UNIT, "namespace": "machines", "serviceAccount": "legacy", "labels": {"app": "legacy"}}]
COLLECTED = Path("/run/nodeagent/lab/t-services/collected/all.jsonl")
# It says of each node's units what stands in a folder that is named by the node's network.
SYSTEMCTL = """#!/bin/sh
units={folder}/$(stat --dereference --format=%i /proc/self/ns/net)
while [ "$1" != -- ]; do shift; done
shift
for unit; do cat "$units/$unit" 2>/dev/null || echo LoadState=not-found; echo; done
"""


@dataclass
class Machine:
    """node1, of which systemd runs the service."""

    lab: Lab
    folder: Path
    address: str
    netns: Path
    group: Path

    def unit(self, **properties: str) -> None:
        """systemd has the unit like this from now on."""
        with linux.network_namespace(self.lab.netns("node1")):
            inode = os.stat("/proc/thread-self/ns/net").st_ino
        units = self.folder / str(inode)
        units.mkdir(exist_ok=True)
        (units / UNIT).write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def row(self) -> dict[str, object] | None:
        return next((row for row in admin(self.lab, "node1", "/pods") if row["pod"] == POD), None)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("systemd")
    program = folder / "systemctl"
    program.write_text(SYSTEMCTL.format(folder=folder))
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        (folder / "journal").mkdir()
        logs = {
            "containers": "none",
            "sinks": [{"name": "all", "file": {"path": str(COLLECTED)}}],
            "node": {"journal": {"folders": [str(folder / "journal")]}},
        }
        settings = merge(QUICK, {"services": SERVICES, "logs": logs})
        with cluster("t-services", TEXT, agent=settings) as lab:
            yield from running(lab, folder)


def running(lab: Lab, folder: Path) -> Iterator[Machine]:
    """Run the service, as systemd does with NetworkNamespacePath."""
    netns = lab.netns("node1").with_name("t-services.legacy")
    addresses = Node(1).pod_addresses(HOST)
    with linux.new_network_namespace():
        keep_namespace(netns, threading.get_native_id())
    try:
        connect(lab, netns, addresses)
        hierarchy = cgroup.hierarchy()
        group = lab.layout.cgroup(hierarchy) / "node1" / "kubepods" / "system.slice" / UNIT
        group.mkdir(parents=True)
        argv = inside(netns, group, [sys.executable, str(SERVER)])
        with subprocess.Popen(argv, env={**os.environ, "POD_NAME": "legacy"}) as process:
            try:
                found = Machine(lab, folder, str(addresses[0]), netns, group)
                found.unit(
                    LoadState="loaded",
                    ActiveState="active",
                    MainPID=str(process.pid),
                    ControlGroup=f"/{group.relative_to(hierarchy)}",
                    NetworkNamespacePath=str(netns),
                )
                yield found
            finally:
                process.kill()
    finally:
        linux.drop_namespace(netns)


def connect(lab: Lab, netns: Path, addresses: Addresses) -> None:
    """Give *netns* a link to node1, and *addresses*."""

    async def linked() -> None:
        node = Node(1)
        with open(lab.netns("node1"), "rb") as namespace:
            async with opened(namespace.fileno()) as links:
                await add_pod_link(links, node, "legacy", netns, addresses)
        await connect_pod(node, netns, addresses)

    asyncio.run(linked())


def inside(netns: Path, group: Path, argv: list[str]) -> list[str]:
    """Return the command that runs *argv* in *netns* and the cgroup *group*."""
    enter = f'echo $$ > {group}/cgroup.procs && exec nsenter --net={netns} "$@"'
    return ["sh", "-c", enter, "sh", *argv]


def test_a_service_is_enrolled_with_its_identity(machine: Machine) -> None:
    row = eventually(machine.row, "the service is told")
    assert row["identity"] == "spiffe://cluster.local/ns/machines/sa/legacy"
    eventually(lambda: (machine.row() or {}).get("state") == "enrolled", "it is enrolled")
    assert (machine.lab.layout.state / "enrolled" / str(row["uid"])).exists()


def test_it_is_reached_by_mtls_and_knows_by_whom(machine: Machine) -> None:
    lab = machine.lab
    before = access_log(lab)
    eventually(lambda: curl(lab, "client", f"http://{machine.address}:8080/about").returncode == 0, "it answers")
    told = json.loads(curl(lab, "client", f"http://{machine.address}:8080/about").stdout)
    assert "URI=spiffe://cluster.local/ns/default/sa/client" in str(told)
    assert before.find(path="/about", code="200")
    reached = {
        "destination_workload": "legacy",
        "destination_workload_namespace": "machines",
        "reporter": "destination",
    }
    eventually(
        lambda: scrape(lab).sum("istio_requests_total", connection_security_policy="mutual_tls", **reached) >= 2,
        "requests are counted",
    )


def test_policy_decides_who_may(machine: Machine) -> None:
    lab = machine.lab
    lab.apply(text=ALLOW)
    url = f"http://{machine.address}:8080/about"
    eventually(
        lambda: "403" in curl(lab, "stranger", "-o/dev/null", "-w%{http_code}", url).stdout, "a stranger may not"
    )
    assert "200" in curl(lab, "client", "-o/dev/null", "-w%{http_code}", url).stdout


def test_what_it_dials_leaves_with_its_identity(machine: Machine) -> None:
    url = f"http://{machine.lab.address('remote')}:8080/about"
    done = subprocess.run(
        inside(machine.netns, machine.group, ["curl", "-sS", "--max-time", "60", url]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert "URI=spiffe://cluster.local/ns/machines/sa/legacy" in done.stdout


def test_what_the_journal_has_of_it_is_its_pods(machine: Machine) -> None:
    eventually(machine.row, "the service is told")
    entries = [{"MESSAGE": name.encode(), "_SYSTEMD_UNIT": name.encode()} for name in (UNIT, "cron.service")]
    path = written(machine.folder / "journal" / ("0" * 32) / "system.journal", entries)

    def found() -> list[dict[str, object]]:
        records = [json.loads(line) for line in COLLECTED.read_text().splitlines()]
        return [each["kubernetes"] for each in records if each["MESSAGE"] == UNIT and "pod_name" in each["kubernetes"]]

    eventually(lambda: COLLECTED.exists() and found(), "its entry is delivered")
    (pod,) = found()
    assert (pod["namespace_name"], pod["pod_name"], pod["labels"]) == ("machines", POD, {"app": "legacy"})
    rows = {row["path"]: row for row in admin(machine.lab, "node1", "/logs/files") if row.get("path")}
    assert (rows[str(path)]["state"], rows[str(path)]["parser"]) == ("following", "journal")
    socket = str(machine.lab.agent("node1").admin_socket)
    asked = [sys.executable, "-m", "nodeagent", "logs", f"machines/{POD}", "-o", "json", "--admin", socket]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line)["text"] for line in shown.splitlines()] == [UNIT]
    eventually(
        lambda: scrape(machine.lab).sum("nodeagent_log_lines_read_total", namespace="machines", pod=POD) == 1,
        "it is counted as its pod's",
    )


def test_a_unit_that_is_gone_is_let_go(machine: Machine) -> None:
    machine.unit(LoadState="not-found")
    eventually(lambda: machine.row() is None, "it is no pod any more")
    eventually(lambda: "not-found" in get(machine.lab, "node1", 15021, "/ready")[1], "and why is said")
    assert not list((machine.lab.layout.state / "objects").glob("Pod.machines.*"))
