"""Every field that Istio's custom resources have, of the kinds that are read here, is accepted: the
table is what kubernetes/customresourcedefinitions.gen.yaml of istio/api said in
July 2026. A new release's fields are added by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.resources.security import parse
from tests.unit.resources.test_security import document

_TARGET = ("group", "kind", "name", "namespace")
FIELDS: dict[str, tuple[str, ...]] = {
    "AuthorizationPolicy": (
        "action",
        "provider.name",
        "rules[].from[].source.ipBlocks",
        "rules[].from[].source.namespaces",
        "rules[].from[].source.notIpBlocks",
        "rules[].from[].source.notNamespaces",
        "rules[].from[].source.notPrincipals",
        "rules[].from[].source.notRemoteIpBlocks",
        "rules[].from[].source.notRequestPrincipals",
        "rules[].from[].source.notServiceAccounts",
        "rules[].from[].source.notTrustDomains",
        "rules[].from[].source.principals",
        "rules[].from[].source.remoteIpBlocks",
        "rules[].from[].source.requestPrincipals",
        "rules[].from[].source.serviceAccounts",
        "rules[].from[].source.trustDomains",
        "rules[].to[].operation.hosts",
        "rules[].to[].operation.methods",
        "rules[].to[].operation.notHosts",
        "rules[].to[].operation.notMethods",
        "rules[].to[].operation.notPaths",
        "rules[].to[].operation.notPorts",
        "rules[].to[].operation.paths",
        "rules[].to[].operation.ports",
        "rules[].when[].key",
        "rules[].when[].notValues",
        "rules[].when[].values",
        "selector.matchLabels",
        *(f"targetRef.{name}" for name in _TARGET),
        *(f"targetRefs[].{name}" for name in _TARGET),
    ),
    "PeerAuthentication": ("mtls.mode", "portLevelMtls.8080.mode", "selector.matchLabels"),
    "RequestAuthentication": (
        "jwtRules[].audiences",
        "jwtRules[].forwardOriginalToken",
        "jwtRules[].fromCookies",
        "jwtRules[].fromHeaders[].name",
        "jwtRules[].fromHeaders[].prefix",
        "jwtRules[].fromParams",
        "jwtRules[].issuer",
        "jwtRules[].jwks",
        "jwtRules[].jwksUri",
        "jwtRules[].jwks_uri",
        "jwtRules[].outputClaimToHeaders[].claim",
        "jwtRules[].outputClaimToHeaders[].header",
        "jwtRules[].outputPayloadToHeader",
        "jwtRules[].spaceDelimitedClaims",
        "jwtRules[].timeout",
        "selector.matchLabels",
        *(f"targetRef.{name}" for name in _TARGET),
        *(f"targetRefs[].{name}" for name in _TARGET),
    ),
}
VALUES: dict[str, Any] = {
    "action": "DENY",
    "matchLabels": {"app": "web"},
    "mode": "STRICT",
    "key": "source.namespace",
    "kind": "Service",
    "group": "",
    "namespace": "shop",
    "jwks": '{"keys": []}',
    "jwksUri": "https://issuer.example/keys",
    "jwks_uri": "https://issuer.example/keys",
    "timeout": "5s",
    "forwardOriginalToken": True,
    **{name: ["10.0.0.0/8"] for name in ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")},
    **{name: ["80"] for name in ("ports", "notPorts")},
    **{name: ["/a/{**}/b"] for name in ("paths", "notPaths")},
    **dict.fromkeys(("name", "issuer", "prefix", "claim", "header", "outputPayloadToHeader"), "x"),
}
"""What a field may hold, by its name; others hold a list of texts."""
BESIDE: dict[str, dict[str, Any]] = {
    "provider": {"action": "CUSTOM", "rules": [{}]},
    "action": {"rules": [{}]},
    "portLevelMtls": {"selector": {"matchLabels": {"app": "web"}}},
}
"""What the spec needs beside a field, by the first part of its path."""
NEEDED: dict[str, dict[str, Any]] = {
    "when[]": {"key": "source.namespace", "values": ["x"]},
    "jwtRules[]": {"issuer": "x"},
    "fromHeaders[]": {"name": "x"},
    "outputClaimToHeaders[]": {"header": "x", "claim": "x"},
    "targetRef": {"kind": "Service", "name": "x"},
    "targetRefs[]": {"kind": "Service", "name": "x"},
}
"""What the mapping that a field stands in needs beside it."""


def spec_with(path: str) -> dict[str, Any]:
    """Return a spec in which the field at *path* is said, and what it needs."""
    first, *_ = steps = path.split(".")
    value: Any = VALUES.get(steps[-1], ["x"])
    for step, inner in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
        named = NEEDED.get(step, {}) | {inner.removesuffix("[]"): value}
        value = [named] if step.endswith("[]") else named
    return BESIDE.get(first, {}) | {first.removesuffix("[]"): value}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in FIELDS.items() for path in paths])
@pytest.mark.parametrize("version", ["security.istio.io/v1", "security.istio.io/v1beta1"])
def test_every_field_is_accepted(version: str, kind: str, path: str) -> None:
    assert parse(document(kind, spec_with(path), version)) != parse(document(kind, {}, version))
