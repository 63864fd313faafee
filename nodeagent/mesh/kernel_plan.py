"""Which connections the kernel decides alone, and how. Pure: entries of the snapshot in, the wanted
contents of the BPF maps out.

A port is on the kernel path when both ends are pods of this node that are captured and nothing is
decided or noted per request. Everything else takes the proxy, and ``why`` says what keeps it there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal

from nodeagent.errors import ResourceError
from nodeagent.mesh.entries import HTTP2, Entry, Protocol, Service, Workload, by_age, policies_of
from nodeagent.policy.authorization import Authorizer, ConnectionFacts, Decision
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, PathSetting, RateLimit, RequestAuthentication
from nodeagent.vocabulary import Address, PodUid

Where = tuple[str, int]
"""An address in canonical text and a port."""
_SCHEME: Final = "spiffe://"
_READABLE: Final = (
    "the application may read X-Forwarded-Client-Cert, which only the proxy makes and protects "
    "(if it does not: nodeagent.io/path: kernel, or proxy.clientCertHeader: ignored)"
)
_UNTOUCHED: Final = "; X-Forwarded-Client-Cert is neither made nor removed"
_CALLS: Final = (
    "requests over HTTP/2 are balanced and counted one by one, which only the proxy does (if that is not needed: "
    "nodeagent.io/path: kernel)"
)
_AS_TCP: Final = "; HTTP/2 is balanced by connection there, and counted as TCP"
"""HPACK's dynamic table makes a header block mean what earlier ones said: no program that sees some
packets of a connection can tell its requests.
"""
COUNTED: Final[frozenset[Protocol]] = frozenset(("http", "grpc-web"))
"""Declared protocols that the kernel's HTTP metrics look for: HTTP/1."""


@dataclass(frozen=True, slots=True)
class KernelPlanSettings:
    """What of agent.yaml decides here."""

    node: str
    mesh: MeshSettings
    observed: str = ""
    """Why ``auto`` takes the proxy: what is asked for that only the proxy gives ("the access log",
    "traces"); empty: nothing.
    """
    client_cert: bool = True
    """Applications may read X-Forwarded-Client-Cert, which only the proxy makes, and of which it
    removes a client's own.
    """
    http_metrics: bool = True
    """Count HTTP requests of kernel-path connections."""


@dataclass(frozen=True, slots=True)
class PortPath:
    """The path of connections from pods of this node to a workload's port."""

    path: Literal["kernel", "proxy"]
    why: str


@dataclass(frozen=True, slots=True)
class KernelVerdict:
    allowed: bool
    policy: str = ""
    """``namespace/name`` of the policy that decides, empty when none does."""


ALLOWED: Final = KernelVerdict(True)


@dataclass(frozen=True, slots=True)
class KernelDestination:
    """A pod's port. ``verdicts``: by client pod; None: every captured pod of this node may."""

    pod: PodUid
    verdicts: Mapping[PodUid, KernelVerdict] | None
    http: bool = False
    bypass: bool = False


@dataclass(frozen=True, slots=True)
class KernelService:
    """A ClusterIP's port that is balanced in the kernel, over all ready endpoints of its family."""

    service: str
    """``namespace/name``."""
    endpoints: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class KernelPlan:
    destinations: Mapping[Where, KernelDestination] = field(default_factory=dict)
    services: Mapping[Where, KernelService] = field(default_factory=dict)
    ports: Mapping[tuple[PodUid, int], PortPath] = field(default_factory=dict)
    """Every port of the captured pods that a Service targets."""


class KernelPlanner:
    """Plans again whenever something changes; a verdict is worked out anew only when what it rests on has changed."""

    def __init__(self, settings: KernelPlanSettings) -> None:
        self._settings = settings
        self._authorizers: dict[tuple[PodUid, int], tuple[object, Authorizer | None]] = {}
        self._verdicts: dict[tuple[Where, PodUid], tuple[object, KernelVerdict]] = {}

    def plan(self, entries: Iterable[Entry], captured: Collection[PodUid]) -> KernelPlan:
        """Return the plan for the *captured* pods of this node, given the whole snapshot."""
        known = {entry.key: entry for entry in entries}
        services = [entry for entry in known.values() if isinstance(entry, Service)]
        by_name = {f"{service.namespace}/{service.name}": service for service in services}
        pods = [entry for entry in known.values() if isinstance(entry, Workload) and entry.uid in captured]
        before = self._verdicts
        self._verdicts = {}
        ports: dict[tuple[PodUid, int], PortPath] = {}
        destinations: dict[Where, KernelDestination] = {}
        for server in pods:
            policies = policies_of(server, known.get)
            for port, protocol in server.ports:
                service = by_name.get(dict(server.services).get(port, ""))
                path = ports[server.uid, port] = self.port_path(server, port, service, policies)
                if path.path != "kernel":
                    continue
                authorizer = self._authorizer(server, port, protocol, policies)
                http = protocol in COUNTED and self._settings.http_metrics
                for address in server.addresses:
                    verdicts = None if authorizer is None else self._judge(authorizer, pods, (address, port), before)
                    destinations[address, port] = KernelDestination(server.uid, verdicts, http, server.bypass)
        self._authorizers = {key: value for key, value in self._authorizers.items() if key in ports}
        return KernelPlan(destinations, dict(_balanced(services, destinations)), ports)

    def port_path(self, server: Workload, port: int, service: Service | None, policies: Iterable[Entry]) -> PortPath:
        """Return the path of connections from captured pods of this node to *port* of *server*,
        which *policies* protect.
        """
        protocol = server.protocol_at(port)
        setting, whose = setting_of(server, service)
        if setting == "proxy":
            return PortPath("proxy", f"nodeagent.io/path of the {whose} is proxy")
        if port in server.excluded_ports:
            return PortPath("proxy", f"port {port} is excluded from capture")
        reason = self._per_request(server, port, protocol, list(policies))
        if reason:
            asked = f"nodeagent.io/path of the {whose} is kernel, but " if setting == "kernel" else ""
            return PortPath("proxy", asked + reason)
        missing = _missing(protocol)
        if setting == "kernel":
            return PortPath("kernel", f"nodeagent.io/path of the {whose} is kernel{missing}")
        if self._settings.observed:
            return PortPath("proxy", f"{self._settings.observed} is asked for")
        if protocol != "tcp" and self._settings.client_cert:
            return PortPath("proxy", _READABLE)
        if protocol in HTTP2:
            return PortPath("proxy", _CALLS)
        return PortPath("kernel", f"nothing is decided per request{missing}")

    def permits(self, source: Workload, server: Workload, where: Where, policies: Iterable[Entry]) -> KernelVerdict:
        """Return what policy says now of an established connection of *source* past the proxy; a
        per-request decision refuses it.
        """
        _, port = where
        protocol = server.protocol_at(port)
        entries = list(policies)
        if self._per_request(server, port, protocol, entries):
            return KernelVerdict(False)
        authorizer = self._authorizer(server, port, protocol, entries)
        return ALLOWED if authorizer is None else _verdict(authorizer, source, where)

    # -- policies --

    def _per_request(self, server: Workload, port: int, protocol: Protocol, policies: list[Entry]) -> str:
        """Return what is decided or noted for each request or connection of *port*, in words; empty: nothing is."""
        for entry in policies:
            if isinstance(entry, RequestAuthentication) and protocol != "tcp":
                return f"RequestAuthentication {entry.namespace}/{entry.name} checks each request"
            if isinstance(entry, RateLimit) and protocol != "tcp":
                return f"RateLimit {entry.namespace}/{entry.name} counts each request"
            if isinstance(entry, AuthorizationPolicy) and (entry.action in ("CUSTOM", "AUDIT") or entry.dry_run):
                does = "asks an external authorizer" if entry.action == "CUSTOM" else "reports what it matches"
                return f"AuthorizationPolicy {entry.namespace}/{entry.name} {does}"
            if isinstance(entry, AuthorizationPolicy) and _asks_for_names(entry):
                return (
                    f"AuthorizationPolicy {entry.namespace}/{entry.name} decides by connection.sni: through which "
                    "Service the pod is reached, the kernel does not tell"
                )
        try:
            authorizer = self._authorizer(server, port, protocol, policies)
        except ResourceError as error:
            return f"its policies cannot be compiled: {error}"
        if authorizer is None or not authorizer.needs_request:
            return ""
        names = ", ".join(
            sorted(f"{entry.namespace}/{entry.name}" for entry in policies if isinstance(entry, AuthorizationPolicy))
        )
        return f"an AuthorizationPolicy decides by the request: {names}"

    def _authorizer(
        self, server: Workload, port: int, protocol: Protocol, policies: Iterable[Entry]
    ) -> Authorizer | None:
        """Return the compiled policies, None when there are none. Raises ResourceError."""
        own = tuple(entry for entry in policies if isinstance(entry, AuthorizationPolicy))
        if not own:
            return None
        rests_on = (own, protocol)
        known = self._authorizers.get((server.uid, port))
        if known is None or known[0] != rests_on:
            compiled = Authorizer.compile(own, http=protocol != "tcp", mesh=self._settings.mesh)
            known = self._authorizers[server.uid, port] = (rests_on, compiled)
        return known[1]

    def _judge(
        self,
        authorizer: Authorizer,
        sources: list[Workload],
        where: Where,
        before: Mapping[tuple[Where, PodUid], tuple[object, KernelVerdict]],
    ) -> dict[PodUid, KernelVerdict]:
        verdicts = {}
        for source in sources:
            if not any((":" in own) == (":" in where[0]) for own in source.addresses):
                continue
            rests_on = (authorizer, source.identity, source.addresses)
            known = before.get((where, source.uid))
            if known is None or known[0] != rests_on:
                known = (rests_on, _verdict(authorizer, source, where))
            self._verdicts[where, source.uid] = known
            verdicts[source.uid] = known[1]
        return verdicts


def _asks_for_names(policy: AuthorizationPolicy) -> bool:
    """Say whether *policy* decides by the server name that was asked for."""
    conditions = chain.from_iterable(rule.conditions for rule in policy.rules)
    return any(condition.key == "connection.sni" for condition in conditions)


def _missing(protocol: Protocol) -> str:
    """Return what a port of *protocol* does without on the kernel path, in words."""
    if protocol == "tcp":
        return ""
    return _UNTOUCHED + (_AS_TCP if protocol in HTTP2 else "")


def setting_of(server: Workload, service: Service | None) -> tuple[PathSetting, str]:
    """Return the setting in force and whose it is: the pod's own, the Service's, or else the namespace's."""
    if server.own_path:
        return server.path, "pod"
    if service is not None and service.path is not None:
        return service.path, f"Service {service.namespace}/{service.name}"
    return server.path, "namespace"


def _verdict(authorizer: Authorizer, source: Workload, where: Where) -> KernelVerdict:
    address, port = where
    own = next((each for each in source.addresses if (":" in each) == (":" in address)), "")
    facts = ConnectionFacts(source.identity.removeprefix(_SCHEME), own, address, port)
    decision = authorizer.connection(facts)
    if not isinstance(decision, Decision):
        raise AssertionError("a port whose policies need a request is not on the kernel path")
    return KernelVerdict(decision.allowed, decision.policy)


def _balanced(
    services: Iterable[Service], destinations: Mapping[Where, KernelDestination]
) -> Iterable[tuple[Where, KernelService]]:
    """Yield the ClusterIPs behind which some endpoint is on the kernel path; the others are the proxy's altogether."""
    holders: dict[Address, Service] = {}
    for service in by_age(services):
        holders.update(dict.fromkeys(service.addresses, service))
    for address, service in holders.items():
        for port in service.ports:
            endpoints = tuple(
                (each.address, each.port) for each in port.endpoints if (":" in each.address) == (":" in address)
            )
            if any(endpoint in destinations for endpoint in endpoints):
                yield (address, port.port), KernelService(f"{service.namespace}/{service.name}", endpoints)
