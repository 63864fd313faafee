"""What protects one port of one workload: the policies that apply to it, put together once per change.

What that means for one of its clients, and for each request of that client, is ``client_guard.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from nodeagent.errors import ResourceError
from nodeagent.mesh.entries import Workload
from nodeagent.policy.authorization import Authorizer, CompiledPolicy, Decision
from nodeagent.policy.mesh_settings import MeshSettings
from nodeagent.policy.model import AuthorizationPolicy, GlobalLimit, Jwks, RateLimit, RequestAuthentication, Rule
from nodeagent.policy.paths import NORMALISED

if TYPE_CHECKING:
    from nodeagent.policy.jwt import Authenticator
    from nodeagent.policy.rate_limit import RateLimiter
    from nodeagent.proxy.view import ClusterView

DECISIONS: Final = 1024
"""Decisions that a guard remembers, for all of its clients together: clients choose what they ask for."""
_LONGEST: Final = 512
"""Bytes of a method, a target and a host that are remembered."""
log = logging.getLogger("nodeagent.proxy")
Asked = tuple[object, bytes, bytes, bytes]
"""By whom (a :class:`ClientGuard`), and a request's method, target as it came, and authority."""


class Compiler:
    """Compiles each AuthorizationPolicy once, for all the workloads to which it applies."""

    __slots__ = ("_known", "mesh")

    def __init__(self, mesh: MeshSettings) -> None:
        self.mesh = mesh
        # by id: a policy with the same name may say something else
        self._known: dict[int, tuple[AuthorizationPolicy, CompiledPolicy]] = {}

    def compiled(self, policy: AuthorizationPolicy) -> CompiledPolicy:
        """Return what *policy* is compiled to; what cannot be compiled, although control took it, lets nobody in."""
        known = self._known.get(id(policy))
        if known is None:
            try:
                made = CompiledPolicy.of(policy, self.mesh)
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
                made = CompiledPolicy.of(closed, self.mesh)
            known = (policy, made)
            self._known[id(policy)] = known
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
        "awaits_requests",
        "by_line",
        "decided",
        "limiter",
        "normalise",
        "reads_requests",
        "services",
        "trusted_proxies",
    )

    def __init__(
        self,
        authorizer: Authorizer,
        authenticator: Authenticator | None,
        limiter: RateLimiter | None,
        services: tuple[GlobalLimit, ...],
        mesh: MeshSettings,
        *,
        reads_requests: bool = False,
        awaits_requests: bool = False,
    ) -> None:
        self.authorizer = authorizer
        self.authenticator = authenticator
        self.limiter = limiter
        self.services = services
        self.reads_requests = reads_requests
        """Some policy decides by what a request says: what is not parsed may pass only where the
        port is declared not to be HTTP.
        """
        self.awaits_requests = awaits_requests
        """What would be refused may fare otherwise as HTTP."""
        self.normalise = NORMALISED[mesh.path_normalization]
        self.trusted_proxies = mesh.trusted_proxies
        self.by_line = authenticator is None and limiter is None and not services
        """Nothing but AuthorizationPolicies has a say."""
        self._decided: dict[Asked, tuple[bytes, Decision]] = {}
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
        awaits = reads or any(policy.judges_clients for policy in policies)
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
        return cls(
            Authorizer.of(policies, http=http),
            authenticator,
            limiter,
            services,
            compiler.mesh,
            reads_requests=reads,
            awaits_requests=awaits,
        )

    def remember(self, asked: Asked, target: bytes, decision: Decision) -> None:
        """Keep *decision* on what *asked* for, which goes on as *target*."""
        _, method, as_it_came, host = asked
        if len(method) + len(as_it_came) + len(host) > _LONGEST:
            return
        if len(self._decided) >= DECISIONS:
            self._decided.clear()
        self._decided[asked] = (target, decision)
