"""The built-in certificate authority: signs with the intermediate of a directory that the nodes
share.

Several agents may make the directory at the same moment: one does, under a lock; the others read.
It must never sign for another trust domain, nor a certificate that outlives its issuer, nor leave a
key readable by others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nodeagent.identity import authority_directory, profiles
from nodeagent.identity.authority_directory import Authority, Stamp
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import parse
from nodeagent.vocabulary import SpiffeId

if TYPE_CHECKING:  # newer versions have it under another name
    from cryptography.hazmat.primitives.asymmetric.types import CERTIFICATE_PUBLIC_KEY_TYPES

Clock = Callable[[], float]
NEVER: Final[Stamp] = ()


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a TLS server of the cluster shows; times are Unix seconds."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    not_after: float


class CertificateAuthority:
    """Signs certificates for the workloads of one trust domain."""

    def __init__(self, directory: Path, trust_domain: str, clock: Clock) -> None:
        self._directory = directory
        self._trust_domain = trust_domain
        self._clock = clock
        self._stamp = NEVER
        self._authority: Authority
        self.roots_pem = b""
        """Every root that is trusted now."""
        self.signing_root = ""
        """Fingerprint of the root above what signs now."""
        self._load()

    @classmethod
    def open_or_create(cls, directory: Path, trust_domain: str, clock: Clock = time.time) -> CertificateAuthority:
        """Return the authority kept in *directory*, making directory, keys and root when they are
        not there yet.

        Raises IdentityError when they cannot be read or made, do not fit together, or belong to
        another trust domain.
        """
        return cls(directory, trust_domain, clock)

    def now(self) -> float:
        """Return the authority's time, in Unix seconds."""
        return self._clock()

    def refresh(self) -> None:
        """Take up what was changed in the directory, and have the intermediate renewed in time.

        Raises IdentityError; what was read last stays in force.
        """
        if authority_directory.stamp(self._directory) != self._stamp or self._clock() >= self._half_life:
            self._load()

    def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        """Return a certificate with a fresh key for *identity*, good for *ttl_seconds* or until its
        issuer ends.

        Raises IdentityError when the identity is of another trust domain or the authority has
        ended.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        leaf, chain_pem = self.sign(identity, key.public_key(), ttl_seconds)
        return Certificate(
            identity=identity,
            chain_pem=chain_pem,
            key_pem=private_pem(key),
            roots_pem=self.roots_pem,
            serial=f"{leaf.serial_number:x}",
            issued=self._clock(),
            not_after=profiles.ends(leaf),
        )

    def sign(
        self, identity: SpiffeId, public: CERTIFICATE_PUBLIC_KEY_TYPES, ttl_seconds: float
    ) -> tuple[x509.Certificate, bytes]:
        """Return a leaf for *identity* and the key *public*, and the chain as PEM, leaf first,
        without the root. Raises IdentityError.
        """
        parse(identity, self._trust_domain)
        now, end = self._span(ttl_seconds)
        leaf = profiles.workload(self._authority.signer, identity, public, now, end)
        return leaf, self._chain(leaf)

    def issue_server(self, names: Iterable[str], ttl_seconds: float) -> ServerCertificate:
        """Return a certificate for a server of *names* (host names, addresses), which proves no
        SPIFFE ID. Raises IdentityError.
        """
        now, end = self._span(ttl_seconds)
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = profiles.server(self._authority.signer, names, key.public_key(), now, end)
        return ServerCertificate(self._chain(leaf), private_pem(key), profiles.ends(leaf))

    def _load(self) -> None:
        # The stamp before the content: a change in between is read again.
        stamp = authority_directory.stamp(self._directory)
        authority = authority_directory.open_or_create(self._directory, self._trust_domain, self._clock())
        self._authority = authority
        self._stamp = stamp
        self._half_life = (
            (profiles.begins(authority.signer.certificate) + authority.signer.not_after) / 2
            if authority.chain
            else float("inf")
        )
        self.roots_pem = b"".join(profiles.pem(root) for root in authority.roots)
        self.signing_root = authority.root.fingerprint(hashes.SHA256()).hex()

    def _span(self, ttl_seconds: float) -> tuple[float, float]:
        now = self._clock()
        if self._authority.signer.not_after <= now:
            self._load()
        return now, float(int(min(now + ttl_seconds, self._authority.signer.not_after)))

    def _chain(self, leaf: x509.Certificate) -> bytes:
        return b"".join(profiles.pem(certificate) for certificate in (leaf, *self._authority.chain))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return *key* as PKCS#8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
