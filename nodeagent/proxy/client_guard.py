"""A guard as one client meets it: what its connection and its requests may do.

A :class:`ClientGuard` belongs to a route: what depends on the connection alone is decided when it is
made, so that a request costs only what it decides itself. The order is Istio's: CUSTOM, JWT, AUDIT,
DENY, ALLOW, and then the rate limits.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nodeagent.errors import (
    BAD_REQUEST,
    BODY_TOO_LARGE,
    EXTERNAL_DENIED,
    EXTERNAL_ERROR,
    EXTERNAL_MISSING,
    JWT_REFUSED,
    POLICY_DENIED,
    POLICY_REFUSED,
    RATE_LIMITED,
    Reason,
)
from nodeagent.log_lines import SparingLog
from nodeagent.policy.authorization import (
    Authorizer,
    ConnectionFacts,
    Decision,
    RequestAuthorizer,
    RequestFacts,
)
from nodeagent.policy.forwarded_for import client_address
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import GlobalLimit
from nodeagent.policy.paths import holds_nul
from nodeagent.proxy.external.body import beginning
from nodeagent.proxy.external.model import Body, CheckVerdict, HttpFacts, Party
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.external.query import with_parameters
from nodeagent.proxy.guard import Guard
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.fields import rewritten
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.metrics import POLICY_EVENTS

if TYPE_CHECKING:
    from nodeagent.mesh.entries import Endpoint
    from nodeagent.policy.claims import Claims
    from nodeagent.policy.jwt import Authenticator
    from nodeagent.proxy.connection import Connection

_SCHEME: Final = "spiffe://"
_OTHER_METHODS: Final = ("x-http-method", "x-http-method-override", "x-method-override")
"""Fields by which frameworks take a request for one of another method than its own."""
log: Final = SparingLog(logging.getLogger("nodeagent.proxy"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a guard uses of the proxy: where it counts what policies did, and whom they may ask."""

    metrics: WorkerMetrics
    providers: Providers


class ClientGuard:
    """A guard as one client meets it."""

    __slots__ = ("by_line", "client", "decision", "facts", "guard", "reason", "residual", "uid", "workload")

    def __init__(
        self,
        guard: Guard,
        facts: ConnectionFacts,
        client: str,
        workload: str,
        uid: str,
    ) -> None:
        """What *guard* means for the client that *facts* describe: *client* is its pod or address,
        *workload* whose guard it is; of the pod *uid*, for which others are asked.
        """
        outcome = guard.authorizer.connection(facts)
        self.guard = guard
        self.facts = facts
        self.client = client
        self.workload = workload
        self.uid = uid
        self.residual = outcome if isinstance(outcome, RequestAuthorizer) else None
        self.decision = outcome if isinstance(outcome, Decision) else None
        self.reason: Reason | None = None
        """Why no request of this client is permitted, None where some may be."""
        if self.decision is not None and not self.decision.allowed:
            self.reason = denied(self.decision.policy, self.decision.rule)
        self.by_line = guard.by_line and (self.residual is None or self.residual.by_line)
        """Requests with the same method, target and host are decided alike: it needs to be done once."""

    # -- HTTP --

    def admits(self, around: Surroundings, exchange: Exchange) -> bool | Awaitable[Reason | None]:
        """Decide on a request. True: it may be forwarded; False: it was refused. Where it rests with
        somebody else (an external authorizer, a rate limit service), return what waits for their
        answers: the reason for a refusal, or None.
        """
        asked = (self, exchange.method, exchange.target, exchange.authority)
        known = self.guard.decided(asked) if self.by_line else None
        if known is not None:
            exchange.target = known[0]
            return self._passes(around, exchange, known[1])
        if holds_nul(exchange.target):
            exchange.refuse(BAD_REQUEST)
            return False
        exchange.target = self.guard.normalise(exchange.target)
        request = self._request(exchange, exchange.target, None)
        provider = self._provider(request)
        if provider or self.guard.services:
            return self._ask(around, exchange, request, provider)
        if self.by_line:
            decision = self._decision(request)
            self.guard.remember(asked, exchange.target, decision)
            return self._passes(around, exchange, decision)
        reason = self._decide(around, exchange, request)
        if reason is not None:
            exchange.refuse(reason)
        return reason is None

    def spares(self, exchange: Exchange) -> None:
        """Let a probe or a scrape pass, which nobody guards against, as that and no more: without what
        only the proxy says of a client, and with no other method than its own.
        """
        authenticator = self.guard.authenticator
        adopt(exchange, _OTHER_METHODS if authenticator is None else _OTHER_METHODS + authenticator.spoken_for, ())

    def forbids(self, exchange: Exchange) -> Reason | None:
        """Return why *exchange*, which is under way, would not be permitted now by AuthorizationPolicies;
        None where it would. Tokens are not looked at again, and nobody else is asked.
        """
        if self.reason is not None:
            return self.reason
        if self.residual is None:
            return None
        request = self._request(exchange, self.guard.normalise(exchange.target), exchange.claims)
        decision = self.residual.decide(request)
        return None if decision.allowed else denied(decision.policy, decision.rule)

    def _request(self, exchange: Exchange, target: bytes, claims: Claims | None) -> RequestFacts:
        """Return *exchange* as policies see it, with its normalised *target*."""
        request = RequestFacts(
            exchange.method.decode("latin-1"),
            target.decode("latin-1"),
            exchange.authority.decode("latin-1"),
            exchange.header,
            claims,
            exchange.lines,
        )
        if self.guard.authorizer.remote:
            # what came, whatever policies write into the fields that go on
            told = exchange.forwarded_for.decode("latin-1")
            request.remote = client_address(told, self.guard.trusted_proxies, self.facts.source_ip)
        return request

    def _decide(self, around: Surroundings, exchange: Exchange, request: RequestFacts) -> Reason | None:
        """JWT, AUDIT, DENY, ALLOW, local rate limits."""
        guard = self.guard
        if guard.authenticator is not None:
            refused = self._authenticate(around, guard.authenticator, exchange, request)
            if refused is not None:
                return refused
        refused = self._authorize(around, exchange, self._decision(request))
        if refused is not None:
            return refused
        if guard.limiter is not None:
            limited = guard.limiter.take(request, self.facts.principal, self.client)
            if limited is not None:
                self._count(around, limited.policy, "rate_limited")
                return replace(RATE_LIMITED, headers=limited.headers, policy=limited.policy)
        return None

    def _provider(self, request: RequestFacts) -> str:
        """Return the name of the external authorizer that is to be asked, empty: none."""
        if self.residual is not None:
            return self.residual.custom(request)
        return self.decision.custom if self.decision is not None else ""

    def _decision(self, request: RequestFacts) -> Decision:
        decision = self.decision if self.residual is None else self.residual.decide(request)
        assert decision is not None
        return decision

    def _authorize(self, around: Surroundings, exchange: Exchange, decision: Decision) -> Reason | None:
        """Note *decision* where it has to be; return the refusal that it is."""
        if decision.notes or not decision.allowed:
            self._note(around, decision)
        exchange.downstream.connection.policy = decision.policy
        return None if decision.allowed else denied(decision.policy, decision.rule)

    def _passes(self, around: Surroundings, exchange: Exchange, decision: Decision) -> bool:
        """The same where nothing else has a say."""
        refused = self._authorize(around, exchange, decision)
        if refused is not None:
            exchange.refuse(refused)
        return refused is None

    def _authenticate(
        self, around: Surroundings, authenticator: Authenticator, exchange: Exchange, request: RequestFacts
    ) -> Reason | None:
        """Check the request's tokens; what they say is in *request* and, where it was asked for, in
        the fields that go on.
        """
        from nodeagent.policy.jwt import Rejected

        outcome = authenticator.authenticate(request)
        if isinstance(outcome, Rejected):
            self._count(around, "", "jwt_refused")
            return replace(
                JWT_REFUSED,
                status=outcome.status,
                details=outcome.details,
                body=outcome.words.encode(),
                headers=outcome.headers,
            )
        adopt(exchange, outcome.remove, outcome.add, outcome.target)
        request.claims = exchange.claims = outcome.claims
        return None

    async def _ask(
        self, around: Surroundings, exchange: Exchange, request: RequestFacts, provider: str
    ) -> Reason | None:
        """The same with others' answers in their places; what a client that did not wait gets, nobody asks."""
        reason = await self._checked(around, exchange, request, provider) if provider else None
        if reason is None and not exchange.finished:
            reason = self._decide(around, exchange, request)
        for limit in self.guard.services if reason is None else ():
            if not exchange.finished:
                reason = reason or await self._rated(around, exchange, request, limit)
        return reason

    async def _checked(
        self, around: Surroundings, exchange: Exchange, request: RequestFacts, provider: str
    ) -> Reason | None:
        """Ask the external authorizer about a request; what it wants changed is changed."""
        body = None
        wanted = around.providers.body_of(provider)
        if wanted is not None:
            body = await beginning(exchange, wanted)
            if exchange.finished:
                return None
            if body is not None and body.partial and not wanted.allow_partial_message:
                return BODY_TOO_LARGE
        connection = exchange.downstream.connection
        asked = _shown(exchange, body)
        verdict = await around.providers.check(provider, *self._parties(connection), asked, self.facts.sni, self.uid)
        if not verdict.allowed:
            return self._external(around, provider, verdict)
        if verdict.query_set or verdict.query_remove:
            request.path = with_parameters(request.path, verdict.query_set, verdict.query_remove)
            exchange.target = request.path.encode("latin-1")
        self._opened(provider, verdict)
        added = tuple([(name, value) for name, value in verdict.append if exchange.header(name) is not None])
        adopt(exchange, (*verdict.remove, *[name for name, _ in verdict.set]), verdict.set + added)
        exchange.answer_fields += verdict.answer
        return None

    def _opened(self, provider: str, verdict: CheckVerdict) -> None:
        """Say where *verdict* lets pass what nobody looked at, as the provider's failOpen wants it."""
        if verdict.failed:
            words = f"{self.workload}: passes unchecked: the external authorizer {provider}: {verdict.failed}"
            log.tell(f"{self.workload} {provider} opens", words)

    def _external(self, around: Surroundings, provider: str, verdict: CheckVerdict) -> Reason:
        """Return the refusal that *verdict* is."""
        self._count(around, provider, "external_denied")
        if verdict.failed:
            words = f"{self.workload}: the external authorizer {provider}: {verdict.failed}"
            log.tell(f"{self.workload} {provider}", words)
            reason = EXTERNAL_MISSING if verdict.missing else EXTERNAL_ERROR
            return replace(reason, status=verdict.status, policy=provider)
        return replace(
            EXTERNAL_DENIED, status=verdict.status, body=verdict.body, headers=verdict.headers, policy=provider
        )

    async def _rated(
        self, around: Surroundings, exchange: Exchange, request: RequestFacts, limit: GlobalLimit
    ) -> Reason | None:
        """Ask the rate limit service that *limit* names."""
        from nodeagent.policy.rate_limit import descriptors

        verdict = await around.providers.ask(
            limit, descriptors(limit, request, self.facts.principal, self.client), self.uid
        )
        if verdict.failed:
            words = f"{self.workload}: the rate limit service {limit.provider}: {verdict.failed}"
            log.tell(f"{self.workload} {limit.provider}", words)
        if verdict.allowed:
            adopt(exchange, (), verdict.request_headers)
            exchange.answer_fields += tuple((name, value, "add") for name, value in verdict.headers)
            return None
        self._count(around, limit.provider, "rate_limited")
        return replace(
            RATE_LIMITED,
            status=verdict.status,
            details="request_rate_limited",
            body=verdict.body or None,
            headers=verdict.headers,
            policy=limit.provider,
        )

    def _parties(self, connection: Connection) -> tuple[Party, Party]:
        facts = self.facts
        target = connection.target
        return Party(facts.source_ip, connection.peer.port, facts.principal), Party(target.address, target.port)

    # -- TCP --

    @property
    def awaits_requests(self) -> bool:
        """Say whether the connection would be refused now, but as HTTP might not be: while nobody
        has spoken, that is waited for.
        """
        return self.reason is not None and self.guard.awaits_requests

    async def admits_connection(self, around: Surroundings, connection: Connection) -> Reason | None:
        """Decide on a connection that is not HTTP; return why it is refused."""
        decision = self.decision
        assert decision is not None, "on a TCP port nothing depends on a request"
        connection.policy = decision.policy
        if decision.notes or not decision.allowed:
            self._note(around, decision)
        if decision.custom and self.reason is None:
            verdict = await around.providers.check(
                decision.custom, *self._parties(connection), None, self.facts.sni, self.uid
            )
            if not verdict.allowed:
                return self._external(around, decision.custom, verdict)
            self._opened(decision.custom, verdict)
        return self.reason

    # -- observe --

    def _note(self, around: Surroundings, decision: Decision) -> None:
        if not decision.allowed:
            self._count(around, decision.policy, "deny")
        for note in decision.notes:
            self._count(around, note.policy, note.kind)

    def _count(self, around: Surroundings, policy: str, event: str) -> None:
        around.metrics.count(POLICY_EVENTS, (self.workload, policy, event))


UNGUARDED: Final = ClientGuard(
    Guard(Authorizer.compile((), http=True, mesh=MeshSettings("")), None, None, (), MeshSettings("")),
    ConnectionFacts("", "", "", 0),
    "",
    "",
    "",
)
"""Nothing stands between this client and the endpoint, or somebody else checks."""


def _shown(exchange: Exchange, body: Body | None) -> HttpFacts:
    """Return what an authorizer is told of *exchange*, and of its *body*."""
    return HttpFacts(
        exchange.method.decode("latin-1"),
        exchange.target.decode("latin-1"),
        exchange.authority.decode("latin-1"),
        tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.seen()]),
        version=exchange.protocol,
        body=body,
    )


def adopt(
    exchange: Exchange, remove: tuple[str, ...], add: tuple[tuple[str, str], ...], target: str | None = None
) -> None:
    """Rewrite the request as a policy says: its fields, and its target if one is given."""
    exchange.fields = rewritten(exchange.fields, remove, add)
    if target is not None:
        exchange.target = target.encode("latin-1")


@lru_cache(maxsize=4096)
def denied(policy: str, rule: int) -> Reason:
    """Return the refusal by *rule* of *policy* (:attr:`Decision.policy`, empty: no ALLOW policy
    matched), with Envoy's words for it.
    """
    if not policy:
        return POLICY_DENIED
    kind, _, key = policy.rpartition(" ")
    namespace, _, name = key.partition("/")
    if kind:
        hint = f"{policy} is wrong, and closes what it selects: {POLICY_REFUSED.hint}"
        return replace(
            POLICY_REFUSED,
            details=f"policy_refused[kind[{kind}]-ns[{namespace}]-policy[{name}]]",
            hint=hint,
            policy=policy,
        )
    details = f"rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{rule}]]"
    return replace(POLICY_DENIED, details=details, hint=f"AuthorizationPolicy {policy}, rule {rule}", policy=policy)


def facts(connection: Connection, endpoint: Endpoint, server_name: str) -> ConnectionFacts:
    """Return what authorization may know of *connection* on its way to *endpoint*, which was asked for as
    *server_name*.
    """
    peer = connection.peer
    presumed = peer.workload.identity if peer.workload is not None and not peer.identity else ""
    return ConnectionFacts(
        principal=peer.identity.removeprefix(_SCHEME),
        source_ip=peer.address,
        destination_ip=endpoint.address,
        destination_port=endpoint.port,
        sni=server_name,
        presumed=presumed.removeprefix(_SCHEME),
    )
