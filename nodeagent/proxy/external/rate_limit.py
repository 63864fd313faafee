"""envoy.service.ratelimit.v3, the client's side: is this request within the limits that all nodes share?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nodeagent.extension_providers import RateLimitGrpc
from nodeagent.policy.model import GlobalLimit
from nodeagent.protocols.envoy_ratelimit_pb2 import RateLimitDescriptor, RateLimitRequest, RateLimitResponse
from nodeagent.proxy.external.bounds import CallError, CrowdedError
from nodeagent.proxy.external.call import ProviderCalls
from nodeagent.proxy.external.fields import read, utf8
from nodeagent.proxy.external.model import Descriptor, Header, RateVerdict, Resolve

PATH: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_SECONDS: Final = {1: 1, 2: 60, 3: 3600, 4: 86400, 5: 30 * 86400, 6: 365 * 86400}
"""Of a unit of the protocol."""


class RateLimitService:
    """One provider as a worker asks it."""

    def __init__(self, name: str, settings: RateLimitGrpc, resolve: Resolve) -> None:
        self._settings = settings
        self._calls = ProviderCalls(name, settings.service, settings.port, PATH, resolve)

    async def ask(self, limit: GlobalLimit, descriptors: Sequence[Descriptor], asker: str) -> RateVerdict:
        """Ask for the pod *asker* about a request that *descriptors* describe.

        Never raises; what the service does not answer the limit's failure mode does.
        """
        request = RateLimitRequest(domain=limit.domain)
        for descriptor in descriptors:
            entries = [RateLimitDescriptor.Entry(key=key, value=utf8(value)) for key, value in descriptor]
            request.descriptors.add(entries=entries)
        try:
            return _verdict(
                await self._calls.call(
                    request, RateLimitResponse, limit.timeout_seconds or self._settings.timeout, asker
                )
            )
        except CrowdedError as error:
            return RateVerdict(False, failed=str(error))
        except CallError as error:
            return RateVerdict.unanswered(limit, str(error))

    def close(self) -> None:
        self._calls.close()


def _verdict(answer: RateLimitResponse) -> RateVerdict:
    """Translate *answer*. Raises CallError when it says neither yes nor no."""
    if answer.overall_code not in (RateLimitResponse.OK, RateLimitResponse.OVER_LIMIT):
        raise CallError("the answer says neither OK nor OVER_LIMIT")
    try:
        headers = (*_quota(answer.statuses), *read(answer.response_headers_to_add))
    except CallError as error:
        if answer.overall_code == RateLimitResponse.OVER_LIMIT:
            return RateVerdict(False, failed=str(error))  # a no all the same
        raise
    if answer.overall_code == RateLimitResponse.OK:
        return RateVerdict(True, request_headers=read(answer.request_headers_to_add), headers=headers)
    return RateVerdict(False, headers=(("x-envoy-ratelimited", "true"), *headers), body=answer.raw_body)


def _quota(statuses: Sequence[RateLimitResponse.DescriptorStatus]) -> tuple[Header, ...]:
    """Return what Envoy tells clients (draft-polli-ratelimit-headers-03): the limit that is nearest
    to its end, and the quotas of all.
    """
    counted = [
        status for status in statuses if status.HasField("current_limit") and status.current_limit.unit in _SECONDS
    ]
    if not counted:
        return ()
    nearest = min(counted, key=lambda status: status.limit_remaining)
    quotas = "".join(
        f", {status.current_limit.requests_per_unit};w={_SECONDS[status.current_limit.unit]}" for status in counted[:16]
    )
    return (
        ("x-ratelimit-limit", f"{nearest.current_limit.requests_per_unit}{quotas}"),
        ("x-ratelimit-remaining", str(nearest.limit_remaining)),
        ("x-ratelimit-reset", str(max(0, nearest.duration_until_reset.seconds))),
    )
