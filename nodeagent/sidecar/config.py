"""What a sidecar may be told beside its command line: the sections of agent.yaml that are the proxy's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from nodeagent.config import Mtls, ProxySettings
from nodeagent.extension_providers import ExtensionProvider
from nodeagent.sections import ConfigSection


class SidecarConfig(ConfigSection):
    """A file of these keys, each as in agent.yaml."""

    cluster: str = "Kubernetes"
    resources: tuple[Path, ...] = Field((), max_length=64)
    proxy: ProxySettings = ProxySettings()  # type: ignore[call-arg]
    mtls: Mtls = Mtls()  # type: ignore[call-arg]
    access_log_format: Literal["text", "json"] = "text"
    extension_providers: tuple[ExtensionProvider, ...] = Field((), max_length=64)
