"""The ways with a mesh: a sidecar in each pod, or an agent on each node; and how it is known that
they did their work.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client.parser import text_string_to_metric_families

from nodeagent import istio
from nodeagent.compare.load import BULK_PORT, TCP_PORT, CompareError, Workload
from nodeagent.compare.manifests import BYPASSED
from nodeagent.compare.modes import LOGGED, Answered, CallPath, Log, Mode, pod_group
from nodeagent.config import MapSizes
from nodeagent.inject.model import PROXY
from nodeagent.lab import cri_log, http
from nodeagent.places.annotation import CGROUP
from nodeagent.redirect import bypass, maps
from nodeagent.telemetry.metrics import CONNECTIONS, REQUESTS, TCP_OPENED, Metric

_ON_THEIR_WORD: Final = (
    "every application: joined on their author's word (redirect.bypass: asked), for on kernels of today "
    "many can tell (`nodeagent check`)"
)
_BETWEEN_NODES: Final[tuple[Workload, ...]] = ("cross-node", "cross-node-churn", "h2-cross-node")
"""Workloads of requests to the other node."""


@dataclass(slots=True, eq=False)
class Sidecars(Mode):
    """Classic sidecars as the injector makes them: a proxy in every pod, captured by iptables, mTLS between any two."""

    def start(self) -> None:
        """Count the log of each client's sidecar: it sees every request, where each server's sees only its own."""
        clients = {
            (target.namespace, target.client) for workload, target in self.targets.items() if workload in self.workloads
        }
        folders = [self.lab.log_folder(pod, namespace, PROXY) for namespace, pod in sorted(clients)]
        self.logs += [Log(folder / cri_log.PLAIN) for folder in folders]

    def groups(self, workload: Workload | None = None) -> list[Path]:
        if workload is not None and self.targets[workload].service:
            target = self.targets[workload]
            return [pod_group(self.lab, target.namespace, pod) / PROXY for pod in target.pods]
        return [
            found
            for pod in self.lab.pods.values()
            if (found := Path(pod["metadata"]["annotations"][CGROUP]) / PROXY).exists()
        ]


@dataclass(slots=True, eq=False)
class EnvoySidecars(Sidecars):
    """Classic sidecars with real Envoy, as the injector's template makes them."""

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
        checked, failed = Mode.verify(self, answered)
        targets = [self.targets[workload] for workload, count in answered.items() if count]
        servers = {(target.namespace, target.service) for target in targets if target.service}
        for namespace, pod in sorted(servers):
            text = _get(self.lab.netns(pod, namespace), istio.ADMIN_PORT, "/stats?filter=ssl")
            counted = {
                key: int(value)
                for key, _, value in (line.partition(": ") for line in text.splitlines())
                if value.isdigit()
            }
            handshakes = sum(
                value
                for key, value in counted.items()
                if re.search(rf"listener\..*{istio.INBOUND_PORT}.*ssl\.handshake$", key)
            )
            without = sum(
                value
                for key, value in counted.items()
                if re.search(rf"listener\..*{istio.INBOUND_PORT}.*ssl\.no_certificate$", key)
            )
            checked.append(
                f"mutual TLS at {namespace}/{pod}: {handshakes:,} handshakes, {without} without a certificate"
            )
            if not handshakes or without:
                failed.append(f"no mutual TLS at {namespace}/{pod}")
        return checked, failed


@dataclass(slots=True, eq=False)
class OwnSidecars(Sidecars):
    """Classic sidecars with this project's proxy, one process a pod."""

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
        checked, failed = Mode.verify(self, answered)
        servers: Counter[tuple[str, str]] = Counter()
        for workload, count in answered.items():
            if workload in LOGGED - {"chain5", "manifest"}:
                servers[self.targets[workload].namespace, self.targets[workload].service] += count
        for (namespace, pod), count in servers.items():
            counted = _requests_by_tls(_get(self.lab.netns(pod, namespace), istio.STATUS_PORT, "/metrics"))
            checked.append(f"{counted:,.0f} requests counted at {namespace}/{pod} as mutual TLS")
            if counted < count:
                failed.append(f"of {count:,} requests to {namespace}/{pod} {counted:,.0f} came by mutual TLS")
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
        """Count its access log; the lab has started the agents. Where a user's pods are, is for the user to say."""
        nodes = self.lab.nodes if "manifest" in self.workloads else self.lab.nodes[:1]
        self.logs += [Log(self.lab.agent(node).access_log) for node in nodes]

    def address(self, workload: Workload) -> str:
        return self._service_address(workload)

    def groups(self, workload: Workload | None = None) -> list[Path]:
        both = workload is None or "cross-node" in workload
        return [self.lab.agent(node).cgroup for node in (self.lab.nodes if both else self.lab.nodes[:1])]

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = Mode.verify(self, answered)
        between = sum(answered.get(workload, 0) for workload in _BETWEEN_NODES)
        if between:
            counted = _requests_by_tls(_get(self.lab.netns("node2"), istio.ADMIN_PORT, "/metrics"))
            checked.append(f"{counted:,.0f} requests counted on the other node as mutual TLS")
            if counted < between:
                failed.append(f"of {between:,} requests to the other node {counted:,.0f} came by mutual TLS")
        return checked, failed


@dataclass(slots=True, eq=False)
class Joined(NodeAgent):
    """An agent whose proxy has its sockets joined with the applications', for pods that ask for the bypass."""

    name = "nodeagent-bypass"
    whole = False
    does: ClassVar[Sequence[str]] = ("what nodeagent does, with the sockets of application and proxy joined past TCP",)
    does_not = (*NodeAgent.does_not, _ON_THEIR_WORD)

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        checked, failed = NodeAgent.verify(self, answered)
        kept = _past_tcp(self.lab.agent("node1").pins / "maps")
        checked.append(f"{kept} sockets that are kept for the next request have sent past TCP")
        return checked, failed if kept else [*failed, "no socket was joined"]


@dataclass(slots=True, eq=False)
class KernelPathMode(NodeAgent):
    """This project, with connections that are authorised once and then run pod to pod: no access
    log, no header about the client, nothing per request.
    """

    name = "nodeagent-kernel"
    does: ClassVar[Sequence[str]] = (
        "capture, L4 authorisation and Services' balancing by eBPF in connect() and sk_lookup",
        "no proxy on the way within a node",
        "Istio's TCP metrics, and for HTTP ports its HTTP metrics, counted in the kernel",
    )
    does_not: ClassVar[Sequence[str]] = (
        "access log, X-Forwarded-Client-Cert (to do without both makes the agent choose this path)",
        "L7 policy: such a port goes through the proxy",
        "TLS within one node",
    )

    counts_http: ClassVar[bool] = True

    def start(self) -> None:
        """There is no log to count."""

    def verify(self, answered: Answered) -> tuple[list[str], list[str]]:
        metrics = _get(self.lab.netns("node1"), istio.ADMIN_PORT, "/metrics")
        ours = {"reporter": "destination"}
        if "manifest" not in self.workloads:  # whose client may call another namespace
            ours["destination_workload_namespace"] = self.targets[self.workloads[0]].namespace
        counted = _total(metrics, REQUESTS, ours)
        opened = _total(metrics, TCP_OPENED, ours)
        outbound = {"direction": "outbound"}
        taken = _total(metrics, CONNECTIONS, outbound) - _total(metrics, CONNECTIONS, outbound | {"path": "kernel"})
        checked = [
            (
                f"{counted:,.0f} requests and {opened:,.0f} connections counted in the kernel, {taken:,.0f} "
                "connections through the proxy"
            )
        ]
        failed = []
        if self.counts_http and counted < answered.get("http", 0) + answered.get("tcp-churn", 0):
            failed.append(
                f"of {answered.get('http', 0) + answered.get('tcp-churn', 0):,} requests {counted:,.0f} were "
                "counted in the kernel"
            )
        if not opened and any(answered.values()):
            failed.append("no connection was counted in the kernel")
        if taken:
            failed.append(f"{taken:.0f} connections went through the proxy")
        return checked, failed


@dataclass(slots=True, eq=False)
class Bypass(KernelPathMode):
    """The kernel path with the two applications' sockets joined, for pods that ask for the bypass."""

    name = "nodeagent-bypass"
    whole = False
    does: ClassVar[Sequence[str]] = ("what nodeagent-kernel does, with the two applications' sockets joined past TCP",)
    does_not = (*KernelPathMode.does_not, "HTTP metrics: no packets pass", _ON_THEIR_WORD)
    counts_http = False


BYPASS_TARGETS: Final[Mapping[Workload, CallPath]] = {
    "http": CallPath(BYPASSED, "server", TCP_PORT),
    "bulk": CallPath(BYPASSED, "server", BULK_PORT),
}
"""The sockets of this port are joined; its requests are not counted, so it is declared TCP."""


def _past_tcp(pinned: Path) -> int:
    """Return how many open sockets of a node have sent past TCP."""
    opened = maps.open_all(pinned, MapSizes.model_validate({}))
    try:
        return sum(1 for stream in bypass.streams(opened).values() if stream.sent_bytes)
    finally:
        for one in opened.values():
            os.close(one.fd)


def _requests_by_tls(metrics: str) -> float:
    return _total(metrics, REQUESTS, {"reporter": "destination", "connection_security_policy": "mutual_tls"})


def _total(metrics: str, family: Metric, labels: Mapping[str, str]) -> float:
    """Return the sum of the series of *family*, a counter, in the exposition *metrics* that have *labels*."""
    families = text_string_to_metric_families(metrics)
    samples = itertools.chain.from_iterable(each.samples for each in families)
    return sum(each.value for each in samples if each.name == family.name and labels.items() <= each.labels.items())


def _get(netns: Path, port: int, path: str) -> str:
    try:
        return http.get(netns, port, path)[1]
    except OSError as error:
        raise CompareError(f"{netns.name}: port {port} does not answer {path}: {error}") from None
