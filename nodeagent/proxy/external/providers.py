"""The providers of agent.yaml, by name. What one that is not there would say is said here: no, or
what the failure mode says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nodeagent.extension_providers import ExtensionProvider, RequestBody
from nodeagent.policy.mesh_settings import NOBODY
from nodeagent.policy.model import GlobalLimit
from nodeagent.proxy.external.model import CheckVerdict, Descriptor, HttpFacts, Party, RateVerdict, Resolve

if TYPE_CHECKING:
    from nodeagent.proxy.external.ext_authz import ExtAuthz
    from nodeagent.proxy.external.http_authz import HttpAuthz
    from nodeagent.proxy.external.rate_limit import RateLimitService


class Providers:
    """Made once a worker, in its event loop. gRPC is loaded only where a provider is configured."""

    def __init__(self, providers: Iterable[ExtensionProvider], resolve: Resolve) -> None:
        self._authorizers: dict[str, ExtAuthz | HttpAuthz] = {}
        self._limits: dict[str, RateLimitService] = {}
        for provider in providers:
            if provider.envoy_ext_authz_grpc is not None:
                from nodeagent.proxy.external.ext_authz import ExtAuthz

                self._authorizers[provider.name] = ExtAuthz(provider.name, provider.envoy_ext_authz_grpc, resolve)
            if provider.envoy_ext_authz_http is not None:
                from nodeagent.proxy.external.http_authz import HttpAuthz

                self._authorizers[provider.name] = HttpAuthz(provider.name, provider.envoy_ext_authz_http, resolve)
            if provider.rate_limit_grpc is not None:
                from nodeagent.proxy.external.rate_limit import RateLimitService

                self._limits[provider.name] = RateLimitService(provider.name, provider.rate_limit_grpc, resolve)

    def body_of(self, provider: str) -> RequestBody | None:
        """Return what the external authorizer *provider* wants to see of requests' bodies; None: nothing."""
        authorizer = self._authorizers.get(provider)
        return authorizer.body if authorizer is not None else None

    async def check(
        self, provider: str, source: Party, destination: Party, http: HttpFacts | None, sni: str = "", asker: str = ""
    ) -> CheckVerdict:
        """Ask the external authorizer *provider* for the pod *asker* about a request, or about a
        connection when *http* is None. Never raises.
        """
        authorizer = self._authorizers.get(provider)
        if authorizer is None:
            return CheckVerdict(False, failed=NOBODY.no_authorizer(provider), missing=True)
        return await authorizer.check(source, destination, http, sni, asker)

    async def ask(self, limit: GlobalLimit, descriptors: Sequence[Descriptor], asker: str = "") -> RateVerdict:
        """Ask the service that *limit* names for the pod *asker*; without a descriptor there is
        nothing to ask. Never raises.
        """
        if not descriptors:
            return RateVerdict(True)
        service = self._limits.get(limit.provider)
        if service is None:
            return RateVerdict.unanswered(limit, NOBODY.no_limiter(limit.provider))
        return await service.ask(limit, descriptors, asker)

    def close(self) -> None:
        """Close all connections; calls under way fail."""
        for authorizer in self._authorizers.values():
            authorizer.close()
        for service in self._limits.values():
            service.close()
