"""Kubernetes' tokens for pods (TokenRequest, KEP-1205): JWTs by the API server, bound to a service account, a pod and its node."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nodeagent.ca.grants import Caller
from nodeagent.ca.refusal import Refusal
from nodeagent.ca.settings import ServiceAccountTokens
from nodeagent.ca.tokens import WatchedFile
from nodeagent.errors import IdentityError
from nodeagent.identity.spiffe import spiffe_id

SKEW_SECONDS: Final = 60.0
MAX_KEYS: Final = 100
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES: Final = {"ES256": ("P-256", ec.SECP256R1), "ES384": ("P-384", ec.SECP384R1), "ES512": ("P-521", ec.SECP521R1)}
"""What the API server signs with: RS256, or one of these (RFC 7518, section 3.4)."""
Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
NodeOf = Callable[[str, str, str], str]
"""Namespace, name and uid of a pod -> its node; empty: there is no such pod."""


class ServiceAccountValidator:
    """Knows tokens of one issuer; others are of another kind."""

    def __init__(self, settings: ServiceAccountTokens, trust_domain: str, node_of: NodeOf, clock: Callable[[], float] = time.time) -> None:
        """Raises IdentityError when the keys cannot be read."""
        self._settings, self._trust_domain, self._node_of, self._clock = settings, trust_domain, node_of, clock
        self._keys = WatchedFile(settings.keys, jwks, private=False)

    def validate(self, token: str) -> Caller | None:
        parts = token.split(".")
        if len(parts) != 3:
            return None
        try:
            header, claims = (_json(part) for part in parts[:2])
            signature = _decoded(parts[2])
        except ValueError:
            return None
        if claims.get("iss") != self._settings.issuer:
            return None
        self._check_signature(header, f"{parts[0]}.{parts[1]}".encode(), signature)
        self._check_claims(claims)
        return self._caller(claims)

    def _check_signature(self, header: Mapping[str, Any], signed: bytes, signature: bytes) -> None:
        algorithm, name = header.get("alg"), header.get("kid")
        keys = self._keys.get()
        # The key decides the algorithm, never the token; without a name every key of the set is tried.
        candidates = [key for known, of, key in keys if of == algorithm and name in (None, known)]
        if "crit" in header or not any(_verifies(key, str(algorithm), signed, signature) for key in candidates):
            raise Refusal("UNAUTHENTICATED", "the token's signature is not by a key of the issuer")

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        now = self._clock()
        expiry, begin = _seconds(claims.get("exp")), _seconds(claims.get("nbf", 0))
        if now >= expiry + SKEW_SECONDS:
            raise Refusal("UNAUTHENTICATED", f"the token has ended {now - expiry:.0f} s ago")
        if now < begin - SKEW_SECONDS:
            raise Refusal("UNAUTHENTICATED", "the token does not hold yet")
        audiences = claims.get("aud")
        audiences = [audiences] if isinstance(audiences, str) else audiences
        if not isinstance(audiences, list) or not any(audience in audiences for audience in self._settings.audiences):
            raise Refusal("UNAUTHENTICATED", f"the token is not for {' or '.join(self._settings.audiences)}: see the projected volume's audience")

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        kubernetes = _mapping(claims.get("kubernetes.io"))
        namespace, account = kubernetes.get("namespace"), _mapping(kubernetes.get("serviceaccount")).get("name")
        if not isinstance(namespace, str) or not isinstance(account, str) or claims.get("sub") != f"system:serviceaccount:{namespace}:{account}":
            raise Refusal("UNAUTHENTICATED", "the token is not a service account's: its subject and its kubernetes.io claims do not fit together")
        try:
            identity = spiffe_id(self._trust_domain, namespace, account)
        except IdentityError as error:
            raise Refusal("UNAUTHENTICATED", str(error)) from None
        node, pod = _mapping(kubernetes.get("node")).get("name"), _mapping(kubernetes.get("pod"))
        if not isinstance(node, str):
            # Before Kubernetes 1.30 a token names its pod only.
            node = self._node_of(namespace, str(pod.get("name")), str(pod.get("uid")))
        return Caller(identity, node)


def jwks(content: bytes) -> tuple[tuple[str | None, str, Key], ...]:
    """Return (key id, algorithm, key) of a JWKS document (RFC 7517); keys of other kinds are left out. Raises IdentityError."""
    try:
        document = json.loads(content)
        rows = document["keys"]
        found = [made for row in rows[:MAX_KEYS] if (made := _key(row)) is not None]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IdentityError(f"not a JWKS document: {type(error).__name__}: {str(error)[:200]}") from None
    if not found:
        raise IdentityError("no key for RS256, ES256, ES384 or ES512 in it")
    return tuple(found)


def _key(row: Mapping[str, str]) -> tuple[str | None, str, Key] | None:
    if row.get("use", "sig") != "sig":
        return None
    if row["kty"] == "RSA" and row.get("alg", "RS256") == "RS256":
        key = rsa.RSAPublicNumbers(_number(row["e"]), _number(row["n"])).public_key()
        return (row.get("kid"), "RS256", key) if key.key_size >= 2048 else None
    if row["kty"] == "EC":
        for algorithm, (name, curve) in _CURVES.items():
            if row["crv"] == name:
                return row.get("kid"), algorithm, ec.EllipticCurvePublicNumbers(_number(row["x"]), _number(row["y"]), curve()).public_key()
    return None


def _verifies(key: Key, algorithm: str, signed: bytes, signature: bytes) -> bool:
    digest = _HASHES[algorithm[2:]]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), digest)
        else:
            size = (key.key_size + 7) // 8
            if len(signature) != 2 * size:
                return False
            numbers = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
            key.verify(encode_dss_signature(*numbers), signed, ec.ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def _json(part: str) -> Mapping[str, Any]:
    try:
        value = json.loads(_decoded(part))
    except RecursionError:
        raise ValueError from None
    if not isinstance(value, dict):
        raise ValueError
    return value


def _decoded(part: str) -> bytes:
    """Decode base64url without padding, strictly. Raises ValueError."""
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError from None


def _number(part: str) -> int:
    return int.from_bytes(_decoded(part), "big")


def _seconds(value: object) -> float:
    # Not NaN, which is neither before nor after anything.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    raise Refusal("UNAUTHENTICATED", "the token's exp or nbf is missing or no time")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
