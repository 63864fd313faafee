"""The SPIFFE Workload API (SPIFFE_Workload_API.md), for one pod that is already known: nothing that
it says makes it another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from nodeagent.errors import IdentityError
from nodeagent.identity.jwt_svid import JwtKeys
from nodeagent.identity.subject import JwtAuthority, Subject, der
from nodeagent.protocols import spiffe_workload_pb2 as messages

SERVICE: Final = "SpiffeWorkloadAPI"
HEADER: Final = "workload.spiffe.io"
"""Must be ``true``: a request that some server was tricked into has no such metadata
(SPIFFE_Workload_Endpoint.md, section 6.2).
"""
MAX_AUDIENCES: Final = 64
MAX_AUDIENCE: Final = 1024
"""Characters."""
_Stream = Stream[Any, Any]
"""grpclib knows a call's messages by its handler, not by types."""
_Method = Callable[[_Stream], Awaitable[None]]


class WorkloadApi:
    """The service, as *subject* sees it."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __mapping__(self) -> dict[str, Handler]:
        """Return the methods by path, as grpclib wants them."""
        unary = Cardinality.UNARY_UNARY
        stream = Cardinality.UNARY_STREAM
        methods: list[tuple[str, _Method, Cardinality, type[Message], type[Message]]] = [
            ("FetchX509SVID", self._x509_svids, stream, messages.X509SVIDRequest, messages.X509SVIDResponse),
            ("FetchX509Bundles", self._x509_bundles, stream, messages.X509BundlesRequest, messages.X509BundlesResponse),
            ("FetchJWTSVID", self._jwt_svid, unary, messages.JWTSVIDRequest, messages.JWTSVIDResponse),
            ("FetchJWTBundles", self._jwt_bundles, stream, messages.JWTBundlesRequest, messages.JWTBundlesResponse),
            (
                "ValidateJWTSVID",
                self._validate,
                unary,
                messages.ValidateJWTSVIDRequest,
                messages.ValidateJWTSVIDResponse,
            ),
        ]
        return {
            f"/{SERVICE}/{name}": Handler(_checked(method), cardinality, request, reply)
            for name, method, cardinality, request, reply in methods
        }

    async def _x509_svids(self, stream: Stream[messages.X509SVIDRequest, messages.X509SVIDResponse]) -> None:
        await _request(stream)
        seen = None
        while True:
            seen = await self._subject.certificate.other_than(seen)
            svid = messages.X509SVID(
                spiffe_id=seen.identity,
                x509_svid=der(seen.chain_pem),
                x509_svid_key=der(seen.key_pem),
                bundle=der(seen.roots_pem),
            )
            await stream.send_message(messages.X509SVIDResponse(svids=[svid]))

    async def _x509_bundles(self, stream: Stream[messages.X509BundlesRequest, messages.X509BundlesResponse]) -> None:
        await _request(stream)
        seen = None
        told = b""
        while True:
            seen = await self._subject.certificate.other_than(seen)
            if seen.roots_pem != told:
                told = seen.roots_pem
                await stream.send_message(messages.X509BundlesResponse(bundles={self._subject.trust_domain: der(told)}))

    async def _jwt_svid(self, stream: Stream[messages.JWTSVIDRequest, messages.JWTSVIDResponse]) -> None:
        request = await _request(stream)
        audience = list(request.audience)
        identity = self._subject.identity
        if not audience or not all(audience):
            raise GRPCError(Status.INVALID_ARGUMENT, "audience: at least one is needed, and none may be empty")
        if len(audience) > MAX_AUDIENCES or max(map(len, audience)) > MAX_AUDIENCE:
            raise GRPCError(
                Status.INVALID_ARGUMENT,
                f"audience: at most {MAX_AUDIENCES} of at most {MAX_AUDIENCE} characters are allowed",
            )
        if request.spiffe_id not in ("", identity):
            raise GRPCError(Status.PERMISSION_DENIED, f"spiffe_id: the caller is {identity}")
        svid = messages.JWTSVID(spiffe_id=identity, svid=self._keys().sign(identity, audience))
        await stream.send_message(messages.JWTSVIDResponse(svids=[svid]))

    async def _jwt_bundles(self, stream: Stream[messages.JWTBundlesRequest, messages.JWTBundlesResponse]) -> None:
        await _request(stream)
        bundle = self._authority().bundle
        seen = None
        while True:
            seen = await bundle.other_than(seen)
            await stream.send_message(messages.JWTBundlesResponse(bundles={self._subject.trust_domain: seen}))

    async def _validate(
        self, stream: Stream[messages.ValidateJWTSVIDRequest, messages.ValidateJWTSVIDResponse]
    ) -> None:
        request = await _request(stream)
        for name in ("audience", "svid"):
            if not getattr(request, name):
                raise GRPCError(Status.INVALID_ARGUMENT, f"{name}: must be given")
        keys = self._keys()
        try:
            identity, claims = keys.validate(request.svid, request.audience)
            response = messages.ValidateJWTSVIDResponse(spiffe_id=identity)
            response.claims.update(claims)
        except (IdentityError, ValueError) as error:
            raise GRPCError(Status.INVALID_ARGUMENT, f"svid: {error}") from None
        await stream.send_message(response)

    def _authority(self) -> JwtAuthority:
        if self._subject.tokens is None:
            raise GRPCError(
                Status.UNIMPLEMENTED,
                "JWT-SVIDs are issued by the built-in authority only: identity.caDirectory in agent.yaml",
            )
        return self._subject.tokens

    def _keys(self) -> JwtKeys:
        return self._authority().keys


def _checked(method: _Method) -> _Method:
    """Return *method*, refusing callers that do not say that they know what they talk to."""

    async def checked(stream: _Stream) -> None:
        metadata = stream.metadata
        if metadata is None or metadata.getall(HEADER, []) != ["true"]:
            raise GRPCError(Status.INVALID_ARGUMENT, f"metadata {HEADER}: true is missing")
        await method(stream)

    return checked


async def _request(stream: _Stream) -> Any:
    """Return the one request of a call."""
    request = await stream.recv_message()
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call has no request")
    return request
