"""The Kubernetes objects that a lab cluster is made of: typed, frozen, strict.

A field that stands here or in ``pod`` is honoured, unless its type is Ignored; any other field is
an error, so that nobody waits for an effect that never comes. Names, defaults and meaning are those
of the Kubernetes API (v1, apps/v1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nodeagent.resources import security
from nodeagent.resources.fields import (
    Cidr,
    ClusterIP,
    Ignored,
    LabelKey,
    Labels,
    LabelValue,
    Name,
    PortName,
    PortNumber,
    Section,
    ServicePortName,
    family_of,
    fault,
    unique,
)
from nodeagent.resources.pod import PodSpec


class ResourceMetadata(Section):
    name: Name
    namespace: Name = "default"
    labels: Labels = Field(default_factory=dict)
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    creation_timestamp: Ignored = None


class TemplateMetadata(Section):
    """A pod template's: the pods get names of their own."""

    name: Ignored = None
    labels: Labels = Field(default_factory=dict)
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    creation_timestamp: Ignored = None


class Resource(Section):
    """A whole object."""

    api_version: str
    kind: str
    metadata: ResourceMetadata

    def describe(self) -> str:
        """Return ``Kind namespace/name`` for messages."""
        return f"{self.kind} {self.metadata.namespace}/{self.metadata.name}"


class NamespaceResource(Resource):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    spec: Ignored = None
    status: Ignored = None

    def describe(self) -> str:
        return f"{self.kind} {self.metadata.name}"


class ServiceAccountResource(Resource):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    automount_service_account_token: Ignored = None
    image_pull_secrets: Ignored = None
    secrets: Ignored = None


class ConfigMapResource(Resource):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    data: dict[Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)], str] = Field(
        default_factory=dict
    )
    immutable: Ignored = None


class PodResource(Resource):
    api_version: Literal["v1"]
    kind: Literal["Pod"]
    spec: PodSpec
    status: Ignored = None


class DeploymentSelector(Section):
    match_labels: Annotated[Labels, Field(min_length=1)]


class PodTemplate(Section):
    metadata: TemplateMetadata
    spec: PodSpec


class DeploymentSpec(Section):
    selector: DeploymentSelector
    template: PodTemplate
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    min_ready_seconds: Ignored = None
    progress_deadline_seconds: Ignored = None
    revision_history_limit: Ignored = None
    strategy: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.selector.match_labels.items() <= self.template.metadata.labels.items():
            raise fault(
                "selector.matchLabels",
                self.selector.match_labels,
                f"some of template.metadata.labels ({dict(self.template.metadata.labels)})",
            )
        if self.template.spec.restart_policy != "Always":
            raise fault("template.spec.restartPolicy", self.template.spec.restart_policy, "Always")
        return self


class DeploymentResource(Resource):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    spec: DeploymentSpec
    status: Ignored = None


class ServiceResourcePort(Section):
    port: PortNumber
    name: ServicePortName = ""
    target_port: PortNumber | PortName | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"
    app_protocol: str | None = None


class ServiceSpec(Section):
    ports: Annotated[tuple[ServiceResourcePort, ...], Field(min_length=1)]
    selector: Labels = Field(default_factory=dict)
    type: Literal["ClusterIP"] = "ClusterIP"
    cluster_ip: ClusterIP | None = Field(None, alias="clusterIP")
    cluster_ips: Annotated[tuple[ClusterIP, ...], Field(max_length=2)] = Field((), alias="clusterIPs")
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "SingleStack"
    publish_not_ready_addresses: bool = False
    session_affinity: Literal["None"] = "None"
    internal_traffic_policy: Literal["Cluster"] = "Cluster"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unique((f"ports[{index}].port", (port.port, port.protocol)) for index, port in enumerate(self.ports))
        for index, port in enumerate(self.ports):
            if len(self.ports) > 1 and not port.name:
                raise fault(f"ports[{index}].name", port.name, "a name, as there are several ports")
        unique((f"ports[{index}].name", port.name) for index, port in enumerate(self.ports))
        if self.cluster_ip and self.cluster_ips and self.cluster_ips[0] != self.cluster_ip:
            raise fault("clusterIPs[0]", self.cluster_ips[0], f"clusterIP's value, {self.cluster_ip}")
        unique((f"ipFamilies[{index}]", family) for index, family in enumerate(self.ip_families))
        asked = [each for each in (self.cluster_ip, *self.cluster_ips) if each not in (None, "None")]
        first = asked[0] if asked else None
        if first is not None and self.ip_families and family_of(first) != self.ip_families[0]:
            raise fault("ipFamilies[0]", self.ip_families[0], f"{family_of(first)}, the family of {first}")
        return self


class ServiceResource(Resource):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec
    status: Ignored = None


class MatchExpression(Section):
    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[LabelValue, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            raise fault("values", self.values, "values for In and NotIn, and for these alone")
        return self


class Selector(Section):
    """A label selector that may select everything."""

    match_labels: Labels = Field(default_factory=dict)
    match_expressions: tuple[MatchExpression, ...] = ()


class IpBlock(Section):
    cidr: Cidr
    excepted: tuple[Cidr, ...] = Field((), alias="except")


class NetworkPolicyPeer(Section):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.ip_block is None) == (self.pod_selector is None and self.namespace_selector is None):
            raise fault(
                "ipBlock", self.ip_block and self.ip_block.cidr, "either ipBlock, or podSelector and namespaceSelector"
            )
        return self


class NetworkPolicyPort(Section):
    port: PortNumber | PortName | None = None
    end_port: PortNumber | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end_port is not None and not (isinstance(self.port, int) and self.port <= self.end_port):
            raise fault("endPort", self.end_port, "a port from port, a number, on")
        return self


class Ingress(Section):
    peers: tuple[NetworkPolicyPeer, ...] = Field((), alias="from")
    ports: tuple[NetworkPolicyPort, ...] = ()


class Egress(Section):
    peers: tuple[NetworkPolicyPeer, ...] = Field((), alias="to")
    ports: tuple[NetworkPolicyPort, ...] = ()


class NetworkPolicySpec(Section):
    pod_selector: Selector
    policy_types: tuple[Literal["Ingress", "Egress"], ...] = ()
    ingress: tuple[Ingress, ...] = ()
    egress: tuple[Egress, ...] = ()


class NetworkPolicyResource(Resource):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    spec: NetworkPolicySpec
    status: Ignored = None


class SecurityResource(Resource):
    """A PeerAuthentication, AuthorizationPolicy, RequestAuthentication or RateLimit: checked as the
    agent does (``security``), kept as it is.
    """

    spec: dict[str, Any] = Field(default_factory=dict)
    status: Ignored = None


KINDS: dict[str, type[Resource]] = {
    "Namespace": NamespaceResource,
    "ServiceAccount": ServiceAccountResource,
    "ConfigMap": ConfigMapResource,
    "Pod": PodResource,
    "Deployment": DeploymentResource,
    "Service": ServiceResource,
    "NetworkPolicy": NetworkPolicyResource,
}
KINDS |= dict.fromkeys(sorted(security.KINDS), SecurityResource)
CLUSTER_SCOPED = frozenset({"Namespace", "Node"})
