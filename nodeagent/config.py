"""``agent.yaml``: the daemon's own configuration, validated whole before anything starts."""

from __future__ import annotations

import os
import socket
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, Field, PlainValidator, ValidationError, field_validator, model_validator

from nodeagent import istio, processors
from nodeagent.errors import ConfigError, ResourceError, unread
from nodeagent.extension_providers import ExtensionProvider, provider_names
from nodeagent.places import cgroups
from nodeagent.policy.mesh_settings import MeshSettings, PathNormalization
from nodeagent.resources import yaml_text
from nodeagent.sections import AbsolutePath, ConfigSection, SecretFile, told
from nodeagent.services.settings import ServiceSettings
from nodeagent.vocabulary import WhenDead


def _log_settings(value: object) -> object:
    """Return the section ``logs``. Raises ValidationError."""
    from nodeagent.logs import settings

    return settings.LogSettings.model_validate(value)


if TYPE_CHECKING:
    from nodeagent.logs.settings import LogSettings
else:  # how logs are validated is 2 MB, and only for a daemon that reads them
    LogSettings = Annotated[object, PlainValidator(_log_settings)]
ABSENT: Final = "write one (docs/configuration.md), or name another with -c"
MAX_SECONDS: Final = 30 * 86400
"""Of a timeout; more is a mistake in its unit."""
DeliverySetting = Literal["auto", "network", "inside"]
MAX_WORKERS: Final = 256
WORKERS_USER: Final = (1 << 31) + 1337
"""Beyond what a pod's ``runAsUser`` may be (Kubernetes, IsValidUserID) and an image's ``USER`` (containerd's and
runc's lookup of users): 2147483647.
"""
Model = TypeVar("Model", bound=BaseModel)


def _found_cgroup() -> Path:
    return cgroups.pods_root(cgroups.own_mountinfo())


class MapSizes(ConfigSection):
    """Entries per BPF map; a full map fails safe and is counted."""

    pods: int = Field(1024, ge=1, le=65536)
    connections: int = Field(65536, ge=1, le=4194304)
    exclusions: int = Field(16384, ge=1, le=1048576)
    """Ports that are not captured, or not protected as their pod is: a pod has 128 at most (``MAX_EXCLUDED``)."""
    endpoints: int = Field(16384, ge=1, le=1048576)
    """Of Services whose ClusterIPs are balanced in the kernel."""
    verdicts: int = Field(65536, ge=1, le=4194304)
    """Pairs of pods, by port, that the kernel decides."""


class Redirect(ConfigSection):
    """Capture: which pods' cgroup subtree, where to pin, what to do about pods that are not enrolled."""

    cgroup: AbsolutePath = Field(default_factory=_found_cgroup)
    """Below which all pods are; found where the kubelet makes it."""
    pin_directory: AbsolutePath = Path("/sys/fs/bpf/nodeagent")
    unknown_pods: Literal["allow", "deny"] = "allow"
    delivery: DeliverySetting = "auto"
    """How an application on the client's own node is reached: dialled over the pods' interfaces,
    where the CNI's policy holds (``network``), within its own pod (``inside``), or over the network
    wherever a NetworkPolicy may concern the pair (``auto``).
    """
    enroll: Literal["auto", "all", "labelled", "none"] = "auto"
    """Which pods are captured: all that do not ask to be left alone, those that ask for it, or none
    (the agent only gives certificates to pods that ask, as where all still have classic sidecars).
    ``auto``: all of a lab, those that ask on a cluster. Also true (all) and false (none).
    """
    ambient_labels: bool = False
    """Whether Istio's label ``istio.io/dataplane-mode`` asks for capture too."""
    heartbeat_timeout_seconds: float = Field(2.0, ge=0.2, le=60)
    kernel_path_timeout_seconds: float = Field(60.0, ge=1, le=86400)
    """How long verdicts and endpoints in the kernel are used that no daemon confirms; longer than the heartbeat's."""
    when_dead: WhenDead = "policy"
    """What happens to a pod's connections while no daemon looks at them: refused where a policy
    protects the pod, all passed, or all refused.
    """
    check_interval_seconds: float = Field(5.0, ge=0.1, le=3600)
    bypass: Literal["proven", "asked"] = "proven"
    """Of pods with ``nodeagent.io/bypass`` sockets are joined past TCP where this kernel lets no
    application tell; or all of them, on their author's word.
    """
    maps: MapSizes = MapSizes()  # type: ignore[call-arg]

    @field_validator("enroll", mode="before")
    @classmethod
    def _all_or_none(cls, value: object) -> object:
        return {True: "all", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _outlives_a_beat(self) -> Self:
        if self.kernel_path_timeout_seconds <= self.heartbeat_timeout_seconds:
            raise ValueError("kernelPathTimeoutSeconds must be longer than heartbeatTimeoutSeconds")
        return self


class Limits(ConfigSection):
    """Bounds on what a pod may make the shared proxy hold."""

    header_bytes: int = Field(61440, ge=1024, le=1048576)
    header_count: int = Field(100, ge=1, le=10000)
    connections_per_pod: int = Field(10000, ge=1)
    streams_per_connection: int = Field(1024, ge=1, le=1048576)
    """What a client of HTTP/2 may ask at once on one connection."""
    streams_per_pod: int = Field(16384, ge=1)
    """And on all connections of a pod."""
    held_bytes_per_pod: int = Field(268435456, ge=16777216)
    """Of bodies that wait in a worker for who takes them, on all HTTP/2 connections of a pod: beyond
    half of it, its clients open no more streams; beyond it, the connection on which more comes ends.
    """
    buffer_bytes: int = Field(65536, ge=4096, le=16777216)
    idle_upstream_connections: int = Field(256, ge=0, le=65536)
    """Kept for the next request, for each client and endpoint; 0: every request gets a connection
    of its own, and the server is told so.
    """


class Timeouts(ConfigSection):
    """Seconds. For what an application may take there is no bound unless one is set: the network has none either."""

    connect: float = Field(10, gt=0, le=MAX_SECONDS)
    head: float = Field(300, gt=0, le=MAX_SECONDS)
    """For a request's head, from its first byte on."""
    request: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """From the complete request to the first byte of the answer."""
    stream_idle: float | None = Field(None, gt=0, le=MAX_SECONDS)
    """How long a body, or a connection that is relayed, may stand still."""
    idle: float = Field(3600, gt=0, le=MAX_SECONDS)
    """How long an HTTP connection is kept for its next request."""
    sniff: float = Field(0.1, gt=0, le=5)
    """How long a port of unknown protocol may keep silent before it is carried as TCP."""
    handshake: float = Field(10, gt=0, le=MAX_SECONDS)
    drain: float = Field(30, ge=0, le=MAX_SECONDS)
    """How long a worker that is replaced lets its connections end."""
    hand_over: float = Field(3600, ge=0, le=MAX_SECONDS)
    """How long the connections go on of a daemon that another one has taken over from, and of the
    workers of a control that died.
    """
    stop: float = Field(2, ge=0, le=600)
    """How long a daemon that is stopped does: nobody takes its place, and meanwhile pods that a
    policy protects are refused.
    """


class ProxySettings(ConfigSection):
    workers: int | Literal["auto"] = 1
    """1 to 256; ``auto``: one for each processor that the agent may use, by its CPU limit too."""
    user: int = Field(WORKERS_USER, ge=1, le=(1 << 32) - 2)
    """User and group that workers become: nobody else's, as the kernel bounds many things by user."""
    busy_poll_microseconds: int = Field(100, ge=0, le=1000)
    """A worker whose events follow each other faster than this looks for the next one instead of
    sleeping; 0: it always sleeps.
    """
    client_cert_header: Literal["read", "ignored"] = "read"
    """What applications do with X-Forwarded-Client-Cert. Where they may read it, HTTP does not take
    the kernel path unless ``nodeagent.io/path`` asks for it: there nobody makes the header, nor
    removes one that a client made up.
    """
    shared_connections: bool = True
    """Whether connections to another node's agent, which is set so too, are carried over few of mTLS, as
    soon as there are several at once. A sidecar has none.
    """
    hbone: bool = False
    """Whether this mesh and Istio's ambient one are one, by the same roots: pods take HBONE at port 15008,
    and nothing else there, and pods of the other are reached so.
    """
    num_trusted_proxies: int = Field(0, ge=0, le=100)
    """So many proxies stand before the mesh's gateway, as Istio's ``gatewayTopology`` has it, so that the
    client is in the entry of X-Forwarded-For before as many last ones: for ``remote.ip`` of policies.
    """
    limits: Limits = Limits()  # type: ignore[call-arg]
    timeouts: Timeouts = Timeouts()  # type: ignore[call-arg]

    @field_validator("workers", mode="before")
    @classmethod
    def _some_workers(cls, value: object) -> object:
        if value != "auto" and (type(value) is not int or not 1 <= value <= MAX_WORKERS):
            raise ValueError(f"must be a number from 1 to {MAX_WORKERS}, or auto")
        return value

    def worker_count(self) -> int:
        """Return the number of worker processes that ``workers`` stands for."""
        return min(processors.usable(), MAX_WORKERS) if self.workers == "auto" else self.workers


class Mtls(ConfigSection):
    mode: Literal["PERMISSIVE", "STRICT"] = "PERMISSIVE"
    """Where no PeerAuthentication says otherwise."""
    root_namespace: str = Field(istio.ROOT_NAMESPACE, pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Policies of this namespace are for the whole mesh."""


class IstioCaConfig(ConfigSection):
    """A service of Istio's CA protocol: istiod, or ``nodeagent ca``."""

    address: str = Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")
    """``HOST:PORT``; the server's certificate must be for HOST."""
    token_file: SecretFile
    """This node's token, read anew for each request."""
    root_cert_file: AbsolutePath
    """Roots that the server and the workloads are verified against, read anew when they change."""
    cluster_id: str = ""
    """What the CA calls this cluster; empty: ``cluster``."""
    timeout: float = Field(10, gt=0, le=300)

    @field_validator("address")
    @classmethod
    def _port(cls, address: str) -> str:
        if not 1 <= int(address.rpartition(":")[2]) <= 65535:
            raise ValueError("HOST:PORT is expected, with a port from 1 to 65535")
        return address


class IdentityFiles(ConfigSection):
    """A mount with ``cert-chain.pem``, ``key.pem`` and ``root-cert.pem`` that something else renews."""

    directory: AbsolutePath


TrustDomainAliases = Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,255}$")], ...], Field(max_length=64)]


class Identity(ConfigSection):
    """Where certificates come from: exactly one of ``caDirectory``, ``istioCa`` and ``files``."""

    ca_directory: AbsolutePath | None = None
    """The built-in CA: a directory that the nodes share (its keys are 0600)."""
    istio_ca: IstioCaConfig | None = None
    files: IdentityFiles | None = None
    trust_domain: str = Field("cluster.local", pattern=r"^[a-z0-9._-]{1,255}$")
    trust_domain_aliases: TrustDomainAliases = ()
    """Other names of the trust domain: certificates of those, by the same roots, are taken, and policies that
    name one of them mean all.
    """
    ttl_seconds: int = Field(86400, ge=10)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.ca_directory, self.istio_ca, self.files].count(None) != 2:
            raise ValueError("exactly one of caDirectory, istioCa and files must be given")
        return self


class AccessLogConfig(ConfigSection):
    path: str = "-"
    """A file to append to, ``-`` for standard output, empty for none."""
    format: Literal["text", "json"] = "text"

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if path not in ("", "-") and (not path.startswith("/") or "\0" in path):
            raise ValueError("an absolute path, - or an empty text is expected")
        return path


class JwksSettings(ConfigSection):
    allow_local: bool = False
    """Fetch key sets that RequestAuthentications name from loopback and link-local addresses, too."""


class Telemetry(ConfigSection):
    access_log: AccessLogConfig = AccessLogConfig()
    admin_port: int = Field(istio.ADMIN_PORT, ge=0, le=65535)
    metrics_port: int = Field(istio.STATUS_PORT, ge=0, le=65535)
    ready_port: int = Field(istio.READY_PORT, ge=0, le=65535)
    scrapes: Literal["declared", "identified"] = "declared"
    """Who may scrape a pod's metrics that ``prometheus.io/scrape`` declares: everybody, by GET of
    exactly that port and path, whatever mTLS mode and policies say (as a sidecar's merged metrics
    are open in Istio); or who may ask anything else.
    """

    @model_validator(mode="after")
    def _ports_of_their_own(self) -> Self:
        ports = {"adminPort": self.admin_port, "metricsPort": self.metrics_port, "readyPort": self.ready_port}
        for (name, port), (other, its) in combinations(ports.items(), 2):
            if port and port == its:  # 0 is any that is free
                raise ValueError(f"{name} and {other} are both {port}: each needs one of its own")
        return self


class Kubernetes(ConfigSection):
    """A cluster: its API server and this node's container runtime."""

    kubeconfig: AbsolutePath | None = None
    """How to reach the API server; absent: as the service account of the pod that this runs in."""
    runtime: AbsolutePath | None = None
    """The socket of the container runtime (CRI v1); absent: the first that is there of those that
    containerd, CRI-O and others have.
    """
    nri: AbsolutePath = Path("/run/nri/nri.sock")
    """The socket of the runtime's Node Resource Interface: over it the runtime waits with a pod's containers
    until the pod is captured. Where there is none, none waits.
    """
    state_directory: AbsolutePath | None = None
    """Where what is known of the cluster is kept for a start while the API server is away; absent:
    ``runtimeDirectory``.
    """
    kubelet: AbsolutePath = Path("/var/lib/kubelet")
    """The kubelet's folder, as it has it itself: there it finds the driver of ``csi.nodeagent.io`` volumes.
    Without its ``plugins_registry`` there is no driver.
    """


def _this_node() -> str:
    """Return the node's name, as the kubelet has it by default and DaemonSets say it."""
    return os.environ.get("NODE_NAME") or socket.gethostname().lower()


class PathNormalizationConfig(ConfigSection):
    """In which form policies compare paths, and applications behind them receive them, as in Istio's mesh config."""

    normalization: Literal["DEFAULT", PathNormalization] = "DEFAULT"
    """``DEFAULT``: BASE."""

    def form(self) -> PathNormalization:
        """Return it, with what ``DEFAULT`` stands for."""
        return "BASE" if self.normalization == "DEFAULT" else self.normalization


class AgentConfig(ConfigSection):
    node: str = Field(default_factory=_this_node, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?$")
    """As ``spec.nodeName`` of pods has it; absent: ``NODE_NAME`` of the environment, else the host's name."""
    cluster: str = "Kubernetes"
    source: AbsolutePath | None = None
    """The cluster's state: a folder of Kubernetes objects (``objects/``) and of enrolment marks
    (``enrolled/``). Either this or ``kubernetes`` is given.
    """
    kubernetes: Kubernetes | None = None
    resources: tuple[AbsolutePath, ...] = Field((), max_length=64)
    """Folders of YAML files with PeerAuthentication, AuthorizationPolicy, RequestAuthentication and
    RateLimit, watched.
    """
    services: tuple[ServiceSettings, ...] = Field((), max_length=256)
    """Units of systemd on this machine that are in the mesh like pods."""
    runtime_directory: AbsolutePath = Path("/run/nodeagent")
    redirect: Redirect = Field(default_factory=Redirect)  # type: ignore[arg-type]
    identity: Identity
    proxy: ProxySettings = ProxySettings()  # type: ignore[call-arg]
    mtls: Mtls = Mtls()  # type: ignore[call-arg]
    jwks: JwksSettings = JwksSettings()
    telemetry: Telemetry = Telemetry()  # type: ignore[call-arg]
    path_normalization: PathNormalizationConfig = PathNormalizationConfig()
    extension_providers: tuple[ExtensionProvider, ...] = Field((), max_length=64)
    logs: LogSettings | None = None
    """Which logs of the node's pods are read, and where they are delivered; absent: none are."""

    def mesh_settings(self) -> MeshSettings:
        """Return what policies rest on."""
        identity = self.identity
        return MeshSettings(
            identity.trust_domain,
            identity.trust_domain_aliases,
            self.path_normalization.form(),
            self.proxy.num_trusted_proxies,
            provider_names(self.extension_providers),
        )

    def enroll(self) -> Literal["all", "labelled", "none"]:
        """Return which pods are captured, with what ``auto`` stands for."""
        if self.redirect.enroll != "auto":
            return self.redirect.enroll
        return "all" if self.kubernetes is None else "labelled"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.kubernetes is None):
            raise ValueError("exactly one of source and kubernetes must be given")
        if self.kubernetes is not None and self.resources:
            raise ValueError("resources goes with source; on a cluster policies are its custom resources")
        if self.kubernetes is not None and self.services:
            raise ValueError("services goes with source; a cluster's authority gives identities to its pods alone")
        return self

    @field_validator("services")
    @classmethod
    def _each_unit_once(cls, services: tuple[ServiceSettings, ...]) -> tuple[ServiceSettings, ...]:
        units = [service.unit for service in services]
        for unit in units:
            if units.count(unit) > 1:
                raise ValueError(
                    f"a unit that is given once is expected, {unit!r:.80} is given {units.count(unit)} times"
                )
        return services

    @field_validator("extension_providers")
    @classmethod
    def _named_once(cls, providers: tuple[ExtensionProvider, ...]) -> tuple[ExtensionProvider, ...]:
        names = [provider.name for provider in providers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"a name that is given once is expected, {name!r:.80} is given {names.count(name)} times"
                )
        return providers


BESIDE: Final = (("logs",), ("telemetry", "accessLog"))
"""Sections that protect nothing: a daemon starts without one that is wrong, for without a daemon what is protected
is refused.
"""


def load(path: Path) -> AgentConfig:
    """Read and validate agent.yaml. Raises ConfigError."""
    return load_as(path, AgentConfig)


def load_to_start(path: Path) -> tuple[AgentConfig, tuple[str, ...]]:
    """Read agent.yaml for a daemon that begins; return it without the sections of ``BESIDE`` that are wrong, and what
    is wrong with each. Raises ConfigError where anything else is.
    """
    document = _document(path)
    beside = {place: given for place in BESIDE if (given := _taken_out(document, place)) is not _ABSENT}
    config = _validated(path, document, AgentConfig)
    faults = []
    for place, given in beside.items():
        trial = _with(document, place, given)
        try:
            config = _validated(path, trial, AgentConfig)
        except ConfigError as error:
            faults.append(str(error))
        else:
            document = trial
    return config, tuple(faults)


def load_as(path: Path, model: type[Model]) -> Model:
    """Read *path* (YAML) and validate it as *model*.

    Raises ConfigError naming the file, the field, the value and what is allowed.
    """
    return _validated(path, _document(path), model)


_Document = dict[object, object]
"""What YAML makes of a mapping."""
_ABSENT: Final = object()


def _document(path: Path) -> _Document:
    """Raises ConfigError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(unread(path, error, ABSENT)) from None
    try:
        document = yaml_text.one(text)
    except ResourceError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(document).__name__}")
    return document


def _validated(path: Path, document: _Document, model: type[Model]) -> Model:
    """Raises ConfigError."""
    for key, value in document.items():
        if value is None:  # `logs:` alone would be off, without a word
            raise ConfigError(f"{path}: {key}: nothing stands behind it; a value is expected, or no such key")
    try:
        return model.model_validate(document)
    except ConfigError as error:  # what would be found by itself was not
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {told(error)}") from None


def _taken_out(document: _Document, place: tuple[str, ...]) -> object:
    """Take what stands at *place* out of *document*, and return it; ``_ABSENT``: nothing does."""
    *sections, key = place
    for each in sections:
        below = document.get(each)
        if not isinstance(below, dict):
            return _ABSENT
        document = below
    return document.pop(key, _ABSENT)


def _with(document: _Document, place: tuple[str, ...], given: object) -> _Document:
    """Return *document* with *given* at *place*."""
    key, *below = place
    if not below:
        return {**document, key: given}
    within = document.get(key)
    return {**document, key: _with(within if isinstance(within, dict) else {}, tuple(below), given)}
