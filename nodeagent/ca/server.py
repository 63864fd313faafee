"""``nodeagent ca serve``: Istio's certificate service with gRPC over TLS, its own certificate
issued by the authority it serves.

What it serves for is either a folder with the cluster's state (:class:`CaFolder`) or a cluster
(:class:`CaOnCluster`), which then also keeps the authority.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from nodeagent.ca.cluster import ClusterPods, TokenReviewer
from nodeagent.ca.grants import Grants
from nodeagent.ca.measures import FAILED, ISSUED, CaMeasures
from nodeagent.ca.pods import Pods
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.secret import AuthoritySecret, ClusterAuthority, RootsConfigMap
from nodeagent.ca.service import IssuingService, Rates
from nodeagent.ca.service_account import ServiceAccountValidator
from nodeagent.ca.settings import CaCluster, CaConfig
from nodeagent.ca.tokens import StaticTokens, Validator
from nodeagent.ca.turns import SourceTurns
from nodeagent.errors import ControlError, IdentityError, NodeagentError, translated
from nodeagent.identity.ca import CertificateAuthority, ServerCertificate
from nodeagent.identity.serving import LOOK_SECONDS, ServingCertificate
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.kube.access import open_access
from nodeagent.kube.client import KubeClient
from nodeagent.protocols.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from nodeagent.resources.directory import DirectorySource
from nodeagent.service import Work, kept, until_signal
from nodeagent.telemetry.http_server import EVERYWHERE, HttpServer, Response
from nodeagent.telemetry.http_server import serve as serve_http
from nodeagent.vocabulary import SpiffeId, host_port

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"
MAX_REQUEST_BYTES: Final = 64 << 10
MAX_METADATA_BYTES: Final = 32 << 10
MAX_REQUESTS: Final = 512
"""Requests under way; more are refused with RESOURCE_EXHAUSTED."""
AT_ONCE: Final = 16
OF_ONE: Final = 4
WAITING: Final = 28
"""Whoever reaches the port can have the API server asked: so many requests at the same time, so many of
them of one address, of which so many more may wait.
"""
GRACE_SECONDS: Final = 2.0
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.so_reuseport", 0),
)
log = logging.getLogger("nodeagent.ca")
_Context = grpc.aio.ServicerContext[IstioCertificateRequest, IstioCertificateResponse]


class CaState(Protocol):
    """Where the authority is kept, and who knows which pods there are."""

    async def begin(self) -> CertificateAuthority:
        """Return the authority; what callers are known by is there then. Raises NodeagentError."""

    def validators(self) -> list[Validator]:
        """Return what tells callers by their tokens. Raises IdentityError."""

    async def runs(self, identity: SpiffeId, node: str) -> bool:
        """Say whether a pod with *identity* runs on *node*. Raises Refusal."""

    def parts(self) -> Mapping[str, Callable[[], Work]]:
        """Return what has to run meanwhile, by name."""

    async def look(self) -> None:
        """Take up what others have changed of the authority. Raises NodeagentError."""


class CaFolder:
    """A folder of objects, and the authority's directory."""

    def __init__(self, config: CaConfig, source: Path) -> None:
        self._config = config
        self._source = DirectorySource(source)
        self.pods = Pods(config.trust_domain)

    async def begin(self) -> CertificateAuthority:
        self.pods.apply(await self._source.changes())
        return CertificateAuthority.open_or_create(self._config.directory, self._config.trust_domain)

    def validators(self) -> list[Validator]:
        found = static_tokens(self._config)
        if self._config.authentication.service_account_tokens is not None:
            settings = self._config.authentication.service_account_tokens
            found.append(ServiceAccountValidator(settings, self._config.trust_domain, self.pods.live))
        return found

    async def runs(self, identity: SpiffeId, node: str) -> bool:
        return await self.pods.runs(identity, node)

    def parts(self) -> Mapping[str, Callable[[], Work]]:
        return {"the reader of the source": lambda: self.pods.follow(self._source)}

    async def look(self) -> None:
        """Whoever serves the authority's directory looks into it himself."""


class CaOnCluster:
    """A cluster's API server, with a Secret for the authority and a ConfigMap for what it trusts."""

    def __init__(self, config: CaConfig, cluster: CaCluster) -> None:
        """Raises ConfigError."""
        self._config = config
        self._api = KubeClient(open_access(cluster.kubeconfig))
        self._pods = ClusterPods(self._api, config.trust_domain)
        secret = AuthoritySecret(self._api, cluster.namespace, cluster.secret)
        self._authority = ClusterAuthority(secret, config.directory, config.trust_domain)
        self._roots = RootsConfigMap(self._api, cluster.namespace, cluster.roots)

    async def begin(self) -> CertificateAuthority:
        authority = await self._authority.open()
        await self._roots.keep(self._authority)
        return authority

    def validators(self) -> list[Validator]:
        found = static_tokens(self._config)
        if self._config.authentication.token_reviews is not None:
            audiences = self._config.authentication.token_reviews.audiences
            found.append(TokenReviewer(self._api, audiences, self._config.trust_domain, self._pods))
        return found

    async def runs(self, identity: SpiffeId, node: str) -> bool:
        return await self._pods.runs(identity, node)

    def parts(self) -> Mapping[str, Callable[[], Work]]:
        return {}

    async def look(self) -> None:
        await self._roots.keep(self._authority)


def state_of(config: CaConfig) -> CaState:
    """Return what *config* serves for. Raises ConfigError."""
    if config.kubernetes is not None:
        return CaOnCluster(config, config.kubernetes)
    assert config.source is not None  # one of the two is given: settings.py
    return CaFolder(config, config.source)


def static_tokens(config: CaConfig) -> list[Validator]:
    """Return what knows the tokens of a file, if there is one. Raises IdentityError."""
    path = config.authentication.token_file
    return [] if path is None else [StaticTokens(path, config.trust_domain)]


class Server:
    """The service on its port. Use :meth:`start`, then :meth:`run`; :meth:`stop` ends it."""

    def __init__(self, config: CaConfig) -> None:
        """Raises ConfigError."""
        self._config = config
        self.state = state_of(config)
        self._service: IssuingService
        self._serving: ServingCertificate
        self._authority: CertificateAuthority
        self._server: grpc.aio.Server | None = None
        self.telemetry: HttpServer | None = None
        self.port = 0
        self._turns = SourceTurns(AT_ONCE, OF_ONE, WAITING)
        self._measures = CaMeasures()

    async def start(self) -> None:
        """Open the authority and what callers are known by, then listen. Raises NodeagentError."""
        config = self._config
        self._authority = await self.state.begin()
        self._serving = ServingCertificate(self._authority, config.names)
        self._measures.shown_until(self._serving.current.not_after)
        agents = frozenset(spiffe_id(config.trust_domain, *account.split("/")) for account in config.node_agents)
        self._service = IssuingService(
            self._authority,
            self.state.validators(),
            Grants(config.trust_domain, agents, self.state.runs),
            Rates(config.requests_per_second),
            config.max_ttl_seconds,
        )
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_REQUESTS)
        handler = grpc.unary_unary_rpc_method_handler(
            self._create, IstioCertificateRequest.FromString, IstioCertificateResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        shown = Credentials(self._serving)
        credentials = grpc.dynamic_ssl_server_credentials(
            shown.current(), shown.changed, require_client_authentication=False
        )
        where = host_port(self._config.address, self._config.port)
        try:
            self.port = self._server.add_secure_port(where, credentials)
        except RuntimeError:
            raise ControlError(f"address {where}: cannot be listened on: is it in use?") from None
        await self._server.start()
        if config.telemetry_port is not None:
            routes = {("GET", "/ready"): self._ready, ("GET", "/metrics"): self._measures.page}
            self.telemetry = await serve_http(routes, port=config.telemetry_port, hosts=EVERYWHERE)

    async def run(self) -> None:
        """Keep up with the cluster's pods and with the authority until cancelled."""
        await kept({**self.state.parts(), "the look at the authority": self._look})

    async def stop(self) -> None:
        """Let requests under way end, then close."""
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)
        if self.telemetry is not None:
            await self.telemetry.close()

    async def _look(self) -> None:
        while True:
            try:
                await self.state.look()
            except NodeagentError as error:
                log.error("%s; what was there stays in force", error)
                self._measures.looked(succeeded=False)
            else:
                self._measures.looked(succeeded=True)
            self._serving.look()
            self._measures.shown_until(self._serving.current.not_after)
            await asyncio.sleep(LOOK_SECONDS)

    async def _ready(self, query: Mapping[str, str]) -> Response:
        if self._serving.current.not_after <= self._authority.now():
            return Response(b"the serving certificate has ended: see the log\n", 503)
        return Response(b"ready\n")

    async def _create(self, request: IstioCertificateRequest, context: _Context) -> IstioCertificateResponse | None:
        metadata = dict(context.invocation_metadata() or ())
        impersonated = (
            request.metadata.fields["ImpersonatedIdentity"].string_value
            if "ImpersonatedIdentity" in request.metadata.fields
            else ""
        )
        try:
            async with self._turns.of(context.peer().rpartition(":")[0]):
                with translated(IdentityError, "the request cannot be served"):
                    issued = await self._service.create(
                        str(metadata.get("authorization", "")), request.csr, request.validity_duration, impersonated
                    )
        except Refusal as refusal:
            log.warning("%s: refused: %s: %s", context.peer(), refusal.status, refusal)
            self._measures.answered(refusal.status)
            await context.abort(grpc.StatusCode[refusal.status], str(refusal))
        except IdentityError as error:
            log.error("%s: not issued: %s", context.peer(), error)
            self._measures.answered(FAILED)
            await context.abort(grpc.StatusCode.INTERNAL, "the authority cannot issue now: see its log")
        else:
            log.info(
                "%s: issued %s for %s to %s, %.0f s",
                context.peer(),
                issued.serial,
                issued.identity,
                issued.caller.identity,
                issued.ttl_seconds,
            )
            self._measures.answered(ISSUED)
            return IstioCertificateResponse(cert_chain=issued.chain)


class Credentials:
    """The server's own certificate, as gRPC asks for it."""

    def __init__(self, serving: ServingCertificate) -> None:
        self._serving = serving
        self._told: ServerCertificate | None = None

    def current(self) -> grpc.ServerCertificateConfiguration:
        """Return what gRPC serves with."""
        self._told = self._serving.current
        return grpc.ssl_server_certificate_configuration([(self._told.key_pem, self._told.chain_pem)])

    def changed(self) -> Any:  # gRPC's stubs leave out None, its way to say: as before
        """Return what gRPC shall serve with from now on; None: what it has. Called by its threads at each handshake."""
        return self.current() if self._told is not self._serving.current else None


async def serve(config: CaConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises NodeagentError."""
    server = Server(config)
    await server.start()
    log.info("serving %s on %s:%d", SERVICE, config.address, server.port)
    try:
        await until_signal(server.run())
    finally:
        await server.stop()
