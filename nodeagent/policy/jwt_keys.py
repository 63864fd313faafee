"""Key sets (RFC 7517) and what their keys may verify (RFC 7518, RFC 8037).

A key, never a token, says which algorithms it is for: its type, curve, ``alg``, ``use`` and
``key_ops``. Symmetric keys and ``none`` do not exist here, so a public key cannot be taken for a
secret.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakValueDictionary

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from nodeagent.policy.jwt_token import Token, TokenError, decode_base64url, parse_json
from nodeagent.vocabulary import JsonObject

Verify = Callable[[bytes, bytes], None]
"""Takes signature and signed bytes; raises InvalidSignature."""

MAX_KEYS: Final = 256
MAX_TRIES: Final = 8
"""Keys tried for a token that does not say which one signed it: more would let such tokens hold up the proxy."""
_RSA_BITS: Final = range(2048, 8193)
_SHA: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


class _Digest(Protocol):
    """A hash of hashlib's."""

    def digest(self) -> bytes: ...


_DIGEST: Final[dict[str, Callable[[bytes], _Digest]]] = {
    "256": hashlib.sha256,
    "384": hashlib.sha384,
    "512": hashlib.sha512,
}
_CURVES: Final[dict[str, tuple[str, Callable[[], ec.EllipticCurve], int]]] = {
    "P-256": ("256", ec.SECP256R1, 32),
    "P-384": ("384", ec.SECP384R1, 48),
    "P-521": ("512", ec.SECP521R1, 66),
}
_OF_TYPE: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("RSA", ""): (*(f"RS{bits}" for bits in _SHA), *(f"PS{bits}" for bits in _SHA)),
    ("OKP", "Ed25519"): ("EdDSA",),
    **{("EC", curve): (f"ES{bits}",) for curve, (bits, _, _) in _CURVES.items()},
}
"""Key type and curve: what such a key verifies."""
ALGORITHMS: Final = frozenset(itertools.chain.from_iterable(_OF_TYPE.values()))
_BAD_SET: Final = "Jwks is an invalid JSON"
_NO_KEYS: Final = "Jwks doesn't have any valid public key"
NO_KEY: Final = "Jwks doesn't have key to match kid or alg from Jwt"
FAILED: Final = "Jwt verification fails"


class _Key:
    """A JSON Web Key; made a key of the library's when a token needs it, since that takes longer
    than a worker may stop for when a set is large.
    """

    __slots__ = ("_jwk", "_verifiers")

    def __init__(self, jwk: JsonObject) -> None:
        self._jwk = jwk
        self._verifiers: dict[str, Verify] | None = None

    def verifier(self, algorithm: str) -> Verify | None:
        """Return what verifies *algorithm*; None when the key's members do not make a key."""
        if self._verifiers is None:
            try:
                self._verifiers = _verifiers(self._jwk)
            except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
                self._verifiers = {}
        return self._verifiers.get(algorithm)


class KeySet:
    """Compiled keys; ``error`` says why there are none. Made by :func:`key_set`, one for each text."""

    __slots__ = ("__weakref__", "_fitting", "_named", "error")

    def __init__(self, text: str) -> None:
        self._named: dict[tuple[str, str], list[_Key]] = {}
        self._fitting: dict[str, list[_Key]] = {}
        self.error = ""
        try:
            document = parse_json(text.encode())
        except ValueError:
            document = None
        keys = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(keys, list) or len(keys) > MAX_KEYS:
            self.error = _BAD_SET
            return
        for key in keys:
            # What is no key to verify with is passed over, as RFC 7517, section 5, asks.
            name = key.get("kid", "") if isinstance(key, dict) else None
            if isinstance(name, str):
                compiled = _Key(key)
                for algorithm in _algorithms(key):
                    self._named.setdefault((algorithm, name), []).append(compiled)
                    self._fitting.setdefault(algorithm, []).append(compiled)
        if not self._fitting:
            self.error = _NO_KEYS

    @property
    def usable(self) -> bool:
        """Whether it can verify any token at all: some key is of a kind that is taken, and its members make one."""
        return any(map(self._verifies, self._fitting))

    def _verifies(self, algorithm: str) -> bool:
        return any(key.verifier(algorithm) for key in self._fitting[algorithm])

    def check(self, token: Token) -> None:
        """Verify *token*'s signature by the key that it names, by those without a name, or, when it
        names none, by any fitting one. Raises TokenError.
        """
        algorithm = token.algorithm
        name = token.key_id
        if algorithm not in ALGORITHMS:
            raise TokenError("Jwt header [alg] is not supported")
        if self.error:
            raise TokenError(self.error)
        # Keys without a name are Envoy's way for sets of one key whose tokens do have a name.
        if name:
            fitting = self._named.get((algorithm, name)) or self._named.get((algorithm, ""))
        else:
            fitting = self._fitting.get(algorithm)
        words = NO_KEY
        for key in (fitting or ())[:MAX_TRIES]:
            verify = key.verifier(algorithm)
            if verify is None:
                continue
            try:
                verify(token.signature, token.signed)
            except InvalidSignature:
                words = FAILED
            else:
                return
        raise TokenError(words)


_known: WeakValueDictionary[str, KeySet] = WeakValueDictionary()


def key_set(text: str) -> KeySet:
    """Return the keys of the JSON *text*; the same object for the same text, as long as somebody uses it."""
    found = _known.get(text)
    if found is None:
        found = _known[text] = KeySet(text)
    return found


def _algorithms(key: JsonObject) -> tuple[str, ...]:
    """Return what *key* may verify, by what it says of itself."""
    operations = key.get("key_ops")
    if key.get("use", "sig") != "sig":
        return ()
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return ()
    every = _OF_TYPE.get((str(key.get("kty")), str(key.get("crv", ""))), ())
    return tuple(algorithm for algorithm in every if algorithm == key["alg"]) if "alg" in key else every


def _verifiers(key: JsonObject) -> dict[str, Verify]:
    """Return how *key* verifies, by algorithm. Raises ValueError, KeyError or TypeError when its
    members do not make a key.
    """
    kind = key["kty"]
    if kind == "RSA":
        return _rsa(key)
    if kind == "EC":
        return _ec(key)
    return {"EdDSA": ed25519.Ed25519PublicKey.from_public_bytes(_member(key, "x")).verify}


def _member(key: JsonObject, name: str) -> bytes:
    """Return a number or a point of *key*. Raises ValueError, KeyError or TypeError."""
    text = key[name]
    if not isinstance(text, str):
        raise TypeError(f"{name} is not text")
    return decode_base64url(text)


def _rsa(key: JsonObject) -> dict[str, Verify]:
    modulus = int.from_bytes(_member(key, "n"), "big")
    exponent = int.from_bytes(_member(key, "e"), "big")
    if modulus.bit_length() not in _RSA_BITS or exponent.bit_length() > 32:
        # Shorter is too weak (RFC 7518, section 3.3), longer only costs time.
        raise ValueError("RSA size")
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    verifiers: dict[str, Verify] = {}
    for bits, hashed in _SHA.items():
        verifiers[f"RS{bits}"] = _rsa_verify(public, padding.PKCS1v15(), bits)
        verifiers[f"PS{bits}"] = _rsa_verify(public, padding.PSS(padding.MGF1(hashed), hashed.digest_size), bits)
    return verifiers


def _rsa_verify(public: rsa.RSAPublicKey, pad: padding.PKCS1v15 | padding.PSS, bits: str) -> Verify:
    check = public.verify
    digest = _DIGEST[bits]
    hashed = Prehashed(_SHA[bits])
    # hashlib is quicker than the library's own hashing.
    return lambda signature, signed: check(signature, digest(signed).digest(), pad, hashed)


def _ec(key: JsonObject) -> dict[str, Verify]:
    bits, curve, size = _CURVES[str(key["crv"])]
    x = _member(key, "x")
    y = _member(key, "y")
    if len(x) != size or len(y) != size:
        raise ValueError("EC coordinate size")
    public = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve()).public_key()
    check = public.verify
    digest = _DIGEST[bits]
    algorithm = ec.ECDSA(Prehashed(_SHA[bits]))

    def verify(signature: bytes, signed: bytes) -> None:
        # Both numbers in full length (RFC 7518, section 3.4), which the library wants in DER.
        if len(signature) != 2 * size:
            raise InvalidSignature
        numbers = encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
        check(numbers, digest(signed).digest(), algorithm)

    return {f"ES{bits}": verify}
