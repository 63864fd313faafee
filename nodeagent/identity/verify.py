"""Whether a certificate that came from outside is what was asked for: proved by a handshake with
itself, as peers will demand it.

Nothing that a source hands out is believed: the key must be ours, the name the one that was asked
for, the chain must lead to the trusted roots for a client's and for a server's purpose, and the
time must be now.
"""

from __future__ import annotations

import ssl
import time
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from nodeagent.errors import IdentityError, translated
from nodeagent.identity import profiles
from nodeagent.identity.authority_directory import certificates
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import parse
from nodeagent.identity.tls import TCP_ALPN, client_context, peer_identity, server_context
from nodeagent.vocabulary import SpiffeId

MAX_BYTES: Final = 64 << 10
"""Of a chain."""
MAX_ROOT_BYTES: Final = 256 << 10
SHORTEST: Final = 5.0
"""Seconds for which a certificate must be good to be of use."""


def accept(identity: SpiffeId, chain: bytes, key_pem: bytes, roots: bytes, trust_domain: str) -> Certificate:
    """Return *chain* (PEM, leaf first; roots in it are left out) and *key_pem* as the certificate
    of *identity*.

    Raises IdentityError that says what does not match.
    """
    with translated(IdentityError, f"the certificate for {identity} cannot be read"):
        return _accepted(identity, chain, key_pem, roots, trust_domain)


def _accepted(identity: SpiffeId, chain: bytes, key_pem: bytes, roots: bytes, trust_domain: str) -> Certificate:
    parse(identity, trust_domain)
    parsed = _parse("the chain", chain, MAX_BYTES)
    trusted = _parse("the trusted roots", roots, MAX_ROOT_BYTES)
    leaf = parsed[0]
    _check_key(leaf, key_pem)
    _check_names(leaf, identity)
    now = time.time()
    if profiles.begins(leaf) > now:
        raise IdentityError(f"the certificate for {identity} begins only at {profiles.begin(leaf)}: compare the clocks")
    if profiles.ends(leaf) < now + SHORTEST:
        raise IdentityError(f"the certificate for {identity} ended at {profiles.end(leaf)}")
    rest = [certificate for certificate in parsed[1:] if certificate.issuer != certificate.subject]
    certificate = Certificate(
        identity=identity,
        chain_pem=b"".join(profiles.pem(certificate) for certificate in (leaf, *rest)),
        key_pem=key_pem,
        roots_pem=b"".join(profiles.pem(root) for root in trusted),
        serial=f"{leaf.serial_number:x}",
        issued=now,
        not_after=profiles.ends(leaf),
    )
    _handshake(certificate, trust_domain)
    return certificate


def trusted_roots(content: bytes) -> bytes:
    """Return the roots of a PEM file as they go to peers. Raises IdentityError."""
    return b"".join(profiles.pem(root) for root in _parse("the trusted roots", content, MAX_ROOT_BYTES))


def _parse(what: str, content: bytes, limit: int) -> list[x509.Certificate]:
    if len(content) > limit:
        raise IdentityError(f"{what}: {len(content)} bytes, at most {limit} are allowed")
    with translated(IdentityError, f"{what}: not certificates as PEM"):
        found = certificates(content)
    if not found:
        raise IdentityError(f"{what}: no certificate as PEM in it")
    return found


def _check_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    with translated(
        IdentityError, "the private key or the certificate's key cannot be read, unencrypted PEM is expected"
    ):
        key = serialization.load_pem_private_key(key_pem, None)
        encoding = serialization.Encoding.DER
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        same = key.public_key().public_bytes(encoding, form) == leaf.public_key().public_bytes(encoding, form)
    if not same:
        raise IdentityError("the certificate is for another key than ours")


def _check_names(leaf: x509.Certificate, identity: SpiffeId) -> None:
    with translated(IdentityError, "the certificate's extensions cannot be read"):
        names = profiles.uris(leaf.extensions)
        authority = any(isinstance(entry.value, x509.BasicConstraints) and entry.value.ca for entry in leaf.extensions)
    if names != [identity]:
        raise IdentityError(f"the certificate is for {profiles.printable(names) or 'nobody'}, not for {identity}")
    if authority:
        raise IdentityError(f"the certificate for {identity} is an authority's: it could sign others")


def _handshake(certificate: Certificate, trust_domain: str) -> None:
    """Let the certificate meet itself: OpenSSL checks chain, times and purposes on both sides as it
    will between workloads.
    """
    to_client = ssl.MemoryBIO()
    to_server = ssl.MemoryBIO()
    client = client_context(certificate, TCP_ALPN).wrap_bio(to_client, to_server, server_side=False)
    server = server_context(certificate).wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    try:
        # TLS 1.3: two flights from the client, one from the server.
        for _ in range(3):
            for side in (client, server):
                if side in waiting:
                    try:
                        side.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
                    waiting.remove(side)
        if waiting:
            raise IdentityError(f"the certificate for {certificate.identity} cannot finish a TLS handshake")
        peer_identity(server, trust_domain)
    except ssl.SSLCertVerificationError as error:
        raise IdentityError(
            f"the chain for {certificate.identity} is not accepted by the trusted roots: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        raise IdentityError(
            f"the certificate for {certificate.identity} does not work in TLS: {error.reason}"
        ) from None
