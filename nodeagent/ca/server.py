"""``nodeagent ca serve``: Istio's certificate service with gRPC over TLS, its own certificate
issued by the authority it serves.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc

from nodeagent.ca.grants import Grants
from nodeagent.ca.pods import Pods
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.service import IssuingService, Rates
from nodeagent.ca.service_account import ServiceAccountValidator
from nodeagent.ca.settings import CaConfig
from nodeagent.ca.tokens import StaticTokens, Validator
from nodeagent.errors import ControlError, IdentityError, translated
from nodeagent.identity.ca import CertificateAuthority, ServerCertificate
from nodeagent.identity.serving import LOOK_SECONDS, ServingCertificate
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.protocols.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from nodeagent.resources.directory import DirectorySource
from nodeagent.service import kept, until_signal
from nodeagent.vocabulary import host_port

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"
MAX_REQUEST_BYTES: Final = 64 << 10
MAX_METADATA_BYTES: Final = 32 << 10
MAX_REQUESTS: Final = 256
"""Requests under way; more are refused with RESOURCE_EXHAUSTED."""
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


class Server:
    """The service on its port. Use :meth:`start`, then :meth:`run`; :meth:`stop` ends it."""

    def __init__(self, config: CaConfig) -> None:
        """Open the authority and what callers are known by. Raises IdentityError."""
        self._config = config
        self._authority = CertificateAuthority.open_or_create(config.directory, config.trust_domain)
        self._serving = ServingCertificate(self._authority, config.names)
        self._pods = Pods(config.trust_domain)
        agents = frozenset(spiffe_id(config.trust_domain, *account.split("/")) for account in config.node_agents)
        grants = Grants(config.trust_domain, agents, self._pods.identities_on)
        self._service = IssuingService(
            self._authority,
            _validators(config, self._pods),
            grants,
            Rates(config.requests_per_second),
            config.max_ttl_seconds,
        )
        self._source = DirectorySource(config.source)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Read the cluster's state, then listen. Raises ConfigError, KernelError, and ControlError
        when the address cannot be had.
        """
        self._pods.apply(await self._source.changes())
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

    async def run(self) -> None:
        """Keep up with the cluster's pods and the authority's directory until cancelled."""
        await kept(
            {
                "the reader of the source": lambda: self._pods.follow(self._source),
                "the look at the authority": self._look,
            }
        )

    async def stop(self) -> None:
        """Let requests under way end, then close."""
        if self._server is not None:
            await self._server.stop(GRACE_SECONDS)

    async def _look(self) -> None:
        while True:
            self._serving.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _create(self, request: IstioCertificateRequest, context: _Context) -> IstioCertificateResponse | None:
        metadata = dict(context.invocation_metadata() or ())
        impersonated = (
            request.metadata.fields["ImpersonatedIdentity"].string_value
            if "ImpersonatedIdentity" in request.metadata.fields
            else ""
        )
        try:
            with translated(IdentityError, "the request cannot be served"):
                issued = self._service.create(
                    str(metadata.get("authorization", "")), request.csr, request.validity_duration, impersonated
                )
        except Refusal as refusal:
            log.warning("%s: refused: %s: %s", context.peer(), refusal.status, refusal)
            await context.abort(grpc.StatusCode[refusal.status], str(refusal))
        except IdentityError as error:
            log.error("%s: not issued: %s", context.peer(), error)
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


def _validators(config: CaConfig, pods: Pods) -> list[Validator]:
    validators: list[Validator] = []
    if config.authentication.token_file is not None:
        validators.append(StaticTokens(config.authentication.token_file, config.trust_domain))
    if config.authentication.service_account_tokens is not None:
        validators.append(
            ServiceAccountValidator(config.authentication.service_account_tokens, config.trust_domain, pods.live)
        )
    return validators


async def serve(config: CaConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises NodeagentError."""
    server = Server(config)
    await server.start()
    log.info("serving %s on %s:%d", SERVICE, config.address, server.port)
    try:
        await until_signal(server.run())
    finally:
        await server.stop()
