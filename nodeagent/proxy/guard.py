"""What protects one port of one workload, and what that means for one of its clients.

A :class:`Guard` is compiled from the policies that apply to the workload, once per change. A
:class:`Bound` guard belongs to a route: what depends on the connection alone is decided there
already, so a request costs only what it decides itself. The order is Istio's: CUSTOM, JWT, AUDIT,
DENY, ALLOW, and then the rate limits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from nodeagent.errors import (
    BAD_REQUEST,
    BODY_TOO_LARGE,
    EXTERNAL_DENIED,
    EXTERNAL_ERROR,
    JWT_REFUSED,
    POLICY_DENIED,
    POLICY_REFUSED,
    RATE_LIMITED,
    Reason,
    ResourceError,
)
from nodeagent.mesh.entries import Workload
from nodeagent.policy.authorization import (
    Authorizer,
    CompiledPolicy,
    ConnectionFacts,
    Decision,
    RequestAuthorizer,
    RequestFacts,
    holds_nul,
    normalise_target,
)
from nodeagent.policy.model import AuthorizationPolicy, GlobalLimit, Jwks, RateLimit, RequestAuthentication, Rule
from nodeagent.proxy.external.body import beginning
from nodeagent.proxy.external.model import HttpFacts, Party, Verdict
from nodeagent.proxy.external.providers import Providers
from nodeagent.proxy.external.query import with_parameters
from nodeagent.proxy.http.exchange import Exchange
from nodeagent.proxy.http.fields import rewritten
from nodeagent.telemetry.cells import WorkerMetrics
from nodeagent.telemetry.metrics import POLICY_EVENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from nodeagent.mesh.entries import Endpoint
    from nodeagent.policy.jwt import Authenticator
    from nodeagent.policy.rate_limit import RateLimiter
    from nodeagent.proxy.connection import Connection
    from nodeagent.proxy.view import ClusterView

_SCHEME: Final = "spiffe://"
DECISIONS: Final = 1024
"""Decisions that a guard remembers, for all of its clients together: clients choose what they ask for."""
_LONGEST: Final = 512
"""Bytes of a target and a host that are remembered."""
log = logging.getLogger("nodeagent.proxy")
_Asked = tuple["Bound", bytes, bytes, bytes]
"""By whom, and a request's method, target as it came, and host."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a guard uses of the proxy: where it counts what policies did, and whom they may ask."""

    metrics: WorkerMetrics
    providers: Providers


class Compiler:
    """Compiles each AuthorizationPolicy once, for all the workloads to which it applies."""

    __slots__ = ("_known", "_trust_domain")

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        # by id: a policy with the same name may say something else
        self._known: dict[int, tuple[AuthorizationPolicy, CompiledPolicy]] = {}

    def compiled(self, policy: AuthorizationPolicy) -> CompiledPolicy:
        """Return what *policy* is compiled to; what cannot be compiled, although control took it, lets nobody in."""
        known = self._known.get(id(policy))
        if known is None:
            try:
                made = CompiledPolicy.of(policy, self._trust_domain)
            except ResourceError as error:
                log.error(
                    "the policy %s/%s cannot be compiled, and denies everything: %s",
                    policy.namespace,
                    policy.name,
                    error,
                )
                closed = AuthorizationPolicy(
                    policy.namespace, policy.name, "DENY", (Rule(),), refused=type(policy).__name__
                )
                made = CompiledPolicy.of(closed, self._trust_domain)
            known = self._known[id(policy)] = (policy, made)
        return known[1]

    def keep(self, entries: Iterable[object]) -> None:
        """Forget every policy that is not one of *entries*."""
        self._known = {id(entry): known for entry in entries if (known := self._known.get(id(entry))) is not None}


class Guard:
    """The policies of one workload, put together for what it serves as HTTP, or for what it does not."""

    __slots__ = (
        "_decided",
        "authenticator",
        "authorizer",
        "by_line",
        "decided",
        "limiter",
        "reads_requests",
        "services",
    )

    def __init__(
        self,
        authorizer: Authorizer,
        authenticator: Authenticator | None,
        limiter: RateLimiter | None,
        services: tuple[GlobalLimit, ...],
        *,
        reads_requests: bool = False,
    ) -> None:
        self.authorizer, self.authenticator, self.limiter, self.services = authorizer, authenticator, limiter, services
        self.reads_requests = reads_requests
        """Some policy decides by what a request says: what is not parsed may pass only where the
        port is declared not to be HTTP.
        """
        self.by_line = authenticator is None and limiter is None and not services
        """Nothing but AuthorizationPolicies has a say."""
        self._decided: dict[_Asked, tuple[bytes, Decision]] = {}
        self.decided = self._decided.get
        """What was decided on a request like this one: the target that goes on, and the decision.
        It ends with the guard, which ends with its policies.
        """

    @classmethod
    def made(
        cls,
        view: ClusterView,
        compiler: Compiler,
        workload: Workload,
        previous: Guard | None,
        *,
        http: bool,
        share: float,
    ) -> Guard:
        """Put together what applies to *workload*. Token buckets of limits that did not change are
        taken over from *previous*.
        """
        entries = view.policies_of(workload)

        def keys(uri: str) -> Jwks | None:
            found = view.policy(f"jwks/{uri}")
            return found if isinstance(found, Jwks) else None

        policies = [compiler.compiled(entry) for entry in entries if isinstance(entry, AuthorizationPolicy)]
        authentications = [entry for entry in entries if isinstance(entry, RequestAuthentication)]
        limits = [entry for entry in entries if isinstance(entry, RateLimit)]
        reads = bool(authentications or limits) or any(policy.decides_requests for policy in policies)
        if not http:
            limits = []
        before = previous.limiter if previous is not None else None
        authenticator = limiter = None
        if http and authentications:
            # it brings a cryptography library, which most workers never need
            from nodeagent.policy.jwt import Authenticator

            authenticator = Authenticator.compile(authentications, keys, time)
        if any(limit.local for limit in limits):
            from nodeagent.policy.rate_limit import RateLimiter

            limiter = RateLimiter.compile(limits, monotonic, share=share, previous=before)
        services = tuple(limit.service for limit in limits if limit.service is not None)
        return cls(Authorizer.of(policies, http=http), authenticator, limiter, services, reads_requests=reads)

    def bind(self, facts: ConnectionFacts, client: str, workload: str, uid: str) -> Bound:
        """Return what the guard means for the client that *facts* describe: *client* is its pod or
        address, *workload* whose guard it is; of the pod *uid*, for which others are asked.
        """
        return Bound(self, facts, self.authorizer.connection(facts), client, workload, uid)

    def remember(self, asked: _Asked, target: bytes, decision: Decision) -> None:
        """Keep *decision* on what *asked* for, which goes on as *target*."""
        if len(asked[2]) + len(asked[3]) > _LONGEST:
            return
        if len(self._decided) >= DECISIONS:
            self._decided.clear()
        self._decided[asked] = (target, decision)


class Bound:
    """A guard as one client meets it."""

    __slots__ = ("by_line", "client", "decision", "facts", "guard", "reason", "residual", "uid", "workload")

    def __init__(
        self,
        guard: Guard,
        facts: ConnectionFacts,
        outcome: Decision | RequestAuthorizer,
        client: str,
        workload: str,
        uid: str,
    ) -> None:
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
        exchange.target = normalise_target(exchange.target)
        residual = self.residual
        request = RequestFacts(
            exchange.method.decode("latin-1"),
            exchange.target.decode("latin-1"),
            exchange.authority.decode("latin-1"),
            exchange.header,
            None,
        )
        provider = (
            residual.custom(request)
            if residual is not None
            else (self.decision.custom if self.decision is not None else "")
        )
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
        request.claims = outcome.claims
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
        body, wanted = None, around.providers.body_of(provider)
        if wanted is not None:
            body = await beginning(exchange, wanted)
            if exchange.finished:
                return None
            if body is not None and body.partial and not wanted.allow_partial_message:
                return BODY_TOO_LARGE
        connection = exchange.downstream.connection
        headers = tuple(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in (*exchange.fields, *exchange.own)]
        )
        asked = HttpFacts(
            exchange.method.decode("latin-1"),
            exchange.target.decode("latin-1"),
            exchange.authority.decode("latin-1"),
            headers,
            version=exchange.protocol,
            body=body,
        )
        verdict = await around.providers.check(provider, *self._parties(connection), asked, connection.sni, self.uid)
        if verdict.allowed:
            if verdict.query_set or verdict.query_remove:
                request.path = with_parameters(request.path, verdict.query_set, verdict.query_remove)
                exchange.target = request.path.encode("latin-1")
            added = tuple((name, value) for name, value in verdict.append if exchange.header(name) is not None)
            adopt(exchange, (*verdict.remove, *(name for name, _ in verdict.set)), verdict.set + added)
            exchange.answer_fields += verdict.answer
            return None
        return self._external(around, provider, verdict)

    def _external(self, around: Surroundings, provider: str, verdict: Verdict) -> Reason:
        """Return the refusal that *verdict* is."""
        self._count(around, provider, "external_denied")
        if verdict.failed:
            log.warning("%s: the external authorizer %s: %s", self.workload, provider, verdict.failed)
            return replace(EXTERNAL_ERROR, status=verdict.status, policy=provider)
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
            log.warning("%s: the rate limit service %s: %s", self.workload, limit.provider, verdict.failed)
        if verdict.allowed:
            adopt(exchange, (), verdict.request_headers)
            exchange.answer_fields += tuple((name, value, "add") for name, value in verdict.headers)
            return None
        self._count(around, limit.provider, "rate_limited")
        return replace(
            RATE_LIMITED,
            status=verdict.status,
            details="request_rate_limited",
            body=verdict.body,
            headers=verdict.headers,
            policy=limit.provider,
        )

    def _parties(self, connection: Connection) -> tuple[Party, Party]:
        facts, target = self.facts, connection.target
        return Party(facts.source_ip, connection.peer.port, facts.principal), Party(target.address, target.port)

    # -- TCP --

    @property
    def awaits_requests(self) -> bool:
        """Say whether the connection would be refused now, but as HTTP might not be: while nobody
        has spoken, that is waited for.
        """
        return self.reason is not None and self.guard.reads_requests

    async def admits_connection(self, around: Surroundings, connection: Connection) -> Reason | None:
        """Decide on a connection that is not HTTP; return why it is refused."""
        decision = self.decision
        assert decision is not None, "on a TCP port nothing depends on a request"
        connection.policy = decision.policy
        if decision.notes or not decision.allowed:
            self._note(around, decision)
        if decision.custom and self.reason is None:
            verdict = await around.providers.check(
                decision.custom, *self._parties(connection), None, connection.sni, self.uid
            )
            if not verdict.allowed:
                return self._external(around, decision.custom, verdict)
        return self.reason

    # -- observe --

    def _note(self, around: Surroundings, decision: Decision) -> None:
        if not decision.allowed:
            self._count(around, decision.policy, "deny")
        for note in decision.notes:
            self._count(around, note.policy, note.kind)

    def _count(self, around: Surroundings, policy: str, event: str) -> None:
        around.metrics.count(POLICY_EVENTS, (self.workload, policy, event))


UNGUARDED: Final = Guard(Authorizer.compile((), http=True, trust_domain=""), None, None, ()).bind(
    ConnectionFacts("", "", "", "", 0), "", "", ""
)
"""Nothing stands between this client and the endpoint, or somebody else checks."""


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


def facts(connection: Connection, endpoint: Endpoint) -> ConnectionFacts:
    """Return what authorization may know of *connection* on its way to *endpoint*."""
    peer = connection.peer
    presumed = peer.workload.identity if peer.workload is not None and not peer.identity else ""
    return ConnectionFacts(
        principal=peer.identity.removeprefix(_SCHEME),
        source_ip=peer.address,
        remote_ip=peer.address,
        destination_ip=endpoint.address,
        destination_port=endpoint.port,
        sni=connection.sni,
        presumed=presumed.removeprefix(_SCHEME),
    )
