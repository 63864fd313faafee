"""AuthorizationPolicies as Envoy's RBAC rules. Pure. What cannot be said there is refused, never
left out: a policy that half applies is worse than none.

Source: Istio's pilot/pkg/security/authz/builder and /model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, cast

from nodeagent.errors import InjectionError, ResourceError
from nodeagent.inject.model import Document
from nodeagent.policy.authorization_match import in_domains
from nodeagent.policy.model import AuthorizationPolicy, Operation, Rule, RuleSource
from nodeagent.resources import security

_SOURCES: Final = ("principals", "namespaces", "ip_blocks")
_OPERATIONS: Final = ("methods", "paths", "ports")
_OF_HTTP: Final = ("methods", "paths")
_OF_THE_NODE: Final = frozenset({"topology.kubernetes.io/region", "topology.kubernetes.io/zone"})
"""Labels that a pod gets when it is bound (Kubernetes' PodTopologyLabels), whoever makes it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that are in force at one pod: (action, policies), DENY first, each for HTTP and for TCP."""

    http: tuple[Document, ...] = ()
    tcp: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class Selected:
    """The pod by which policies are chosen: its namespace, its labels as it will have them, and the keys of those
    that whoever makes it adds: their values are not known.
    """

    namespace: str
    labels: Mapping[str, str]
    later: frozenset[str] = frozenset()


def translate(documents: Iterable[Mapping[str, object]], root: str, pod: Selected, trust_domain: str) -> Rules:
    """Return the rules of the AuthorizationPolicies in *documents* for *pod*.

    *root* is the mesh's root namespace, *trust_domain* what ``cluster.local`` stands for in
    principals.

    Raises InjectionError naming the policy and the field that Envoy's rules here cannot express, or by which nobody
    can tell yet whether it is for this pod.
    """
    found = [_resolved(policy, trust_domain) for policy in _selected(documents, root, pod)]
    return Rules(tuple(_all(found, tcp=False)), tuple(_all(found, tcp=True)))


def _selected(documents: Iterable[Mapping[str, object]], root: str, pod: Selected) -> Iterator[AuthorizationPolicy]:
    seen: set[tuple[str, str]] = set()
    for index, document in enumerate(documents):
        at = f"values.authorizationPolicies[{index}]"
        try:
            policy = security.parse(dict(document))
        except ResourceError as error:
            raise InjectionError(f"{at}: {error}") from None
        if policy.kind != "AuthorizationPolicy":
            raise InjectionError(f"{at}.kind: {policy.kind}: allowed: AuthorizationPolicy")
        if policy.namespace not in (pod.namespace, root):
            continue
        spec = cast(AuthorizationPolicy, policy.spec)
        where = f"{at} ({spec.namespace}/{spec.name})"
        if not _selects(where, dict(policy.selector), pod):
            continue
        if (spec.namespace, spec.name) in seen:
            raise InjectionError(f"{where}: metadata.name: allowed: another name than that of a policy before it")
        seen.add((spec.namespace, spec.name))
        if policy.targets:
            raise InjectionError(
                f"{where}: spec.targetRefs: allowed: a selector: a sidecar's template does not know the Services"
            )
        if spec.action not in ("ALLOW", "DENY") or spec.dry_run:
            raise InjectionError(
                f"{where}: spec.action: {'dry run' if spec.dry_run else spec.action}: allowed: ALLOW, DENY"
            )
        _refuse_unknown(where, spec)
        yield spec


def _selects(where: str, selector: Mapping[str, str], pod: Selected) -> bool:
    unknown = {key for key in selector if key not in pod.labels and (key in pod.later or key in _OF_THE_NODE)}
    if any(pod.labels.get(key) != value for key, value in selector.items() if key not in unknown):
        return False
    if unknown:
        raise InjectionError(
            f"{where}: spec.selector.matchLabels[{min(unknown)}]: allowed: labels that the pod has at injection: "
            "it gets this one later"
        )
    return True


def _resolved(policy: AuthorizationPolicy, trust_domain: str) -> AuthorizationPolicy:
    def names(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(itertools.chain.from_iterable(in_domains(value, (trust_domain,)) for value in values))

    def resolved(source: RuleSource) -> RuleSource:
        return replace(source, principals=names(source.principals), not_principals=names(source.not_principals))

    return replace(
        policy, rules=tuple(replace(rule, sources=tuple(map(resolved, rule.sources))) for rule in policy.rules)
    )


def _refuse_unknown(where: str, policy: AuthorizationPolicy) -> None:
    for index, rule in enumerate(policy.rules):
        at = f"{where}: spec.rules[{index}]"
        if rule.conditions:
            raise InjectionError(f"{at}.when: {rule.conditions[0].key}: not translated for Envoy: allowed: from and to")
        for part, known in ((rule.sources, _SOURCES), (rule.operations, _OPERATIONS)):
            for item in part:
                for field in fields(item):
                    if getattr(item, field.name) and field.name.removeprefix("not_") not in known:
                        raise InjectionError(
                            f"{at}: {field.name}: not translated for Envoy: allowed: {', '.join(known)}, each "
                            "also with not"
                        )
        if any("{" in path for path in _paths(rule)):
            raise InjectionError(
                f"{at}.to: paths: templates are not translated for Envoy: allowed: exact, PREFIX*, *SUFFIX"
            )


def _paths(rule: Rule) -> Iterator[str]:
    for item in rule.operations:
        yield from item.paths
        yield from item.not_paths


def _all(policies: list[AuthorizationPolicy], *, tcp: bool) -> Iterator[Document]:
    for action in ("DENY", "ALLOW"):
        chosen = [policy for policy in policies if policy.action == action]
        if chosen:
            yield {
                "action": action,
                "policies": dict(itertools.chain.from_iterable(_rules(policy, tcp) for policy in chosen)),
            }


def _rules(policy: AuthorizationPolicy, tcp: bool) -> Iterator[tuple[str, Document]]:
    for index, rule in enumerate(policy.rules):
        if tcp and _needs_http(rule):
            if policy.action == "ALLOW":
                continue  # Istio: the rule goes, the policy still denies what no other rule allows.
            rule = _without_http(rule)
        name = f"ns[{policy.namespace}]-policy[{policy.name}]-rule[{index}]"
        permissions = [
            _both(operation, _OPERATIONS, _permission, "not_rule", "and_rules", "or_rules")
            for operation in rule.operations
        ]
        principals = [_both(source, _SOURCES, _principal, "not_id", "and_ids", "or_ids") for source in rule.sources]
        yield name, {"permissions": permissions or [{"any": True}], "principals": principals or [{"any": True}]}


def _needs_http(rule: Rule) -> bool:
    names = (*_OF_HTTP, *(f"not_{name}" for name in _OF_HTTP))
    return any(any(getattr(item, name) for name in names) for item in rule.operations)


def _without_http(rule: Rule) -> Rule:
    operations = tuple(Operation(ports=item.ports, not_ports=item.not_ports) for item in rule.operations)
    return Rule(rule.sources, operations, rule.conditions)


def _both(
    item: RuleSource | Operation,
    names: tuple[str, ...],
    one: Callable[[str, str | int], Document],
    negation: str,
    conjunction: str,
    disjunction: str,
) -> Document:
    """All fields must match; of a field's values one; of a negated field's none."""
    key = conjunction.removeprefix("and_")
    found: list[Document] = []
    for name in names:
        for prefix in ("", "not_"):
            values = getattr(item, prefix + name)
            if values:
                any_of = {disjunction: {key: [one(name, value) for value in values]}}
                found.append({negation: any_of} if prefix else any_of)
    return {conjunction: {key: found or [{"any": True}]}}


def _permission(name: str, value: str | int) -> Document:
    if name == "ports":
        return {"destination_port": value}
    matcher = _matcher(str(value))
    return (
        {"url_path": {"path": matcher}} if name == "paths" else {"header": {"name": ":method", "string_match": matcher}}
    )


def _principal(name: str, value: str | int) -> Document:
    text = str(value)
    if name == "ip_blocks":
        address, _, length = text.partition("/")
        return {
            "direct_remote_ip": {
                "address_prefix": address,
                "prefix_len": int(length or (128 if ":" in address else 32)),
            }
        }
    matcher = (
        _matcher(text, "spiffe://") if name == "principals" else _regex(f"spiffe://[^/]+/ns/{_pattern(text)}/sa/.+")
    )
    return {"authenticated": {"principal_name": matcher}}


def _pattern(value: str) -> str:
    return re.escape(value).replace(r"\*", "[^/]+" if value == "*" else "[^/]*")


def _regex(pattern: str) -> Document:
    return {"safe_regex": {"regex": pattern}}


def _matcher(value: str, before: str = "") -> Document:
    """``*`` is any text that is not empty, ``*x`` and ``x*`` are suffix and prefix (Istio's string match)."""
    if value == "*":
        return _regex(f"{re.escape(before)}.+") if before else _regex(".+")
    if value.startswith("*"):
        return _regex(f"{re.escape(before)}.*{re.escape(value[1:])}") if before else {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": before + value[:-1]}
    return {"exact": before + value}
