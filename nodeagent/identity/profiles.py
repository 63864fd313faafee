"""The kinds of certificate that the built-in authority makes: root, intermediate, workload
(X.509-SVID), server. Pure but for the random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nodeagent.vocabulary import SpiffeId

if TYPE_CHECKING:  # newer versions have it under another name
    from cryptography.hazmat.primitives.asymmetric.types import CERTIFICATE_PUBLIC_KEY_TYPES

BACKDATED: Final = 120.0
"""Seconds by which certificates begin before now, for nodes whose clocks are behind (Istio's value)."""
ROOT_LIFETIME: Final = timedelta(days=3650).total_seconds()
INTERMEDIATE_LIFETIME: Final = timedelta(days=365).total_seconds()


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate of an authority with its key."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def not_after(self) -> float:
        """When it ends, in Unix seconds."""
        return ends(self.certificate)


def root(trust_domain: str, now: float) -> Signer:
    """Return a new self-signed root, which may sign intermediates and they only leaves."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Roots that are trusted at once have names of their own, so that a verifier needs no second
    # guess.
    name = _name(trust_domain, f"nodeagent root {x509.random_serial_number() >> 128:08x}")
    return Signer(
        key,
        _authority(name, name, key.public_key(), trust_domain, now, now + ROOT_LIFETIME, 1, None).sign(
            key, hashes.SHA256()
        ),
    )


def intermediate(issuer: Signer, trust_domain: str, now: float) -> Signer:
    """Return a new intermediate that signs leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(trust_domain, "nodeagent intermediate")
    end = min(now + INTERMEDIATE_LIFETIME, issuer.not_after)
    builder = _authority(
        issuer.certificate.subject,
        name,
        key.public_key(),
        trust_domain,
        now,
        end,
        0,
        _key_identifier(issuer.certificate),
    )
    return Signer(key, builder.sign(issuer.key, hashes.SHA256()))


def workload(
    issuer: Signer, identity: SpiffeId, public: CERTIFICATE_PUBLIC_KEY_TYPES, now: float, not_after: float
) -> x509.Certificate:
    """Return an X.509-SVID: no subject, so the SAN is critical (RFC 5280 section 4.2.1.6); client and server both."""
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _leaf(issuer, [x509.UniformResourceIdentifier(identity)], usages, public, now, not_after)


def server(
    issuer: Signer, names: Iterable[str], public: CERTIFICATE_PUBLIC_KEY_TYPES, now: float, not_after: float
) -> x509.Certificate:
    """Return the certificate of a server of *names* (host names or addresses). It has no URI: to
    workloads it proves nothing.
    """
    return _leaf(issuer, [_host(name) for name in names], [ExtendedKeyUsageOID.SERVER_AUTH], public, now, not_after)


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether *issuer*, an elliptic-curve authority, signed *certificate*."""
    public = issuer.public_key()
    algorithm = certificate.signature_hash_algorithm
    if certificate.issuer != issuer.subject or algorithm is None or not isinstance(public, ec.EllipticCurvePublicKey):
        return False
    try:
        public.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def ends(certificate: x509.Certificate) -> float:
    """Return when *certificate* ends, in Unix seconds."""
    return end(certificate).timestamp()


def begins(certificate: x509.Certificate) -> float:
    """Return when *certificate* begins, in Unix seconds."""
    return begin(certificate).timestamp()


def end(certificate: x509.Certificate) -> datetime:
    """Return when *certificate* ends. cryptography before 42 says it without a zone, a newer one warns of that."""
    if hasattr(certificate, "not_valid_after_utc"):
        return cast(datetime, certificate.not_valid_after_utc)
    return certificate.not_valid_after.replace(tzinfo=UTC)


def begin(certificate: x509.Certificate) -> datetime:
    """Return when *certificate* begins, as :func:`end`."""
    if hasattr(certificate, "not_valid_before_utc"):
        return cast(datetime, certificate.not_valid_before_utc)
    return certificate.not_valid_before.replace(tzinfo=UTC)


def pem(certificate: x509.Certificate) -> bytes:
    """Return *certificate* as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def uris(names: x509.Extensions) -> list[str]:
    """Return the URIs among the subject's alternative names."""
    try:
        return names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.UniformResourceIdentifier
        )
    except x509.ExtensionNotFound:
        return []


def printable(names: Iterable[str]) -> str:
    """Return *names*, which may be hostile, for a message."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names)[:300]


def _authority(
    issuer: x509.Name,
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    trust_domain: str,
    now: float,
    not_after: float,
    path_length: int,
    issuer_key: x509.AuthorityKeyIdentifier | None,
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(
            issuer, subject, public, x509.random_serial_number(), _utc(now - BACKDATED), _utc(not_after)
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    return builder if issuer_key is None else builder.add_extension(issuer_key, critical=False)


def _leaf(
    issuer: Signer,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
    public: CERTIFICATE_PUBLIC_KEY_TYPES,
    now: float,
    not_after: float,
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder(
            issuer.certificate.subject,
            x509.Name([]),
            public,
            x509.random_serial_number(),
            _utc(now - BACKDATED),
            _utc(not_after),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_key_identifier(issuer.certificate), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )
    return builder.sign(issuer.key, hashes.SHA256())


def _key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )


def _name(trust_domain: str, common: str) -> x509.Name:
    # An organization name holds 64 characters (RFC 5280, ub-organization-name), a trust domain up
    # to 255.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _utc(seconds: float) -> datetime:
    # cryptography before 42 takes naive datetimes as UTC.
    return datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None)
