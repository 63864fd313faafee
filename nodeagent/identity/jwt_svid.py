"""JWT-SVIDs (SPIFFE JWT-SVID specification): the authority's keys for them, signing and validation.
ES256 and nothing else.

The keys stand in the authority's directory, ``jwt-keys.json`` (0600), so that all nodes sign with
the same one and know the same bundle. Whichever node looks first when the time has come adds the
next key; it is published an hour before it signs, and an old one stays as long as something that it
signed is good.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from nodeagent.errors import IdentityError
from nodeagent.identity import authority_directory
from nodeagent.identity.ca import private_pem
from nodeagent.identity.spiffe import parse
from nodeagent.policy import jwt_token
from nodeagent.policy.jwt_token import TokenError
from nodeagent.vocabulary import SpiffeId

FILE: Final = "jwt-keys.json"
TTL_SECONDS: Final = 300.0
"""Lifetime of a JWT-SVID: short, as whoever sees one may use it (specification, section 7.1)."""
SKEW_SECONDS: Final = 60.0
SIGNS_SECONDS: Final = 7 * 86400.0
"""How long a key signs."""
LEAD_SECONDS: Final = 3600.0
"""How long it is published before."""
_SIZE: Final = 32
"""Bytes of a number of P-256."""


@dataclass(frozen=True, slots=True)
class JwtKey:
    """A signing key; ``signs_from`` in Unix seconds."""

    key_id: str
    signs_from: float
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def jwk(self) -> dict[str, str]:
        """Return the public key as a SPIFFE bundle holds it (RFC 7517, RFC 7518 section 6.2)."""
        numbers = self.key.public_key().public_numbers()
        x, y = (_base64url(number.to_bytes(_SIZE, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": self.key_id, "x": x, "y": y}


class JwtKeys:
    """Signs and validates with the keys in the authority's *directory*."""

    def __init__(self, directory: Path, trust_domain: str, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._trust_domain = trust_domain
        self._clock = clock
        self._keys: tuple[JwtKey, ...] = ()
        self._stamp: tuple[int, ...] = ()
        self.bundle = b""
        """The JWK set that everybody may have."""
        self.refresh()

    def refresh(self) -> None:
        """Take up what another node did, and what time demands. Raises IdentityError; what was read
        last stays in force.
        """
        now = self._clock()
        if self._stamp and self._stamp == self._file_stamp() and _in_time(self._keys, now) == self._keys:
            return
        path = self._directory / FILE
        with authority_directory.opened(self._directory, create=True):
            known = _load(path, authority_directory.read_private(path)) if path.exists() else ()
            keys = _in_time(known, now)
            if keys != known:
                authority_directory.write(path, _dump(keys), 0o600)
            self._keys = keys
            self._stamp = self._file_stamp()
        self.bundle = orjson.dumps({"keys": [key.jwk() for key in keys]})

    def sign(self, identity: SpiffeId, audience: Sequence[str]) -> str:
        """Return a JWT-SVID of *identity* for *audience*."""
        now = int(self._clock())
        signing = [key for key in self._keys if key.signs_from <= now] or self._keys
        key = signing[-1]
        claims = {
            "iss": f"spiffe://{self._trust_domain}",
            "sub": identity,
            "aud": list(audience),
            "iat": now,
            "exp": int(now + TTL_SECONDS),
        }
        signed = b".".join(
            _base64url(orjson.dumps(part)).encode()
            for part in ({"alg": "ES256", "kid": key.key_id, "typ": "JWT"}, claims)
        )
        numbers = decode_dss_signature(key.key.sign(signed, ec.ECDSA(hashes.SHA256())))
        signature = b"".join(number.to_bytes(_SIZE, "big") for number in numbers)
        return f"{signed.decode()}.{_base64url(signature)}"

    def validate(self, text: str, audience: str) -> tuple[SpiffeId, dict[str, Any]]:
        """Return the subject and all claims of the JWT-SVID *text*, which must be for *audience*.
        Raises IdentityError saying what is wrong with it.
        """
        try:
            token = jwt_token.parse(text)
        except TokenError as error:
            raise IdentityError(error.words) from None
        key = next((key for key in self._keys if key.key_id == token.key_id), None)
        if token.algorithm != "ES256" or key is None:
            raise IdentityError("no key of the trust domain's bundle fits it")
        try:
            if len(token.signature) != 2 * _SIZE:
                raise InvalidSignature
            numbers = (int.from_bytes(token.signature[at : at + _SIZE], "big") for at in (0, _SIZE))
            key.key.public_key().verify(encode_dss_signature(*numbers), token.signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise IdentityError("its signature is wrong") from None
        if token.expires + SKEW_SECONDS <= self._clock():
            raise IdentityError("it has ended")
        if audience not in token.audiences:
            raise IdentityError("it is for another audience")
        parse(token.subject, self._trust_domain)
        return SpiffeId(token.subject), dict(token.claims)

    def _file_stamp(self) -> tuple[int, ...]:
        try:
            status = (self._directory / FILE).stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size


def _in_time(keys: tuple[JwtKey, ...], now: float) -> tuple[JwtKey, ...]:
    """Return the keys that there should be at *now*, made from *keys*, the oldest first; the same
    when there is nothing to do.
    """
    if not keys:
        return (_make(now),)
    if now >= keys[-1].signs_from + SIGNS_SECONDS:
        keys = (*keys, _make(now + LEAD_SECONDS))
    while len(keys) > 1 and now >= keys[1].signs_from + TTL_SECONDS + 2 * SKEW_SECONDS:
        keys = keys[1:]
    return keys


def _make(signs_from: float) -> JwtKey:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return JwtKey(hashlib.sha256(public).hexdigest()[:32], signs_from, key)


def _dump(keys: Sequence[JwtKey]) -> bytes:
    return json.dumps(
        [{"kid": key.key_id, "signsFrom": key.signs_from, "key": private_pem(key.key).decode()} for key in keys],
        indent=1,
    ).encode()


def _load(path: Path, content: bytes) -> tuple[JwtKey, ...]:
    try:
        keys = []
        written = orjson.loads(content)
        if not isinstance(written, list) or not written:
            raise ValueError("a list of keys is expected")
        for each in written:
            key = serialization.load_pem_private_key(each["key"].encode(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
                raise ValueError("a key of the curve P-256 is expected")
            keys.append(JwtKey(str(each["kid"]), float(each["signsFrom"]), key))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = type(error).__name__ if isinstance(error, KeyError | TypeError | AttributeError) else error
        raise IdentityError(
            f"{path}: not what this program wrote: {why}: restore it, or remove it to have new keys made"
        ) from None
    return tuple(keys)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
