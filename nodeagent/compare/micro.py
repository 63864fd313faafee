"""What single decisions cost, without a network: compiling policies, checking a token."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from nodeagent.compare import policies
from nodeagent.policy.authorization import RequestFacts
from nodeagent.policy.jwt import Authenticated, Authenticator
from nodeagent.policy.model import JwtRule, RequestAuthentication

_ISSUER = "https://issuer.example"
_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Micro:
    """What single decisions cost on this machine, without a network."""

    compile_seconds: float
    """To compile 10,000 policies for 1,000 workloads."""
    change_seconds: float
    """To take in a change of one of those policies: validated and compiled."""
    jwt_microseconds: float
    """To check a request whose token was not seen before (ES256)."""
    jwt_cached_microseconds: float


def measure_micro() -> Micro:
    """Measure the cost of compiling policies and of checking tokens; takes a few seconds of one core."""
    return Micro(*policies.measure(), *_jwt())


def _jwt() -> tuple[float, float]:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_numbers()
    keys = {"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": _number(public.x), "y": _number(public.y)}]}
    rule = JwtRule(_ISSUER, jwks=json.dumps(keys))
    authenticator = Authenticator.compile([RequestAuthentication("bench", "jwt", (rule,))], lambda uri: None, time.time)
    requests = [_request(_token(key, number)) for number in range(_TOKENS)]
    return tuple(_each(authenticator, requests) for _ in range(2))  # type: ignore[return-value]  # two of them


def _each(authenticator: Authenticator, requests: list[RequestFacts]) -> float:
    started = time.perf_counter()
    outcomes = [authenticator.authenticate(request) for request in requests]
    took = time.perf_counter() - started
    assert all(isinstance(outcome, Authenticated) and outcome.claims is not None for outcome in outcomes), outcomes[0]
    return 1e6 * took / len(requests)


def _request(token: str) -> RequestFacts:
    return RequestFacts("GET", "/", "web", {"authorization": f"Bearer {token}"}.get)


def _token(key: ec.EllipticCurvePrivateKey, number: int) -> str:
    parts = {"alg": "ES256", "kid": "k"}, {"iss": _ISSUER, "sub": f"user-{number}", "exp": int(time.time()) + 3600}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _number(value: int) -> str:
    return _base64(value.to_bytes(32, "big"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
