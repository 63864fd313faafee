"""Composition of ``nodeagent webhook``: authority, server, registration, telemetry."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Final

from nodeagent.ca.secret import AuthoritySecret, ClusterAuthority
from nodeagent.errors import NodeagentError
from nodeagent.identity.ca import CertificateAuthority, ServerCertificate
from nodeagent.identity.serving import LOOK_SECONDS, ServingCertificate
from nodeagent.kube.access import API_SERVER, open_access
from nodeagent.kube.client import KubeClient
from nodeagent.service import kept, until_signal
from nodeagent.telemetry import metrics
from nodeagent.telemetry.formats import Format
from nodeagent.telemetry.http_server import EVERYWHERE, HttpServer, Response, serve
from nodeagent.telemetry.scrapes import answer
from nodeagent.telemetry.store import Store
from nodeagent.webhook.own_image import own_image
from nodeagent.webhook.registration import RegistrationKeeper
from nodeagent.webhook.review import Admission, Entry, Review, decide, labels
from nodeagent.webhook.server import WebhookServer
from nodeagent.webhook.settings import WebhookConfig

NAME: Final = "webhook"
log = logging.getLogger("nodeagent.webhook")


class Webhook:
    """Everything of ``nodeagent webhook``: the HTTPS server, its certificate, the keeper of the
    registration, and the telemetry port. Use :meth:`start`, then :meth:`run`; :meth:`stop` ends it.
    """

    def __init__(
        self,
        config: WebhookConfig,
        authority: CertificateAuthority,
        kept: ClusterAuthority | None = None,
        own_image: str = "",
    ) -> None:
        """Prepare it by *config*, with a certificate of *authority*, which follows *kept*; pods begin with *own_image*
        where *config* names none. Raises IdentityError where the authority gives none, ConfigError where no pod
        could be injected.
        """
        self._config = config
        self._settings = config.injection.settings(os.environ.get(API_SERVER, ""), own_image)
        self._authority = authority
        self._kept = kept
        self._serving = ServingCertificate(authority, config.names)
        self._shown: ServerCertificate | None = None
        self._store = Store()
        self.server = WebhookServer(
            self._decide, lambda result, reason: self._store.add(metrics.WEBHOOK_REVIEWS, (result, reason))
        )
        self._keeper = None
        if config.registration is not None:
            api = KubeClient(open_access(config.registration.kubeconfig))
            self._keeper = RegistrationKeeper(
                api, config.registration.name, lambda: authority.roots_pem, self._registered
            )
        self.telemetry: HttpServer

    async def start(self) -> None:
        """Show a certificate and listen on both ports. Raises ControlError when an address cannot be had."""
        self._show()
        await self.server.start(self._config.address, self._config.port)
        routes = {("GET", "/ready"): self._ready, ("GET", "/metrics"): self._metrics}
        self.telemetry = await serve(routes, port=self._config.telemetry_port, hosts=EVERYWHERE)
        log.info(
            "serving %s on port %d, metrics on %d", ", ".join(self._config.names), self.server.port, self.telemetry.port
        )

    async def run(self) -> None:
        """Until cancelled: look for a new certificate and keep the API server's registration right."""
        parts = {"the look at the authority": self._follow}
        if self._keeper is not None:
            parts["the keeper of the registration"] = self._keeper.run
        await kept(parts)

    async def stop(self) -> None:
        """Take no more reviews, let those under way end (some seconds), then close both ports."""
        await self.server.stop()
        await self.telemetry.close()

    def renew(self) -> None:
        """Take up what the authority has, and have the server show another certificate if one is
        due. What fails leaves what was there in force.
        """
        self._serving.look()
        self._show()

    def _show(self) -> None:
        certificate = self._serving.current
        if certificate is not self._shown:
            self.server.use(certificate)
            self._shown = certificate
            self._store.set(metrics.CERTIFICATE_EXPIRY, (NAME,), certificate.not_after)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._kept is not None:
                    await self._kept.follow()
            except NodeagentError as error:
                log.error("%s; what was there stays in force", error)
            self.renew()

    def _decide(self, review: Review, entry: Entry) -> Admission:
        return decide(review, labels(entry, self._settings.revision), self._settings)

    def _registered(self, result: str) -> None:
        self._store.add(metrics.WEBHOOK_REGISTRATIONS, (result,))

    async def _ready(self, query: Mapping[str, str]) -> Response:
        if self._serving.current.not_after <= self._authority.now():
            return Response(b"the serving certificate has ended: see the log\n", 503)
        return Response(b"ready\n")

    async def _metrics(self, query: Mapping[str, str]) -> Response:
        return answer(self._exposition)

    async def _exposition(self, wanted: Format) -> Iterator[bytes]:
        return self._store.exposition(wanted)


def cluster_authority(config: WebhookConfig) -> ClusterAuthority | None:
    """Return the authority that is kept in a Secret, None where *config* has a directory alone. Raises ConfigError."""
    where = config.kubernetes
    if where is None:
        return None
    secret = AuthoritySecret(KubeClient(open_access(where.kubeconfig)), where.namespace, where.secret)
    return ClusterAuthority(secret, config.directory, config.trust_domain)


async def run(config: WebhookConfig) -> None:
    """Serve admission reviews, as *config* says, until SIGTERM or SIGINT. Raises NodeagentError
    when it cannot begin.
    """
    kept = cluster_authority(config)
    if kept is not None:
        authority = await kept.open()
    else:
        authority = CertificateAuthority.open_or_create(config.directory, config.trust_domain)
    own = ""
    if config.kubernetes is not None:
        client = KubeClient(open_access(config.kubernetes.kubeconfig))
        own = await own_image(client, config.injection.values, os.environ)
    webhook = Webhook(config, authority, kept, own)
    await webhook.start()
    try:
        await until_signal(webhook.run())
    finally:
        await webhook.stop()
