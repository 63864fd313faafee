"""AuthorizationPolicy evaluated as its documentation reads: every field of every rule, every time,
nothing compiled. Slow on purpose.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import replace

from nodeagent.policy.authorization import ConnectionFacts, RequestFacts
from nodeagent.policy.claims import Claims
from nodeagent.policy.model import AuthorizationPolicy, Condition, Operation, Rule, RuleSource


def allowed(
    policies: Iterable[AuthorizationPolicy],
    connection: ConnectionFacts,
    request: RequestFacts | None,
    trust_domain: str,
) -> bool:
    """Whether the request (None: the connection, on a TCP port) is allowed, CUSTOM aside."""
    enforced = [policy for policy in policies if not policy.dry_run]
    if any(matching(policy, connection, request, trust_domain) for policy in enforced if policy.action == "DENY"):
        return False
    if len({policy.provider for policy in enforced if policy.action == "CUSTOM"}) > 1 and any(
        matching(policy, connection, request, trust_domain) for policy in enforced if policy.action == "CUSTOM"
    ):
        return False
    allows = [policy for policy in enforced if policy.action == "ALLOW"]
    return not allows or any(matching(policy, connection, request, trust_domain) for policy in allows)


def provider(
    policies: Iterable[AuthorizationPolicy],
    connection: ConnectionFacts,
    request: RequestFacts | None,
    trust_domain: str,
) -> str:
    """The provider to ask, empty: none."""
    customs = [policy for policy in policies if policy.action == "CUSTOM" and not policy.dry_run]
    if len({policy.provider for policy in customs}) != 1:
        return ""
    return customs[0].provider if any(matching(policy, connection, request, trust_domain) for policy in customs) else ""


def notes(
    policies: Iterable[AuthorizationPolicy],
    connection: ConnectionFacts,
    request: RequestFacts | None,
    trust_domain: str,
) -> set[tuple[str, int, str]]:
    """Policy, rule and kind of what only reports."""
    found = set()
    tried = []
    for policy in sorted(policies, key=lambda policy: (policy.namespace, policy.name)):
        name, rules = f"{policy.namespace}/{policy.name}", matching(policy, connection, request, trust_domain)
        if policy.action == "AUDIT":
            found.update((name, rule, "audit") for rule in rules[:1])
        elif policy.dry_run and policy.action != "ALLOW":
            found.update((name, rule, f"dry_run_{policy.action.lower()}") for rule in rules[:1])
        elif policy.dry_run:
            tried.append((name, rules))
    matches = [(name, rule, "dry_run_allow") for name, rules in tried for rule in rules]
    if matches:
        found.add(matches[0])
    elif tried:
        found.add((tried[0][0] if len(tried) == 1 else "", -1, "dry_run_deny"))
    return found


def matching(
    policy: AuthorizationPolicy, connection: ConnectionFacts, request: RequestFacts | None, trust_domain: str
) -> list[int]:
    """The indexes of the rules of *policy* that match."""
    found = []
    for index, rule in enumerate(policy.rules):
        if request is None and policy.action == "ALLOW" and uses_http(rule):
            continue
        peers = [connection]
        if connection.presumed and policy.action != "ALLOW":
            peers.append(replace(connection, principal=connection.presumed))
        if any(Look(policy, peer, request, trust_domain).rule(rule) for peer in peers):
            found.append(index)
    return found


def uses_http(rule: Rule) -> bool:
    """Whether *rule* has a field that only HTTP has."""
    return (
        any(source.request_principals or source.not_request_principals for source in rule.sources)
        or any(o.hosts or o.not_hosts or o.methods or o.not_methods or o.paths or o.not_paths for o in rule.operations)
        or any(
            condition.key.startswith("request.") and (condition.values or condition.not_values)
            for condition in rule.conditions
        )
    )


class Look:
    """One policy's look at one request."""

    def __init__(
        self, policy: AuthorizationPolicy, connection: ConnectionFacts, request: RequestFacts | None, trust_domain: str
    ) -> None:
        self.policy, self.connection, self.request, self.trust_domain = policy, connection, request, trust_domain
        self.identity = re.fullmatch(r"([^/]+)/ns/([^/]+)/sa/([^/]+)", connection.principal)

    def rule(self, rule: Rule) -> bool:
        sources = not rule.sources or any(self.source(source) for source in rule.sources)
        operations = not rule.operations or any(self.operation(operation) for operation in rule.operations)
        return sources and operations and all(self.condition(condition) for condition in rule.conditions)

    def source(self, source: RuleSource) -> bool:
        return (
            self.holds("source.principal", source.principals, source.not_principals)
            and self.holds("request.auth.principal", source.request_principals, source.not_request_principals)
            and self.holds("source.namespace", source.namespaces, source.not_namespaces)
            and self.holds("source.serviceAccount", source.service_accounts, source.not_service_accounts)
            and self.holds("source.trustDomain", source.trust_domains, source.not_trust_domains)
            and self.holds("source.ip", source.ip_blocks, source.not_ip_blocks)
            and self.holds("remote.ip", source.remote_ip_blocks, source.not_remote_ip_blocks)
        )

    def operation(self, operation: Operation) -> bool:
        return (
            self.holds("request.hosts", operation.hosts, operation.not_hosts)
            and self.holds("request.methods", operation.methods, operation.not_methods)
            and self.holds("request.paths", operation.paths, operation.not_paths)
            and self.holds("destination.port", tuple(map(str, operation.ports)), tuple(map(str, operation.not_ports)))
        )

    def condition(self, condition: Condition) -> bool:
        return self.holds(condition.key, condition.values, condition.not_values)

    def holds(self, key: str, values: tuple[str, ...], not_values: tuple[str, ...]) -> bool:
        if self.request is None and key.startswith("request."):
            return True
        if key.startswith("request.headers"):
            return self.header_holds(key[len("request.headers[") : -1].lower(), values, not_values)
        if key.startswith("request.auth."):
            return self.token_holds(key, values, not_values)
        return (not values or any(self.one(key, value) for value in values)) and not any(
            self.one(key, value) for value in not_values
        )

    def token_holds(self, key: str, values: tuple[str, ...], not_values: tuple[str, ...]) -> bool:
        """Other tokens than the one that decides only refuse."""
        assert self.request is not None
        claims = self.request.claims
        first = [claims] if claims is not None else []
        every = [claims, *claims.beside] if claims is not None else []

        def matches(tokens: list[Claims], patterns: tuple[str, ...]) -> bool:
            return any(claim(token, key, value) for token in tokens for value in patterns)

        allows = self.policy.action == "ALLOW"
        return (not values or matches(first if allows else every, values)) and (
            not not_values or not matches(every if allows else first, not_values)
        )

    def header_holds(self, name: str, values: tuple[str, ...], not_values: tuple[str, ...]) -> bool:
        """Of several lines one application reads the first, another one the last, another one all in one."""
        assert self.request is not None
        joined = self.request.header(name)
        readings = {joined, *self.request.lines(name)}

        def matches(reading: str | None, patterns: tuple[str, ...]) -> bool:
            return reading is not None and any(value == "*" or simple(value, reading) for value in patterns)

        counts = all if self.policy.action == "ALLOW" else any
        return (not values or counts(matches(each, values) for each in readings)) and (
            not not_values or counts(not matches(each, not_values) for each in readings)
        )

    def one(self, key: str, value: str) -> bool:
        """Whether what *key* names matches the one *value*."""
        c = self.connection
        if key == "source.principal":
            if value.startswith("cluster.local/") and value.count("/") == 4:
                value = self.trust_domain + value.removeprefix("cluster.local")
            return c.principal != "" and simple(value, c.principal)
        if key == "remote.ip":
            return within(c.source_ip if self.request is None else self.request.remote, value)
        if key in {"source.ip", "destination.ip"}:
            return within({"source.ip": c.source_ip, "destination.ip": c.destination_ip}[key], value)
        if key == "destination.port":
            return c.destination_port == int(value)
        if key == "connection.sni":
            return simple(value.lower(), c.sni.lower())
        if key in {"source.namespace", "source.serviceAccount", "source.trustDomain"}:
            if self.identity is None:
                return False
            domain, namespace, account = self.identity.groups()
            if key == "source.trustDomain":
                return simple(value, domain)
            if key == "source.namespace":
                return re.fullmatch(".*".join(map(re.escape, value.split("*"))), namespace) is not None
            return value in (
                [f"{namespace}/{account}", account]
                if namespace == self.policy.namespace
                else [f"{namespace}/{account}"]
            )
        return self.http(key, value)

    def http(self, key: str, value: str) -> bool:
        request = self.request
        assert request is not None
        if key == "request.methods":
            return simple(value, request.method)
        if key == "request.hosts":
            return value == "*" or simple(value.lower(), request.host.lower())
        if key == "request.paths":
            path = request.path.partition("?")[0]
            if "{*}" in value or "{**}" in value:
                expression = re.escape(value).replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+")
                return re.fullmatch(expression, path) is not None
            return simple(value, path)
        raise AssertionError(f"{key} is not known here")


def claim(claims: Claims, key: str, value: str) -> bool:
    """Whether what *key* names in *claims* matches the one *value*."""
    if key == "request.auth.audiences":
        return any(simple(value, audience) for audience in claims.audiences)
    if key == "request.auth.presenter":
        return simple(value, claims.presenter)
    if key == "request.auth.principal":
        if not {"iss", "sub"} <= claims.values.keys():
            return False
        if value == "*":
            return claims.issuer != "" and claims.subject != ""
        issuer, slash, subject = value.rpartition("/")
        assert not value.startswith("*"), "the strategies make these only"
        if not slash:
            issuer, subject = value, ""
        return claims.issuer == issuer and (
            simple(subject, claims.subject) if subject.endswith("*") else claims.subject == subject
        )
    names = key[len("request.auth.claims[") : -1].split("][")
    found_claim = claims.values
    for name in names:
        found_claim = found_claim.get(name) if isinstance(found_claim, dict) else None
    if isinstance(found_claim, str):
        found_claim = found_claim.split(" ") if names == ["scope"] else [found_claim]
    return isinstance(found_claim, list) and any(isinstance(item, str) and simple(value, item) for item in found_claim)


def simple(pattern: str, value: str) -> bool:
    """``*``, ``*suffix``, ``prefix*`` or exact."""
    if pattern == "*":
        return value != ""
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern


def within(address: str, block: str) -> bool:
    """Whether *address* lies in *block*; families never mix."""
    network = ipaddress.ip_network(block, strict=False)
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed) in network
