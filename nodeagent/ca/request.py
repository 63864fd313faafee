"""A certificate signing request (PKCS#10) from outside: all that is taken from it is the key, once
its owner has proved to hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from nodeagent.ca.refusal import Refusal
from nodeagent.errors import IdentityError, translated
from nodeagent.identity.profiles import printable, uris
from nodeagent.vocabulary import SpiffeId

if TYPE_CHECKING:  # newer versions have it under another name
    from cryptography.hazmat.primitives.asymmetric.types import CERTIFICATE_PUBLIC_KEY_TYPES

MAX_BYTES: Final = 16 << 10
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
RSA_BITS: Final = range(2048, 8193)
RSA_EXPONENTS: Final = range(65537, 1 << 32)
"""By one as long as the modulus a verification costs the peer as much as a signature."""


def public_key(csr: str, identity: SpiffeId) -> CERTIFICATE_PUBLIC_KEY_TYPES:
    """Return the key that *csr* (PEM) asks a certificate for.

    Its names are never used; those that are not *identity* are refused, as the caller would not get
    what it asked for. Raises Refusal.
    """
    if len(csr) > MAX_BYTES:
        raise Refusal("INVALID_ARGUMENT", f"csr: {len(csr)} characters, at most {MAX_BYTES} are allowed")
    try:
        with translated(IdentityError, "csr: not a certificate signing request as PEM"):
            request = x509.load_pem_x509_csr(csr.encode())
            proved = request.is_signature_valid
            names = uris(request.extensions)
            key = request.public_key()
    except IdentityError as error:
        raise Refusal("INVALID_ARGUMENT", str(error)) from None
    if not proved:
        raise Refusal("INVALID_ARGUMENT", "csr: its signature is not by its own key")
    if any(name != identity for name in names):
        raise Refusal("PERMISSION_DENIED", f"csr: asks for {printable(names)}; the caller may have {identity} here")
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in CURVES:
            return key
        case rsa.RSAPublicKey() if key.key_size in RSA_BITS and key.public_numbers().e in RSA_EXPONENTS:
            return key
        case ed25519.Ed25519PublicKey():
            return key
    raise Refusal(
        "INVALID_ARGUMENT",
        "csr: allowed are keys on P-256, P-384 or P-521, Ed25519, and RSA of 2048 to 8192 bits "
        "with an exponent of 65537 or a little more",
    )
