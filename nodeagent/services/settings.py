"""``services`` of agent.yaml: which units are in the mesh, and as whom."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from nodeagent.sections import ConfigSection

UNIT: Final = r"^[A-Za-z0-9:_.@\\-]{1,247}\.service$"
"""systemd.unit(5)."""
_LABEL: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
Texts = Annotated[dict[str, str], Field(max_length=64)]


class ServiceSettings(ConfigSection):
    """A unit of systemd, and the pod that it is for the mesh."""

    unit: str = Field(pattern=UNIT)
    namespace: str = Field("default", pattern=_LABEL)
    name: str | None = Field(None, pattern=_NAME)
    """Of the pod; absent: the unit's and the node's."""
    service_account: str = Field("default", pattern=_NAME)
    """Its identity is ``spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT``."""
    labels: Texts = Field(default_factory=dict)
    annotations: Texts = Field(default_factory=dict)
    """As of a pod: ``nodeagent.io/...``, ``traffic.sidecar.istio.io/...``."""
