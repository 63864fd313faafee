"""Ordinary programs in pods that ask for the socket bypass, with the agent's own settings: every
byte arrives, joined or not.

Each stands for a way of using a socket that a kernel may get wrong once sockets are joined: nginx
reads an upload by what FIONREAD says, HAProxy and Go's io.Copy move bytes by splice(2), .NET and
Java read what FIONREAD says at each edge. `bypass: asked` makes this module fail or hang on a
kernel that gets one of them wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from nodeagent.lab import Lab
from nodeagent.redirect import bypass
from tests.netns.world import APPS, SERVER, account, admin, ask, client, cluster, cluster_ip, pod_row
from tests.waiting import eventually

JOINED = "nodeagent.io/bypass: enabled"
RELAY = APPS / "relay.py"
PORTS = {
    "http": 8088,
    "tcp-haproxy": 9101,
    "tcp-haproxy-hush": 9104,
    "tcp-splice": 9201,
    "tcp-splice-hush": 9204,
    "tcp-available": 9301,
}
CONFIGURATION = """
---
apiVersion: v1
kind: ConfigMap
metadata: {name: programs}
data:
  nginx.conf: |
    daemon off;
    worker_processes 1;
    pid /scratch/nginx.pid;
    error_log /dev/stderr;
    events { }
    http {
      access_log off;
      sendfile on;
      client_max_body_size 0;
      client_body_temp_path /scratch/body;
      proxy_temp_path /scratch/proxy;
      fastcgi_temp_path /scratch/fastcgi;
      uwsgi_temp_path /scratch/uwsgi;
      scgi_temp_path /scratch/scgi;
      server { listen 8088; listen [::]:8088; root /scratch; location / { dav_methods PUT; } }
    }
  haproxy.cfg: |
    global
      nbthread 1
    defaults
      mode tcp
      option splice-request
      option splice-response
      timeout connect 5s
      timeout client 60s
      timeout server 60s
    listen duplex
      bind :::9101 v4v6
      server server 127.0.0.1:9001
    listen hush
      bind :::9104 v4v6
      server server 127.0.0.1:9004
"""


def programs(name: str, path: str) -> str:
    """Return the YAML of a pod with all programs, of which connections take *path*, and of its Service."""
    python = [sys.executable]
    commands = {
        "server": [*python, str(SERVER)],
        "nginx": ["nginx", "-c", "/programs/nginx.conf", "-e", "/dev/stderr"],
        "haproxy": ["haproxy", "-f", "/programs/haproxy.cfg"],
        "splice": [*python, str(RELAY), "splice", "9201", "9001"],
        "splice-hush": [*python, str(RELAY), "splice", "9204", "9004"],
        "available": [*python, str(RELAY), "available", "9301"],
    }
    mounts = [{"name": "programs", "mountPath": "/programs"}, {"name": "scratch", "mountPath": "/scratch"}]
    listening = " && ".join(f"grep -q :{port:04X} /proc/net/tcp6" for port in (*PORTS.values(), 9001, 9004))
    containers = [{"name": each, "command": command, "volumeMounts": mounts} for each, command in commands.items()]
    spec = {
        "nodeName": "node1",
        "serviceAccountName": "server",
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {**containers[0], "readinessProbe": {"exec": {"command": ["sh", "-c", listening]}, "periodSeconds": 1}},
            *containers[1:],
        ],
        "volumes": [{"name": "programs", "configMap": {"name": "programs"}}, {"name": "scratch", "emptyDir": {}}],
    }
    annotations = {"nodeagent.io/bypass": "enabled", "nodeagent.io/path": path}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
        "spec": spec,
    }
    ports = [{"name": each, "port": port} for each, port in PORTS.items()]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }
    return f"\n---\n{json.dumps(pod)}\n---\n{json.dumps(service)}\n"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    text = account("client", "server") + client("client", "node1", account="client", annotations=JOINED) + CONFIGURATION
    with cluster("t-programs", text + programs("proxy", "proxy") + programs("kernel", "kernel")) as lab:
        yield lab


PATHS = pytest.mark.parametrize("path", ["proxy", "kernel"])


@PATHS
def test_the_annotation_is_granted_or_refused_in_words(mesh: Lab, path: str) -> None:
    """Input: a pod that asks, on this kernel. Verdict: `get pods` says that it is joined, or that
    it is refused and what an application could tell.
    """
    refusal = bypass.joining("proven").refusal
    row = pod_row(mesh, path)
    assert (row["state"], row["bypass"]) == ("enrolled", not refusal)
    assert row["faults"] == ([f"nodeagent.io/bypass is refused: {refusal}"] if refusal else [])
    assert row["paths"]["9201"].startswith(path)
    explained = admin(mesh, "node1", f"/explain?source=default/client&destination=default/{path}:9201")
    (words,) = (step["words"] for step in explained["steps"] if step["stage"] == "path")
    assert words.startswith(path) and words.endswith(f"; nodeagent.io/bypass is refused: {refusal}" if refusal else "")


@PATHS
@pytest.mark.parametrize("size", [1, 400_000, 8_000_000])
def test_nginx_takes_and_gives_a_file(mesh: Lab, path: str, size: int) -> None:
    outcome = ask(mesh, "client", "put", cluster_ip(mesh, path), PORTS["http"], "--seed", size, "--send-bytes", size)
    assert (outcome["status"] in (201, 204), outcome["same"]) == (True, True)


@PATHS
@pytest.mark.parametrize("program", ["haproxy", "splice"])
def test_a_relay_moves_every_byte_both_ways(mesh: Lab, path: str, program: str) -> None:
    sizes = ("--send-bytes", 2_000_000, "--receive-bytes", 2_000_000, "--connections", 3)
    assert ask(mesh, "client", "duplex", cluster_ip(mesh, path), PORTS[f"tcp-{program}"], *sizes) == {
        "ok": 3,
        "bad": [],
    }


@PATHS
@pytest.mark.parametrize("program", ["haproxy", "splice"])
def test_a_relay_passes_a_half_close_on(mesh: Lab, path: str, program: str) -> None:
    arguments = ("--send", "x" * 70_000, "--half-close")
    assert (
        ask(mesh, "client", "dial", cluster_ip(mesh, path), PORTS[f"tcp-{program}-hush"], *arguments)["received"]
        == "got 70000"
    )


@PATHS
def test_a_program_that_reads_what_is_available_gets_all(mesh: Lab, path: str) -> None:
    sizes = ("--send-bytes", 2_000_000, "--connections", 3)
    assert ask(mesh, "client", "duplex", cluster_ip(mesh, path), PORTS["tcp-available"], *sizes) == {"ok": 3, "bad": []}


def test_the_refusal_is_in_the_log(mesh: Lab) -> None:
    refusal = bypass.joining("proven").refusal
    said = re.compile(re.escape(f"pod default/client: nodeagent.io/bypass is refused: {refusal}"))
    eventually(
        lambda: bool(said.search(mesh.agent("node1").log.read_text())) == bool(refusal),
        "the log says that the annotation is refused",
    )
