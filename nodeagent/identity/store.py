"""The node's certificates: issued when a pod needs one, renewed at half-life, kept while they are good.

Renewal that fails costs nothing until the certificate ends: the old one stays, and it is tried again with growing
pauses (Istio's rule: at most 150 s). The store asks for certificates through one function, and holds no authority's key.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.mesh.entries import SpiffeId

JITTER: Final = 0.05
"""Share of a lifetime by which renewals of one hour are spread, to either side of the half."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 150.0
LONGEST_SLEEP: Final = 60.0
"""Seconds after which the clock is looked at again, as somebody may have set it."""
Issue = Callable[[SpiffeId], Certificate]
log = logging.getLogger("nodeagent.identity")


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate and when it is renewed; times are Unix seconds."""

    certificate: Certificate
    renew_at: float
    failures: int = 0
    error: str = ""
    """Why the last renewal failed, empty when it did not."""


class Certificates:
    """One certificate an identity. *on_change* hears of each new one, also of the first."""

    def __init__(
        self,
        issue: Issue,
        on_change: Callable[[Certificate], None],
        clock: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._issue, self._on_change, self._clock, self._uniform = issue, on_change, clock, uniform
        self._held: dict[SpiffeId, Held] = {}
        self._wake = asyncio.Event()

    def ensure(self, identity: SpiffeId) -> Certificate:
        """Return a certificate for *identity* that is good now, issuing one if need be. Raises IdentityError."""
        held = self._held.get(identity)
        if held is not None and held.certificate.not_after > self._clock():
            return held.certificate
        return self._take(self._issue(identity))

    def forget(self, identity: SpiffeId) -> None:
        """Drop the certificate: no pod of this node has the identity any more."""
        self._held.pop(identity, None)

    def list(self) -> tuple[Held, ...]:
        """Return what is held, by identity."""
        return tuple(self._held[identity] for identity in sorted(self._held))

    def rotate(self) -> float:
        """Renew what is due; return when the next one is (infinity: none is held)."""
        now = self._clock()
        for identity, held in list(self._held.items()):
            if held.renew_at <= now:
                self._renew(identity, held, now)
        return min((held.renew_at for held in self._held.values()), default=float("inf"))

    async def run(self) -> None:
        """Rotate for ever; sleeps until something is due."""
        while True:
            self._wake.clear()
            pause = max(0.0, min(self.rotate() - self._clock(), LONGEST_SLEEP))
            if not self._held:
                await self._wake.wait()
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _renew(self, identity: SpiffeId, held: Held, now: float) -> None:
        try:
            self._take(self._issue(identity))
        except IdentityError as error:
            failures = held.failures + 1
            pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE) * self._uniform(0.8, 1.0)
            self._held[identity] = replace(held, failures=failures, renew_at=now + pause, error=str(error))
            left = held.certificate.not_after - now
            state = f"is good for {left:.0f} s" if left > 0 else "has ended"
            log.error("%s: certificate not renewed: %s; the one held %s; next try in %.0f s", identity, error, state, pause)

    def _take(self, certificate: Certificate) -> Certificate:
        lifetime = certificate.not_after - certificate.issued
        renew_at = certificate.issued + lifetime * (0.5 + self._uniform(-JITTER, JITTER))
        self._held[certificate.identity] = Held(certificate, renew_at)
        self._wake.set()
        self._on_change(certificate)
        return certificate
