"""The pod's certificate, from whoever serves Envoy's secret discovery on a unix socket: the node's
agent, or Istio's.

The stream stays open, and what comes on it is checked before it is used; what is wrong is refused
in the protocol's own words, and the last good certificate stays. A stream that ends is opened
again, with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from google.protobuf.message import DecodeError
from grpclib.client import Channel, StreamStreamMethod
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from nodeagent.errors import IdentityError, translated
from nodeagent.identity import profiles
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sds import CERTIFICATE, ROOTS, SERVICE, TYPE_URL
from nodeagent.identity.spiffe import parse
from nodeagent.identity.verify import accept
from nodeagent.protocols import envoy_core_pb2 as core
from nodeagent.protocols import envoy_discovery_pb2 as discovery
from nodeagent.protocols import envoy_tls_pb2 as tls
from nodeagent.protocols.status_pb2 import Status
from nodeagent.vocabulary import SpiffeId

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
MAX_WORDS: Final = 300
_INVALID_ARGUMENT: Final = 3
"""google.rpc.Code."""
log = logging.getLogger("nodeagent.identity")


class SecretsClient:
    """Follows the socket at *path*. *took* hears of each certificate of *namespace* in *trust_domain* that is good."""

    def __init__(self, path: Path, trust_domain: str, namespace: str, took: Callable[[Certificate], None]) -> None:
        self._path = path
        self._trust_domain = trust_domain
        self._namespace = namespace
        self._took = took
        self._pair: tls.TlsCertificate | None = None
        self._roots = b""
        self.fault = f"--sds-socket {path}: there was no answer yet"
        """Why there is nothing newer than what was taken last; empty: the stream is open, and the
        last answer was good.
        """

    async def run(self) -> None:
        """Follow for ever."""
        pause = FIRST_PAUSE
        while True:
            try:
                await self._follow()
                self._tell("the stream was ended by the server")
                pause = FIRST_PAUSE
            except GRPCError as error:
                self._tell(f"refused: {error.status.name}: {(error.message or 'no reason given')[:MAX_WORDS]!r}")
            except (OSError, ProtocolError, StreamTerminatedError, DecodeError) as error:
                self._tell((str(error) or type(error).__name__)[:MAX_WORDS])
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _follow(self) -> None:
        """Ask, and take what comes until the stream ends. Raises OSError and grpclib's exceptions."""
        channel = Channel(path=str(self._path))
        try:
            method: StreamStreamMethod[discovery.DiscoveryRequest, discovery.DiscoveryResponse]
            method = StreamStreamMethod(
                channel, f"/{SERVICE}/StreamSecrets", discovery.DiscoveryRequest, discovery.DiscoveryResponse
            )
            async with method.open() as stream:
                request = discovery.DiscoveryRequest(
                    type_url=TYPE_URL,
                    resource_names=[CERTIFICATE, ROOTS],
                    node=core.Node(id=f"sidecar~{self._namespace}"),
                )
                await stream.send_message(request)
                async for response in stream:
                    await stream.send_message(self._answer(request, response))
        finally:
            channel.close()

    def _answer(
        self, request: discovery.DiscoveryRequest, response: discovery.DiscoveryResponse
    ) -> discovery.DiscoveryRequest:
        """Take *response* in; return the next request, which accepts or refuses it."""
        request.response_nonce = response.nonce
        request.ClearField("error_detail")
        try:
            with translated(IdentityError, "the answer cannot be read"):
                self._take(response)
        except IdentityError as error:
            self._tell(str(error))
            request.error_detail.CopyFrom(Status(code=_INVALID_ARGUMENT, message=str(error)[:MAX_WORDS]))
        else:
            request.version_info = response.version_info
        return request

    def _take(self, response: discovery.DiscoveryResponse) -> None:
        """Raises IdentityError."""
        pair = self._pair
        roots = self._roots
        for resource in response.resources:
            secret = tls.Secret.FromString(resource.value)
            if secret.name == CERTIFICATE:
                pair = secret.tls_certificate
            elif secret.name == ROOTS:
                roots = secret.validation_context.trusted_ca.inline_bytes
        if pair is not None and roots:
            chain = pair.certificate_chain.inline_bytes
            certificate = accept(self._identity(chain), chain, pair.private_key.inline_bytes, roots, self._trust_domain)
            self._took(certificate)
            if self.fault:
                log.info("%s: this pod is %s", self._path, certificate.identity)
            self.fault = ""
        self._pair = pair
        self._roots = roots

    def _identity(self, chain: bytes) -> SpiffeId:
        """Return whose certificate it is: an account of the pod's namespace, in the trust domain.
        Raises IdentityError.
        """
        with translated(IdentityError, "the certificate cannot be read"):
            names = profiles.uris(x509.load_pem_x509_certificate(chain).extensions)
        if len(names) != 1:
            raise IdentityError(
                f"the certificate is for {profiles.printable(names) or 'nobody'}: one SPIFFE ID is expected"
            )
        namespace, _ = parse(names[0], self._trust_domain)
        if namespace != self._namespace:
            raise IdentityError(
                f"the certificate is for {names[0]}, not for a pod of namespace {self._namespace}: is it this "
                "pod's socket?"
            )
        return SpiffeId(names[0])

    def _tell(self, fault: str) -> None:
        """Log a fault when it is new."""
        fault = f"--sds-socket {self._path}: {fault}"
        if fault != self.fault:
            self.fault = fault
            log.warning("%s", fault)
