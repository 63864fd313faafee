"""``services`` of agent.yaml: which units are in the mesh, and as whom."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, ValidationInfo, field_validator

from nodeagent.sections import ConfigSection

UNIT: Final = r"^[A-Za-z0-9:_.\\-]([A-Za-z0-9:_.@\\-]{0,245}[A-Za-z0-9:_.\\-])?\.service$"
"""systemd.unit(5). A template alone (``foo@.service``) is no unit that runs: ``foo@a.service`` is."""
_LABEL: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
NAMES_LENGTH: Final = 220
"""Of a pod's namespace and name together, at most: both are in the name of its file."""
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

    @field_validator("name")
    @classmethod
    def _fits_a_files_name(cls, name: str | None, info: ValidationInfo) -> str | None:
        namespace = info.data.get("namespace", "")
        if name is not None and len(namespace) + len(name) > NAMES_LENGTH:
            raise ValueError(f"a name of at most {NAMES_LENGTH - len(namespace)} characters is expected here")
        return name
