"""What policies rest on beside what they say: settings of the whole mesh, named as in Istio's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PathNormalization = Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]


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

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """Return all its names, the own one first."""
        return (self.trust_domain, *self.trust_domain_aliases)
