"""A client of Istio's CA protocol (istio.v1.auth, ``security/v1alpha1/ca.proto``): istiod, or
``nodeagent ca``.

The node proves itself with a token and asks for the identities of its pods (ImpersonatedIdentity).
The key never leaves this process, and the answer is believed only when it is what was asked for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from nodeagent import config
from nodeagent.errors import IdentityError
from nodeagent.identity.ca import private_pem
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import Trust, read_file
from nodeagent.identity.verify import MAX_ROOT_BYTES, accept, trusted_roots
from nodeagent.protocols.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from nodeagent.vocabulary import SpiffeId

METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
MAX_TOKEN_BYTES: Final = 16 << 10
MAX_WORDS: Final = 300
"""Characters of a server's message that are repeated."""
UNTRUSTED: Final = (
    ": is the token's account one that the authority gives pods' certificates to? istiod is told by "
    "CA_TRUSTED_NODE_ACCOUNTS, nodeagent's by nodeAgents in ca.yaml"
)
"""What is likely: istiod does not tell an account that it does not know from a token that is wrong."""


class IstioCa:
    """The source that agent.yaml's ``identity.istioCa`` describes. Requests under way together share one connection."""

    def __init__(self, settings: config.IstioCaConfig, trust_domain: str, cluster: str) -> None:
        self._settings = settings
        self._trust_domain = trust_domain
        self._cluster = settings.cluster_id or cluster
        host, _, port = settings.address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._channel: tuple[bytes, Channel] | None = None
        self._users: dict[Channel, int] = {}

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        """Make a key, have it certified, check the answer. Raises IdentityError naming the service and the cause."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            chain = await self._create(identity, _csr(identity, key), int(ttl_seconds))
            return accept(identity, chain, private_pem(key), self._roots(), self._trust_domain)
        except IdentityError as error:
            raise IdentityError(f"identity.istioCa {self._settings.address}: {error}") from None

    def trust(self) -> Trust:
        """Return the roots of ``rootCertFile``; which of them signs is not known before the next certificate."""
        return Trust(trusted_roots(self._roots()))

    def _roots(self) -> bytes:
        return read_file("identity.istioCa.rootCertFile", self._settings.root_cert_file, MAX_ROOT_BYTES)

    def _token(self) -> str:
        content = read_file("identity.istioCa.tokenFile", self._settings.token_file, MAX_TOKEN_BYTES)
        token = content.decode("ascii", "replace").strip()
        if not token or not all("!" <= letter <= "~" for letter in token):
            raise IdentityError(
                f"identity.istioCa.tokenFile: {self._settings.token_file}: holds no token: printable ASCII "
                "without spaces is expected"
            )
        return token

    async def _create(self, identity: SpiffeId, csr: bytes, ttl_seconds: int) -> bytes:
        """Call CreateCertificate; return the chain as PEM, leaf first."""
        metadata = Struct()
        metadata["ImpersonatedIdentity"] = identity
        request = IstioCertificateRequest(csr=csr.decode(), validity_duration=ttl_seconds, metadata=metadata)
        headers = {"authorization": f"Bearer {self._token()}", "clusterid": self._cluster}
        try:
            async with self._connected() as channel, asyncio.timeout(self._settings.timeout):
                method: UnaryUnaryMethod[IstioCertificateRequest, IstioCertificateResponse]
                method = UnaryUnaryMethod(channel, METHOD, IstioCertificateRequest, IstioCertificateResponse)
                response = await method(request, metadata=headers)
        except GRPCError as error:
            raise IdentityError(
                f"refused: {error.status.name}: {(error.message or 'no reason given')[:MAX_WORDS]!r}"
                f"{UNTRUSTED if error.status is Status.UNAUTHENTICATED else ''}"
            ) from None
        except TimeoutError:
            raise IdentityError(f"no answer within {self._settings.timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise IdentityError(
                f"the server's certificate is not accepted: {error.verify_message}: compare it with "
                "identity.istioCa.rootCertFile"
            ) from None
        except (OSError, ProtocolError, StreamTerminatedError, DecodeError) as error:
            raise IdentityError((str(error) or type(error).__name__)[:MAX_WORDS]) from None
        return "\n".join(response.cert_chain).encode("utf-8", "replace")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Channel]:
        """Lend the connection; it is closed when nobody uses it, so that none is found dead hours
        later, and made anew when the roots change.
        """
        roots = self._roots()
        if self._channel is None or self._channel[0] != roots:
            self._channel = (roots, Channel(self._host, self._port, ssl=_tls(roots)))
        lent = self._channel
        self._users[lent[1]] = self._users.get(lent[1], 0) + 1
        try:
            yield lent[1]
        finally:
            self._users[lent[1]] -= 1
            if not self._users[lent[1]]:
                del self._users[lent[1]]
                lent[1].close()
                if self._channel is lent:
                    self._channel = None


def _tls(roots: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=trusted_roots(roots).decode("ascii"))
    except ssl.SSLError as error:
        raise IdentityError(f"identity.istioCa.rootCertFile: {error.reason}") from None
    return context


def _csr(identity: SpiffeId, key: ec.EllipticCurvePrivateKey) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
