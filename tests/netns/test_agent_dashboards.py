"""Dashboards over a real Prometheus that scrapes real agents: every panel shows something."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.lab import Lab
from nodeagent.lab.agent import merge
from tests import dashboards
from tests.netns.conftest import CLUSTER
from tests.netns.world import CLIENT, QUICK, cluster, cluster_ip, prometheus
from tests.waiting import eventually

RATE = "10s"
HTTP = ("istio_requests_total",)
HISTOGRAMS = ("istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes")
TCP = ("istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total")
SERVICE = "both.default.svc.cluster.local"
"""Both servers' oldest Service: the one that a server's side tells of, as in Istio."""
SERVER = f'destination_service="{SERVICE}", destination_workload=~"remote", destination_workload_namespace=~"default"'
PEERS = f'{SERVER}, source_workload=~"client", source_workload_namespace=~"default"'
PROVED = 'reporter="destination", connection_security_policy="mutual_tls"'
UNKNOWN = 'reporter="source", connection_security_policy!="mutual_tls", destination_principal=~"spiffe.*"'
BY = ("destination_workload, destination_workload_namespace", "source_workload, source_workload_namespace")


TALKS = """
---
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  containers: [{name: app, command: [sh, -c, "while :; do echo a line; sleep 0.1; done"]}]
"""
LOGS = {"logs": {"sinks": [{"name": "all", "file": {"path": "/run/nodeagent/lab/t-dashboards/collected/all.jsonl"}}]}}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    """Two nodes with agents that read logs too, on one of which a pod writes some."""
    with cluster("t-dashboards", CLUSTER + TALKS, agent=merge(QUICK, LOGS)) as lab:
        yield lab


def istio_queries() -> Iterator[str]:
    """Yield what Istio's mesh, service and workload dashboards ask for, in their terms: each metric
    by each side's matchers and groups.
    """
    for side in (PROVED, UNKNOWN):
        chosen = f"{side}, {PEERS}"
        for by in (*BY, "destination_service, destination_cluster, source_cluster"):
            for name in (*HTTP, *TCP, "istio_tcp_connections_opened_total"):
                yield f"round(sum(irate({name}{{{chosen}}}[{RATE}])) by ({by}), 0.001)"
            for name in HISTOGRAMS:
                yield f"histogram_quantile(0.95, sum(irate({name}_bucket{{{chosen}}}[{RATE}])) by ({by}, le))"
    every = 'reporter=~"source|waypoint"'
    requests = f"rate(istio_requests_total{{{every}}}[{RATE}])"
    well = f'rate(istio_requests_total{{{every}, response_code!~"5.."}}[{RATE}])'
    yield f"sum({well}) / sum({requests})"
    yield f'label_join(sum by ({BY[0]}, destination_service) ({requests}), "var", ".", "destination_workload")'
    yield f"sum by (response_code, response_flags, request_protocol) ({requests})"
    yield "sum by (component, tag) (istio_build)"
    by = "by (destination_service)"
    yield f"sum(istio_requests_total{{}}) {by} or sum(istio_tcp_sent_bytes_total{{}}) {by}"


@contextmanager
def traffic(lab: Lab) -> Iterator[None]:
    """Requests and TCP from the client to servers on both nodes, all the time."""
    address = cluster_ip(lab, "both")
    asks = f"while :; do curl -s -o /dev/null http://{address}/about; sleep 0.1; done"
    duplex = f"{sys.executable} {CLIENT} duplex {address} 9001 --send-bytes 999 --receive-bytes 999"
    loops = (asks, f"while :; do {duplex} > /dev/null; sleep 0.3; done")
    processes = [lab.popen("client", ["sh", "-c", each], stderr=subprocess.DEVNULL) for each in loops]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def shown(asked: Callable[[str], list[Any]], query: str) -> bool:
    """Say whether *query* returns numbers."""
    samples = asked(query)
    return bool(samples) and any(sample["value"][1] != "NaN" for sample in samples)


def test_every_panel_has_data(mesh: Lab, tmp_path: Path) -> None:
    """Ours, and Istio's as they are."""
    targets = [f"{mesh.address(node)}:15020" for node in mesh.nodes]
    ours = dashboards.queries(dashboards.load("node.json"))
    wanted = {title: dashboards.filled(query, instance=".*", __rate_interval=RATE) for title, query in ours.items()}
    wanted |= {query: query for query in istio_queries()}
    with prometheus(mesh, "node1", tmp_path, targets) as asked, traffic(mesh):
        for title, query in wanted.items():
            eventually(lambda query=query: shown(asked, query), f"{title} shows something", 60)
