"""What a verified token says, as authorization sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SPACE_DELIMITED: Final = frozenset(("scope", "permission"))
"""Claims that hold a list in one text (RFC 8693, section 4.2); Istio always splits these."""


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
    space_delimited: frozenset[str] = SPACE_DELIMITED
    """Names of claims of which each word, not the text as a whole, is compared."""
    beside: tuple[Claims, ...] = ()
    """What other tokens of the request were proved to say: it refuses, but allows nothing."""

    @property
    def principal(self) -> str:
        """Istio's ``request.auth.principal``."""
        return f"{self.issuer}/{self.subject}"
