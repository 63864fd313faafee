"""The fields of a pod that injection reads, checked before anything is decided: it may come from a
file or before an API server's validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nodeagent.errors import InjectionError
from nodeagent.inject.model import show
from nodeagent.resources.fields import PortName, PortNumber
from nodeagent.resources.load import explain

PROBES: Final = ("readinessProbe", "livenessProbe", "startupProbe")


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, strict=True)


class Port(_Part):
    container_port: PortNumber
    name: str | None = None
    protocol: str | None = None


class HttpGet(_Part):
    port: PortNumber | PortName
    path: str | None = None
    host: str | None = None
    scheme: str | None = None


class TcpSocket(_Part):
    port: PortNumber | PortName
    host: str | None = None


class Grpc(_Part):
    port: PortNumber
    service: str | None = None


class Handler(_Part):
    """What a probe does; one of them, or ``exec``, which stays as it is."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    grpc: Grpc | None = None


class Probe(Handler):
    timeout_seconds: Annotated[int, Field(ge=0)] | None = None


class SecurityContext(_Part):
    run_as_user: int | None = None


class VolumeMount(_Part):
    name: str


class Container(_Part):
    name: Annotated[str, Field(min_length=1)]
    ports: tuple[Port, ...] | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    startup_probe: Probe | None = None
    security_context: SecurityContext | None = None
    volume_mounts: tuple[VolumeMount, ...] | None = None

    def probe(self, field: str) -> Probe | None:
        """Return the probe of the field's name as Kubernetes writes it."""
        return {
            "readinessProbe": self.readiness_probe,
            "livenessProbe": self.liveness_probe,
            "startupProbe": self.startup_probe,
        }[field]


class Volume(_Part):
    name: str


class Metadata(_Part):
    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Spec(_Part):
    containers: Annotated[tuple[Container, ...], Field(min_length=1)]
    init_containers: tuple[Container, ...] | None = None
    volumes: tuple[Volume, ...] | None = None
    host_network: bool | None = None
    security_context: SecurityContext | None = None


class Pod(_Part):
    metadata: Metadata | None = None
    spec: Spec

    @property
    def labels(self) -> dict[str, str]:
        return (self.metadata and self.metadata.labels) or {}

    @property
    def annotations(self) -> dict[str, str]:
        return (self.metadata and self.metadata.annotations) or {}

    def containers(self) -> list[tuple[str, Container]]:
        """Return every container with its path: ``spec.initContainers[0]`` and so on."""
        lists = (("initContainers", self.spec.init_containers or ()), ("containers", self.spec.containers))
        return [(f"spec.{name}[{index}]", container) for name, found in lists for index, container in enumerate(found)]


def read(pod: Mapping[str, Any]) -> Pod:
    """Return what injection reads of *pod*. Raises InjectionError naming the field, its value and what is allowed."""
    try:
        found = Pod.model_validate_json(json.dumps(pod))
    except ValidationError as error:
        raise InjectionError(explain(error, Pod)) from None
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
