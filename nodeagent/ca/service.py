"""What ``CreateCertificate`` does, without the network: who asks, what he gets, for which key, for how long."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nodeagent.ca import tokens
from nodeagent.ca.grants import Caller, Grants
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.request import public_key
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.vocabulary import SpiffeId

BURST_SECONDS: Final = 10
MAX_CALLERS: Final = 10_000
"""Callers whose rate is remembered; the one that was quiet longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Issued:
    """What a caller gets."""

    caller: Caller
    identity: SpiffeId
    serial: str
    ttl_seconds: float
    chain: tuple[str, ...]
    """PEM: leaf, intermediate, and last all roots that are trusted, as Istio's clients expect them."""


class Rates:
    """Token buckets, one a caller."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._buckets: OrderedDict[Caller, tuple[float, float]] = OrderedDict()

    def take(self, caller: Caller) -> None:
        """Count a request. Raises Refusal when there were too many."""
        now = self._clock()
        full = max(1.0, self._per_second * BURST_SECONDS)
        left, then = self._buckets.pop(caller, (full, now))
        left = min(full, left + (now - then) * self._per_second)
        self._buckets[caller] = (max(0.0, left - 1), now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Refusal(
                "RESOURCE_EXHAUSTED", f"more than {self._per_second:g} requests a second by {caller.identity}"
            )


class IssuingService:
    """Answers requests one at a time."""

    def __init__(
        self,
        authority: CertificateAuthority,
        validators: Sequence[tokens.Validator],
        grants: Grants,
        rates: Rates,
        max_ttl_seconds: float,
    ) -> None:
        self._authority = authority
        self._validators = validators
        self._grants = grants
        self._rates = rates
        self._max_ttl_seconds = max_ttl_seconds

    async def create(self, authorization: str, csr: str, validity_seconds: int, impersonated: str) -> Issued:
        """Return a certificate for the key of *csr*; the names are the caller's, never the
        request's. Raises Refusal, IdentityError.

        *validity_seconds* 0: as long as is allowed, which is also the most that is given (Istio's
        rule).
        """
        caller = await tokens.validate(self._validators, tokens.bearer(authorization))
        self._rates.take(caller)
        identity = await self._grants.identity(caller, impersonated)
        if validity_seconds < 0:
            raise Refusal("INVALID_ARGUMENT", f"validity_duration: {validity_seconds}: seconds are expected, or 0")
        key = public_key(csr, identity)
        ttl = float(min(validity_seconds or self._max_ttl_seconds, self._max_ttl_seconds))
        leaf, chain = self._authority.sign(identity, key, ttl)
        end = "-----END CERTIFICATE-----\n"
        parts = tuple(part + end for part in chain.decode().split(end) if part)
        return Issued(caller, identity, f"{leaf.serial_number:x}", ttl, (*parts, self._authority.roots_pem.decode()))
