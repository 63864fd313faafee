"""What the policies of the server's workload make of one connection or request, step by step and in
words: the part of ``mesh/explain.py`` that judges. Pure, and decided by the code of the proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.mesh.entries import HTTP, Entry, Protocol, Service, Workload
from nodeagent.mesh.policy_notes import stale_keys
from nodeagent.policy.authorization import (
    Authorizer,
    CompiledPolicy,
    ConnectionFacts,
    Decision,
    RequestAuthorizer,
    RequestFacts,
)
from nodeagent.policy.authorization_match import as_received
from nodeagent.policy.claims import Claims
from nodeagent.policy.forwarded_for import client_address
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, RateLimit, RequestAuthentication
from nodeagent.policy.paths import NORMALISED

_FORWARDED: Final = "x-forwarded-for"
Outcome = Literal["allowed", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Question:
    """SRC: ``[NAMESPACE/]POD``, an address, a SPIFFE ID, or ``-`` for a client without identity.
    DST: ``[NAMESPACE/]NAME[:PORT]`` of a Service or pod, a Service's host, or ADDRESS:PORT.
    *method* empty: a connection, no request.
    """

    source: str
    destination: str
    method: str = ""
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    """Each line: its name in lower case, and its value."""


@dataclass(frozen=True, slots=True)
class Step:
    stage: str
    words: str


@dataclass(frozen=True, slots=True)
class ClientSide:
    workload: Workload | None
    principal: str
    """As policies compare it; empty: none that could be proved."""
    address: str


@dataclass(frozen=True, slots=True)
class ServerSide:
    workload: Workload
    port: int
    protocol: Protocol
    service: Service | None
    name: str = ""
    """The server name by which it is asked for over mTLS, empty: none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One client, one server, one request."""

    client: ClientSide
    server: ServerSide
    question: Question
    principal: str
    """What the server's side knows of the client."""
    mesh: MeshSettings
    claims: Claims | None
    known: Callable[[str], Entry | None]
    """Returns an entry of the snapshot by its key."""

    @property
    def http(self) -> bool:
        return self.server.protocol in HTTP or (self.server.protocol == "auto" and bool(self.question.method))

    def connection(self) -> ConnectionFacts:
        to = next(iter(self.server.workload.addresses), "")
        presumed = "" if self.principal or self.client.workload is None else self.client.principal
        name = self.server.name if self.principal else ""
        return ConnectionFacts(self.principal, self.client.address, to, self.server.port, name, presumed)

    def request(self) -> RequestFacts | None:
        question = self.question
        service = self.server.service
        lines: dict[str, list[str]] = {}
        for name, value in question.headers:
            lines.setdefault(name, []).append(as_received(value))
        host = lines.get("host", [service.host if service else self.server.workload.pod])[0]
        if not question.method or not self.http:
            return None
        header = {name: ",".join(values) for name, values in lines.items()}.get
        target = NORMALISED[self.mesh.path_normalization](as_received(question.path).encode("latin-1"))
        remote = client_address(header(_FORWARDED) or "", self.mesh.trusted_proxies, self.client.address)
        return RequestFacts(
            question.method,
            target.decode("latin-1"),
            host,
            header,
            self.claims,
            lambda name: lines.get(name, ()),
            remote,
        )


def judged(facts: Facts, entries: tuple[Entry, ...]) -> tuple[Outcome, list[Step]]:
    """Return what becomes of the connection or request by the policies among *entries*, those of the
    server's workload, and each step in words.
    """
    steps: list[Step] = []
    if not facts.http and (unparsed := _unparsed(facts, entries)) is not None:
        return unparsed
    policies = [entry for entry in entries if isinstance(entry, AuthorizationPolicy)]
    authorizer = Authorizer.compile(policies, http=facts.http, mesh=facts.mesh)
    connection = facts.connection()
    request = facts.request()
    outcome = authorizer.connection(connection)
    decision = outcome if isinstance(outcome, Decision) else None
    custom = _authorizer(outcome, request)
    if custom and (missing := facts.mesh.providers.no_authorizer(custom)):
        return "refused", _unasked(missing, http=facts.http)
    if custom:
        steps.append(Step("custom", f"the external authorizer {custom} is asked first, and must allow it"))
    if facts.http:
        steps += _jwt(facts, [entry for entry in entries if isinstance(entry, RequestAuthentication)])
    steps += [Step("policy", line) for line in authorizer.trace(connection, request)]
    if decision is None and request is not None and not isinstance(outcome, Decision):
        decision = outcome.decide(request)
    if decision is None:
        steps.append(Step("verdict", "it depends on the request: say METHOD and PATH"))
        return "unknown", steps
    steps += _told(decision, facts.http)
    if not decision.allowed:
        return "refused", steps
    if facts.http:
        for entry in entries:
            if isinstance(entry, RateLimit):
                steps += _limits(entry)
    return ("unknown" if custom else "allowed"), steps


def _authorizer(outcome: Decision | RequestAuthorizer, request: RequestFacts | None) -> str:
    """Return whom CUSTOM policies ask first; empty: nobody."""
    if isinstance(outcome, Decision):
        return outcome.custom
    return outcome.custom(request) if request is not None else ""


def _unasked(missing: str, *, http: bool) -> list[Step]:
    """Return what becomes of what somebody must allow who is *missing*."""
    answer = "refused with 403 (external_missing)" if http else "refused: the connection is reset"
    return [Step("custom", missing), Step("verdict", f"{answer}: nobody can be asked, and must allow it")]


def _told(decision: Decision, http: bool) -> list[Step]:
    """Return *decision* in words: what is only reported, then the verdict."""
    steps = []
    for note in decision.notes:
        rule = f", rule {note.rule}" if note.rule >= 0 else ""
        steps.append(Step(note.kind.replace("_", " "), f"{note.policy or 'no ALLOW policy'}{rule}: reported only"))
    answer = "allowed"
    if not decision.allowed:
        answer = "refused with 403, RBAC: access denied" if http else "refused: the connection is reset"
    steps.append(Step("verdict", f"{answer}: {decision.explain or 'no policy of the workload says otherwise'}"))
    return steps


def _unparsed(facts: Facts, entries: tuple[Entry, ...]) -> tuple[Outcome, list[Step]] | None:
    """Return what happens to bytes that are not parsed as HTTP, None where policies may judge them as TCP."""
    protocol = facts.server.workload.protocol_at(facts.server.port)
    policies = [each for each in entries if isinstance(each, AuthorizationPolicy | RequestAuthentication | RateLimit)]
    readers = [
        f"{type(each).__name__} {each.namespace}/{each.name}"
        for each in policies
        if _decides_requests(each, facts.mesh)
    ]
    if protocol == "tcp" or not readers:
        return None
    refused = (
        f"what is not HTTP is refused (unparsed_http), as {', '.join(readers)} decides by the request: if "
        "it is none, declare the port's protocol"
    )
    return "unknown", [Step("verdict", f"it depends on the request: say METHOD and PATH; {refused}")]


def _decides_requests(entry: AuthorizationPolicy | RequestAuthentication | RateLimit, mesh: MeshSettings) -> bool:
    return not isinstance(entry, AuthorizationPolicy) or CompiledPolicy.of(entry, mesh).decides_requests


def _jwt(facts: Facts, authentications: list[RequestAuthentication]) -> list[Step]:
    steps = []
    for each in authentications:
        issuers = ", ".join(rule.issuer or rule.jwks_uri for rule in each.rules) or "none"
        steps.append(
            Step(
                "jwt",
                f"RequestAuthentication {each.namespace}/{each.name}: a token must be valid for one of: "
                f"{issuers}; no token passes",
            )
        )
        steps += [Step("jwt", words) for words in stale_keys(each, facts.known)]
    if authentications:
        token = (
            f"taken as a valid one of {facts.claims.principal}"
            if facts.claims
            else "none is assumed: request.auth.* is empty"
        )
        steps.append(Step("jwt", f"the request's token: {token}"))
    return steps


def _limits(limit: RateLimit) -> list[Step]:
    name = f"RateLimit {limit.namespace}/{limit.name}"
    steps = []
    for local in limit.local:
        scope = [*local.methods, *local.paths, *(f"{header}: {value}" for header, value in local.headers)]
        bucket = local.bucket
        which = f" for {', '.join(scope)}" if scope else ""
        each = f", for each {', '.join(local.by)}" if local.by else ""
        steps.append(
            Step(
                "rate limit",
                f"{name}: {bucket.max_tokens} at once, {bucket.tokens_per_fill} every {bucket.fill_seconds:g} "
                f"s{which}{each}",
            )
        )
    if limit.service is not None:
        steps.append(
            Step(
                "rate limit",
                f"{name}: {limit.service.provider} is asked (domain {limit.service.domain}); on failure "
                f"{limit.service.failure_mode}",
            )
        )
    return steps
