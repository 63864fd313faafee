"""The built-in certificate authority: one root in a directory that the nodes share.

Several agents may make it at the same moment: one does, under a lock; the others read. It must never hand out a
certificate for another trust domain, nor one that outlives the root, nor leave a key readable by others.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeagent.errors import IdentityError
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.spiffe import check_trust_domain, parse
from nodeagent.mesh.entries import SpiffeId

KEY, ROOT, LOCK = "ca-key.pem", "root-cert.pem", ".lock"
ROOT_LIFETIME: Final = timedelta(days=3650)
BACKDATED: Final = 120.0
"""Seconds by which certificates begin before now, for nodes whose clocks are behind (Istio's value)."""
Clock = Callable[[], float]


class CertificateAuthority:
    """Signs certificates for the workloads of one trust domain."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, root: x509.Certificate, trust_domain: str, clock: Clock = time.time) -> None:
        self._key, self._root, self._trust_domain, self._clock = key, root, trust_domain, clock
        self._roots_pem = root.public_bytes(serialization.Encoding.PEM)
        self._not_after = root.not_valid_after.replace(tzinfo=UTC).timestamp()

    @classmethod
    def open_or_create(cls, directory: Path, trust_domain: str, clock: Clock = time.time) -> CertificateAuthority:
        """Return the authority kept in *directory*, making directory, key and root when they are not there yet.

        Raises IdentityError when they cannot be read or made, do not fit together, or belong to another trust domain.
        """
        check_trust_domain(trust_domain)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(directory / LOCK):
                if not (directory / ROOT).exists():
                    _create(directory, trust_domain, clock())
                key, root = _read(directory)
        except OSError as error:
            raise IdentityError(f"identity.caDirectory {directory}: {error.strerror or error}: every node's agent must be able to read and write it") from None
        _check(directory, key, root, trust_domain, clock())
        return cls(key, root, trust_domain, clock)

    def issue(self, identity: SpiffeId, ttl_seconds: float) -> Certificate:
        """Return a certificate with a fresh key for *identity*, good for *ttl_seconds* or until the root ends.

        Raises IdentityError when the identity is of another trust domain or the root has ended.
        """
        parse(identity, self._trust_domain)
        now = self._clock()
        not_after = float(int(min(now + ttl_seconds, self._not_after)))
        if not_after <= now:
            raise IdentityError("the root certificate has ended: remove it from identity.caDirectory and restart the agents to make another")
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _sign(_leaf(identity, key.public_key(), self._root, now - BACKDATED, not_after), self._key)
        return Certificate(
            identity=identity,
            chain_pem=leaf.public_bytes(serialization.Encoding.PEM),
            key_pem=_private_pem(key),
            roots_pem=self._roots_pem,
            serial=f"{leaf.serial_number:x}",
            issued=now,
            not_after=not_after,
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(directory: Path, trust_domain: str, now: float) -> None:
    """Make key and root; the root last, so that a root always has its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain), x509.NameAttribute(NameOID.COMMON_NAME, "nodeagent root")])
    start = _utc(now)
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=x509.random_serial_number())
        .not_valid_before(start - timedelta(seconds=BACKDATED))
        .not_valid_after(start + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False)
    )
    _write(directory / KEY, _private_pem(key), 0o600)
    _write(directory / ROOT, _sign(builder, key).public_bytes(serialization.Encoding.PEM), 0o644)


def _leaf(identity: SpiffeId, public: ec.EllipticCurvePublicKey, root: x509.Certificate, not_before: float, not_after: float) -> x509.CertificateBuilder:
    """Describe an X.509-SVID: no subject, so the SAN is critical (RFC 5280 section 4.2.1.6); client and server both."""
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    authority = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(issuer_name=root.subject, subject_name=x509.Name([]), public_key=public, serial_number=x509.random_serial_number())
        .not_valid_before(_utc(not_before))
        .not_valid_after(_utc(not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256())


def _read(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path = directory / KEY
    if path.stat().st_mode & 0o077:
        raise IdentityError(f"{path}: others than its owner may read or write the key: chmod 600 it, and replace it if it may have been copied")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        path = directory / ROOT
        root = x509.load_pem_x509_certificate(path.read_bytes())
        root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise IdentityError(f"{path}: not what this program wrote: {error}: remove both files to make a new authority") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{directory / KEY}: an elliptic-curve key is expected")
    return key, root


def _check(directory: Path, key: ec.EllipticCurvePrivateKey, root: x509.Certificate, trust_domain: str, now: float) -> None:
    if _public_bytes(key.public_key()) != _public_bytes(root.public_key()):
        raise IdentityError(f"{directory}: {KEY} is not the key of {ROOT}: restore the pair, or remove both to make a new authority")
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        names = []
    if names != [f"spiffe://{trust_domain}"]:
        raise IdentityError(f"{directory / ROOT}: the authority of {', '.join(names) or 'no trust domain'}, not of identity.trustDomain {trust_domain}")
    if root.not_valid_after.replace(tzinfo=UTC).timestamp() <= now:
        raise IdentityError(f"{directory / ROOT}: ended at {root.not_valid_after}: remove {KEY} and {ROOT} to make a new authority")


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _utc(seconds: float) -> datetime:
    # cryptography before 42 takes naive datetimes as UTC.
    return datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write *path* whole or not at all, with *mode* from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
