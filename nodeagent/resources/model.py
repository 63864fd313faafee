"""The Kubernetes objects that a lab cluster is made of: typed, frozen, strict.

A field that stands here is honoured, unless its comment says that it is accepted and ignored; any other field is an
error, so that nobody waits for an effect that never comes. Names, defaults and meaning are those of the Kubernetes API (v1, apps/v1).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""An RFC 1123 label; Kubernetes asks no more of most names, and a DNS name needs no less."""
PortNumber = Annotated[int, Field(ge=1, le=65535)]
PortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]*[a-z][a-z0-9-]*$", max_length=15)]
ServicePortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
LabelKey = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)]
Labels = dict[LabelKey, LabelValue]
Seconds = Annotated[int, Field(ge=0)]
Ignored = Any
"""Accepted because real manifests hold it, and without meaning in the lab."""


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("an absolute path without '..'")
    return path


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("a relative path without '..'")
    return path


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("an IPv4 or IPv6 address") from None


def _cluster_ip(text: str) -> str:
    return text if text == "None" else _address(text)


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
RelativePath = Annotated[str, AfterValidator(_relative)]
ClusterIP = Annotated[str, AfterValidator(_cluster_ip)]


FIELD_FAULT = "field_fault"


def _fault(path: str, value: object, allowed: str) -> PydanticCustomError:
    """Return the error for the field at *path* below the model that finds the fault, as no single field can see it."""
    return PydanticCustomError(FIELD_FAULT, "{allowed}", {"path": path, "value": value, "allowed": allowed})


def _unique(values: Iterable[tuple[str, object]]) -> None:
    """Refuse the second of two equal values; *values* are pairs of path and value."""
    seen: dict[object, str] = {}
    for path, value in values:
        if value in seen:
            raise _fault(path, value, f"a value that differs from {seen[value]}")
        seen[value] = path


class Section(BaseModel):
    """A part of an object: camelCase outside, unknown fields and wrong types refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)

    def dump(self) -> dict[str, Any]:
        """Return the JSON form, without what was not given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Metadata(Section):
    name: Name
    namespace: Name = "default"
    labels: Labels = {}
    annotations: dict[LabelKey, str] = {}
    creation_timestamp: Ignored = None


class TemplateMetadata(Section):
    """A pod template's: the pods get names of their own."""

    name: Ignored = None
    labels: Labels = {}
    annotations: dict[LabelKey, str] = {}
    creation_timestamp: Ignored = None


class ConfigMapKey(Section):
    name: Name
    key: str
    optional: bool = False


class FieldPath(Section):
    field_path: str
    api_version: Literal["v1"] = "v1"

    @model_validator(mode="after")
    def _known(self) -> Self:
        allowed = (
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "spec.nodeName",
            "spec.serviceAccountName",
            "status.podIP",
            "status.podIPs",
            "status.hostIP",
            "status.hostIPs",
        )
        if self.field_path not in allowed and not re.fullmatch(r"metadata\.(labels|annotations)\['[^']+'\]", self.field_path):
            raise ValueError(f"one of {', '.join(allowed)}, metadata.labels['KEY'], metadata.annotations['KEY']")
        return self


class EnvSource(Section):
    field_ref: FieldPath | None = None
    config_map_key_ref: ConfigMapKey | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.field_ref is None) == (self.config_map_key_ref is None):
            raise ValueError("exactly one of fieldRef, configMapKeyRef")
        return self


class EnvVar(Section):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_.-][A-Za-z0-9_.-]*$")]
    value: str = ""
    value_from: EnvSource | None = None


class ConfigMapReference(Section):
    name: Name
    optional: bool = False


class EnvFrom(Section):
    config_map_ref: ConfigMapReference
    prefix: str = ""


class ContainerPort(Section):
    container_port: PortNumber
    name: PortName | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"


class HttpHeader(Section):
    name: Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
    value: Annotated[str, StringConstraints(pattern=r"^[^\r\n]*$")]


class HttpGet(Section):
    port: PortNumber | PortName
    path: Annotated[str, StringConstraints(pattern=r"^/[^\s]*$")] = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HttpHeader, ...] = ()


class TcpSocket(Section):
    port: PortNumber | PortName
    host: str = ""


class Exec(Section):
    command: Annotated[tuple[str, ...], Field(min_length=1)]


class Probe(Section):
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    initial_delay_seconds: Seconds = 0
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    success_threshold: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(handler is not None for handler in (self.http_get, self.tcp_socket, self.exec)) != 1:
            raise ValueError("exactly one of httpGet, tcpSocket, exec")
        return self


class VolumeMount(Section):
    name: str
    mount_path: AbsolutePath
    read_only: bool = False
    sub_path: RelativePath = ""


class Container(Section):
    """What runs: ``command`` and ``args`` name a program of the host."""

    name: Name
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    working_dir: AbsolutePath = "/"
    ports: tuple[ContainerPort, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    startup_probe: Probe | None = None
    image: Ignored = None
    image_pull_policy: Ignored = None
    resources: Ignored = None
    security_context: Ignored = None
    termination_message_path: Ignored = None
    termination_message_policy: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique((f"ports[{index}].name", port.name) for index, port in enumerate(self.ports) if port.name)
        _unique((f"volumeMounts[{index}].mountPath", mount.mount_path) for index, mount in enumerate(self.volume_mounts))
        named = {port.name for port in self.ports if port.name}
        for name, probe in (("readiness", self.readiness_probe), ("liveness", self.liveness_probe), ("startup", self.startup_probe)):
            handler = (probe.http_get or probe.tcp_socket) if probe else None
            if handler and isinstance(handler.port, str) and handler.port not in named:
                path = f"{name}Probe.{'httpGet' if isinstance(handler, HttpGet) else 'tcpSocket'}.port"
                raise _fault(path, handler.port, f"a number, or the name of one of this container's ports ({', '.join(sorted(named)) or 'none has one'})")
        return self


class EmptyDir(Section):
    medium: Literal["", "Memory"] = ""
    size_limit: Ignored = None


class HostPath(Section):
    path: AbsolutePath
    type: Literal["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"] = ""


class KeyToPath(Section):
    key: str
    path: RelativePath
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


class ConfigMapVolume(Section):
    name: Name
    items: tuple[KeyToPath, ...] = ()
    default_mode: Annotated[int, Field(ge=0, le=0o777)] = 0o644
    optional: bool = False


class Volume(Section):
    name: Name
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    config_map: ConfigMapVolume | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(source is not None for source in (self.empty_dir, self.host_path, self.config_map)) != 1:
            raise ValueError("exactly one of emptyDir, hostPath, configMap")
        return self


class PodSpec(Section):
    containers: Annotated[tuple[Container, ...], Field(min_length=1)]
    service_account_name: Name = "default"
    node_name: Name | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    volumes: tuple[Volume, ...] = ()
    hostname: Name | None = None
    host_network: bool = False
    termination_grace_period_seconds: Seconds = 30
    affinity: Ignored = None
    automount_service_account_token: Ignored = None
    dns_policy: Ignored = None
    enable_service_links: Ignored = None
    image_pull_secrets: Ignored = None
    priority_class_name: Ignored = None
    scheduler_name: Ignored = None
    security_context: Ignored = None
    tolerations: Ignored = None
    topology_spread_constraints: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique((f"containers[{index}].name", container.name) for index, container in enumerate(self.containers))
        _unique((f"volumes[{index}].name", volume.name) for index, volume in enumerate(self.volumes))
        known = sorted(volume.name for volume in self.volumes)
        for at, container in enumerate(self.containers):
            for index, mount in enumerate(container.volume_mounts):
                if mount.name not in known:
                    raise _fault(f"containers[{at}].volumeMounts[{index}].name", mount.name, f"one of the pod's volumes ({', '.join(known) or 'it has none'})")
        return self


class Resource(Section):
    """A whole object."""

    api_version: str
    kind: str
    metadata: Metadata

    def describe(self) -> str:
        """Return ``Kind namespace/name`` for messages."""
        return f"{self.kind} {self.metadata.namespace}/{self.metadata.name}"


class Namespace(Resource):
    api_version: Literal["v1"]
    kind: Literal["Namespace"]
    spec: Ignored = None
    status: Ignored = None

    def describe(self) -> str:
        return f"{self.kind} {self.metadata.name}"


class ServiceAccount(Resource):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    automount_service_account_token: Ignored = None
    image_pull_secrets: Ignored = None
    secrets: Ignored = None


class ConfigMap(Resource):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    data: dict[Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)], str] = {}
    immutable: Ignored = None


class Pod(Resource):
    api_version: Literal["v1"]
    kind: Literal["Pod"]
    spec: PodSpec
    status: Ignored = None


class LabelSelector(Section):
    match_labels: Annotated[Labels, Field(min_length=1)]


class PodTemplate(Section):
    metadata: TemplateMetadata
    spec: PodSpec


class DeploymentSpec(Section):
    selector: LabelSelector
    template: PodTemplate
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    min_ready_seconds: Ignored = None
    progress_deadline_seconds: Ignored = None
    revision_history_limit: Ignored = None
    strategy: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.selector.match_labels.items() <= self.template.metadata.labels.items():
            raise _fault("selector.matchLabels", self.selector.match_labels, f"some of template.metadata.labels ({dict(self.template.metadata.labels)})")
        if self.template.spec.restart_policy != "Always":
            raise _fault("template.spec.restartPolicy", self.template.spec.restart_policy, "Always")
        return self


class Deployment(Resource):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment"]
    spec: DeploymentSpec
    status: Ignored = None


class ServicePort(Section):
    port: PortNumber
    name: ServicePortName = ""
    target_port: PortNumber | PortName | None = None
    protocol: Literal["TCP", "UDP"] = "TCP"
    app_protocol: str | None = None


class ServiceSpec(Section):
    ports: Annotated[tuple[ServicePort, ...], Field(min_length=1)]
    selector: Labels = {}
    type: Literal["ClusterIP"] = "ClusterIP"
    cluster_ip: ClusterIP | None = Field(None, alias="clusterIP")
    cluster_ips: Annotated[tuple[ClusterIP, ...], Field(max_length=2)] = Field((), alias="clusterIPs")
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "PreferDualStack"
    publish_not_ready_addresses: bool = False
    session_affinity: Literal["None"] = "None"
    internal_traffic_policy: Literal["Cluster"] = "Cluster"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique((f"ports[{index}].port", (port.port, port.protocol)) for index, port in enumerate(self.ports))
        for index, port in enumerate(self.ports):
            if len(self.ports) > 1 and not port.name:
                raise _fault(f"ports[{index}].name", port.name, "a name, as there are several ports")
        _unique((f"ports[{index}].name", port.name) for index, port in enumerate(self.ports))
        if self.cluster_ip and self.cluster_ips and self.cluster_ips[0] != self.cluster_ip:
            raise _fault("clusterIPs[0]", self.cluster_ips[0], f"clusterIP's value, {self.cluster_ip}")
        return self


class Service(Resource):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec
    status: Ignored = None


KINDS: dict[str, type[Resource]] = {kind.__name__: kind for kind in (Namespace, ServiceAccount, ConfigMap, Pod, Deployment, Service)}
CLUSTER_SCOPED = frozenset({"Namespace", "Node"})
