"""``RequestAuthentication`` of security.istio.io, validated field by field as Istio does (its
pkg/config/validation); unknown fields are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from nodeagent.errors import ResourceError
from nodeagent.policy.model import JwtRule, RequestAuthentication, TokenHeader
from nodeagent.resources.part import TOKEN, Part

MAX_JWKS: Final = 1 << 20
_OF_CLAIM: Final = re.compile(r"[-_A-Za-z0-9]{1,256}")
"""Istio's resource has this pattern in one field alone."""


def read(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> RequestAuthentication:
    """Return the RequestAuthentication that *spec* describes. Raises ResourceError naming the field,
    its value and what is allowed.
    """
    spec.only("selector", "targetRef", "targetRefs", "jwtRules")
    return RequestAuthentication(namespace, name, tuple(_jwt_rule(part) for part in spec.items("jwtRules")))


_JWT_FIELDS: Final = (
    "issuer",
    "audiences",
    "jwks",
    "jwksUri",
    "jwks_uri",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
)
_MORE_JWT_FIELDS: Final = ("outputClaimToHeaders", "forwardOriginalToken", "timeout", "spaceDelimitedClaims")


def _jwt_rule(rule: Part) -> JwtRule:
    rule.only(*_JWT_FIELDS, *_MORE_JWT_FIELDS)
    if sum(rule.given(name) for name in ("jwks", "jwksUri", "jwks_uri")) > 1:
        raise ResourceError(f"{rule.at('jwks')}: only one of jwks and jwksUri is allowed")
    uri_field = "jwks_uri" if rule.given("jwks_uri") else "jwksUri"  # both spellings are in the schema
    uri = rule.text(uri_field, "")
    if uri and (problem := _uri(uri)):
        raise rule.wrong(uri_field, problem)
    return JwtRule(
        issuer=rule.text("issuer", "" if uri else None),
        audiences=rule.words("audiences"),
        jwks=_jwks(rule),
        jwks_uri=uri,
        from_headers=tuple(_token_header(part) for part in rule.items("fromHeaders")),
        from_params=rule.words("fromParams"),
        from_cookies=rule.words("fromCookies"),
        output_payload_to_header=_payload_header(rule),
        output_claim_to_headers=tuple(_claim_header(part) for part in rule.items("outputClaimToHeaders")),
        forward_original_token=rule.flag("forwardOriginalToken"),
        timeout_seconds=rule.duration("timeout", 5.0, shortest=0.001),
        space_delimited_claims=rule.words("spaceDelimitedClaims"),
    )


def _payload_header(rule: Part) -> str:
    field = "outputPayloadToHeader"
    return rule.matching(field, TOKEN, "a header's name") if rule.text(field, "") else ""


def _jwks(rule: Part) -> str:
    """Return the inline key set. What it holds is never shown: a symmetric key is a secret."""
    text = rule.text("jwks", "")
    if not text:
        return ""
    wrong = ResourceError(
        f'{rule.at("jwks")}: a JSON key set, {{"keys": […]}}, of at most {MAX_JWKS} bytes is expected'
    )
    try:
        value = json.loads(text) if len(text) <= MAX_JWKS else None
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
        raise wrong
    return text


def _uri(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and parts.username is None
        )
    except ValueError:
        good = False
    if good and len(text) <= 2048 and text.isprintable() and " " not in text:
        return ""
    return "an http or https URI without user and password is expected"


def _token_header(part: Part) -> TokenHeader:
    part.only("name", "prefix")
    return TokenHeader(part.matching("name", TOKEN, "a header's name"), part.text("prefix", ""))


def _claim_header(part: Part) -> tuple[str, str]:
    part.only("header", "claim")
    return part.matching("header", _OF_CLAIM, "a header's name (letters, digits, '-', '_')"), part.text("claim")
