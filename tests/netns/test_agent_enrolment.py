"""Pods come, go, take over addresses, and have exceptions; and what is broken in the kernel is put right."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.config import MapSizes
from nodeagent.lab import Lab
from nodeagent.lab.layout import ADDRESSES, write_json
from nodeagent.redirect import maps, syscall
from nodeagent.redirect.netns import PodNetns
from nodeagent.redirect.pins import Pins
from tests.netns.world import (
    about,
    account,
    address_of,
    ask,
    bracketed,
    client,
    client_in,
    cluster_ip,
    curl,
    growth,
    pod_row,
    scrape,
    server,
    workers,
)
from tests.waiting import eventually


def enrolled(lab: Lab, name: str) -> bool:
    row = pod_row(lab, name)
    return row is not None and row["state"] == "enrolled"


def mark(lab: Lab, name: str, *, enroll: bool) -> None:
    """Ask for *name* to be enrolled or left alone at run time, in its object, which the agents watch."""
    path = lab.layout.object_file("Pod", "default", name)
    value = json.loads(path.read_text())
    value["metadata"]["annotations"]["nodeagent.io/enroll"] = "true" if enroll else "false"
    write_json(path, value)


def enrol(lab: Lab, name: str, *, wanted: bool) -> None:
    mark(lab, name, enroll=wanted)
    eventually(lambda: enrolled(lab, name) == wanted, f"{name} is {'enrolled' if wanted else 'released'}")


def test_enrolling_and_releasing_leave_live_connections_alone(mesh: Lab) -> None:
    mesh.apply(text=client("mobile", "node1", account="client") + server("target", "node1", account="server"))
    pairs = (("mobile", "local"), ("mobile", "remote"), ("far", "target"), ("client", "target"))
    for wanted in (False, True, False):  # each time with connections of the state before
        with ExitStack() as stack:
            held = [
                stack.enter_context(client_in(mesh, source, "hold", cluster_ip(mesh, name), 9000, "--connections", 3))
                for source, name in pairs
            ]
            enrol(mesh, "mobile", wanted=wanted)
            enrol(mesh, "target", wanted=wanted)
            for each in held:
                assert each.say() == {"ok": 3, "bad": []}
            seen = about(mesh, "mobile", f"http://{cluster_ip(mesh, 'remote')}")
            assert ("x-forwarded-client-cert" in seen["headers"]) == wanted
            seen = eventually(lambda: about(mesh, "far", f"http://{cluster_ip(mesh, 'target')}"), "an answer")
            assert seen["pod"] == "target"
    for name in ("mobile", "target"):
        mesh.delete_pod(name, grace_seconds=0)


def test_pods_come_and_go_while_others_carry_traffic(mesh: Lab) -> None:
    processes = {node: workers(mesh, node) for node in mesh.nodes}
    with (
        client_in(mesh, "client", "load", cluster_ip(mesh, "local"), 80) as near,
        client_in(mesh, "client", "load", cluster_ip(mesh, "remote"), 80) as far,
    ):
        for number in range(3):
            names = [f"guest{number}{index}" for index in range(4)]
            mesh.apply(text="".join(server(name, mesh.nodes[index % 2]) for index, name in enumerate(names)))
            for name in names:
                assert about(mesh, "client", f"http://{cluster_ip(mesh, name)}")["pod"] == name
            for name in names:
                mesh.delete_pod(name, grace_seconds=0)
                eventually(
                    lambda name=name: not (mesh.layout.objects / f"Pod.default.{name}.json").exists(), "the pod is gone"
                )
        results = near.finish(), far.finish()
    assert set(results[0]) == set(results[1]) == {"ok"}, results
    assert {node: workers(mesh, node) for node in mesh.nodes} == processes
    for node in mesh.nodes:
        eventually(
            lambda node=node: scrape(mesh, node).sum("nodeagent_enrolled_pods") == len(lookups(mesh, node)),
            "nothing is left of them",
        )


def lookups(lab: Lab, node: str) -> list[Path]:
    return list((lab.agent(node).pins / "links").glob("lookup-*"))


def test_an_address_carries_no_identity_to_the_next_pod(mesh: Lab) -> None:
    """The second pod has the first's addresses and another service account, at once after it."""
    mesh.apply(text=account("first", "second") + server("first", "node1", account="first"))
    addresses = [each["ip"] for each in mesh.pod("first")["status"]["podIPs"]]
    with (
        client_in(mesh, "first", "load", cluster_ip(mesh, "remote"), 80),
        client_in(mesh, "client", "load", addresses[0], 8080),
    ):
        counted, inbound = growth(mesh, "node2"), growth(mesh, "node1")
        mesh.delete_pod("first", grace_seconds=0)
        mesh.apply(
            text=server("second", "node1", account="second", annotations=f'{ADDRESSES}: "{",".join(addresses)}"')
        )
    assert [each["ip"] for each in mesh.pod("second")["status"]["podIPs"]] == addresses
    before = counted.of("istio_requests_total", source_workload="second")
    assert before == 0
    for address in addresses:
        seen = about(mesh, "client", f"http://{bracketed(address)}:8080")
        assert seen["headers"]["x-forwarded-client-cert"].startswith("By=spiffe://cluster.local/ns/default/sa/second;")
        seen = about(
            mesh, "second", f"http://{bracketed(mesh.address('remote', version=6 if ':' in address else 4))}:8080"
        )
        assert seen["headers"]["x-forwarded-client-cert"].endswith("URI=spiffe://cluster.local/ns/default/sa/second")
        seen = about(mesh, "far", f"http://{bracketed(address)}:8080")
        assert seen["headers"]["x-forwarded-client-cert"].startswith("By=spiffe://cluster.local/ns/default/sa/second;")
    principal = "spiffe://cluster.local/ns/default/sa/second"
    counted.comes_to(
        2, "istio_requests_total", reporter="destination", source_workload="second", source_principal=principal
    )
    inbound.comes_to(
        2,
        "istio_requests_total",
        reporter="destination",
        destination_workload="second",
        destination_principal=principal,
        source_workload="far",
    )
    mesh.delete_pod("second", grace_seconds=0)


def test_excluded_ports(mesh: Lab) -> None:
    marks = (
        'traffic.sidecar.istio.io/excludeInboundPorts: "9002", '
        'traffic.sidecar.istio.io/excludeOutboundPorts: "8080, 9002"'
    )
    mesh.apply(text=server("special", "node1", annotations=marks))
    for version in (4, 6):
        own, other = (address_of(mesh, name, version) for name in ("special", "unmeshed"))
        counted = growth(mesh)
        assert ask(mesh, "plain", "dial", own, 9002, "--until", "\n")["received"].startswith("220 special")
        counted.comes_to(1, "nodeagent_kernel_events_total", event="inbound_excluded")
        assert ask(mesh, "client", "dial", own, 9002, "--until", "\n")["received"].startswith("220 special")
        assert ask(mesh, "far", "dial", own, 9002, "--until", "\n")["received"].startswith("220 special")
        assert "x-request-id" not in about(mesh, "special", f"http://{bracketed(other)}:8080")["headers"]
        assert (
            "x-request-id"
            in about(mesh, "special", f"http://{bracketed(cluster_ip(mesh, 'unmeshed', version))}")["headers"]
        )
    mesh.delete_pod("special", grace_seconds=0)


def test_a_wrong_annotation_is_told_and_opens_nothing(mesh: Lab) -> None:
    mesh.apply(text=server("typo", "node1", annotations='traffic.sidecar.istio.io/excludeInboundPorts: "80;9002"'))
    row = pod_row(mesh, "typo")
    assert (
        any("excludeInboundPorts" in fault and "80;9002" in fault for fault in row["faults"])
        or "80;9002" in mesh.agent().log.read_text()
    ), row
    counted = growth(mesh)
    assert ask(mesh, "plain", "dial", mesh.address("typo"), 9002, "--until", "\n")["received"].startswith("220 typo")
    counted.comes_to(1, "istio_tcp_connections_opened_total", reporter="destination", destination_workload="typo")
    mesh.delete_pod("typo", grace_seconds=0)


def open_maps(lab: Lab) -> dict[str, maps.Map]:
    return maps.open_all(lab.agent("node1").pins / "maps", MapSizes())


def repaired(lab: Lab, name: str) -> int:
    return int(pod_row(lab, name)["repaired"])


def breaking_the_link(lab: Lab, cookie: int) -> None:
    link = syscall.get(link_of(lab, cookie))
    syscall.link_detach(link)
    os.close(link)


def link_of(lab: Lab, cookie: int) -> Path:
    return Pins(lab.agent("node1").pins).lookup(cookie)


def unpinning_the_link(lab: Lab, cookie: int) -> None:
    link_of(lab, cookie).unlink()


def deleting_the_pod(lab: Lab, cookie: int) -> None:
    assert open_maps(lab)["pods"].drop(cookie.to_bytes(8, "little"))


def deleting_an_address(lab: Lab, cookie: int) -> None:
    table = open_maps(lab)["addresses"]
    key = next(key for key, value in table.items() if value == cookie.to_bytes(8, "little"))
    assert table.drop(key)


def deleting_a_listener(lab: Lab, cookie: int) -> None:
    table = open_maps(lab)["listeners"]
    key = next(key for key in table.keys() if key.startswith(cookie.to_bytes(8, "little")))  # noqa: SIM118 - not a dict
    assert table.drop(key)


@pytest.mark.parametrize(
    "harm", [breaking_the_link, unpinning_the_link, deleting_the_pod, deleting_an_address, deleting_a_listener]
)
def test_what_is_broken_in_the_kernel_is_repaired(mesh: Lab, harm: Callable[[Lab, int], None]) -> None:
    netns = PodNetns.open(mesh.netns("local"))
    before, counted = repaired(mesh, "local"), growth(mesh)
    harm(mesh, netns.cookie)
    netns.close()
    eventually(lambda: repaired(mesh, "local") > before, "get pods shows the repair")
    eventually(lambda: pod_row(mesh, "local")["state"] == "enrolled", "enrolled again")
    assert counted.of("nodeagent_repairs_total") >= 1
    assert scrape(mesh).sum("nodeagent_faulty_pods") == 0
    counted = growth(mesh)
    about(mesh, "client", f"http://{cluster_ip(mesh, 'local')}")
    counted.comes_to(
        1, "istio_requests_total", reporter="destination", destination_workload="local", source_workload="client"
    )
    counted = growth(mesh)
    about(mesh, "far", f"http://{cluster_ip(mesh, 'local')}")
    counted.comes_to(
        1,
        "istio_requests_total",
        reporter="destination",
        destination_workload="local",
        connection_security_policy="mutual_tls",
    )


def test_a_detached_cgroup_program_is_repaired(mesh: Lab) -> None:
    counted = growth(mesh)
    link = syscall.get(mesh.agent("node1").pins / "links" / "connect4")
    syscall.link_detach(link)
    os.close(link)
    eventually(lambda: counted.of("nodeagent_repairs_total") >= 1, "the repair is counted")
    about(mesh, "client", f"http://{cluster_ip(mesh, 'local')}")
    counted.comes_to(
        1, "istio_requests_total", reporter="source", destination_workload="local", source_workload="client"
    )


def test_readiness_says_which_pod_is_not_captured(mesh: Lab) -> None:
    """A pod that already uses the listener's port cannot be captured; it is told, and the others
    are not kept from it.
    """
    assert curl(mesh, "node1", "-w", " %{http_code}", "http://127.0.0.1:15021/ready").stdout == "ready\n 200"
    squatter = "import socket; s = socket.create_server(('127.0.0.1', 15001)); print('ready', flush=True); s.accept()"
    with mesh.popen("plain", ["python3", "-c", squatter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mark(mesh, "plain", enroll=True)
        eventually(
            lambda: re.search("default/plain.*15001", curl(mesh, "node1", "http://127.0.0.1:15021/ready").stdout),
            "it names pod and port",
        )
        assert about(mesh, "client", f"http://{cluster_ip(mesh, 'local')}")["pod"] == "local"
        process.kill()
    eventually(lambda: enrolled(mesh, "plain"), "it is enrolled as soon as it can be")
    mark(mesh, "plain", enroll=False)
    eventually(lambda: pod_row(mesh, "plain") is None, "released")
    assert curl(mesh, "node1", "http://127.0.0.1:15021/ready").stdout == "ready\n"


def test_nothing_of_the_agent_is_in_the_pod(mesh: Lab) -> None:
    """No process, no file: only sockets that the daemon holds."""
    done = mesh.exec("client", ["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])
    assert int(done.stdout) <= 5
    assert mesh.exec("client", ["cat", "/proc/1/comm"]).stdout == "sleep\n"
    held = mesh.exec("client", ["ss", "-Hltn"]).stdout
    assert {line.split()[3].rpartition(":")[2] for line in held.splitlines()} == {"15001", "15006"}
