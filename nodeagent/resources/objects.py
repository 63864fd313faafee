"""What the agent reads of Kubernetes objects as an API server would show them: small, typed,
frozen.

An API server has validated them and knows more fields every year, so unknown fields are no error
here; a field that is read must be what Kubernetes says it is. Nothing else of an object is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal

from nodeagent.resources.labels import OPERATORS, LabelExpression, LabelSelector
from nodeagent.resources.part import Field
from nodeagent.resources.proxies import IstioPart, OwnProxy, istio_part, own_proxy
from nodeagent.vocabulary import Address, PodUid

NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Of an object: an RFC 1123 subdomain."""
NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE_NAME: Final = "kubernetes.io/service-name"
"""The label by which an EndpointSlice is a Service's."""
POD_UID: Final = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,127}")
"""Also a file's name here."""


@dataclass(frozen=True, slots=True)
class NamedPort:
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class ProbeAction:
    """A probe as declared, or a hook of the container's lifecycle: what the kubelet asks; ``port``
    may be a container port's name. ``host`` is empty when it is the pod itself.

    ``path``: of an HTTP probe, or the service that a gRPC probe asks about.
    """

    kind: Literal["http", "tcp", "grpc"]
    port: int | str
    path: str
    host: str


@dataclass(frozen=True, slots=True)
class ContainerObject:
    ports: tuple[NamedPort, ...]
    """Its TCP ports."""
    probes: tuple[ProbeAction, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    kind: str
    name: str
    controller: bool


@dataclass(frozen=True, slots=True)
class PodObject:
    namespace: str
    name: str
    uid: PodUid
    created: str
    """RFC 3339, which sorts by time."""
    terminating: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    owners: tuple[Owner, ...]
    node: str
    service_account: str
    """As its spec names it; empty: it names none, as the mirror of a static pod never does."""
    host_network: bool
    containers: tuple[ContainerObject, ...]
    phase: str
    addresses: tuple[Address, ...]
    ready: bool
    drivers: tuple[str, ...] = ()
    """CSI drivers of its volumes."""
    proxy: OwnProxy | None = None
    """A proxy among its containers."""
    istio_part: IstioPart = ""
    """Which of Istio's programs for a node it is."""


@dataclass(frozen=True, slots=True)
class ServiceObjectPort:
    name: str
    port: int
    transport: str
    app_protocol: str
    target: int | str
    """A workload port, or the name of a container's port."""


@dataclass(frozen=True, slots=True)
class ServiceObject:
    namespace: str
    name: str
    created: str
    external: bool
    """ExternalName: a DNS alias and nothing else."""
    addresses: tuple[Address, ...]
    selector: Mapping[str, str]
    ports: tuple[ServiceObjectPort, ...]
    publish_not_ready: bool
    internal_local: bool = False
    """``internalTrafficPolicy: Local``: a node's pods get its own endpoints, and none where it has none."""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint that somebody else than its Service's selector names."""

    address: Address
    ready: bool
    pod: str = ""
    """The pod of the slice's namespace that it refers to; empty: none."""
    node: str = ""
    """Where it is; empty: not said."""
    ending: bool = False
    """It is not ready, as it ends, and serves until then."""


@dataclass(frozen=True, slots=True)
class SlicePort:
    name: str
    """That of the Service's port which it serves."""
    number: int


@dataclass(frozen=True, slots=True)
class EndpointSliceObject:
    """Where a Service is served (discovery.k8s.io/v1), as far as a TCP connection can use it."""

    namespace: str
    name: str
    service: str
    """Empty: it is no Service's."""
    endpoints: tuple[SliceEndpoint, ...]
    ports: tuple[SlicePort, ...]


@dataclass(frozen=True, slots=True)
class NodeObject:
    name: str
    addresses: tuple[Address, ...]
    pod_ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    """``spec.podCIDRs``: where its pods' addresses are from; empty: it says none."""


@dataclass(frozen=True, slots=True)
class NamespaceObject:
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NetworkPolicyObject:
    """Which pods of its namespace a NetworkPolicy is for. What it lets through is the business of
    what enforces it, the CNI plugin.
    """

    selector: LabelSelector


@dataclass(frozen=True, slots=True)
class UnreadPolicy:
    """A policy for the network that may be for any pod: it is of a kind that is not read here, or wrong."""


KubernetesObject = (
    PodObject | ServiceObject | EndpointSliceObject | NodeObject | NamespaceObject | NetworkPolicyObject | UnreadPolicy
)
POLICY_GROUPS: Final = frozenset(
    ("cilium.io", "crd.projectcalico.org", "projectcalico.org", "policy.networking.k8s.io", "crd.antrea.io")
)
"""API groups of those who enforce policies of their own."""
_NETWORK_POLICY: Final = "NetworkPolicy"


def parse(document: object) -> KubernetesObject | None:
    """Return what the agent reads of *document*, a Kubernetes object; None for a kind that it does
    not read.

    Raises ResourceError naming the field, its value and what is allowed.
    """
    root = Field("", document)
    kind = root.text("kind")
    metadata = root.part("metadata")
    group = root.text("apiVersion", "").partition("/")[0]
    if group in POLICY_GROUPS or (is_network_policy(kind) and (kind, group) != (_NETWORK_POLICY, "networking.k8s.io")):
        return UnreadPolicy()
    reader = _READERS.get(kind)
    return reader(root, metadata) if reader else None


def is_network_policy(kind: str) -> bool:
    """Say whether objects of *kind*, whoever defines it, restrict what pods may reach:
    CiliumNetworkPolicy, GlobalNetworkPolicy, AdminNetworkPolicy, …
    """
    return kind.endswith(_NETWORK_POLICY)


def _pod(root: Field, metadata: Field) -> PodObject:
    spec = root.part("spec")
    status = root.part("status")
    given = tuple(item.address("ip") for item in status.parts("podIPs"))
    if not given and status.text("podIP", ""):
        given = (status.address("podIP"),)
    initial = spec.parts("initContainers")
    restartable = [item for item in initial if item.text("restartPolicy", "") == "Always"]
    running = [*spec.parts("containers"), *restartable]
    labels = metadata.texts("labels")
    return PodObject(
        namespace=_namespace_of(metadata),
        name=_name_of(metadata),
        uid=PodUid(metadata.matching("uid", POD_UID, "letters, digits, '.', '_' and '-'")),
        created=metadata.text("creationTimestamp", ""),
        terminating=metadata.has("deletionTimestamp"),
        labels=labels,
        annotations=metadata.texts("annotations"),
        owners=tuple(
            Owner(item.text("kind"), item.text("name"), item.flag("controller"))
            for item in metadata.parts("ownerReferences")
        ),
        node=spec.text("nodeName", ""),
        service_account=spec.text("serviceAccountName", ""),
        host_network=spec.flag("hostNetwork"),
        containers=tuple(_container(item) for item in running),
        phase=status.text("phase", "Pending"),
        addresses=tuple(dict.fromkeys(given)),
        ready=any(
            item.text("type") == "Ready" and item.text("status") == "True" for item in status.parts("conditions")
        ),
        drivers=tuple(item.part("csi").text("driver") for item in spec.parts("volumes") if item.has("csi")),
        proxy=own_proxy(running, initial),
        istio_part=istio_part(labels, running),
    )


def _name_of(metadata: Field) -> str:
    return metadata.matching("name", NAME, "a lower-case DNS name")


def _namespace_of(metadata: Field) -> str:
    return metadata.matching("namespace", NAMESPACE, "a namespace's name")


def _container(item: Field) -> ContainerObject:
    ports = tuple(
        NamedPort(port.text("name", ""), port.number("containerPort"))
        for port in item.parts("ports")
        if port.text("protocol", "TCP") == "TCP"
    )
    declared = [item.part(name) for name in ("startupProbe", "livenessProbe", "readinessProbe") if item.has(name)]
    lifecycle = item.part("lifecycle")
    declared += [lifecycle.part(name) for name in ("postStart", "preStop") if lifecycle.has(name)]
    probes = (_probe(each) for each in declared)
    return ContainerObject(ports, tuple(probe for probe in probes if probe is not None), item.text("name", ""))


def _probe(declared: Field) -> ProbeAction | None:
    """Return a probe that uses the network, None for an exec probe. An HTTPS probe is TLS to the
    application: bytes on a port.
    """
    if declared.has("httpGet"):
        action = declared.part("httpGet")
        path = action.text("path", "") or "/"
        secure = action.text("scheme", "HTTP").upper() == "HTTPS"
        port = action.port("port", named=True)
        host = action.text("host", "")
        return (
            ProbeAction("tcp", port, "", host)
            if secure
            else ProbeAction("http", port, "/" + path.removeprefix("/"), host)
        )
    if declared.has("tcpSocket"):
        action = declared.part("tcpSocket")
        return ProbeAction("tcp", action.port("port", named=True), "", action.text("host", ""))
    if declared.has("grpc"):
        action = declared.part("grpc")
        return ProbeAction("grpc", action.port("port"), action.text("service", ""), "")
    return None


def _service(root: Field, metadata: Field) -> ServiceObject:
    spec = root.part("spec")
    given = [text for text in spec.strings("clusterIPs") or [spec.text("clusterIP", "")] if text not in ("", "None")]
    return ServiceObject(
        namespace=_namespace_of(metadata),
        name=_name_of(metadata),
        created=metadata.text("creationTimestamp", ""),
        external=spec.text("type", "ClusterIP") == "ExternalName",
        addresses=tuple(dict.fromkeys(spec.canonical("clusterIPs", text) for text in given)),
        selector=spec.texts("selector"),
        ports=tuple(_service_port(item) for item in spec.parts("ports")),
        publish_not_ready=spec.flag("publishNotReadyAddresses"),
        internal_local=spec.text("internalTrafficPolicy", "") == "Local",
        annotations=metadata.texts("annotations"),
    )


def _service_port(item: Field) -> ServiceObjectPort:
    port = item.number("port")
    target = item.port("targetPort", named=True, default=port)
    return ServiceObjectPort(
        item.text("name", ""), port, item.text("protocol", "TCP"), item.text("appProtocol", ""), target
    )


def _endpoint_slice(root: Field, metadata: Field) -> EndpointSliceObject:
    """Of an endpoint the first address alone counts, as for kube-proxy, and a port without a number
    serves nothing.
    """
    items = root.parts("endpoints") if root.text("addressType") in ("IPv4", "IPv6") else []
    ports = (item for item in root.parts("ports") if item.text("protocol", "TCP") == "TCP" and item.has("port"))
    endpoints = (_slice_endpoint(item) for item in items)
    return EndpointSliceObject(
        namespace=_namespace_of(metadata),
        name=_name_of(metadata),
        service=metadata.texts("labels").get(SERVICE_NAME, ""),
        endpoints=tuple(endpoint for endpoint in endpoints if endpoint is not None),
        ports=tuple(SlicePort(item.text("name", ""), item.number("port")) for item in ports),
    )


def _slice_endpoint(item: Field) -> SliceEndpoint | None:
    """Return an endpoint; None for one that is nowhere, or where the API server lets none be: the
    loopback of whoever connects, a link, a group.
    """
    addresses = item.addresses("addresses")
    if not addresses:
        return None
    where = ip_address(addresses[0])
    if where.is_loopback or where.is_link_local or where.is_unspecified or where.is_multicast:
        return None
    conditions = item.part("conditions")
    target = item.part("targetRef")
    pod = target.text("name", "") if target.text("kind", "") == "Pod" else ""
    # What is not said is as kube-proxy takes it (pkg/proxy/endpointslicecache.go).
    ready = conditions.flag("ready") or not conditions.has("ready")
    serving = conditions.flag("serving") or not conditions.has("serving")
    ending = not ready and serving and conditions.flag("terminating")
    return SliceEndpoint(addresses[0], ready, pod, item.text("nodeName", ""), ending)


def _node(root: Field, metadata: Field) -> NodeObject:
    addresses = tuple(
        item.address("address") for item in root.part("status").parts("addresses") if item.text("type") == "InternalIP"
    )
    return NodeObject(_name_of(metadata), addresses, _pod_ranges(root.part("spec")))


def _pod_ranges(spec: Field) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(text, strict=False) for text in spec.strings("podCIDRs"))
    except ValueError:
        raise spec.wrong("podCIDRs", "ranges of addresses are expected") from None


def _namespace(root: Field, metadata: Field) -> NamespaceObject:
    return NamespaceObject(_name_of(metadata), metadata.texts("labels"), metadata.texts("annotations"))


def _network_policy(root: Field, metadata: Field) -> NetworkPolicyObject:
    spec = root.part("spec")
    if not spec.has("podSelector"):
        raise spec.wrong("podSelector", "a mapping is expected, empty for every pod of the namespace")
    return NetworkPolicyObject(label_selector(spec.part("podSelector")))


def label_selector(item: Field) -> LabelSelector:
    """Return a LabelSelector (meta/v1); an empty one selects everything. Raises ResourceError."""
    expressions = []
    for each in item.parts("matchExpressions"):
        operator = each.text("operator")
        values = each.strings("values")
        if operator not in OPERATORS:
            raise each.wrong("operator", f"allowed: {', '.join(OPERATORS)}")
        if bool(values) != (operator in ("In", "NotIn")):
            raise each.wrong("values", "values are expected for In and NotIn, and for these alone")
        expressions.append(LabelExpression(each.text("key"), operator, frozenset(values)))
    return LabelSelector(tuple(sorted(item.texts("matchLabels").items())), tuple(expressions))


_READERS: Mapping[str, Callable[[Field, Field], KubernetesObject]] = {
    "Pod": _pod,
    "Service": _service,
    "EndpointSlice": _endpoint_slice,
    "Node": _node,
    "Namespace": _namespace,
    _NETWORK_POLICY: _network_policy,
}
