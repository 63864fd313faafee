"""An issuer of tokens, good and bad: its own signing, so that nothing here shares code with what is tested."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nodeagent.policy.authorization_facts import RequestFacts
from nodeagent.policy.jwt import Authenticated, Authenticator, Rejected
from nodeagent.policy.model import Jwks, JwtRule, RequestAuthentication

ISSUER = "https://issuer.example"
NOW = 1_800_000_000.0
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
CURVES = {
    "256": ("P-256", ec.SECP256R1(), 32),
    "384": ("P-384", ec.SECP384R1(), 48),
    "512": ("P-521", ec.SECP521R1(), 66),
}
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEYS = {bits: ec.generate_private_key(curve) for bits, (_, curve, _) in CURVES.items()}
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int) -> str:
    return b64(value.to_bytes(size, "big"))


def rsa_jwk(kid: str = "rsa", key: rsa.RSAPrivateKey = RSA_KEY, **members: Any) -> dict[str, Any]:
    public = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": kid, "n": number(public.n, key.key_size // 8), "e": number(public.e, 3), **members}


def ec_jwk(
    kid: str = "ec256", bits: str = "256", key: ec.EllipticCurvePrivateKey | None = None, **members: Any
) -> dict[str, Any]:
    name, _, size = CURVES[bits]
    public = (key or EC_KEYS[bits]).public_key().public_numbers()
    return {"kty": "EC", "crv": name, "kid": kid, "x": number(public.x, size), "y": number(public.y, size), **members}


def ed_jwk(kid: str = "ed", **members: Any) -> dict[str, Any]:
    raw = ED_KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(raw), **members}


ALL_KEYS = [rsa_jwk(), *(ec_jwk(f"ec{bits}", bits) for bits in CURVES), ed_jwk()]
KID = {"RS": "rsa", "PS": "rsa", "Ed": "ed"}


def key_set(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys or ALL_KEYS)})


def signature(algorithm: str, signed: bytes, key: Any = None) -> bytes:
    family, bits = algorithm[:2], algorithm[2:]
    if family == "Ed":
        return (key or ED_KEY).sign(signed)
    if family == "HS":
        return hmac.new(key, signed, getattr(hashlib, f"sha{bits}")).digest()
    if family == "ES":
        size = CURVES[bits][2]
        r, s = decode_dss_signature((key or EC_KEYS[bits]).sign(signed, ec.ECDSA(HASHES[bits])))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    pad = padding.PKCS1v15() if family == "RS" else padding.PSS(padding.MGF1(HASHES[bits]), HASHES[bits].digest_size)
    return (key or RSA_KEY).sign(signed, pad, HASHES[bits])


def sealed(header: str | bytes, payload: str | bytes, algorithm: str = "ES256", key: Any = None) -> str:
    """Sign texts as they are."""
    head, body = (b64(part.encode() if isinstance(part, str) else part) for part in (header, payload))
    signed = f"{head}.{body}"
    return f"{signed}.{b64(signature(algorithm, signed.encode(), key))}"


def token(
    claims: dict[str, Any] | None = None,
    algorithm: str = "ES256",
    key: Any = None,
    *,
    bare: bool = False,
    **header: Any,
) -> str:
    """Return a token: valid unless the arguments make it something else. A claim or header member
    of None is left out.
    """
    body = claims or {} if bare else {"iss": ISSUER, "sub": "alice", "exp": NOW + 600, **(claims or {})}
    head = {"alg": algorithm, "kid": KID.get(algorithm[:2], f"ec{algorithm[2:]}"), "typ": "JWT", **header}
    return sealed(
        *(json.dumps({name: value for name, value in part.items() if value is not None}) for part in (head, body)),
        algorithm=algorithm,
        key=key,
    )


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def rule(**fields: Any) -> JwtRule:
    return JwtRule(**{"issuer": ISSUER, "jwks": "" if fields.get("jwks_uri") else key_set(), **fields})


def authenticator(*rules: JwtRule, clock: Clock | None = None, fetched: dict[str, Jwks] | None = None) -> Authenticator:
    return Authenticator.compile(
        [RequestAuthentication("ns", "it", rules or (rule(),))], (fetched or {}).get, clock or Clock()
    )


def request(method: str = "GET", path: str = "/", **headers: str) -> RequestFacts:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestFacts(method, path, "shop.example", fields.get)


def bearer(text: str) -> RequestFacts:
    return request(authorization=f"Bearer {text}")


def accepted(outcome: Authenticated | Rejected) -> Authenticated:
    assert isinstance(outcome, Authenticated), outcome
    return outcome


def refused(outcome: Authenticated | Rejected) -> str:
    assert isinstance(outcome, Rejected), outcome
    return outcome.words
