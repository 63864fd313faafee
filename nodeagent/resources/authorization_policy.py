"""``AuthorizationPolicy`` of security.istio.io, validated field by field as Istio does (its
pkg/config/validation); unknown fields are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Final, cast, get_args

from nodeagent.errors import ResourceError, shown
from nodeagent.policy.authorization_match import block
from nodeagent.policy.model import Action, AuthorizationPolicy, Condition, Operation, Rule, RuleSource
from nodeagent.policy.paths import template_problem
from nodeagent.resources.part import MAX_VALUES, Part, port_problem

DRY_RUN: Final = "istio.io/dry-run"
"""The annotation of a policy that is evaluated and never enforced."""
_BOOLEANS: Final = dict.fromkeys(("1", "t", "T", "true", "True", "TRUE"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "False", "FALSE"), False
)
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


def read(spec: Part, namespace: str, name: str, annotations: Mapping[str, str]) -> AuthorizationPolicy:
    """Return the AuthorizationPolicy that *spec* and its *annotations* describe. Raises ResourceError
    naming the field, its value and what is allowed.
    """
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
    dry_run = is_dry_run(annotations)
    if dry_run is None:
        raise ResourceError(f"metadata.annotations[{DRY_RUN}]: {shown(annotations[DRY_RUN])}: allowed: true, false")
    if dry_run and action == "CUSTOM":
        raise ResourceError(f"metadata.annotations[{DRY_RUN}]: 'true': not allowed with action CUSTOM")
    rules = tuple(_rule(part, action) for part in spec.items("rules"))
    return AuthorizationPolicy(namespace, name, action, rules, dry_run, provider.text("name", ""))


def is_dry_run(annotations: Mapping[str, object]) -> bool | None:
    """Say whether *annotations* make a policy one that is never enforced, in the words of Go's
    strconv.ParseBool, as Istio; None where they say neither.
    """
    word = annotations.get(DRY_RUN, "false")
    return _BOOLEANS.get(word) if isinstance(word, str) else None


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


def _each_both(names: Iterable[str]) -> Iterator[str]:
    """Yield each of *names*, and its negation."""
    for name in names:
        yield name
        yield f"not{name[0].upper()}{name[1:]}"


_NOT_WITH_CUSTOM: Final = frozenset(_each_both(("principals", "requestPrincipals", "namespaces", "serviceAccounts")))


def _source(item: Part, action: Action) -> RuleSource:
    source = _inner(item, "source", _SOURCES)
    if action == "CUSTOM":
        for name in source.keys:
            if name in _NOT_WITH_CUSTOM and source.given(name):
                raise source.wrong(name, "not allowed with action CUSTOM (as in Istio)")
    for name in _each_both(["serviceAccounts"]):
        for other in _each_both(["principals", "namespaces"]):
            if source.given(name) and source.given(other):
                raise source.wrong(name, f"not allowed together with {other}")
    checks = {"ipBlocks": _block, "remoteIpBlocks": _block, "serviceAccounts": _service_account}
    return RuleSource(**_lists(source, _SOURCES, RuleSource, checks))


def _operation(item: Part) -> Operation:
    operation = _inner(item, "operation", _OPERATIONS)
    found = _lists(operation, _OPERATIONS, Operation, {"ports": _port, "paths": _path})
    ports = tuple(int(text) for text in found.pop("ports"))
    not_ports = tuple(int(text) for text in found.pop("not_ports"))
    return Operation(**found, ports=ports, not_ports=not_ports)


def _inner(item: Part, name: str, known: tuple[str, ...]) -> Part:
    """Return the one mapping that an item of ``from`` or ``to`` holds; one without a field would
    match everything, so it is refused.
    """
    item.only(name)
    inner = item.sub(name)
    inner.only(*_each_both(known))
    if not any(inner.bounded(key, MAX_VALUES) for key in inner.keys):
        raise item.wrong(name, f"at least one field is expected: {', '.join(known)}, or one with 'not'")
    return inner


def _lists(
    part: Part, known: tuple[str, ...], kind: type[RuleSource | Operation], checks: Mapping[str, Callable[[str], str]]
) -> dict[str, tuple[str, ...]]:
    """Return the lists that *part* may hold, by *kind*'s names; *checks* say what is wrong with a text."""
    snake = {_camel(field.name): field.name for field in fields(kind)}
    found: dict[str, tuple[str, ...]] = {}
    for field in known:
        for name in _each_both([field]):
            found[snake[name]] = part.words(name, checks.get(field))
    return found


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
    elif key not in _PLAIN_KEYS and not _is_keyed(key):
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
    values = part.words("values", check)
    not_values = part.words("notValues", check)
    if not values and not not_values:
        raise part.wrong("values", "at least one value in values or notValues is expected")
    return Condition(key, values, not_values)


def _is_keyed(key: str) -> bool:
    """Say whether *key* is a header, ``request.headers[NAME]``, or a claim, whose path may be longer."""
    keyed = _KEYED.fullmatch(key)
    return keyed is not None and (keyed[1] != "request.headers" or keyed[2].count("[") == 1)


def _port(text: str) -> str:
    """Return what is wrong with *text* as a port. Istio takes 0, which is nobody's."""
    return "" if text == "0" else port_problem(text)


def _block(text: str) -> str:
    try:
        block(text)
    except ValueError:
        return "an address or a block (10.0.0.0/8) is expected"
    return ""


def _service_account(text: str) -> str:
    return "" if _SERVICE_ACCOUNT.fullmatch(text) else "NAME or NAMESPACE/NAME is expected, without '*'"


def _path(text: str) -> str:
    """Return what is wrong with *text*, which is a path template where it has a brace."""
    return template_problem(text) if "{" in text or "}" in text else ""
