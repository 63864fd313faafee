"""What a sidecar may be told beside its command line: the sections of agent.yaml that are the proxy's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from nodeagent.config import Mtls, PathNormalizationConfig, ProxySettings, TrustDomainAliases
from nodeagent.extension_providers import ExtensionProvider, provider_names
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.sections import ConfigSection


class SidecarConfig(ConfigSection):
    """A file of these keys, each as in agent.yaml."""

    cluster: str = "Kubernetes"
    resources: tuple[Path, ...] = Field((), max_length=64)
    proxy: ProxySettings = ProxySettings()  # type: ignore[call-arg]
    mtls: Mtls = Mtls()  # type: ignore[call-arg]
    access_log_format: Literal["text", "json"] = "text"
    extension_providers: tuple[ExtensionProvider, ...] = Field((), max_length=64)
    path_normalization: PathNormalizationConfig = PathNormalizationConfig()
    trust_domain_aliases: TrustDomainAliases = ()
    """As ``identity.trustDomainAliases`` of agent.yaml."""

    def mesh_settings(self, trust_domain: str) -> MeshSettings:
        """Return what policies of the mesh of *trust_domain* rest on."""
        return MeshSettings(
            trust_domain,
            self.trust_domain_aliases,
            self.path_normalization.form(),
            self.proxy.num_trusted_proxies,
            provider_names(self.extension_providers),
        )
