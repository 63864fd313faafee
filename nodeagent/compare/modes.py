"""The ways from client to server that are compared. All run the same manifests in labs: the same pods, links, client and server programs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from nodeagent import istio
from nodeagent.compare import envoy, measure
from nodeagent.compare.load import BULK_PORT, HTTP_PORT, TCP_PORT, Client, CompareError, Workload
from nodeagent.compare.manifests import BYPASSED, CHAIN, GUARDED, PLAIN
from nodeagent.inject.model import PROXY
from nodeagent.lab import Lab, cgroup, http
from nodeagent.lab.layout import CGROUP

HAPROXY_PORT: Final = 10081
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


@dataclass(frozen=True, slots=True)
class Target:
    """Who asks whom: ``service`` is also the name of the pod behind it."""

    namespace: str
    service: str
    port: int
    client: str = "client"
    path: str = "/"
    through: tuple[str, ...] = ()
    """Pods that the request goes through on its way, beyond the first."""
    url: str = ""
    """What is asked, where ``service`` and ``port`` do not say it."""

    @property
    def pods(self) -> tuple[str, ...]:
        """The pods that take part, as far as they are known."""
        return (self.client, *((self.service, *self.through) if self.service else ()))


TARGETS: Final[Mapping[Workload, Target]] = {
    "http": Target(PLAIN, "server", HTTP_PORT),
    "http-authz": Target(GUARDED, "server", HTTP_PORT),
    "tcp": Target(PLAIN, "server", TCP_PORT),
    "tcp-churn": Target(PLAIN, "server", HTTP_PORT),
    "chain5": Target(PLAIN, CHAIN[0], HTTP_PORT, through=CHAIN[1:]),
    "cross-node": Target(PLAIN, "remote", HTTP_PORT),
    "bulk": Target(PLAIN, "server", BULK_PORT),
    "bulk-cross-node": Target(PLAIN, "remote", BULK_PORT),
}
LOGGED: Final[frozenset[Workload]] = frozenset({"http", "http-authz", "tcp-churn", "chain5", "cross-node", "manifest"})
"""Workloads with a line in the access log for each request; of what is carried as TCP there is one for each connection."""
_LOG_SECONDS: Final = 12.0
"""Envoy writes its log out every 10 s."""
Answered = Mapping[Workload, int]
"""Requests by workload, those of the warm-up with them."""


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

    lab: Lab
    variant: str = ""
    workloads: Sequence[Workload] = ("http",)
    connections: Sequence[int] = (1, 32)
    targets: Mapping[Workload, Target] = field(default_factory=lambda: TARGETS)
    logs: list[Log] = field(default_factory=list)
    name: ClassVar[str]
    does: ClassVar[Sequence[str]]
    does_not: ClassVar[Sequence[str]] = ()

    def describe(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def client(self, workload: Workload) -> Client:
        target = self.targets[workload]
        return Client(self.lab, target.namespace, target.client)

    def address(self, workload: Workload) -> str:
        """Return the ``address:port`` that the client asks: the pod's own, so that nothing is paid for Services that the mode does not do itself."""
        target = self.targets[workload]
        return f"{self.lab.address(target.service, target.namespace)}:{target.port}"

    def url(self, workload: Workload) -> str:
        target = self.targets[workload]
        return target.url or f"http://{self.address(workload)}{target.path}"

    @abstractmethod
    def groups(self, workload: Workload | None = None) -> list[Path]:
        """Return the cgroups of what the mode adds, for *workload* or at all."""

    def cpu_seconds(self) -> float:
        """Return the CPU time that what the mode adds has used."""
        return sum(map(measure.group_cpu_seconds, self.groups()))

    def memory(self, workload: Workload | None = None) -> int:
        """Return the PSS of what the mode adds, in bytes."""
        return measure.memory(pid for group in self.groups(workload) for pid in cgroup.processes(group))

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        """Return what was checked, and what of it was not done, in words, for the requests *answered*."""
        if not self.logs:
            return [], []
        requests = sum(count for workload, count in answered.items() if workload in LOGGED)
        deadline = time.monotonic() + _LOG_SECONDS
        while (lines := sum(log.drain() for log in self.logs)) < requests and time.monotonic() < deadline:
            time.sleep(0.2)
        failed = [f"the access log has {lines:,} lines for {requests:,} requests"] if lines < requests else []
        return [f"a line in the access log for each of {requests:,} HTTP requests"], failed

    def _service_address(self, workload: Workload) -> str:
        target = self.targets[workload]
        services = {(each["metadata"]["namespace"], each["metadata"]["name"]): each["spec"] for each in self.lab.objects("Service")}
        return f"{services[target.namespace, target.service]['clusterIPs'][0]}:{target.port}"


@dataclass(slots=True, eq=False)
class Direct(Mode):
    """No mesh: pod to pod."""

    name = "direct"
    does = ("nothing: pod to pod",)
    does_not = ("mTLS, policy, metrics, access log",)

    def groups(self, workload: Workload | None = None) -> list[Path]:
        return []


@dataclass(slots=True, eq=False)
class _Hop(Mode):
    """One proxy in the client's pod that the client asks instead of the server."""

    program: ClassVar[str]
    port: ClassVar[int]

    @property
    def _server(self) -> str:
        return Mode.address(self, "http")

    def address(self, workload: Workload) -> str:
        return f"127.0.0.1:{self.port}"

    def groups(self, workload: Workload | None = None) -> list[Path]:
        return []

    def _processes(self) -> list[int]:
        return measure.of_program(_pod_group(self.lab, PLAIN, "client"), lambda name: name == self.program)

    def cpu_seconds(self) -> float:
        return measure.cpu_seconds(self._processes())

    def memory(self, workload: Workload | None = None) -> int:
        return measure.memory(self._processes())


@dataclass(slots=True, eq=False)
class HaproxyHop(_Hop):
    """HAProxy, one thread, pooled connections."""

    name, program, port = "haproxy", "haproxy", HAPROXY_PORT
    does = ("one plain proxy hop in the client's pod, one thread",)
    does_not = ("capture, mTLS, policy, metrics, access log, the server's side",)

    def start(self, directory: Path) -> None:
        """Start it, with its configuration in *directory*. Raises CompareError."""
        config = directory / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=self.port, server=self._server))
        _start(self.lab, ["haproxy", "-db", "-f", str(config)], self.port, directory / "haproxy.log")


@dataclass(slots=True, eq=False)
class EnvoyHop(_Hop):
    """Envoy, one worker thread, router only, access log."""

    name, program, port = "envoy-hop", "envoy", envoy.HOP_PORT
    does = ("one plain proxy hop in the client's pod, one thread", "access log")
    does_not = ("capture, mTLS, policy, the server's side",)

    def start(self, directory: Path) -> None:
        """Start it, with its configuration in *directory*. Raises CompareError."""
        log = Log(directory / "envoy-hop-access.log")
        self.logs.append(log)
        path = directory / "envoy-hop.json"
        path.write_text(json.dumps(envoy.hop(self._server, log.path)))
        argv = [str(envoy.binary()), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        _start(self.lab, argv, self.port, directory / "envoy-hop.log")


@dataclass(slots=True, eq=False)
class Sidecars(Mode):
    """Classic sidecars as the injector makes them: a proxy in every pod, captured by iptables, mTLS between any two."""

    def start(self) -> None:
        """Count the log of each client's sidecar: it sees every request, where each server's sees only its own."""
        clients = {(target.namespace, target.client) for workload, target in self.targets.items() if workload in self.workloads}
        self.logs += [Log(self.lab.layout.logs(*client) / f"{PROXY}.log") for client in sorted(clients)]

    def groups(self, workload: Workload | None = None) -> list[Path]:
        if workload is not None and self.targets[workload].service:
            target = self.targets[workload]
            return [_pod_group(self.lab, target.namespace, pod) / PROXY for pod in target.pods]
        return [found for pod in self.lab.pods.values() if (found := Path(pod["metadata"]["annotations"][CGROUP]) / PROXY).exists()]

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = Mode.verify(self, answered)
        if "http-authz" in answered:
            checked.append("a request that the policy forbids is refused")
            failed += _policy_fault(self)
        return checked, failed


@dataclass(slots=True, eq=False)
class EnvoySidecars(Sidecars):
    """Real Envoy."""

    name = "envoy"
    does = (
        "capture by iptables in each pod",
        "two real Envoys on the way of each request, 2 threads each (Istio's default)",
        "mTLS (TLS 1.3) between any two pods, also of one node",
        "AuthorizationPolicy as Envoy's RBAC",
        "Istio's access log on both sides",
    )
    does_not = (
        "Istio's own filters (stats, metadata exchange), which would only make it slower",
        "xDS: its configuration is static; endpoints are the kernel's",
    )

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = Sidecars.verify(self, answered)
        targets = [self.targets[workload] for workload, count in answered.items() if count]
        servers = {(target.namespace, target.service) for target in targets if target.service}
        for namespace, pod in sorted(servers):
            text = _get(self.lab.netns(pod, namespace), istio.ADMIN_PORT, "/stats?filter=ssl")
            counted = {key: int(value) for key, _, value in (line.partition(": ") for line in text.splitlines()) if value.isdigit()}
            handshakes = sum(value for key, value in counted.items() if re.search(rf"listener\..*{istio.INBOUND_PORT}.*ssl\.handshake$", key))
            without = sum(value for key, value in counted.items() if re.search(rf"listener\..*{istio.INBOUND_PORT}.*ssl\.no_certificate$", key))
            checked.append(f"mutual TLS at {namespace}/{pod}: {handshakes:,} handshakes, {without} without a certificate")
            if not handshakes or without:
                failed.append(f"no mutual TLS at {namespace}/{pod}")
        return checked, failed


@dataclass(slots=True, eq=False)
class OwnSidecars(Sidecars):
    """This project's proxy, one process a pod."""

    name = "sidecar"
    does = (
        "capture by iptables in each pod",
        "this project's proxy twice on the way of each request, one process a pod",
        "mTLS (TLS 1.3) between any two pods, also of one node",
        "Istio's policy, metrics and access log on both sides, Services and balancing",
    )

    def address(self, workload: Workload) -> str:
        return self._service_address(workload)

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = Sidecars.verify(self, answered)
        for workload, count in answered.items():
            if workload not in ("http", "http-authz", "cross-node", "tcp-churn"):
                continue
            target = self.targets[workload]
            counted = _requests_by_tls(_get(self.lab.netns(target.service, target.namespace), istio.STATUS_PORT, "/metrics"))
            checked.append(f"{workload}: {counted:,.0f} requests counted at the server's side as mutual TLS")
            if counted < count:
                failed.append(f"{workload}: of {count:,} requests {counted:,.0f} came by mutual TLS")
        return checked, failed


@dataclass(slots=True, eq=False)
class NodeAgent(Mode):
    """This project: one agent per node. The client asks the Service, whose balancing is part of the agent's work."""

    name = "nodeagent"
    does: ClassVar[Sequence[str]] = (
        "capture by eBPF, nothing in the pods",
        "one proxy process a node, once on the way of a request within a node",
        "mTLS (TLS 1.3) between nodes; within a node the kernel says who is who",
        "Istio's policy, metrics and access log, Services and balancing",
    )
    does_not: ClassVar[Sequence[str]] = ("TLS within one node: the bytes do not leave the kernel",)

    def start(self) -> None:
        """Count its access log; the lab has started the agents."""
        self.logs.append(Log(self.lab.agent("node1").access_log))

    def address(self, workload: Workload) -> str:
        return self._service_address(workload)

    def groups(self, workload: Workload | None = None) -> list[Path]:
        both = workload is None or "cross-node" in workload
        return [self.lab.agent(node).cgroup for node in (self.lab.nodes if both else self.lab.nodes[:1])]

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = Mode.verify(self, answered)
        if answered.get("cross-node"):
            counted = _requests_by_tls(_get(self.lab.netns("node2"), istio.STATUS_PORT, "/metrics"))
            checked.append(f"{counted:,.0f} requests counted on the other node as mutual TLS")
            if counted < answered["cross-node"]:
                failed.append(f"of {answered['cross-node']:,} requests to the other node {counted:,.0f} came by mutual TLS")
        if "http-authz" in answered:
            checked.append("a request that the policy forbids is refused")
            failed += _policy_fault(self)
        return checked, failed


@dataclass(slots=True, eq=False)
class KernelPath(NodeAgent):
    """This project, with connections that are authorised once and then run pod to pod: no access log, nothing per request."""

    name = "nodeagent-kernel"
    does: ClassVar[Sequence[str]] = (
        "capture, L4 authorisation and Services' balancing by eBPF in connect() and sk_lookup",
        "no proxy on the way within a node",
        "Istio's TCP metrics, and for HTTP ports its HTTP metrics, counted in the kernel",
    )
    does_not: ClassVar[Sequence[str]] = (
        "access log (to have none makes the agent choose this path)",
        "L7 policy: such a port goes through the proxy",
        "TLS within one node",
    )

    def start(self) -> None:
        """There is no log to count."""

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        lines = _get(self.lab.netns("node1"), istio.STATUS_PORT, "/metrics").splitlines()
        ours = f'destination_workload_namespace="{self.targets[self.workloads[0]].namespace}"'
        counted = sum(_value(line) for line in lines if line.startswith('istio_requests_total{reporter="destination"') and ours in line)
        opened = sum(_value(line) for line in lines if line.startswith('istio_tcp_connections_opened_total{reporter="destination"') and ours in line)
        taken = sum(_value(line) for line in lines if line.startswith('nodeagent_connections_total{direction="outbound"') and 'path="kernel"' not in line)
        checked = [f"{counted:,.0f} requests and {opened:,.0f} connections counted in the kernel, {taken:,.0f} connections through the proxy"]
        failed = []
        if self.counts_http and counted < answered.get("http", 0) + answered.get("tcp-churn", 0):
            failed.append(f"of {answered.get('http', 0) + answered.get('tcp-churn', 0):,} requests {counted:,.0f} were counted in the kernel")
        if not opened and any(answered.values()):
            failed.append("no connection was counted in the kernel")
        if taken:
            failed.append(f"{taken:.0f} connections went through the proxy")
        return checked, failed

    counts_http: ClassVar[bool] = True


@dataclass(slots=True, eq=False)
class Bypass(KernelPath):
    """The kernel path with the two sockets joined."""

    name = "nodeagent-bypass"
    does: ClassVar[Sequence[str]] = ("what nodeagent-kernel does, with the two applications' sockets joined past TCP",)
    does_not = (*KernelPath.does_not, "HTTP metrics: no packets pass", "every application: one that uses a blocking socket from two threads may see EAGAIN")
    counts_http = False


BYPASS_TARGETS: Final[Mapping[Workload, Target]] = {"http": Target(BYPASSED, "server", TCP_PORT), "bulk": Target(BYPASSED, "server", BULK_PORT)}
"""The sockets of this port are joined; its requests are not counted, so it is declared TCP."""


def _policy_fault(mode: Mode) -> list[str]:
    """Return what is wrong if the guarded server takes a request that its policy does not allow."""
    client = mode.client("http-authz")
    argv = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", "-X", "DELETE", mode.url("http-authz")]
    told = mode.lab.exec(client.pod, argv, client.namespace).stdout
    return [] if told == "403" else [f"the policy is not enforced: DELETE was answered {told or 'not at all'}"]


def _requests_by_tls(metrics: str) -> float:
    lines = (line for line in metrics.splitlines() if line.startswith("istio_requests_total{"))
    return sum(_value(line) for line in lines if 'reporter="destination"' in line and 'connection_security_policy="mutual_tls"' in line)


def _value(line: str) -> float:
    return float(line.rpartition(" ")[2])


def _pod_group(lab: Lab, namespace: str, pod: str) -> Path:
    return Path(lab.pod(pod, namespace)["metadata"]["annotations"][CGROUP])


def _start(lab: Lab, argv: list[str], port: int, log: Path) -> None:
    """Start *argv* in the client's pod and wait until something listens on *port*. It dies with the pod."""
    with log.open("ab") as output:
        process = lab.popen("client", argv, PLAIN, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + _START_SECONDS
    while not _listening(lab.netns("client", PLAIN), port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CompareError(f"{argv[0]} in {PLAIN}/client does not come up: {log.read_text(errors='replace').strip()[-500:]}")
        time.sleep(0.05)


def _listening(netns: Path, port: int) -> bool:
    done = subprocess.run(["nsenter", f"--net={netns}", "--", "ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return bool(done.stdout.strip())


def _get(netns: Path, port: int, path: str) -> str:
    try:
        return http.get(netns, port, path)[1]
    except OSError as error:
        raise CompareError(f"{netns.name}: port {port} does not answer {path}: {error}") from None
