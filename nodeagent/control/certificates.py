"""The certificates of this node's pods as control has them: which are wanted, and who hears of each."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import orjson

from nodeagent.channel import memory_file
from nodeagent.control.concern import Snapshot
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import CertificateSource
from nodeagent.identity.store import Certificates
from nodeagent.messages import CertificateIssued
from nodeagent.parts import Parts
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.metrics import CERTIFICATE_EXPIRY
from nodeagent.telemetry.store import Store
from nodeagent.vocabulary import SpiffeId

log = logging.getLogger("nodeagent.identity")


class KeepsFiles(Protocol):
    """Who keeps descriptors across a death of control: ``SupervisorLink``."""

    def keep(self, files: Mapping[str, int]) -> None:
        """Keep copies of *files*, each in place of what had its key."""

    def drop(self, owner: str) -> None:
        """Have forgotten what is kept of *owner*."""


class TakesCertificates(Protocol):
    """Who has to have every certificate: ``Workers``."""

    def certificate(self, identity: SpiffeId, message: CertificateIssued) -> None:
        """*identity* has this certificate from now on."""

    def forget(self, identity: SpiffeId) -> None:
        """No pod of the node has *identity* any more."""


class Observer(Protocol):
    """Who acts on a certificate that came or ended."""

    def certified(self, certificate: Certificate) -> None:
        """There is a new certificate, or the same one with other roots."""

    def ended(self, identity: SpiffeId) -> None:
        """The certificate of *identity* ended before there was another."""


class NodeCertificates:
    """A concern: a certificate for each identity of this node's pods, and for no other."""

    def __init__(
        self, source: CertificateSource, ttl_seconds: float, workers: TakesCertificates, keeper: KeepsFiles
    ) -> None:
        self._workers = workers
        self._keeper = keeper
        self._observers: list[Observer] = []
        self._store = Certificates(source, ttl_seconds, self._certified, self._ended)

    def observe(self, observer: Observer) -> None:
        """Tell *observer* of what comes and ends from now on."""
        self._observers.append(observer)

    def adopt(self, inherited: Iterable[Certificate]) -> None:
        """Hold what an earlier control held, as far as it is still good."""
        for certificate in inherited:
            self._store.adopt(certificate)

    def current(self, identity: SpiffeId) -> Certificate:
        """Return the certificate of *identity* that is good now. Raises IdentityError saying why there is none."""
        return self._store.current(identity)

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Issue and renew."""
        parts.start("what renews certificates", self._store.run)
        yield

    def changed(self, snapshot: Snapshot) -> None:
        """Drop the certificates of identities that no pod of this node has any more, and ask for
        those of new ones: none is waited for.
        """
        identities = snapshot.identities()
        for identity in self._store.wanted() - identities:
            self._store.forget(identity)
            self._keeper.drop(identity)
            self._workers.forget(identity)
        for identity in identities:
            self._store.want(identity)

    def grown(self, snapshot: Snapshot) -> None:
        """Everything was asked for when the snapshot changed."""

    def missing(self) -> list[str]:
        """A pod without a certificate says so itself."""
        return []

    def routes(self) -> Routes:
        """``nodeagent get certs``."""
        return {("GET", "/certs"): self._page}

    def collect(self, store: Store) -> None:
        """Set the metrics of what is held."""
        held: dict[tuple[str, ...], float] = {
            (each.certificate.identity,): each.certificate.not_after for each in self._store.list()
        }
        store.replace(CERTIFICATE_EXPIRY, held)

    async def _page(self, query: Mapping[str, str]) -> Response:
        return Response.json(
            [
                {
                    "identity": held.certificate.identity,
                    "serial": held.certificate.serial,
                    "issued": held.certificate.issued,
                    "not_after": held.certificate.not_after,
                    "renew_at": held.renew_at,
                    "error": held.error,
                }
                for held in self._store.list()
            ]
        )

    def _certified(self, certificate: Certificate) -> None:
        told = certificate.to_json()
        self._workers.certificate(certificate.identity, CertificateIssued(told))
        for observer in self._observers:
            observer.certified(certificate)
        try:
            self._keep(certificate.identity, orjson.dumps(told))
        except OSError as error:  # no descriptors, no memory
            log.warning("%s: its certificate would not outlive control: %s", certificate.identity, error.strerror)

    def _keep(self, identity: SpiffeId, told: bytes) -> None:
        """Raises OSError."""
        file = memory_file(told)
        try:
            self._keeper.keep({f"{identity}/certificate": file})
        finally:
            os.close(file)

    def _ended(self, identity: SpiffeId) -> None:
        for observer in self._observers:
            observer.ended(identity)
