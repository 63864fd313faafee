"""Endpoints, nftables rules and names of Services."""

from __future__ import annotations

import subprocess
from typing import Any

from nodeagent.lab import services


def pod(
    name: str, ip: str, *, ready: bool = True, app: str = "web", namespace: str = "default", port: int = 8080
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": port, "name": "http"}]}]},
        "status": {
            "podIPs": [{"ip": ip}, {"ip": f"fd00::{ip.rsplit('.', 1)[1]}"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def service(addresses: list[str], target: int | str = "http", **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": target}]
    return {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIPs": addresses, "selector": {"app": "web"}, "ports": ports, **spec},
    }


PODS = [
    pod("a", "10.0.0.1"),
    pod("b", "10.0.0.2"),
    pod("c", "10.0.0.3", ready=False),
    pod("d", "10.0.0.4", app="x"),
    pod("e", "10.0.0.5", namespace="y"),
]


def test_endpoints_are_ready_selected_pods_of_the_namespace() -> None:
    assert [each["metadata"]["name"] for each in services.selected(service([]), PODS)] == ["a", "b"]
    assert [
        each["metadata"]["name"] for each in services.selected(service([], publishNotReadyAddresses=True), PODS)
    ] == ["a", "b", "c"]
    assert services.selected(service([], selector={}), PODS) == []


def test_a_pod_that_is_being_deleted_is_no_endpoint() -> None:
    leaving = pod("a", "10.0.0.1")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert services.selected(service([]), [leaving]) == []


def test_target_ports_by_number_name_and_default() -> None:
    chosen = PODS[0]
    assert services.target_port({"port": 80}, chosen) == 80
    assert services.target_port({"port": 80, "targetPort": 81}, chosen) == 81
    assert services.target_port({"port": 80, "targetPort": "http"}, chosen) == 8080
    assert services.target_port({"port": 80, "targetPort": "nope"}, chosen) is None
    assert services.target_port({"port": 80, "targetPort": "http", "protocol": "UDP"}, chosen) is None


def test_rules_balance_over_the_endpoints_of_each_family() -> None:
    rules = services.ruleset([service(["10.96.0.1", "fd00:10:96::1"])], PODS)
    assert "dnat ip to numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }" in rules
    assert "dnat ip6 to numgen random mod 2 map { 0 : fd00::1 . 8080, 1 : fd00::2 . 8080 }" in rules
    assert "tcp . 10.96.0.1 . 80 : goto service-0" in rules
    assert "tcp . fd00:10:96::1 . 80 : goto service-1" in rules


def test_nft_takes_the_rules() -> None:
    for pods in ([], PODS[:1], PODS):
        text = services.ruleset([service(["10.96.0.1", "fd00:10:96::1"]), service(["None"])], pods)
        done = subprocess.run(
            ["unshare", "--net", "nft", "-f", "-"], input=text, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_names() -> None:
    table = services.names([service(["10.96.0.1", "fd00:10:96::1"])], PODS[:1])
    assert table == {
        "web.default.svc.cluster.local": ("10.96.0.1", "fd00:10:96::1"),
        "10-0-0-1.default.pod.cluster.local": ("10.0.0.1",),
        "fd00--1.default.pod.cluster.local": ("fd00::1",),
    }


def test_a_headless_service_answers_with_its_endpoints() -> None:
    table = services.names([service(["None"])], PODS)
    assert table["web.default.svc.cluster.local"] == ("10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2")
    assert table["b.web.default.svc.cluster.local"] == ("10.0.0.2", "fd00::2")
    single = service(["None"])
    single["spec"]["ipFamilies"] = ["IPv4"]
    assert services.names([single], PODS)["web.default.svc.cluster.local"] == ("10.0.0.1", "10.0.0.2")
