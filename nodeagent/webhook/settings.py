"""``webhook.yaml``: the configuration of ``nodeagent webhook``."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

from pydantic import Field

from nodeagent.ca.settings import Host, KubeName
from nodeagent.errors import ConfigError, InjectionError
from nodeagent.inject import InjectionSettings, PodNamespace, inject
from nodeagent.istio import REVISION_LABEL
from nodeagent.sections import ConfigSection


class Registration(ConfigSection):
    """The MutatingWebhookConfiguration whose caBundle is kept right."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
    kubeconfig: Path | None = None
    """How to reach the API server; absent: as the service account of the pod that this runs in."""


class AuthorityKept(ConfigSection):
    """Where the authority is kept whose directory is a copy: a Secret of the cluster."""

    kubeconfig: Path | None = None
    """How to reach the API server; absent: as the service account of the pod that this runs in."""
    namespace: KubeName
    secret: KubeName
    """It must be there; the first start fills it."""


class Injection(ConfigSection):
    """How pods are injected, as the options of ``nodeagent inject``."""

    template: str = "envoy"
    """A builtin's name or a path."""
    revision: str = Field("default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """This injector's ``istio.io/rev``; the registration's selectors must name the same."""
    native: bool = False
    hold: bool = False
    values: dict[str, object] = Field(default_factory=dict)
    """The template's."""

    def settings(self, api_server: str = "", own_image: str = "") -> InjectionSettings:
        """Return these settings as the injector takes them. Raises ConfigError when it could inject no
        pod with them.

        *api_server*: the address of the API server's Service, which speaks no mTLS of the mesh: it is added to
        ``plaintextRanges`` where it is within ``meshRanges``. *own_image*: the webhook's own, with which injected
        pods begin where no value names one. Empty: it is not known.
        """
        values = dict(self.values)
        if _within(api_server, values.get("meshRanges")):
            values["plaintextRanges"] = [*_listed(values.get("plaintextRanges")), str(ip_network(api_server))]
        settings = InjectionSettings(self.template, self.revision, self.native, self.hold, values, own_image)
        trial = {
            "metadata": {"labels": {REVISION_LABEL: self.revision}},
            "spec": {"containers": [{"name": "trial", "image": "trial"}]},
        }
        try:
            inject(trial, PodNamespace("trial"), settings)
        except InjectionError as error:
            raise ConfigError(f"injection: {error}") from None
        return settings


def _within(address: str, ranges: object) -> bool:
    """Say whether *address* is in one of *ranges*, a list or comma-separated text as the value meshRanges, and is
    not one of them itself. What is neither address nor range is not in any.
    """
    try:
        alone = ip_network(address)
        networks = [ip_network(text, strict=False) for text in _listed(ranges)]
    except (ValueError, TypeError):
        return False
    return alone not in networks and any(ip_address(address) in network for network in networks)


def _listed(ranges: object) -> list[str]:
    if isinstance(ranges, str):
        return [part.strip() for part in ranges.split(",") if part.strip()]
    return list(ranges) if isinstance(ranges, list | tuple) else []


class WebhookConfig(ConfigSection):
    """The whole of ``webhook.yaml``."""

    directory: Path
    """The authority's directory, as in ca.yaml; its certificate comes from there, and the API
    server is told its roots.
    """
    kubernetes: AuthorityKept | None = None
    """Given: the directory is a copy, in memory, of an authority that is kept in a Secret."""
    trust_domain: str = Field("cluster.local", pattern=r"^[a-z0-9._-]{1,255}$")
    names: tuple[Host, ...] = Field(min_length=1, max_length=100)
    """Host names by which the API server reaches the webhook: SERVICE.NAMESPACE.svc. Its certificate is for them."""
    address: str = "0.0.0.0"
    port: int = Field(15017, ge=0, le=65535)
    telemetry_port: int = Field(15014, ge=0, le=65535)
    """/metrics and /ready, without TLS."""
    registration: Registration | None = None
    """Absent: somebody else keeps the caBundle."""
    injection: Injection = Injection()  # type: ignore[call-arg]
