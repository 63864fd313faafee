"""Envoy's secret discovery service (xDS: whole state and delta), for one pod that is already known.

There are two secrets, by the names that Istio's sidecars ask for: ``default`` (certificate and key)
and ``ROOTCA`` (what peers are verified against). Until the certificate is there, an answer is not
due; whoever asks for another name is told that it does not exist where the protocol has words for
that (delta), and nothing where it has none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from nodeagent.identity.certificate import Certificate
from nodeagent.identity.subject import Subject
from nodeagent.protocols import envoy_core_pb2 as core
from nodeagent.protocols import envoy_discovery_pb2 as discovery
from nodeagent.protocols import envoy_tls_pb2 as tls

SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
TYPE_URL: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
CERTIFICATE = "default"
ROOTS = "ROOTCA"
WILDCARD: Final = "*"
MAX_NAMES: Final = 16
"""Names that a stream may ask for; an Envoy asks for one."""
MAX_NAME: Final = 256
"""Characters of a name, or of a version: what a stream asked for is kept as long as it is open."""
MAX_WORDS: Final = 300
"""Characters of an Envoy's complaint that are logged."""
log = logging.getLogger("nodeagent.identity")


@dataclass(frozen=True, slots=True)
class SdsSecrets:
    """The secrets of one certificate: name -> (version, resource)."""

    by_name: Mapping[str, tuple[str, AnyMessage]]
    certificate: Certificate

    @classmethod
    def of(cls, certificate: Certificate) -> SdsSecrets:
        inline = core.DataSource
        pair = tls.TlsCertificate(
            certificate_chain=inline(inline_bytes=certificate.chain_pem),
            private_key=inline(inline_bytes=certificate.key_pem),
        )
        trusted = tls.CertificateValidationContext(trusted_ca=inline(inline_bytes=certificate.roots_pem))
        found = {}
        for secret in (
            tls.Secret(name=CERTIFICATE, tls_certificate=pair),
            tls.Secret(name=ROOTS, validation_context=trusted),
        ):
            content = secret.SerializeToString(deterministic=True)
            # A version is told in logs and statistics: a digest with the key in it would do, but
            # what is public will too.
            public = certificate.chain_pem if secret.name == CERTIFICATE else certificate.roots_pem
            found[secret.name] = hashlib.sha256(public).hexdigest()[:16], AnyMessage(type_url=TYPE_URL, value=content)
        return cls(found, certificate)

    def select(self, names: Iterable[str]) -> dict[str, tuple[str, AnyMessage]]:
        """Return those of *names* that exist."""
        wanted = set(names)
        return {name: secret for name, secret in self.by_name.items() if name in wanted or WILDCARD in wanted}


@dataclass(slots=True)
class _Whole:
    """What a stream of whole state has asked for and was told."""

    names: frozenset[str] = frozenset()
    nonce: str = ""
    told: dict[str, str] = field(default_factory=dict)
    """Name -> version of what the last response held, accepted or not."""
    due: bool = False
    """A response is owed whether or not anything is new."""

    def take(self, request: discovery.DiscoveryRequest, subject: Subject) -> None:
        """Take a request in. Raises GRPCError."""
        _check_type(request.type_url)
        names = _names(request.resource_names)
        first = not self.nonce and not self.names
        if request.response_nonce and request.response_nonce != self.nonce:
            return  # about an older response: another request, about the newer one, is on its way
        if request.HasField("error_detail"):
            _complain(subject, request.error_detail.message)
        if first and not names:
            names = frozenset((WILDCARD,))  # the older form of asking for all
        self.due |= names != self.names or not request.response_nonce
        self.names = names


@dataclass(slots=True)
class _Delta:
    """What a delta stream is subscribed to and was told."""

    names: set[str] = field(default_factory=set)
    told: dict[str, str] = field(default_factory=dict)
    """Name -> version that the client has; empty version: it knows that there is none."""
    begun: bool = False

    def take(self, request: discovery.DeltaDiscoveryRequest, subject: Subject) -> None:
        """Take a request in. Raises GRPCError."""
        _check_type(request.type_url)
        added = _names(request.resource_names_subscribe)
        removed = _names(request.resource_names_unsubscribe)
        if not self.begun:
            # What a client kept over a reconnect counts for this first request only.
            self.told.update(
                (name, version)
                for name, version in request.initial_resource_versions.items()
                if name in added and len(version) <= MAX_NAME
            )
            added = added or frozenset((WILDCARD,))
        else:
            for name in added:
                self.told.pop(name, None)  # whoever subscribes again has lost it
        if request.HasField("error_detail"):
            _complain(subject, request.error_detail.message)
        self.begun = True
        self.names = (self.names | added) - removed
        if len(self.names) > MAX_NAMES:
            raise _too_many()
        for name in removed:
            self.told.pop(name, None)


class SecretDiscovery:
    """The service, as *subject* sees it."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods by path, as grpclib wants them."""
        whole = (discovery.DiscoveryRequest, discovery.DiscoveryResponse)
        delta = (discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse)
        return {
            f"/{SERVICE}/StreamSecrets": Handler(self._stream, Cardinality.STREAM_STREAM, *whole),
            f"/{SERVICE}/DeltaSecrets": Handler(self._delta, Cardinality.STREAM_STREAM, *delta),
            f"/{SERVICE}/FetchSecrets": Handler(self._fetch, Cardinality.UNARY_UNARY, *whole),
        }

    async def _stream(self, stream: Stream[discovery.DiscoveryRequest, discovery.DiscoveryResponse]) -> None:
        state = _Whole()
        count = 0
        async with aclosing(_events(stream, self._subject)) as events:
            async for event in events:
                if isinstance(event, discovery.DiscoveryRequest):
                    state.take(event, self._subject)
                    event = await self._now()
                found = event.select(state.names)
                versions = {name: version for name, (version, _) in found.items()}
                if found and (state.due or versions != state.told):
                    count += 1
                    state.nonce = str(count)
                    state.told = versions
                    state.due = False
                    await stream.send_message(_response(found, state.nonce))

    async def _delta(self, stream: Stream[discovery.DeltaDiscoveryRequest, discovery.DeltaDiscoveryResponse]) -> None:
        state = _Delta()
        count = 0
        async with aclosing(_events(stream, self._subject)) as events:
            async for event in events:
                if isinstance(event, discovery.DeltaDiscoveryRequest):
                    state.take(event, self._subject)
                    event = await self._now()
                fresh = {
                    name: secret
                    for name, secret in event.select(state.names).items()
                    if state.told.get(name) != secret[0]
                }
                missing = [
                    name
                    for name in sorted(state.names - event.by_name.keys() - {WILDCARD})
                    if state.told.get(name) != ""
                ]
                if fresh or missing:
                    count += 1
                    state.told |= {name: version for name, (version, _) in fresh.items()} | dict.fromkeys(missing, "")
                    resources = [
                        discovery.Resource(name=name, version=version, resource=resource)
                        for name, (version, resource) in fresh.items()
                    ]
                    response = discovery.DeltaDiscoveryResponse(
                        type_url=TYPE_URL, nonce=str(count), resources=resources, removed_resources=missing
                    )
                    response.system_version_info = _version(event.by_name)
                    await stream.send_message(response)

    async def _fetch(self, stream: Stream[discovery.DiscoveryRequest, discovery.DiscoveryResponse]) -> None:
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "the call has no request")
        state = _Whole()
        state.take(request, self._subject)
        await stream.send_message(_response((await self._now()).select(state.names), ""))

    async def _now(self) -> SdsSecrets:
        return SdsSecrets.of(await self._subject.certificate.other_than(None))


async def _events(stream: Stream[Any, Any], subject: Subject) -> AsyncGenerator[Any, None]:
    """Yield each request as it comes, and the secrets each time that they change; end when the
    client has nothing more to say.
    """
    seen = subject.certificate.value
    request = asyncio.ensure_future(stream.recv_message())
    change = asyncio.ensure_future(subject.certificate.other_than(seen))
    try:
        while True:
            await asyncio.wait((request, change), return_when=asyncio.FIRST_COMPLETED)
            if request.done():
                message = request.result()
                if message is None:
                    return
                yield message
                request = asyncio.ensure_future(stream.recv_message())
            if change.done():
                seen = change.result()
                yield SdsSecrets.of(seen)
                change = asyncio.ensure_future(subject.certificate.other_than(seen))
    finally:
        for waiting in (request, change):
            waiting.cancel()
        await asyncio.gather(request, change, return_exceptions=True)


def _response(found: Mapping[str, tuple[str, AnyMessage]], nonce: str) -> discovery.DiscoveryResponse:
    resources = [resource for _, resource in found.values()]
    return discovery.DiscoveryResponse(
        version_info=_version(found), resources=resources, type_url=TYPE_URL, nonce=nonce
    )


def _version(found: Mapping[str, tuple[str, AnyMessage]]) -> str:
    return "-".join(version for _, (version, _) in sorted(found.items()))


def _names(names: Iterable[str]) -> frozenset[str]:
    found = frozenset(names)
    if len(found) > MAX_NAMES or any(len(name) > MAX_NAME for name in found):
        raise _too_many()
    return found


def _too_many() -> GRPCError:
    return GRPCError(
        Status.INVALID_ARGUMENT,
        f"at most {MAX_NAMES} names of {MAX_NAME} characters are allowed; there are {CERTIFICATE} and {ROOTS}",
    )


def _check_type(url: str) -> None:
    if url not in ("", TYPE_URL):
        raise GRPCError(Status.INVALID_ARGUMENT, f"type_url: {TYPE_URL} is all that is served here")


def _complain(subject: Subject, words: str) -> None:
    """Log that an Envoy refused what it got; it keeps what it had, and gets the next change."""
    log.warning("%s: its Envoy refuses the secrets: %r", subject.identity, words[:MAX_WORDS])
