"""A pod's spec: containers, probes, volumes, as far as the lab honours them; see ``model`` for what
the rest of an object is.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from nodeagent.resources.fields import (
    AbsolutePath,
    Ignored,
    Name,
    PortName,
    PortNumber,
    RelativePath,
    Seconds,
    Section,
    fault,
    unique,
)


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
        if self.field_path not in allowed and not re.fullmatch(
            r"metadata\.(labels|annotations)\['[^']+'\]", self.field_path
        ):
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


class Grpc(Section):
    port: PortNumber
    service: str = ""


class Exec(Section):
    command: Annotated[tuple[str, ...], Field(min_length=1)]


class Probe(Section):
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    grpc: Grpc | None = None
    initial_delay_seconds: Seconds = 0
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    success_threshold: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(handler is not None for handler in (self.http_get, self.tcp_socket, self.exec, self.grpc)) != 1:
            raise ValueError("exactly one of httpGet, tcpSocket, exec, grpc")
        return self


class VolumeMount(Section):
    name: str
    mount_path: AbsolutePath
    read_only: bool = False
    sub_path: RelativePath = ""


class SecurityContext(Section):
    """As whom a container runs; the lab's containers have every capability."""

    run_as_user: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    run_as_group: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    allow_privilege_escalation: Ignored = None
    app_armor_profile: Ignored = None
    capabilities: Ignored = None
    privileged: Ignored = None
    proc_mount: Ignored = None
    read_only_root_filesystem: Ignored = None
    run_as_non_root: Ignored = None
    se_linux_options: Ignored = None
    seccomp_profile: Ignored = None
    windows_options: Ignored = None


class PodSecurityContext(Section):
    """What holds for containers that do not say otherwise."""

    run_as_user: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    run_as_group: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    app_armor_profile: Ignored = None
    fs_group: Ignored = None
    fs_group_change_policy: Ignored = None
    run_as_non_root: Ignored = None
    se_linux_options: Ignored = None
    seccomp_profile: Ignored = None
    supplemental_groups: Ignored = None
    sysctls: Ignored = None


class LifecycleHandler(Section):
    exec: Exec


class Lifecycle(Section):
    post_start: LifecycleHandler | None = None
    """Containers after this one start when it has ended."""
    pre_stop: LifecycleHandler | None = None
    """SIGTERM follows when it has ended, or when the grace period has."""
    stop_signal: Ignored = None


class Container(Section):
    """What runs: ``command`` and ``args`` name a program of the host, or ``nodeagent`` or ``envoy``."""

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
    lifecycle: Lifecycle | None = None
    restart_policy: Literal["Always"] | None = None
    """Of an init container: it goes on running beside those that follow (a native sidecar)."""
    security_context: SecurityContext | None = None
    image: Ignored = None
    image_pull_policy: Ignored = None
    resources: Ignored = None
    termination_message_path: Ignored = None
    termination_message_policy: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unique((f"ports[{index}].name", port.name) for index, port in enumerate(self.ports) if port.name)
        unique((f"volumeMounts[{index}].mountPath", mount.mount_path) for index, mount in enumerate(self.volume_mounts))
        named = {port.name for port in self.ports if port.name}
        for name, probe in (
            ("readiness", self.readiness_probe),
            ("liveness", self.liveness_probe),
            ("startup", self.startup_probe),
        ):
            handler = (probe.http_get or probe.tcp_socket) if probe else None
            if handler and isinstance(handler.port, str) and handler.port not in named:
                path = f"{name}Probe.{'httpGet' if isinstance(handler, HttpGet) else 'tcpSocket'}.port"
                raise fault(
                    path,
                    handler.port,
                    "a number, or the name of one of this container's ports "
                    f"({', '.join(sorted(named)) or 'none has one'})",
                )
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


class CsiVolume(Section):
    """The pod's folder with the agent's socket; the lab has no other driver."""

    driver: Literal["csi.nodeagent.io", "csi.spiffe.io"]
    read_only: bool = True


class Volume(Section):
    name: Name
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    config_map: ConfigMapVolume | None = None
    csi: CsiVolume | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(source is not None for source in (self.empty_dir, self.host_path, self.config_map, self.csi)) != 1:
            raise ValueError("exactly one of emptyDir, hostPath, configMap, csi")
        return self


class PodSpec(Section):
    containers: Annotated[tuple[Container, ...], Field(min_length=1)]
    init_containers: tuple[Container, ...] = ()
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
    security_context: PodSecurityContext = PodSecurityContext()
    tolerations: Ignored = None
    topology_spread_constraints: Ignored = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        everyone = self.placed()
        unique((f"{path}.name", container.name) for path, container in everyone)
        for index, container in enumerate(self.containers):
            if container.restart_policy:
                raise fault(
                    f"containers[{index}].restartPolicy",
                    container.restart_policy,
                    "no value: only an init container has one of its own",
                )
        unique((f"volumes[{index}].name", volume.name) for index, volume in enumerate(self.volumes))
        known = sorted(volume.name for volume in self.volumes)
        for path, container in everyone:
            for index, mount in enumerate(container.volume_mounts):
                if mount.name not in known:
                    raise fault(
                        f"{path}.volumeMounts[{index}].name",
                        mount.name,
                        f"one of the pod's volumes ({', '.join(known) or 'it has none'})",
                    )
        return self

    def placed(self) -> list[tuple[str, Container]]:
        """Return all containers, each with its path in the spec."""
        placed = [(f"containers[{index}]", container) for index, container in enumerate(self.containers)]
        placed += [(f"initContainers[{index}]", container) for index, container in enumerate(self.init_containers)]
        return placed
