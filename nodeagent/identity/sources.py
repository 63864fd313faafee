"""Where certificates come from: the built-in authority, an Istio CA, or files that something else
writes.

A source makes or takes one certificate at a time, and says what is trusted; when to ask is the
store's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import serialization

from nodeagent.config import Identity
from nodeagent.errors import IdentityError
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.verify import MAX_BYTES, MAX_ROOT_BYTES, accept, trusted_roots
from nodeagent.vocabulary import SpiffeId

CHAIN = "cert-chain.pem"
KEY = "key.pem"
ROOTS = "root-cert.pem"
"""Istio's names in a mount."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is trusted now, and what signs."""

    roots_pem: bytes
    signer: str = ""
    """Changes when every certificate is to be issued anew, because another root signs; empty: not known."""


class CertificateSource(Protocol):
    """One of the ways to certificates."""

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        """Return a certificate for *identity* that was checked; *ttl_seconds* is a wish. Raises IdentityError."""

    def trust(self) -> Trust:
        """Return what is trusted now; read anew, so that an exchange of roots needs no restart.
        Raises IdentityError.
        """


class BuiltIn:
    """The authority in ``identity.caDirectory``."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        return self._authority.issue(identity, ttl_seconds)

    def trust(self) -> Trust:
        self._authority.refresh()
        return Trust(self._authority.roots_pem, self._authority.signing_root)


class Files:
    """A mount with one identity's certificate (``identity.files``), which something else renews;
    nobody else can be served.
    """

    def __init__(self, directory: Path, trust_domain: str) -> None:
        self._directory = directory
        self._trust_domain = trust_domain

    async def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        chain = self._read(CHAIN, MAX_BYTES)
        key = self._read(KEY, MAX_BYTES)
        roots = self._read(ROOTS, MAX_ROOT_BYTES)
        try:
            return accept(identity, chain, _pkcs8(key), roots, self._trust_domain)
        except IdentityError as error:
            raise IdentityError(f"identity.files {self._directory}: {error}") from None

    def trust(self) -> Trust:
        chain = self._read(CHAIN, MAX_BYTES)
        roots = self._read(ROOTS, MAX_ROOT_BYTES)
        return Trust(trusted_roots(roots), sha256(chain).hexdigest())

    def _read(self, name: str, limit: int) -> bytes:
        return read_file("identity.files", self._directory / name, limit)


def read_file(field: str, path: Path, limit: int) -> bytes:
    """Return the content of *path*, at most *limit* bytes. Raises IdentityError naming *field*."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise IdentityError(f"{field}: {path}: {error.strerror}") from None
    if len(content) > limit:
        raise IdentityError(f"{field}: {path}: at most {limit} bytes are allowed")
    return content


def open_source(identity: Identity, cluster: str) -> CertificateSource:
    """Return the source that agent.yaml's ``identity:`` names, in the cluster named *cluster*. Raises IdentityError."""
    if identity.files is not None:
        return Files(identity.files.directory, identity.trust_domain)
    if identity.istio_ca is not None:
        # gRPC costs memory: only for those who use it.
        from nodeagent.identity.istio_ca import IstioCa

        return IstioCa(identity.istio_ca, identity.trust_domain, cluster)
    assert identity.ca_directory is not None  # one of the three is given: config.py
    return BuiltIn(CertificateAuthority.open_or_create(identity.ca_directory, identity.trust_domain))


def _pkcs8(key: bytes) -> bytes:
    """Return a private key of any PEM form as PKCS#8."""
    try:
        loaded = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise IdentityError(f"{KEY}: not an unencrypted private key as PEM") from None
    return loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
