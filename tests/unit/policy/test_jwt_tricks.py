"""Tokens that try to be taken for what they are not. Each is refused, and the honest one beside it accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nodeagent.policy import jwt
from nodeagent.policy.jwt_token import MAX_TOKEN
from nodeagent.policy.model import TokenHeader
from tests.unit.policy import jwt_issuer as issuer
from tests.unit.policy.jwt_issuer import (
    EC_KEYS,
    ISSUER,
    NOW,
    RSA_KEY,
    accepted,
    authenticator,
    b64,
    bearer,
    ec_jwk,
    ed_jwk,
    key_set,
    refused,
    request,
    rsa_jwk,
    rule,
    sealed,
    token,
)  # fmt: skip

NO_KEY = "Jwks doesn't have key to match kid or alg from Jwt"
FAILS = "Jwt verification fails"
UNSUPPORTED = "Jwt header [alg] is not supported"
FORM = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
FORGER = ec.generate_private_key(ec.SECP256R1())
PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = RSA_KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
PAYLOAD = json.dumps({"iss": ISSUER, "sub": "root", "exp": NOW + 600})
HEADER = '{"alg":"ES256","kid":"ec256"}'


def words(text: str, *keys: dict[str, Any]) -> str:
    return refused(authenticator(rule(jwks=key_set(*keys))).authenticate(bearer(text)))


def unsigned(algorithm: str, tail: str = "") -> str:
    return f"{b64(json.dumps({'alg': algorithm}).encode())}.{b64(PAYLOAD.encode())}.{tail}"


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "ES256K", "es256", "RSA1_5", "ES256 ", "ES2\u200b56"]
)
@pytest.mark.parametrize("tail", ["", "AA", "none"])
def test_algorithms_that_do_not_exist_here(algorithm: str, tail: str) -> None:
    assert words(unsigned(algorithm, tail)) == (UNSUPPORTED if tail else FORM)


@pytest.mark.parametrize("secret", [PEM, DER, PEM.strip(), b"", key_set().encode(), json.dumps(rsa_jwk()).encode()])
@pytest.mark.parametrize("kid", ["rsa", None])
def test_public_key_as_hmac_secret(secret: bytes, kid: str | None) -> None:
    assert words(token(algorithm="HS256", key=secret, kid=kid)) == UNSUPPORTED


def test_symmetric_key_in_the_set() -> None:
    oct_key = {"kty": "oct", "k": b64(b"secret"), "kid": "ec256", "alg": "HS256"}
    assert words(token(algorithm="HS256", key=b"secret", kid="ec256"), oct_key, ec_jwk()) == UNSUPPORTED
    assert words(token(), oct_key) == "Jwks doesn't have any valid public key"


@pytest.mark.parametrize(
    ("algorithm", "kid", "key"),
    [
        ("RS256", "ec256", ec_jwk()),
        ("ES256", "rsa", rsa_jwk()),
        ("EdDSA", "ec256", ec_jwk()),
        ("ES256", "ec384", ec_jwk("ec384", "384")),
        ("ES384", "ec256", ec_jwk()),
        ("PS256", "rsa", rsa_jwk(alg="RS256")),
        ("RS256", "rsa", rsa_jwk(alg="PS256")),
        ("RS256", "rsa", rsa_jwk(alg="RS512")),
        ("RS256", "rsa", rsa_jwk(alg="RSA-OAEP")),
        ("ES256", "ec256", ec_jwk(alg="HS256")),
        ("ES256", "ec256", ec_jwk(alg=["ES256"])),
        ("ES256", "ec256", ec_jwk(use="enc")),
        ("ES256", "ec256", ec_jwk(key_ops=["sign"])),
        ("ES256", "ec256", ec_jwk(key_ops="verify")),
        ("ES256", "ec256", ec_jwk(crv="secp256k1")),
        ("ES256", "ec256", ec_jwk(kty="RSA")),
        ("ES256", "ec256", ec_jwk(kty={})),
        ("EdDSA", "ed", ed_jwk(crv="X25519")),
        ("RS256", "rsa", rsa_jwk(key=rsa.generate_private_key(65537, 1024))),
    ],
)
def test_key_is_only_for_what_it_says(algorithm: str, kid: str, key: dict[str, Any]) -> None:
    unrelated = ec_jwk("unrelated", "512")  # so that the set has a usable key
    for named in (kid, None):
        assert words(token(algorithm=algorithm, kid=named), key, unrelated) == NO_KEY


@pytest.mark.parametrize(
    "key",
    [
        ec_jwk(x=b64(b"\1" * 32)),  # not on the curve
        ec_jwk(x=b64(b"\1" * 31)),
        ec_jwk(x=b64(b"\0" * 32), y=b64(b"\0" * 32)),
        ec_jwk(x=7),
        ec_jwk(y="===="),
        {"kty": "EC", "crv": "P-256", "kid": "ec256"},
    ],
)
def test_broken_key_is_passed_over(key: dict[str, Any]) -> None:
    assert words(token(), key) == NO_KEY
    accepted(authenticator(rule(jwks=key_set(key, ec_jwk()))).authenticate(bearer(token())))


@pytest.mark.parametrize(
    "kid",
    [
        "../../dev/null",
        "/dev/null",
        "ec256\0",
        "EC256",
        " ec256",
        "ec256' OR '1'='1",
        "https://evil.example/key",
        "é" * 100,
    ],
)
def test_key_name_is_a_name_only(kid: str) -> None:
    assert words(token(kid=kid)) == NO_KEY
    assert words(token(kid=kid, key=FORGER)) == NO_KEY


def test_a_named_key_is_the_only_one_tried() -> None:
    other = ec_jwk("other", key=FORGER)
    assert words(token(kid="other"), ec_jwk(), other) == FAILS
    accepted(authenticator(rule(jwks=key_set(other, ec_jwk()))).authenticate(bearer(token(kid=None))))
    nameless = {name: value for name, value in ec_jwk().items() if name != "kid"}
    accepted(authenticator(rule(jwks=key_set(other, nameless))).authenticate(bearer(token(kid="whatever"))))
    # twice the same name
    accepted(authenticator(rule(jwks=key_set(other, ec_jwk("other")))).authenticate(bearer(token(kid="other"))))


def test_tries_are_bounded() -> None:
    """A token without a key's name cannot make the proxy try a whole large set."""
    many = [ec_jwk(f"k{number}", key=FORGER) for number in range(200)]
    assert words(token(kid=None), *many, ec_jwk()) == FAILS
    accepted(authenticator(rule(jwks=key_set(*many, ec_jwk()))).authenticate(bearer(token())))


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": ec_jwk(key=FORGER)},
        {"jwk": ec_jwk(key=FORGER), "kid": None},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
        {"x5t": "AAAA", "kid": None},
    ],
)
def test_keys_that_the_token_brings_are_nothing(header: dict[str, Any]) -> None:
    assert words(token(key=FORGER, **header)) == FAILS
    accepted(authenticator().authenticate(bearer(token(**header))))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "x"])
def test_critical_extensions_are_refused(crit: Any) -> None:
    assert words(token(crit=crit, b64=False)) == "Jwt header [crit] field is not supported"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"alg":"none","alg":"ES256"}', "Jwt header is an invalid JSON"),
        ('{"alg":"ES256","\\u0061lg":"none"}', "Jwt header is an invalid JSON"),
        ('{"kid":"ec256"}', "Jwt header [alg] field is required and must be a string"),
        ('{"alg":["ES256"]}', "Jwt header [alg] field is required and must be a string"),
        ('{"alg":null}', "Jwt header [alg] field is required and must be a string"),
        ('{"alg":"ES256","kid":7}', "Jwt header [kid] field is not a string"),
        ('{"alg":"ES256","kid":["ec256"]}', "Jwt header [kid] field is not a string"),
        ('["ES256"]', "Jwt header is an invalid JSON"),
        ('{"alg":"ES256"', "Jwt header is an invalid JSON"),
        ('{"alg":"ES256"} x', "Jwt header is an invalid JSON"),
        ('\ufeff{"alg":"ES256"}', "Jwt header is an invalid JSON"),
        (b'{"alg":"ES256\xff"}', "Jwt header is an invalid JSON"),
        ('{"alg":"ES256","x":' + "[" * 4000 + "]" * 4000 + "}", "Jwt header is an invalid JSON"),
    ],
)
def test_bad_headers(header: str | bytes, expected: str) -> None:
    assert words(sealed(header, PAYLOAD)) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (f'{{"iss":"{ISSUER}","sub":"a","sub":"root"}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","x":{{"a":1,"a":2}}}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","exp":1,"e\\u0078p":9999999999}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","exp":NaN}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","exp":Infinity}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","exp":{"9" * 5000}}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","exp":1e999}}', "Jwt payload [exp] field is not a positive 64 bit integer"),
        (f'{{"iss":"{ISSUER}","sub":"\\ud800"}}', "Jwt payload is an invalid JSON"),
        (f'{{"iss":"{ISSUER}","sub":7}}', "Jwt payload [sub] field is not a string"),
        (f'{{"iss":["{ISSUER}"]}}', "Jwt payload [iss] field is not a string"),
        (f'{{"iss":"{ISSUER}","jti":1}}', "Jwt payload [jti] field is not a string"),
        (f'{{"iss":"{ISSUER}","x":' + "[" * 4000 + "]" * 4000 + "}", "Jwt payload is an invalid JSON"),
        (PAYLOAD.encode("utf-16"), "Jwt payload is an invalid JSON"),
        ("null", "Jwt payload is an invalid JSON"),
        ('"x"', "Jwt payload is an invalid JSON"),
    ],
)
def test_bad_payloads(payload: str | bytes, expected: str) -> None:
    assert words(sealed(HEADER, payload)) == expected


def test_base64_is_strict() -> None:
    it = authenticator(rule(from_headers=(TokenHeader("x-jwt"),)))
    head, body, signature = token().split(".")
    accepted(it.authenticate(request(x_jwt=f"{head}.{body}.{signature}")))
    stem, last = signature[:-1], signature[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 64 bytes leave 4 spare bits in the last character: decoded it is the same
    twin = alphabet[alphabet.index(last) + 1]
    for changed in (
        f"{stem}{twin}",
        f"{signature}==",
        f"{signature}AAA",
        f"{stem} {last}",
        f"{stem}+",
        f"{stem}/",
        f"{stem}\u0410",
        f"{signature}\n",
    ):
        assert (
            refused(it.authenticate(request(x_jwt=f"{head}.{body}.{changed}")))
            == "Jwt signature is an invalid Base64url encoded"
        )
    for changed, name in (
        (f"{head}=.{body}", "header"),
        (f"{head}.{body}=", "payload"),
        (f"{head}.\xe9{body}", "payload"),
    ):
        assert (
            refused(it.authenticate(request(x_jwt=f"{changed}.{signature}")))
            == f"Jwt {name} is an invalid Base64url encoded"
        )


@pytest.mark.parametrize("text", ["", ".", "..", "a", "a.b", "a..c", ".b.c", "a.b.", "a.b.c.d", "a.b.c.d.e"])
def test_form(text: str) -> None:
    assert words(text) == FORM


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES512", "EdDSA"])
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"\0" * len(raw),
        lambda raw: b"\xff" * len(raw),
        lambda raw: b"\1",
    ],
)
def test_signatures_of_other_form(algorithm: str, change: Any) -> None:
    signed = token(algorithm=algorithm).rpartition(".")[0]
    raw = issuer.signature(algorithm, signed.encode())
    accepted(authenticator().authenticate(bearer(f"{signed}.{b64(raw)}")))
    assert words(f"{signed}.{b64(change(raw))}") == FAILS


def test_der_signature_is_not_a_jws_signature() -> None:
    signed = token().rpartition(".")[0]
    der = EC_KEYS["256"].sign(signed.encode(), ec.ECDSA(issuer.HASHES["256"]))
    assert words(f"{signed}.{b64(der)}") == FAILS


def test_size() -> None:
    spare = MAX_TOKEN - len(token({"x": ""}))
    accepted(authenticator().authenticate(bearer(token({"x": "a" * (spare * 3 // 4 - 4)}))))
    assert words(token({"x": "a" * spare})) == "Jwt is too large"
    assert words("." * 1_000_000) == "Jwt is too large"


def test_a_token_is_not_remembered_for_other_rules() -> None:
    text = token({"aud": "a"})
    accepted(authenticator(rule(audiences=("a",))).authenticate(bearer(text)))
    assert (
        refused(authenticator(rule(audiences=("b",))).authenticate(bearer(text))) == "Audiences in Jwt are not allowed"
    )
    assert refused(authenticator(rule(jwks=key_set(ec_jwk(key=FORGER)))).authenticate(bearer(text))) == FAILS


def test_memory_of_tokens_is_bounded() -> None:
    it = authenticator()
    texts = [token({"pad": "x" * 8000, "n": number}) for number in range(120)]
    for text in texts:
        accepted(it.authenticate(bearer(text)))
    assert sum(len(text) for text, _ in jwt._cache._entries) <= 1 << 20
    assert sum(len(text) for text in texts) > 1 << 20
    accepted(it.authenticate(bearer(texts[0])))


def test_numbers_of_a_signature_have_their_full_length_and_no_more() -> None:
    signed = token().rpartition(".")[0]
    raw = issuer.signature("ES256", signed.encode())
    assert words(f"{signed}.{b64(raw[:32] + bytes(1) + raw[32:])}") == FAILS
