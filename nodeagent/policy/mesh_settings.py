"""What policies rest on beside what they say: settings of the whole mesh, named as in Istio's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PathNormalization = Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]


@dataclass(frozen=True, slots=True)
class ProviderNames:
    """Whom policies may ask: the names of ``extensionProviders``, by what they are asked for."""

    authorizers: frozenset[str] = frozenset()
    limiters: frozenset[str] = frozenset()

    def no_authorizer(self, name: str) -> str:
        """Say that no external authorizer is named *name*; empty: one is."""
        return "" if name in self.authorizers else _missing("external authorizer", name)

    def no_limiter(self, name: str) -> str:
        """Say that no rate limit service is named *name*; empty: one is."""
        return "" if name in self.limiters else _missing("rateLimitGrpc provider", name)


NOBODY: Final = ProviderNames()


def _missing(what: str, name: str) -> str:
    return f"no {what} is named {name!r:.80} in extensionProviders of agent.yaml"


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """One mesh's."""

    trust_domain: str
    trust_domain_aliases: tuple[str, ...] = ()
    """Other names of it: who proves an identity there is of this mesh, and policies that name one mean all."""
    path_normalization: PathNormalization = "BASE"
    """The form in which policies compare paths, and applications receive them."""
    trusted_proxies: int = 0
    """So many last entries of X-Forwarded-For are of the mesh's own proxies, not of clients."""
    providers: ProviderNames = NOBODY

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """Return all its names, the own one first."""
        return (self.trust_domain, *self.trust_domain_aliases)
