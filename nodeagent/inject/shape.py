"""The fields of a pod that injection reads, checked before anything is decided: it may come from a
file or before an API server's validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nodeagent.errors import InjectionError
from nodeagent.inject.model import show
from nodeagent.resources.fields import PortName, PortNumber
from nodeagent.resources.load import explain

PROBES: Final = ("readinessProbe", "livenessProbe", "startupProbe")
HOOKS: Final = ("postStart", "preStop")
"""Below a container's ``lifecycle``."""


class _Shape(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, strict=True)


class PortShape(_Shape):
    """A container's port."""

    container_port: PortNumber
    name: str | None = None
    protocol: str | None = None


class HttpGetShape(_Shape):
    """A probe's ``httpGet``."""

    port: PortNumber | PortName
    path: str | None = None
    host: str | None = None
    scheme: str | None = None


class TcpSocketShape(_Shape):
    """A probe's ``tcpSocket``."""

    port: PortNumber | PortName
    host: str | None = None


class GrpcShape(_Shape):
    """A probe's ``grpc``."""

    port: PortNumber
    service: str | None = None


class HandlerShape(_Shape):
    """What a probe or hook does: one of these, or ``exec``, which no proxy stands in the way of."""

    http_get: HttpGetShape | None = None
    tcp_socket: TcpSocketShape | None = None
    grpc: GrpcShape | None = None


class ProbeShape(HandlerShape):
    """One of a container's probes."""

    timeout_seconds: Annotated[int, Field(ge=0)] | None = None


class LifecycleShape(_Shape):
    """A container's ``lifecycle``."""

    post_start: HandlerShape | None = None
    pre_stop: HandlerShape | None = None


class SecurityContextShape(_Shape):
    """A pod's or container's ``securityContext``: the user and group it runs as."""

    run_as_user: int | None = None
    run_as_group: int | None = None


class VolumeMountShape(_Shape):
    """Which of the pod's volumes a container mounts."""

    name: str


class ContainerShape(_Shape):
    """A container, or an init container."""

    name: Annotated[str, Field(min_length=1)]
    ports: tuple[PortShape, ...] | None = None
    readiness_probe: ProbeShape | None = None
    liveness_probe: ProbeShape | None = None
    startup_probe: ProbeShape | None = None
    security_context: SecurityContextShape | None = None
    volume_mounts: tuple[VolumeMountShape, ...] | None = None
    restart_policy: str | None = None
    lifecycle: LifecycleShape | None = None

    def handler(self, field: str) -> HandlerShape | None:
        """Return what stands in *field*, one of :data:`PROBES` and :data:`HOOKS`; None: nothing."""
        hooks = self.lifecycle or LifecycleShape()
        return {
            "readinessProbe": self.readiness_probe,
            "livenessProbe": self.liveness_probe,
            "startupProbe": self.startup_probe,
            "postStart": hooks.post_start,
            "preStop": hooks.pre_stop,
        }[field]


class VolumeShape(_Shape):
    """One of the pod's volumes: its name."""

    name: str


class MetadataShape(_Shape):
    """A pod's ``metadata``."""

    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class OsShape(_Shape):
    """A pod's ``os``."""

    name: str | None = None


class SpecShape(_Shape):
    """A pod's ``spec``."""

    containers: Annotated[tuple[ContainerShape, ...], Field(min_length=1)]
    init_containers: tuple[ContainerShape, ...] | None = None
    volumes: tuple[VolumeShape, ...] | None = None
    host_network: bool | None = None
    os: OsShape | None = None
    security_context: SecurityContextShape | None = None


class PodShape(_Shape):
    """A pod, or a workload's pod template."""

    metadata: MetadataShape | None = None
    spec: SpecShape

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels; empty where it has none."""
        return (self.metadata and self.metadata.labels) or {}

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations; empty where it has none."""
        return (self.metadata and self.metadata.annotations) or {}

    def containers(self) -> list[tuple[str, ContainerShape]]:
        """Return every container with its path: ``spec.initContainers[0]`` and so on."""
        return [
            *_placed("initContainers", self.spec.init_containers or ()),
            *_placed("containers", self.spec.containers),
        ]


def _placed(field: str, containers: Iterable[ContainerShape]) -> Iterator[tuple[str, ContainerShape]]:
    for index, container in enumerate(containers):
        yield f"spec.{field}[{index}]", container


def read(pod: Mapping[str, object]) -> PodShape:
    """Return what injection reads of *pod*. Raises InjectionError naming the field, its value and what is allowed."""
    try:
        found = PodShape.model_validate_json(json.dumps(pod))
    except ValidationError as error:
        raise InjectionError(explain(error, PodShape)) from None
    except (TypeError, ValueError, RecursionError):
        raise InjectionError(
            "spec: what JSON cannot hold, or nested too deeply: allowed: a pod as Kubernetes takes it"
        ) from None
    _refuse_duplicates([(at, container.name) for at, container in found.containers()])
    _refuse_duplicates(
        [(f"spec.volumes[{index}]", volume.name) for index, volume in enumerate(found.spec.volumes or ())]
    )
    return found


def _refuse_duplicates(names: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for at, name in names:
        if name in seen:
            raise InjectionError(f"{at}.name: {show(name)}: allowed: another name than that of {seen[name]}")
        seen[name] = at
