"""The entries of a snapshot: small, immutable, JSON-able; what a proxy worker knows of the cluster.

Control compiles them from resources and sends a worker only those that changed. A worker never sees
YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from nodeagent.policy.model import (
    AuthorizationPolicy,
    Jwks,
    MtlsMode,
    PathSetting,
    RateLimit,
    RequestAuthentication,
    Rule,
)
from nodeagent.vocabulary import Address, PodUid, SpiffeId

UNREAD: Final = "network/unread"
"""Key of the one entry of its kind."""

Protocol = Literal["http", "http2", "grpc", "grpc-web", "tcp", "auto"]
"""What a port was declared to be. ``grpc-web``: HTTP of either version, as its client speaks;
``tcp``: anything else that has a name, TLS among it; ``auto``: nothing, so its first bytes tell.
"""
HTTP: Final[frozenset[Protocol]] = frozenset(("http", "http2", "grpc", "grpc-web"))
"""Declared to be HTTP of some version: its client speaks first."""
HTTP2: Final[frozenset[Protocol]] = frozenset(("http2", "grpc"))
"""Declared to be HTTP/2: so its application is spoken to, whatever its client speaks."""


@dataclass(frozen=True, slots=True)
class DeclaredProbe:
    """What a pod declares that may be asked of it in plaintext, STRICT or not: a probe of its spec,
    by the node; ``scrape``: its metrics (``prometheus.io/scrape``), by anybody.
    """

    kind: Literal["http", "tcp", "grpc", "scrape"]
    port: int
    path: str = ""
    """Of an HTTP probe or of the metrics; of a gRPC probe the service that is asked about."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod of the cluster that has an address, whichever node it is on."""

    uid: PodUid
    pod: str
    namespace: str
    node: str
    addresses: tuple[Address, ...]
    service_account: str
    identity: SpiffeId
    workload: str
    app: str
    version: str
    canonical_service: str
    canonical_revision: str
    ready: bool
    enrolled: bool
    """Its node's agent captures it, so that it takes mTLS on its own ports."""
    ports: tuple[tuple[int, Protocol], ...] = ()
    """Workload port -> protocol, from the Services that select it."""
    probes: tuple[DeclaredProbe, ...] = ()
    scrapes: tuple[DeclaredProbe, ...] = ()
    """Where its metrics are."""
    services: tuple[tuple[int, str], ...] = ()
    """Workload port -> ``namespace/name`` of the first Service that targets it."""
    excluded_ports: tuple[int, ...] = ()
    """Ports that its node's agent does not capture (excludeInboundPorts): they take no mTLS."""
    sidecar: bool = False
    """It brings a classic sidecar, which takes mTLS as an enrolled pod does."""
    hbone: bool = False
    """It says that it takes HBONE, as the pods of an ambient mesh do."""
    mtls: MtlsMode = "PERMISSIVE"
    """By PeerAuthentication (workload, namespace, mesh) or agent.yaml's mtls.mode."""
    mtls_from: str = ""
    """``namespace/name`` of the PeerAuthentication that says so, empty: agent.yaml."""
    port_mtls: tuple[tuple[int, MtlsMode], ...] = ()
    """Workload ports whose mode differs (portLevelMtls)."""
    policies: tuple[str, ...] = ()
    """Keys of the AuthorizationPolicy, RequestAuthentication and RateLimit entries that apply to
    it; known on its own node only.
    """
    path: PathSetting = "auto"
    """``nodeagent.io/path`` of the pod, else of its namespace."""
    own_path: bool = False
    """It is the pod's own: it goes before the Service's."""
    bypass: bool = False
    network_policy: str = ""
    """``namespace/name`` of a NetworkPolicy that selects it; empty: none does."""

    @property
    def ambient(self) -> bool:
        """It is reached by HBONE: what takes mTLS in place is not asked for more."""
        return self.hbone and not self.enrolled and not self.sidecar

    def protocol_at(self, port: int) -> Protocol:
        """Return what the workload port *port* was declared to be."""
        for number, protocol in self.ports:
            if number == port:
                return protocol
        return "auto"

    def mtls_at(self, port: int) -> MtlsMode:
        """Return the mTLS mode of the workload port *port*."""
        for number, mode in self.port_mtls:
            if number == port:
                return mode
        return self.mtls

    @property
    def key(self) -> str:
        return f"workload/{self.uid}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Service's port is really served."""

    address: Address
    port: int
    uid: PodUid
    """The pod that is there; empty: none, as an EndpointSlice names something outside the mesh."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    port: int
    name: str
    protocol: Protocol
    endpoints: tuple[Endpoint, ...]
    """Ready endpoints of both address families; a connection uses those of the family that was
    dialled, if there are any.
    """


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    namespace: str
    host: str
    """``name.namespace.svc.cluster.local``."""
    addresses: tuple[Address, ...]
    """ClusterIPs; empty for a headless Service."""
    ports: tuple[ServicePort, ...]
    path: PathSetting | None = None
    """``nodeagent.io/path`` of the Service; None: it does not say, and the namespace's holds."""
    created: str = ""
    """RFC 3339, which sorts by time; empty: not said."""

    @property
    def key(self) -> str:
        return f"service/{self.namespace}/{self.name}"

    def at(self, port: int) -> ServicePort | None:
        """Return its *port*, None: it has no such one."""
        for each in self.ports:
            if each.port == port:
                return each
        return None


def takes_mtls(workload: Workload, port: int) -> bool:
    """Say whether a client's proxy shall speak mTLS to *port* of *workload* on another node, or to
    one with a sidecar: Istio's auto mTLS.
    """
    if workload.mtls_at(port) == "DISABLE" or port in workload.excluded_ports:
        return False
    return workload.enrolled or workload.sidecar


@dataclass(frozen=True, slots=True)
class UnreadPolicies:
    """There are policies for the network that cannot be read here; ``example``: one of them, in
    words. The entry is there while they are.
    """

    example: str

    @property
    def key(self) -> str:
        return UNREAD


Entry = Workload | Service | AuthorizationPolicy | RequestAuthentication | Jwks | RateLimit | UnreadPolicies


def by_age(services: Iterable[Service]) -> tuple[Service, ...]:
    """Return *services* in the order that decides whose a ClusterIP is that several have: the last one's.

    The API gives an address away only when who had it is gone, so the younger one has it. Of one second the
    key decides; a resourceVersion does not say it, as each update makes it another.
    """
    return tuple(sorted(services, key=lambda service: (service.created, service.key)))


def policies_of(workload: Workload, known: Callable[[str], Entry | None]) -> tuple[Entry, ...]:
    """Return the policies that apply to *workload*, a pod of this node, by what is *known* under
    their keys.

    One that applies and is not known, because it could not be carried or taken in, is closed: in
    its place stands one that denies everything.
    """
    return tuple(known(key) or _closed(key) for key in workload.policies)


@lru_cache(1024)
def _closed(key: str) -> AuthorizationPolicy:
    kind, namespace, name = key.partition("@")[0].split("/", 2)
    return AuthorizationPolicy(namespace, name, "DENY", (Rule(),), refused=kind)


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed between two snapshots: entries to put, keys to drop."""

    upserts: tuple[Entry, ...] = ()
    removals: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.upserts or self.removals)
