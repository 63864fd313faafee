"""Istio's rules for what objects mean: a port's protocol, a pod's workload, app and version. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from nodeagent.mesh.entries import DeclaredProbe, Protocol
from nodeagent.resources.objects import PodObject, ServiceObject, ServiceObjectPort
from nodeagent.resources.part import port_problem

DEFAULT_ACCOUNT: Final = "default"
"""Of pods that name none: mirrors of static pods. The mesh names them so; `nodeagent ca` gives no
node this identity for them.
"""
SCRAPE: Final = "prometheus.io/scrape"
SCRAPE_PORT: Final = "prometheus.io/port"
SCRAPE_PATH: Final = "prometheus.io/path"
SCRAPE_SCHEME: Final = "prometheus.io/scheme"
_PATH: Final = re.compile(r"/[!-~]{0,1023}")
_GRPC_WEB: Final = "grpc-web"
_ISTIO: Final[Mapping[str, Protocol]] = {
    "http": "http",
    "http_proxy": "http",
    "http2": "http2",
    "h2c": "http2",
    "hbone": "http2",
    "grpc": "grpc",
    **dict.fromkeys(("https", "h2", "tls", "tcp", "mongo", "redis", "mysql"), "tcp"),
}
"""Protocols that Istio knows (pkg/config/protocol), and the names of IANA that say the same: h2c is
HTTP/2 in plaintext, h2 the application's own TLS (RFC 9113 section 3.1).
"""
_KUBERNETES: Final[Mapping[str, Protocol]] = {
    "kubernetes.io/h2c": "http2",
    "kubernetes.io/ws": "http",
    "kubernetes.io/wss": "tcp",
}
_SERVER_FIRST: Final = frozenset((25, 53, 3306, 27017))
"""Istio's well-known ports: unnamed ones are TCP at once, as their servers may speak first."""
_CRON_JOB: Final = re.compile(r"(.+)-\d{8,10}")


def service_account(pod: PodObject) -> str:
    """Return the name of the service account as which *pod* runs."""
    return pod.service_account or DEFAULT_ACCOUNT


def port_protocol(port: ServiceObjectPort) -> Protocol:
    """Return what *port* is declared to be: by appProtocol, else by its name up to the first ``-``
    (Istio's protocol selection).
    """
    declared = (port.app_protocol or port.name).lower()
    known = _KUBERNETES.get(declared)
    if known is not None:
        return known
    if declared.startswith(_GRPC_WEB):
        return "grpc-web"
    return _ISTIO.get(declared.partition("-")[0], "tcp" if port.port in _SERVER_FIRST else "auto")


def target_port(port: ServiceObjectPort, pod: PodObject) -> int | None:
    """Return the workload port of *pod* that *port* leads to, None when the pod declares no port of that name."""
    return port.target if isinstance(port.target, int) else named_port(pod, port.target)


def named_port(pod: PodObject, name: str) -> int | None:
    """Return the number of *pod*'s container port *name*."""
    for container in pod.containers:
        for port in container.ports:
            if port.name == name:
                return port.number
    return None


def workload_name(pod: PodObject) -> str:
    """Return the name of what made *pod*, as Istio's metrics call it: the Deployment behind a
    ReplicaSet, the CronJob behind a Job.
    """
    owner = next((owner for owner in pod.owners if owner.controller), pod.owners[0] if len(pod.owners) == 1 else None)
    if owner is None:
        return pod.name
    if owner.kind == "ReplicaSet":
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            suffix = "-" + pod.labels.get(label, "")
            if len(suffix) > 1 and owner.name.endswith(suffix) and len(owner.name) > len(suffix):
                return owner.name.removesuffix(suffix)
    if owner.kind == "ReplicationController":
        return pod.labels.get("deploymentconfig") or owner.name
    if owner.kind == "Job" and (match := _CRON_JOB.fullmatch(owner.name)):
        return match[1]
    return owner.name


def canonical_service(labels: Mapping[str, str], workload: str) -> str:
    """Return Istio's canonical service of a workload with *labels*."""
    return _first(labels, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app") or workload


def canonical_revision(labels: Mapping[str, str]) -> str:
    """Return Istio's canonical revision of a workload with *labels*."""
    return _first(labels, "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version") or "latest"


def probes(pod: PodObject) -> tuple[DeclaredProbe, ...]:
    """Return the probes by which the node reaches *pod* over the network, each once, ports by number."""
    found: dict[DeclaredProbe, None] = {}
    for container in pod.containers:
        for action in container.probes:
            if action.host and action.host not in pod.addresses:
                continue  # aimed at something else than the pod
            named = next((port.number for port in container.ports if port.name == action.port), None)
            number = action.port if isinstance(action.port, int) else named
            if number is not None:
                found[DeclaredProbe(action.kind, number, action.path)] = None
    return tuple(found)


def scrapes(pod: PodObject, faults: list[str]) -> tuple[DeclaredProbe, ...]:
    """Return where *pod* says that its metrics are, by the annotations that Prometheus is commonly
    configured to read; what is wrong goes to *faults* and declares nothing.

    Without a port it is every port that its containers declare, as Prometheus asks there.
    """
    said = pod.annotations.get(SCRAPE, "false")
    if said not in ("true", "false"):
        faults.append(f"metadata.annotations[{SCRAPE}]: {said!r:.80}: true, false are allowed; it has no effect")
    if said != "true" or pod.annotations.get(SCRAPE_SCHEME, "http") != "http":
        return ()  # an application's own TLS hides what is asked
    path = pod.annotations.get(SCRAPE_PATH, "/metrics")
    if not _PATH.fullmatch(path):
        faults.append(f"metadata.annotations[{SCRAPE_PATH}]: {path!r:.80}: a path is expected; it has no effect")
        return ()
    text = pod.annotations.get(SCRAPE_PORT)
    if text is None:
        return tuple(DeclaredProbe("scrape", number, path) for number in _declared_ports(pod))
    if port_problem(text):
        faults.append(f"metadata.annotations[{SCRAPE_PORT}]: {text!r:.80}: {port_problem(text)}; it has no effect")
        return ()
    return (DeclaredProbe("scrape", int(text), path),)


def _declared_ports(pod: PodObject) -> list[int]:
    numbers: dict[int, None] = {}
    for container in pod.containers:
        numbers |= {port.number: None for port in container.ports}
    return list(numbers)


def _first(labels: Mapping[str, str], *names: str) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def served(
    pod: PodObject, services: Iterable[ServiceObject]
) -> tuple[tuple[tuple[int, Protocol], ...], tuple[tuple[int, str], ...]]:
    """Return protocol and ``namespace/name`` of the Service, each by workload port, of *pod*, which
    *services* select; the oldest Service that targets a port decides, as in Istio.

    Where two ports of that Service lead there, the one that says what it is decides.
    """
    protocols: dict[int, Protocol] = {}
    names: dict[int, str] = {}
    for service in sorted(services, key=lambda service: (service.created, service.name)):
        name = f"{service.namespace}/{service.name}"
        for port in service.ports:
            number = target_port(port, pod) if port.transport == "TCP" else None
            if number is None or names.setdefault(number, name) != name:
                continue
            if protocols.get(number, "auto") == "auto":
                protocols[number] = port_protocol(port)
    return tuple(sorted(protocols.items())), tuple(sorted(names.items()))
