"""The node's certificates: issued when a pod needs one, renewed at half-life, kept while they are
good.

Pods that wait come first, then the certificate that ends soonest; a few are asked for at a time, so
that a node's start does not drown the authority. Renewal that fails costs nothing until the
certificate ends: the old one stays, and it is tried again with growing pauses (Istio's rule: at
most 150 s). When what is trusted changes, all hear of it at once; when another root signs, all
certificates are issued anew. The store asks one source, and holds no authority's key.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import AwaitedError, IdentityError, translated
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.profiles import BACKDATED
from nodeagent.identity.sources import CertificateSource
from nodeagent.vocabulary import SpiffeId

JITTER: Final = 0.05
"""Share of a lifetime by which renewals of one hour are spread, to either side of the half."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 150.0
AT_ONCE: Final = 16
"""Requests under way together."""
LOOK_SECONDS: Final = 5.0
"""How often it is looked whether other roots are trusted, and at the clock, as somebody may have set it."""
log = logging.getLogger("nodeagent.identity")


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate and when it is renewed; times are Unix seconds."""

    certificate: Certificate
    renew_at: float
    failures: int = 0
    error: str = ""
    """Why the last renewal failed, empty when it did not."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An identity's state: with or without a certificate."""

    held: Held | None = None
    due: float = 0.0
    failures: int = 0
    error: str = ""
    ended: bool = False
    """The one held has ended, and that was told."""


class Certificates:
    """One certificate an identity.

    *on_change* hears of each new certificate, also of the first, and of the same one with other
    roots; *on_end* of an identity whose certificate ended before another could be had: what it
    proved holds no more. Both are called on the event loop. Nothing is issued but while :meth:`run`
    runs.
    """

    def __init__(
        self,
        source: CertificateSource,
        ttl_seconds: float,
        on_change: Callable[[Certificate], None],
        on_end: Callable[[SpiffeId], None],
        *,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._source = source
        self._ttl_seconds = ttl_seconds
        self._on_change = on_change
        self._on_end = on_end
        self._clock = clock
        self._uniform = uniform
        self._wanted: dict[SpiffeId, _Wanted] = {}
        self._under_way: dict[SpiffeId, asyncio.Future[None]] = {}
        self._queue: set[SpiffeId] = set()
        self._running = 0
        self._group: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self._signer: str | None = None
        self._trust_error = ""

    # -- asking --

    def want(self, identity: SpiffeId) -> None:
        """Have a certificate for *identity* from now on; *on_change* tells when it is there. Idempotent."""
        if identity not in self._wanted:
            self._wanted[identity] = _Wanted()
            self._request(identity)

    def adopt(self, certificate: Certificate) -> None:
        """Hold what an earlier control held, if it is still good: another is asked for at once, and
        nobody has to wait for it.
        """
        now = self._clock()
        if certificate.identity not in self._wanted and certificate.not_after > now:
            self._wanted[certificate.identity] = _Wanted(Held(certificate, now), now)
            self._on_change(certificate)

    def current(self, identity: SpiffeId) -> Certificate:
        """Return the certificate of *identity* that is good now. Raises IdentityError saying why
        there is none; AwaitedError: it is being asked for.
        """
        wanted = self._wanted.get(identity)
        if wanted is not None and wanted.held is not None:
            if _is_early(wanted.held.certificate, self._clock()):
                raise IdentityError(
                    f"the certificate of {identity} is not good yet: the clock was set back since it was issued; "
                    f"another one is asked for{wanted.error and ': '}{wanted.error}"
                )
            if wanted.held.certificate.not_after > self._clock():
                return wanted.held.certificate
            raise IdentityError(
                f"the certificate of {identity} has ended and could not be renewed: "
                f"{wanted.error or 'it is being asked for'}"
            )
        if wanted is not None and wanted.error:
            raise IdentityError(f"no certificate for {identity} yet: {wanted.error}")
        raise AwaitedError(f"no certificate for {identity} yet: it is being asked for")

    def forget(self, identity: SpiffeId) -> None:
        """Drop the certificate: no pod of this node has the identity any more."""
        self._wanted.pop(identity, None)

    def wanted(self) -> set[SpiffeId]:
        """Return the identities for which there is, or shall be, a certificate."""
        return set(self._wanted)

    def list(self) -> tuple[Held, ...]:
        """Return what is held, by identity."""
        ordered = (self._wanted[identity] for identity in sorted(self._wanted))
        return tuple(
            replace(wanted.held, renew_at=wanted.due, failures=wanted.failures, error=wanted.error)
            for wanted in ordered
            if wanted.held is not None
        )

    def trust_error(self) -> str:
        """Return why it could not be read what is trusted now; empty: it could."""
        return self._trust_error

    # -- working --

    async def run(self) -> None:
        """Issue and renew for ever; ends only with what ends control."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._running = 0
            self._queue |= self._under_way.keys()  # what a run that failed left undone
            while True:
                self._wake.clear()
                self._look_at_trust()
                pause = max(0.0, min(self.rotate() - self._clock(), LOOK_SECONDS))
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def rotate(self) -> float:
        """Ask for what is due, tell what has ended; return when to look again (infinity: nothing is held)."""
        now = self._clock()
        for identity, wanted in list(self._wanted.items()):
            if wanted.held is not None and not wanted.ended and wanted.held.certificate.not_after <= now:
                self._wanted[identity] = replace(wanted, ended=True)
                log.error("%s: the certificate has ended: %s", identity, wanted.error or "it was not renewed in time")
                self._on_end(identity)
            if wanted.due > now + LONGEST_PAUSE and _is_of_another_clock(wanted, now):
                self._wanted[identity] = wanted = replace(wanted, due=now)
            if wanted.due <= now:
                self._request(identity)
        self._fill()
        return min(
            (self._next(wanted) for identity, wanted in self._wanted.items() if identity not in self._under_way),
            default=float("inf"),
        )

    def _next(self, wanted: _Wanted) -> float:
        return wanted.due if wanted.held is None or wanted.ended else min(wanted.due, wanted.held.certificate.not_after)

    def _request(self, identity: SpiffeId) -> None:
        if identity in self._under_way:
            return
        self._under_way[identity] = asyncio.get_running_loop().create_future()
        self._queue.add(identity)
        self._wake.set()

    def _fill(self) -> None:
        """Start requests, the most urgent first, while there is room."""
        while self._queue and self._running < AT_ONCE and self._group is not None:
            identity = min(self._queue, key=self._urgency)
            self._queue.remove(identity)
            self._running += 1
            self._group.create_task(self._ask(identity))

    def _urgency(self, identity: SpiffeId) -> float:
        wanted = self._wanted.get(identity)
        return wanted.held.certificate.not_after if wanted is not None and wanted.held is not None else 0.0

    async def _ask(self, identity: SpiffeId) -> None:
        try:
            if identity in self._wanted:
                with translated(IdentityError, "what came as a certificate is not understood"):
                    certificate = await self._source.issue(identity, self._ttl_seconds)
                self._take(certificate)
        except IdentityError as error:
            self._fail(identity, str(error))
        finally:
            self._running -= 1
            self._under_way.pop(identity).set_result(None)
        self._fill()
        self._wake.set()

    def _take(self, certificate: Certificate) -> None:
        wanted = self._wanted.get(certificate.identity)
        if wanted is None:
            return  # its last pod left meanwhile
        now = self._clock()
        if wanted.held is not None and wanted.held.certificate.serial == certificate.serial:
            # Files that nobody has renewed yet; when they change, trust() tells.
            due = now + LONGEST_PAUSE
        else:
            lifetime = certificate.not_after - certificate.issued
            due = max(certificate.issued + lifetime * (0.5 + self._uniform(-JITTER, JITTER)), now + FIRST_PAUSE)
        self._wanted[certificate.identity] = _Wanted(Held(certificate, due), due)
        if wanted.held is None or wanted.held.certificate != certificate:
            self._on_change(certificate)

    def _fail(self, identity: SpiffeId, error: str) -> None:
        wanted = self._wanted.get(identity)
        if wanted is None:
            return
        now = self._clock()
        failures = wanted.failures + 1
        pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE) * self._uniform(0.8, 1.0)
        self._wanted[identity] = replace(wanted, due=now + pause, failures=failures, error=error)
        if wanted.held is None:
            state = "its pods have no mTLS"
        else:
            left = wanted.held.certificate.not_after - now
            state = f"the one held is good for {left:.0f} s" if left > 0 else "the one held has ended"
        log.error("%s: no new certificate: %s; %s; next try in %.0f s", identity, error, state, pause)

    def _look_at_trust(self) -> None:
        """Hand on roots that changed, and have all issued anew when another root signs."""
        try:
            with translated(IdentityError, "what is trusted is not understood"):
                trust = self._source.trust()
        except IdentityError as error:
            if str(error) != self._trust_error:
                self._trust_error = str(error)
                log.error("what is trusted cannot be read: %s; what is known stays in force", error)
            return
        renew = self._signer is not None and trust.signer != self._signer
        self._signer = trust.signer
        self._trust_error = ""
        for identity, wanted in list(self._wanted.items()):
            held = wanted.held
            if held is not None and held.certificate.roots_pem != trust.roots_pem:
                held = replace(held, certificate=replace(held.certificate, roots_pem=trust.roots_pem))
                self._wanted[identity] = wanted = replace(wanted, held=held)
                self._on_change(held.certificate)
            if renew:
                self._wanted[identity] = replace(wanted, due=0.0)


def _is_early(certificate: Certificate, now: float) -> bool:
    """Say whether peers with a clock as this one's refuse *certificate*, as its time has not begun."""
    return certificate.issued - BACKDATED > now


def _is_of_another_clock(wanted: _Wanted, now: float) -> bool:
    """Say whether what is due beyond the longest pause was put off by a clock that has been set back since."""
    return wanted.held is None or wanted.failures > 0 or _is_early(wanted.held.certificate, now)
