"""The ways from client to server that are compared. All run in the lab's pods: the same namespaces, links, client and server programs."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from nodeagent.compare import envoy, measure
from nodeagent.compare.load import BULK_PORT, HTTP_PORT, TCP_PORT, BenchError, Client, Workload
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.lab import linux
from nodeagent.lab.layout import CGROUP
from nodeagent.mesh.entries import SpiffeId

HAPROXY_PORT = 10081
_START_SECONDS = 10.0
_HAPROXY = """
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend hop
  bind 127.0.0.1:{port}
  default_backend server
backend server
  server server {server}
global
  nbthread 1
"""


_POLICY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{matchLabels: {{app: {name}}}}}, action: ALLOW, rules: [{rule}]}}
"""


def server_of(workload: Workload) -> tuple[str, int]:
    """Return the pod that serves *workload*, and its port."""
    return "remote" if "cross-node" in workload else "server", BULK_PORT if "bulk" in workload else HTTP_PORT


@dataclass(slots=True)
class Log:
    """An access log that is counted and emptied now and then, because it grows by 100 MB a minute. Its writer appends (O_APPEND)."""

    path: Path
    lines: int = 0

    def drain(self) -> int:
        """Empty the file; return the number of lines written since the beginning."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                while block := file.read(1 << 20):
                    self.lines += block.count(b"\n")
                file.truncate(0)
        return self.lines


@dataclass(slots=True, eq=False)
class Mode(ABC):
    """One way. ``variant`` tells two of the same name apart."""

    client: Client
    variant: str = ""
    workloads: Sequence[Workload] = ("http",)
    connections: Sequence[int] = (1, 32)
    logs: list[Log] = field(default_factory=list)
    name: ClassVar[str]

    def address(self, workload: Workload) -> str:
        """Return the ``address:port`` that the client asks."""
        pod, port = server_of(workload)
        return f"{self.client.lab.address(pod, self.client.namespace)}:{port}"

    @abstractmethod
    def processes(self) -> list[int]:
        """Return the pids of what the mode adds to the client and the server."""

    def verify(self, answered: Mapping[Workload, int]) -> list[str]:
        """Return what was not done for the requests *answered*, in words: nothing, if the mode did its work."""
        requests = sum(answered.values())
        return [f"{self.name}: {log.path.name} has {log.drain()} lines for {requests} requests" for log in self.logs if log.drain() < requests]


@dataclass(slots=True, eq=False)
class Direct(Mode):
    """No mesh: pod to pod."""

    name = "direct"

    def processes(self) -> list[int]:
        return []


@dataclass(slots=True, eq=False)
class _Hop(Mode):
    """A proxy in the client's pod that the client asks instead of the server."""

    program: ClassVar[str]

    def processes(self) -> list[int]:
        return _in_pod(self.client, "client", self.program)


@dataclass(slots=True, eq=False)
class HaproxyHop(_Hop):
    """HAProxy, one thread, pooled connections, no TLS, no log."""

    name, program = "haproxy", "haproxy"

    def start(self, directory: Path) -> None:
        """Start it, with its configuration in *directory*. Raises BenchError."""
        config = directory / f"{self.client.namespace}-haproxy.cfg"
        config.write_text(_HAPROXY.format(port=HAPROXY_PORT, server=Direct(self.client).address("http")))
        _start(self.client, "client", ["haproxy", "-db", "-f", str(config)], HAPROXY_PORT, directory / f"{config.stem}.log")

    def address(self, workload: Workload) -> str:
        return f"127.0.0.1:{HAPROXY_PORT}"


@dataclass(slots=True, eq=False)
class EnvoyHop(_Hop):
    """Envoy, one worker thread, router only, access log."""

    name, program = "envoy-hop", "envoy"

    def start(self, directory: Path) -> None:
        """Start it, with its configuration in *directory*. Raises BenchError."""
        log = Log(directory / f"{self.client.namespace}-hop-access.log")
        self.logs.append(log)
        _start_envoy(self.client, "client", envoy.hop(Direct(self.client).address("http"), log.path), 1, directory)

    def address(self, workload: Workload) -> str:
        return f"127.0.0.1:{envoy.HOP_PORT}"


@dataclass(slots=True, eq=False)
class EnvoyPair(Mode):
    """Classic sidecars: an Envoy in every pod, traffic brought to it by iptables, mTLS between the two, access log on both sides."""

    concurrency: int = 2
    """Istio's default."""
    name = "envoy"

    def start(self, directory: Path) -> None:
        """Start the Envoys of the three pods and redirect their traffic. Raises BenchError."""
        certificates = directory / "certificates"
        issue(certificates)
        for pod, side, make in (("client", "client", envoy.client_side), ("server", "server", envoy.server_side), ("remote", "server", envoy.server_side)):
            log = Log(directory / f"{self.client.namespace}-{pod}-access.log")
            if pod == "client":  # it sees every request; each server only its own
                self.logs.append(log)
            _start_envoy(self.client, pod, make(certificates, log.path), self.concurrency, directory)
            for rule in envoy.capture_rules(side):
                done = subprocess.run(
                    ["nsenter", f"--net={self.client.lab.netns(pod, self.client.namespace)}", "--", *rule], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise BenchError(f"{' '.join(rule)}: {done.stderr.strip()}")

    def processes(self) -> list[int]:
        return [pid for pod in ("client", "server", "remote") for pid in self.envoys(pod)]

    def envoys(self, pod: str) -> list[int]:
        return _in_pod(self.client, pod, "envoy")

    def verify(self, answered: Mapping[Workload, int]) -> list[str]:
        faults = Mode.verify(self, answered)
        pods = ["server", "remote"] if "cross-node" in self.workloads else ["server"]
        for pod in pods:
            text = _get(self.client.lab.netns(pod, self.client.namespace), envoy.ADMIN_PORT, "/stats?filter=15006.ssl")
            stats = {key.rpartition(".")[2]: int(value) for key, _, value in (line.partition(": ") for line in text.splitlines())}
            if not stats.get("handshake") or stats.get("no_certificate") or not stats.get("TLSv1.3", stats.get("handshake")):
                faults.append(f"{self.name}: no mutual TLS 1.3 at {pod}: {stats}")
        return faults


@dataclass(slots=True, eq=False)
class NodeAgent(Mode):
    """This project: one agent per node. The client asks the Service, whose balancing is part of the agent's work."""

    name = "nodeagent"

    def start(self) -> None:
        """Count its access log; the lab has started the agents."""
        self.logs.append(Log(self.client.lab.agent("node1").access_log))

    def address(self, workload: Workload) -> str:
        pod, port = server_of(workload)
        services = self.client.lab.objects("Service")
        (found,) = (each for each in services if (each["metadata"]["namespace"], each["metadata"]["name"]) == (self.client.namespace, pod))
        return f"{found['spec']['clusterIPs'][0]}:{port}"

    def processes(self) -> list[int]:
        return [pid for node in self.client.lab.nodes for pid in self.client.lab.agent(node).processes()]

    def verify(self, answered: Mapping[Workload, int]) -> list[str]:
        faults = Mode.verify(self, answered)
        lines = _get(self.client.lab.netns("node2"), 15020, "/metrics").splitlines()
        counted = [line for line in lines if line.startswith("istio_requests_total{") and 'connection_security_policy="mutual_tls"' in line]
        encrypted = sum(float(line.rpartition(" ")[2]) for line in counted)
        if encrypted < answered.get("cross-node", 0):
            faults.append(f"{self.name}: of {answered['cross-node']} requests to the other node {encrypted:.0f} came by mutual TLS")
        return faults


@dataclass(slots=True, eq=False)
class KernelPath(NodeAgent):
    """This project, with connections that are authorised once and then run pod to pod: no access log, nothing per request."""

    name = "nodeagent-kernel"

    def start(self) -> None:
        """There is no log to count."""

    def address(self, workload: Workload) -> str:
        host, _, port = NodeAgent.address(self, workload).rpartition(":")
        return f"{host}:{port if workload in ('http-kernel-metrics', 'bulk') else TCP_PORT}"

    def verify(self, answered: Mapping[Workload, int]) -> list[str]:
        lines = _get(self.client.lab.netns("node1"), 15020, "/metrics").splitlines()
        counted = sum(_value(line) for line in lines if line.startswith('istio_requests_total{reporter="destination"') and self._ours(line))
        opened = sum(_value(line) for line in lines if line.startswith('istio_tcp_connections_opened_total{reporter="destination"') and self._ours(line))
        taken = sum(_value(line) for line in lines if line.startswith('nodeagent_connections_total{direction="outbound"') and 'path="kernel"' not in line)
        faults = []
        if counted < answered.get("http-kernel-metrics", 0):
            faults.append(f"{self.name}: of {answered['http-kernel-metrics']} requests {counted:.0f} were counted in the kernel")
        if not opened and any(workload != "http-kernel-metrics" for workload in answered):
            faults.append(f"{self.name}: no connection was counted in the kernel")
        if taken:
            faults.append(f"{self.name}: {taken:.0f} connections went through the proxy")
        return faults

    def _ours(self, line: str) -> bool:
        return f'destination_workload_namespace="{self.client.namespace}"' in line


@dataclass(slots=True, eq=False)
class Bypass(KernelPath):
    """The kernel path with the two sockets joined."""

    name = "nodeagent-bypass"


def _value(line: str) -> float:
    return float(line.rpartition(" ")[2])


def _in_pod(client: Client, pod: str, program: str) -> list[int]:
    group = Path(client.lab.pod(pod, client.namespace)["metadata"]["annotations"][CGROUP])
    return measure.of_program(group, lambda name: name == program)


def _start_envoy(client: Client, pod: str, config: envoy.Json, concurrency: int, directory: Path) -> None:
    path = directory / f"{client.namespace}-{pod}.json"
    path.write_text(json.dumps(config))
    argv = ["setpriv", "--regid", str(envoy.GROUP), "--clear-groups", "--", str(envoy.binary())]
    argv += ["-c", str(path), "--concurrency", str(concurrency), "--disable-hot-restart", "--log-level", "warning"]
    _start(client, pod, argv, envoy.ADMIN_PORT, path.with_suffix(".log"))


def _start(client: Client, pod: str, argv: list[str], port: int, log: Path) -> None:
    """Start *argv* in the pod and wait until something listens on *port*. It dies with the pod."""
    with log.open("ab") as output:
        process = client.lab.popen(pod, argv, client.namespace, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + _START_SECONDS
    while not _listening(client.lab.netns(pod, client.namespace), port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{argv[0]} in {client.namespace}/{pod} does not come up: {log.read_text(errors='replace').strip()[-500:]}")
        time.sleep(0.05)


def _listening(netns: Path, port: int) -> bool:
    done = subprocess.run(["nsenter", f"--net={netns}", "--", "ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return bool(done.stdout.strip())


def _get(netns: Path, port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        with linux.network_namespace(netns):
            connection.connect()
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def issue(directory: Path) -> None:
    """Make certificates for the Envoys: the agent's own kind, from a CA of their own."""
    directory.mkdir(exist_ok=True)
    authority = CertificateAuthority.open_or_create(directory, "cluster.local")
    for side in ("client", "server"):
        issued = authority.issue(SpiffeId(f"spiffe://cluster.local/ns/bench/sa/{side}"), 86400)
        (directory / f"{side}.crt").write_bytes(issued.chain_pem)
        (directory / f"{side}.key").write_bytes(issued.key_pem)
        (directory / "ca.crt").write_bytes(issued.roots_pem)


def namespaces(names: Sequence[str], *, annotations: str = "", pod_annotations: str = "") -> str:
    """Return the manifest of the workload, once for each namespace; annotations as in a YAML flow mapping."""
    text = (Path(__file__).parent / "workload.yaml").read_text()
    text = text.replace("NAMESPACE-ANNOTATIONS", annotations).replace("POD-ANNOTATIONS", pod_annotations)
    return "\n---\n".join(text.replace("NAMESPACE", name) for name in names)


def policies(namespace: str, count: int) -> str:
    """Return AuthorizationPolicies: one that lets the client in by method, path and principal, the others for workloads that are not there."""
    principal = f"cluster.local/ns/{namespace}/sa/client"
    rule = f"{{from: [{{source: {{principals: [{principal}]}}}}], to: [{{operation: {{methods: [GET], paths: [/]}}}}]}}"
    names = ["server", *(f"other-{number}" for number in range(1, count))]
    return "".join(_POLICY.format(name=name, namespace=namespace, rule=rule) for name in names)
