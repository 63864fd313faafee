"""What a verified token says, as authorization sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a token whose signature, issuer, audience and times were checked (RFC 7519, section 4)."""

    issuer: str
    subject: str
    audiences: tuple[str, ...]
    presenter: str
    """``azp``, empty when the token has none."""
    values: Mapping[str, object]
    """Every claim, as in the token."""

    @property
    def principal(self) -> str:
        """Istio's ``request.auth.principal``."""
        return f"{self.issuer}/{self.subject}"
