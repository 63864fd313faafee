"""``agent.yaml``: the daemon's own configuration, validated whole before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from nodeagent.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


class MapSizes(_Section):
    """Entries per BPF map; a full map fails safe and is counted."""

    pods: int = Field(1024, ge=1, le=65536)
    connections: int = Field(65536, ge=1, le=4194304)
    exclusions: int = Field(4096, ge=1, le=1048576)


class Redirect(_Section):
    """Capture: which pods' cgroup subtree, where to pin, what to do about pods that are not enrolled."""

    cgroup: Path
    pin_directory: Path = Path("/sys/fs/bpf/nodeagent")
    unknown_pods: Literal["allow", "deny"] = "allow"
    heartbeat_timeout_seconds: float = Field(2.0, ge=0.2, le=60)
    check_interval_seconds: float = Field(5.0, ge=0.1, le=3600)
    maps: MapSizes = MapSizes()  # type: ignore[call-arg]


class Limits(_Section):
    """Bounds on what a pod may make the shared proxy hold."""

    header_bytes: int = Field(61440, ge=1024, le=1048576)
    header_count: int = Field(100, ge=1, le=10000)
    connections_per_pod: int = Field(10000, ge=1)
    buffer_bytes: int = Field(65536, ge=4096, le=16777216)


class Timeouts(_Section):
    """Seconds."""

    connect: float = Field(10, gt=0)
    request: float = Field(300, gt=0)
    """From the complete request to the first byte of the answer."""
    idle: float = Field(3600, gt=0)
    sniff: float = Field(0.1, gt=0, le=5)
    """How long a port of unknown protocol may keep silent before it is carried as TCP."""
    handshake: float = Field(10, gt=0)
    drain: float = Field(30, ge=0)


class Proxy(_Section):
    workers: int | Literal["auto"] = 1
    limits: Limits = Limits()  # type: ignore[call-arg]
    timeouts: Timeouts = Timeouts()  # type: ignore[call-arg]

    def worker_count(self) -> int:
        """Return the number of worker processes that ``workers`` stands for."""
        return (os.cpu_count() or 1) if self.workers == "auto" else self.workers


class Mtls(_Section):
    mode: Literal["PERMISSIVE", "STRICT"] = "PERMISSIVE"


class Identity(_Section):
    """The built-in CA: a directory that the nodes share (its keys are 0600)."""

    ca_directory: Path
    trust_domain: str = Field("cluster.local", pattern=r"^[a-z0-9._-]{1,255}$")
    ttl_seconds: int = Field(86400, ge=10)


class AccessLog(_Section):
    path: str = "-"
    """A file to append to, ``-`` for standard output, empty for none."""
    format: Literal["text", "json"] = "text"


class Telemetry(_Section):
    access_log: AccessLog = AccessLog()
    admin_port: int = Field(15000, ge=0, le=65535)
    metrics_port: int = Field(15020, ge=0, le=65535)
    ready_port: int = Field(15021, ge=0, le=65535)


class AgentConfig(_Section):
    node: str = Field(min_length=1)
    cluster: str = "Kubernetes"
    source: Path
    """The cluster's state: a folder of Kubernetes objects (``objects/``) and of enrolment marks (``enrolled/``)."""
    runtime_directory: Path = Path("/run/nodeagent")
    redirect: Redirect
    identity: Identity
    proxy: Proxy = Proxy()
    mtls: Mtls = Mtls()
    telemetry: Telemetry = Telemetry()  # type: ignore[call-arg]


def load(path: Path) -> AgentConfig:
    """Read and validate *path*.

    Raises ConfigError naming the file, the field, the value and what is allowed.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(document).__name__}")
    try:
        return AgentConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{path}: {field}: {first['msg']}, not {first['input']!r:.80}{more}") from None
