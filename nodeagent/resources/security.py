"""Istio's security resources as the agent takes them: validated field by field as Istio does,
unknown fields refused.

The rules are those of Istio's own validation (pkg/config/validation) and of the schemas of its
custom resources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from ipaddress import ip_network
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import urlsplit

from nodeagent.errors import ResourceError, shown
from nodeagent.policy.model import (
    Action,
    AuthorizationPolicy,
    Condition,
    JwtRule,
    MtlsMode,
    Operation,
    PeerAuthentication,
    RateLimit,
    RequestAuthentication,
    Rule,
    RuleSource,
    TokenHeader,
)
from nodeagent.resources import rate_limit
from nodeagent.resources.objects import NAME, NAMESPACE
from nodeagent.resources.part import Part
from nodeagent.vocabulary import ObjectKey

Kind = Literal["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "RateLimit"]
Spec = PeerAuthentication | AuthorizationPolicy | RequestAuthentication | RateLimit
ISTIO: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")
DRY_RUN: Final = "istio.io/dry-run"
MAX_JWKS: Final = 1 << 20
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_HEADER: Final = re.compile(r"[-_A-Za-z0-9]{1,256}")
_SERVICE_ACCOUNT: Final = re.compile(r"([a-z0-9][-a-z0-9]{0,62}/)?[a-z0-9][-a-z0-9.]{0,252}")
_KEYED: Final = re.compile(r"(request\.headers|request\.auth\.claims)((\[[^\[\]]+\])+)")
_PLAIN_KEYS: Final = frozenset(
    (
        "source.namespace",
        "source.serviceAccount",
        "source.trustDomain",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
    )
) | {"request.auth.presenter", "connection.sni"}
_ADDRESS_KEYS: Final = frozenset(("source.ip", "remote.ip", "destination.ip"))


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    """One of ``targetRefs``."""

    group: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A resource and whom it is for."""

    kind: Kind
    namespace: str
    name: str
    created: str
    """RFC 3339, which sorts by time; empty when it is not said, which counts as oldest."""
    selector: tuple[tuple[str, str], ...]
    """Labels that a pod must have, sorted; empty: every pod."""
    targets: tuple[PolicyTarget, ...]
    spec: Spec
    refused: str = ""
    """What is wrong with the document; the policy then stands in for it and closes what it selects."""

    @property
    def key(self) -> ObjectKey:
        return self.kind, self.namespace, self.name


def parse(document: Any) -> Policy:
    """Return *document*, a resource of :data:`KINDS`. Raises ResourceError naming the field, its
    value and what is allowed.
    """
    root = Part("", document)
    kind = root.text("kind")
    if kind not in _READERS:
        raise root.wrong("kind", f"allowed: {', '.join(sorted(_READERS))}")
    versions, read = _READERS[kind]
    root.only("apiVersion", "kind", "metadata", "spec", "status")
    root.choice("apiVersion", versions)
    metadata = root.sub("metadata")
    name = metadata.matching("name", NAME, "a lower-case DNS name")
    namespace = metadata.matching("namespace", NAMESPACE, "a namespace's name", default="default")
    created = (
        metadata.matching("creationTimestamp", _TIME, "a time as 2026-01-31T12:00:00Z")
        if metadata.has("creationTimestamp")
        else ""
    )
    annotations = metadata.texts("annotations")
    metadata.texts("labels")
    spec = root.sub("spec")
    selector, targets = _scope(spec, namespace) if kind != "PeerAuthentication" else (_selector(spec), ())
    return Policy(
        cast(Kind, kind), namespace, name, created, selector, targets, read(spec, namespace, name, annotations)
    )


def whose(document: Any) -> ObjectKey | None:
    """Return kind, namespace and name of *document* although it is wrong, one without a name by its
    content; None where it does not say.
    """
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(metadata, dict):
        return None
    kind, namespace, name = document.get("kind"), metadata.get("namespace", "default"), metadata.get("name")
    if not isinstance(kind, str) or not isinstance(namespace, str):
        return None
    if not isinstance(name, str) or not 0 < len(name) <= 253:
        name = f"unnamed-{sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:8]}"
    return kind[:253], namespace[:253], name


def stand_in(key: ObjectKey, document: Any, error: str) -> Policy | None:
    """Return what takes the place of *document*, which is *key* and was refused with *error*: it
    closes what the document selects.

    That is read as far as it can be; a selector that is wrong is the whole namespace. A
    PeerAuthentication becomes STRICT, all others deny everything. None: the document would refuse
    nobody, being another API's, an AUDIT policy or a dry run.
    """
    kind, namespace, name = key
    document = document if isinstance(document, dict) else {}
    versions, _ = _READERS.get(kind, ((), None))
    version, spec, metadata = document.get("apiVersion"), document.get("spec"), document.get("metadata")
    spec, metadata = spec if isinstance(spec, dict) else {}, metadata if isinstance(metadata, dict) else {}
    if not versions or (
        isinstance(version, str) and version.partition("/")[0] not in {each.partition("/")[0] for each in versions}
    ):
        return None
    annotations = metadata.get("annotations")
    dry = isinstance(annotations, dict) and annotations.get(DRY_RUN) == "true"
    if kind == "AuthorizationPolicy" and (dry or spec.get("action") == "AUDIT"):
        return None
    try:
        part = Part("spec", spec)
        selector, targets = _scope(part, namespace) if kind != "PeerAuthentication" else (_selector(part), ())
    except ResourceError:
        selector, targets = (), ()
    created = metadata.get("creationTimestamp")
    created = created if isinstance(created, str) and _TIME.fullmatch(created) else ""
    closing: Spec = AuthorizationPolicy(namespace, name, "DENY", (Rule(),), refused=kind)
    if kind == "PeerAuthentication":
        closing = PeerAuthentication(namespace, name, "STRICT")
    return Policy(cast(Kind, kind), namespace, name, created, selector, targets, closing, error)


# -- whom a policy is for --


def _selector(spec: Part) -> tuple[tuple[str, str], ...]:
    if not spec.given("selector"):
        return ()
    selector = spec.sub("selector")
    selector.only("matchLabels")
    labels = selector.texts("matchLabels")
    for key, value in labels.items():
        if not key or len(key) > 317 or len(value) > 63 or "*" in key or "*" in value:
            raise ResourceError(
                f"{selector.at('matchLabels')}[{shown(key)}]: {shown(value)}: a label and its value are expected, "
                "without '*'"
            )
    return tuple(sorted(labels.items()))


_TARGETS: Final = (
    ("", "Service"),
    ("core", "Service"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)
_TARGET_KINDS: Final = (*_TARGETS, ("networking.istio.io", "ServiceEntry"))


def _scope(spec: Part, namespace: str) -> tuple[tuple[tuple[str, str], ...], tuple[PolicyTarget, ...]]:
    if sum(spec.given(name) for name in ("selector", "targetRef", "targetRefs")) > 1:
        raise spec.wrong("selector", "only one of selector, targetRef and targetRefs is allowed")
    given = [spec.sub("targetRef")] if spec.given("targetRef") else spec.items("targetRefs")
    if len(given) > 16:
        raise ResourceError(f"{spec.at('targetRefs')}: {len(given)} items: at most 16 are allowed")
    targets = []
    for part in given:
        part.only("group", "kind", "name", "namespace")
        target = PolicyTarget(
            part.text("group", ""), part.text("kind"), part.matching("name", NAME, "a lower-case DNS name")
        )
        if (target.group, target.kind) not in _TARGET_KINDS:
            words = ", ".join(f"{kind} ({group or 'core'})" for group, kind in _TARGET_KINDS if group != "core")
            raise part.wrong("kind", f"allowed: {words}, each with its group")
        if part.text("namespace", "") not in ("", namespace):
            raise part.wrong("namespace", f"only the policy's own namespace, {namespace}, is allowed")
        targets.append(target)
    return _selector(spec), tuple(targets)


# -- PeerAuthentication --


def _peer_authentication(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> PeerAuthentication:
    spec.only("selector", "mtls", "portLevelMtls")
    mode, ports = _mode(spec, "mtls"), []
    if spec.given("portLevelMtls"):
        by_port = spec.sub("portLevelMtls")
        if not by_port.keys:
            raise spec.wrong("portLevelMtls", "at least one port is expected, or no such field")
        if not _selector(spec):
            raise spec.wrong("portLevelMtls", "a selector with matchLabels is needed: ports are those of workloads")
        for key in by_port.keys:
            if problem := _port(key):
                raise ResourceError(f"{by_port.at(key):.120}: {problem}")
            ports.append((int(key), _mode(by_port, key)))
    return PeerAuthentication(namespace, name, mode, tuple(sorted(ports, key=lambda port: port[0])))


def _mode(spec: Part, name: str) -> MtlsMode | None:
    mtls = spec.sub(name)
    mtls.only("mode")
    mode = mtls.choice("mode", ("UNSET", *get_args(MtlsMode)), "UNSET")
    return None if mode == "UNSET" else cast(MtlsMode, mode)


# -- AuthorizationPolicy --


def _authorization_policy(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> AuthorizationPolicy:
    spec.only("selector", "targetRef", "targetRefs", "action", "rules", "provider")
    action = cast(Action, spec.choice("action", get_args(Action), "ALLOW"))
    provider = spec.sub("provider")
    provider.only("name")
    if action == "CUSTOM":
        provider.text("name")
    elif spec.given("provider"):
        raise spec.wrong("provider", f"only a CUSTOM policy has one, and the action is {action}")
    if action in ("CUSTOM", "DENY") and not spec.given("rules"):
        raise spec.wrong(
            "rules",
            f"a {action} policy without rules never does anything; an empty rule, [{{}}], matches every request",
        )
    dry_run = annotations.get(DRY_RUN, "false")
    if dry_run not in ("true", "false"):
        raise ResourceError(f"metadata.annotations[{DRY_RUN}]: {shown(dry_run)}: allowed: true, false")
    if dry_run == "true" and action == "CUSTOM":
        raise ResourceError(f"metadata.annotations[{DRY_RUN}]: 'true': not allowed with action CUSTOM")
    rules = tuple(_rule(part, action) for part in spec.items("rules"))
    return AuthorizationPolicy(namespace, name, action, rules, dry_run == "true", provider.text("name", ""))


def _rule(rule: Part, action: Action) -> Rule:
    rule.only("from", "to", "when")
    for name in ("from", "to"):
        if rule.given(name) and not rule.bounded(name):
            raise rule.wrong(name, "at least one item is expected, or no such field")
    return Rule(
        tuple(_source(part, action) for part in rule.items("from")),
        tuple(_operation(part) for part in rule.items("to")),
        tuple(_condition(part, action) for part in rule.items("when")),
    )


def _both(name: str) -> tuple[str, str]:
    return name, f"not{name[0].upper()}{name[1:]}"


_SOURCES: Final = (
    "principals",
    "requestPrincipals",
    "namespaces",
    "serviceAccounts",
    "trustDomains",
    "ipBlocks",
    "remoteIpBlocks",
)
_OPERATIONS: Final = ("hosts", "ports", "methods", "paths")
_NOT_WITH_CUSTOM: Final = frozenset(
    name for field in ("principals", "requestPrincipals", "namespaces", "serviceAccounts") for name in _both(field)
)


def _source(item: Part, action: Action) -> RuleSource:
    source = _inner(item, "source", _SOURCES)
    if action == "CUSTOM":
        for name in source.keys:
            if name in _NOT_WITH_CUSTOM and source.given(name):
                raise source.wrong(name, "not allowed with action CUSTOM (as in Istio)")
    for name in _both("serviceAccounts"):
        for other in (*_both("principals"), *_both("namespaces")):
            if source.given(name) and source.given(other):
                raise source.wrong(name, f"not allowed together with {other}")
    checks = {"ipBlocks": _block, "remoteIpBlocks": _block, "serviceAccounts": _service_account}
    return RuleSource(**_lists(source, _SOURCES, RuleSource, checks))


def _operation(item: Part) -> Operation:
    operation = _inner(item, "operation", _OPERATIONS)
    found = _lists(operation, _OPERATIONS, Operation, {"ports": _port, "paths": _path})
    for name in ("ports", "not_ports"):
        found[name] = tuple(int(text) for text in found[name])
    return Operation(**found)


def _inner(item: Part, name: str, known: tuple[str, ...]) -> Part:
    """Return the one mapping that an item of ``from`` or ``to`` holds; one without a field would
    match everything, so it is refused.
    """
    item.only(name)
    inner = item.sub(name)
    inner.only(*(each for field in known for each in _both(field)))
    if not any(inner.bounded(key) for key in inner.keys):
        raise item.wrong(name, f"at least one field is expected: {', '.join(known)}, or one with 'not'")
    return inner


def _lists(
    part: Part, known: tuple[str, ...], kind: type[RuleSource | Operation], checks: Mapping[str, Callable[[str], str]]
) -> dict[str, Any]:
    names = [(each, checks.get(field)) for field in known for each in _both(field)]
    snake = {_camel(field.name): field.name for field in fields(kind)}
    return {snake[name]: part.words(name, check) for name, check in names}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _condition(part: Part, action: Action) -> Condition:
    part.only("key", "values", "notValues")
    key = part.text("key")
    check: Callable[[str], str] | None = None
    if key in _ADDRESS_KEYS:
        check = _block
    elif key == "destination.port":
        check = _port
    elif key == "source.serviceAccount":
        check = _service_account
    elif key not in _PLAIN_KEYS and not (
        (keyed := _KEYED.fullmatch(key)) and (keyed[1] != "request.headers" or keyed[2].count("[") == 1)
    ):
        known = ", ".join(
            sorted(
                _PLAIN_KEYS | _ADDRESS_KEYS | {"destination.port", "request.headers[NAME]", "request.auth.claims[NAME]"}
            )
        )
        raise part.wrong("key", f"allowed: {known}")
    if action == "CUSTOM" and (
        key in ("source.namespace", "source.principal", "source.serviceAccount") or key.startswith("request.auth.")
    ):
        raise part.wrong("key", "not allowed with action CUSTOM (as in Istio)")
    values, not_values = part.words("values", check), part.words("notValues", check)
    if not values and not not_values:
        raise part.wrong("values", "at least one value in values or notValues is expected")
    return Condition(key, values, not_values)


def _block(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return "an address or a block (10.0.0.0/8) is expected"
    return ""


def _port(text: str) -> str:
    return (
        ""
        if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
        else "a port from 1 to 65535, as text, is expected"
    )


def _service_account(text: str) -> str:
    return "" if _SERVICE_ACCOUNT.fullmatch(text) else "NAME or NAMESPACE/NAME is expected, without '*'"


def _path(text: str) -> str:
    """Return what is wrong with the path template *text*: braces stand only in ``{*}`` and
    ``{**}``, each a segment of its own, the second last.
    """
    if "{" not in text and "}" not in text:
        return ""
    if not text.startswith("/"):
        return "a path template begins with '/'"
    segments = text.split("/")
    for index, segment in enumerate(segments):
        if segment == "{**}" and index < len(segments) - 1:
            return "{**} stands for all that follows: it must be last"
        if segment not in ("{*}", "{**}") and any(sign in segment for sign in "{}*"):
            return "in a path template, a segment is {*}, {**} or text without '{', '}' and '*'"
    return ""


# -- RequestAuthentication --


def _request_authentication(
    spec: Part, namespace: str, name: str, annotations: Mapping[str, str]
) -> RequestAuthentication:
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
_MORE_JWT_FIELDS: Final = ("outputClaimToHeaders", "forwardOriginalToken", "timeout")


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
        output_payload_to_header=rule.matching("outputPayloadToHeader", _HEADER, "a header's name")
        if rule.given("outputPayloadToHeader")
        else "",
        output_claim_to_headers=tuple(_claim_header(part) for part in rule.items("outputClaimToHeaders")),
        forward_original_token=rule.flag("forwardOriginalToken"),
        timeout_seconds=rule.duration("timeout", 5.0, shortest=0.001),
    )


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
    return (
        ""
        if good and len(text) <= 2048 and text.isprintable() and " " not in text
        else "an http or https URI without user and password is expected"
    )


def _token_header(part: Part) -> TokenHeader:
    part.only("name", "prefix")
    return TokenHeader(part.matching("name", _HEADER, "a header's name"), part.text("prefix", ""))


def _claim_header(part: Part) -> tuple[str, str]:
    part.only("header", "claim")
    return part.matching("header", _HEADER, "a header's name"), part.text("claim")


_READERS: Final[dict[str, tuple[tuple[str, ...], Callable[[Part, str, str, Mapping[str, str]], Spec]]]] = {
    "PeerAuthentication": (ISTIO, _peer_authentication),
    "AuthorizationPolicy": (ISTIO, _authorization_policy),
    "RequestAuthentication": (ISTIO, _request_authentication),
    "RateLimit": (rate_limit.VERSIONS, rate_limit.read),
}
KINDS: Final = frozenset(_READERS)
