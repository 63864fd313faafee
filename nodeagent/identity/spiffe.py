"""SPIFFE IDs as Istio writes them: ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from nodeagent.errors import IdentityError
from nodeagent.vocabulary import SpiffeId

MAX_BYTES: Final = 2048
"""SPIFFE ID specification, section 2.3."""
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_ID: Final = re.compile(rf"spiffe://([a-z0-9._-]{{1,255}})/ns/({_SEGMENT})/sa/({_SEGMENT})")


@lru_cache(4096)
def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    """Return the identity of a service account: one text for all its pods, of which a cluster has thousands.

    Raises IdentityError when a part holds what a SPIFFE ID may not.
    """
    text = f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
    parse(text, trust_domain)
    return SpiffeId(text)


def parse(text: str, trust_domain: str, aliases: Collection[str] = ()) -> tuple[str, str]:
    """Return namespace and service account of the SPIFFE ID *text*.

    Raises IdentityError when it is none in Istio's form, or of another trust domain than *trust_domain*
    and *aliases* of that.
    """
    match = _ID.fullmatch(text) if len(text) <= MAX_BYTES else None
    if match is None:
        raise IdentityError(f"{text[:200]!r} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")
    if match[1] != trust_domain and match[1] not in aliases:
        raise IdentityError(
            f"{text} is of trust domain {match[1]}, not {trust_domain}: peers must share identity.trustDomain, or "
            "have it among identity.trustDomainAliases"
        )
    return match[2], match[3]


def same_account(one: str, other: str) -> bool:
    """Say whether two SPIFFE IDs of one mesh are one service account's, by whichever of its trust domains."""
    return one == other or one.split("/", 3)[3:] == other.split("/", 3)[3:]


def check_trust_domain(trust_domain: str) -> None:
    """Raise IdentityError unless *trust_domain* is one (SPIFFE ID specification, section 2.1)."""
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise IdentityError(f"trust domain {trust_domain!r}: allowed are up to 255 of a-z, 0-9, '.', '_' and '-'")
