"""Others who decide about requests, as ``extensionProviders`` of agent.yaml names them: the shape of
Istio's mesh config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from nodeagent.policy.header_names import TOKEN, name_pattern
from nodeagent.policy.mesh_settings import ProviderNames
from nodeagent.policy.substitutions import substituted_text
from nodeagent.sections import ConfigSection, Duration

NOT_TOLD: Final = frozenset(
    (
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "x-envoy-auth-partial-body",
    )
)
"""What a check has of its own, or what belongs to the client's connection alone: never taken from the
client's request or from ``includeAdditionalHeadersInCheck``.
"""
MeshHost = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?$")
]
"""A Service's host name or an address, with its namespace and a slash before it where the name alone does not tell."""
_FIELD: Final = re.compile(TOKEN)
_PREFIX: Final = re.compile(r"/[!-\"$-~]{0,1023}")
NamePatterns = Annotated[
    tuple[Annotated[str, AfterValidator(name_pattern)], ...],
    Field(max_length=256),
]
"""Names of headers; with ``*`` at the beginning or end all that end or begin so."""


def _path_prefix(text: str) -> str:
    if text and not _PREFIX.fullmatch(text):
        raise ValueError("a path is expected that begins with /, of visible ASCII without #")
    return text


class RequestBody(ConfigSection):
    """How much of a request's body an external authorizer sees."""

    max_request_bytes: int = Field(ge=1, le=16 << 20)
    """Bytes of a body that are held until the verdict."""
    allow_partial_message: bool = False
    """Whether the beginning of a longer body will do; otherwise such a request is refused with 413."""
    pack_as_bytes: bool = False
    """Whether the body is sent as bytes; otherwise as UTF-8, with a replacement character for what is
    not. Over HTTP it is always sent as it is.
    """


class EnvoyExtAuthzGrpc(ConfigSection):
    """A service of envoy.service.auth.v3, for AuthorizationPolicies with action CUSTOM."""

    service: MeshHost
    port: int = Field(ge=1, le=65535)
    timeout: Duration = 600
    """Istio's default."""
    fail_open: bool = False
    """Whether a request passes when the service does not answer."""
    status_on_error: int = Field(403, ge=200, le=599)
    """The refusal's status when it does not."""
    clear_route_cache: bool = False
    """Taken as Istio has it; no route here depends on what an authorizer changes."""
    include_request_body_in_check: RequestBody | None = None
    """Without it no body is asked about."""


class EnvoyExtAuthzHttp(EnvoyExtAuthzGrpc):
    """The same, by an HTTP request with the method, the path and the Host of what it is asked about."""

    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = ""
    """Put before the path."""
    include_request_headers_in_check: NamePatterns = ()
    """Headers of the request that are told beside Authorization."""
    include_headers_in_check: NamePatterns = ()
    """Istio's older name: taken where the other is not given."""
    include_additional_headers_in_check: dict[str, str] = Field({}, max_length=64)
    """Headers that are told in the place of the request's own, with Envoy's substitutions."""
    headers_to_upstream_on_allow: NamePatterns = ()
    """Headers of the answer that take the place of the request's own; none is not in the list."""
    headers_to_downstream_on_allow: NamePatterns = ()
    """Headers of the answer that are added to the application's answer; none is not in the list."""
    headers_to_downstream_on_deny: NamePatterns = ()
    """Headers of a refusal that the client gets beside Location and WWW-Authenticate; without the list all."""

    @field_validator("include_additional_headers_in_check")
    @classmethod
    def _can_be_told(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, text in headers.items():
            if not _FIELD.fullmatch(name) or name.lower() in NOT_TOLD:
                raise ValueError(
                    f"{name!r:.80}: a header's name is expected, but none of {', '.join(sorted(NOT_TOLD))}"
                )
            try:
                substituted_text(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}, not {text!r:.80}") from None
        return headers


class RateLimitGrpc(ConfigSection):
    """A service of envoy.service.ratelimit.v3, for RateLimits with ``global``."""

    service: MeshHost
    port: int = Field(ge=1, le=65535)
    timeout: Duration = 0.02
    """Envoy's default; a RateLimit may ask for another."""


class ExtensionProvider(ConfigSection):
    """Somebody else who decides about requests, under the name that policies use: exactly one kind."""

    name: str = Field(min_length=1, max_length=253)
    envoy_ext_authz_grpc: EnvoyExtAuthzGrpc | None = None
    envoy_ext_authz_http: EnvoyExtAuthzHttp | None = None
    rate_limit_grpc: RateLimitGrpc | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.envoy_ext_authz_grpc, self.envoy_ext_authz_http, self.rate_limit_grpc)
        if kinds.count(None) != len(kinds) - 1:
            raise ValueError("exactly one of envoyExtAuthzGrpc, envoyExtAuthzHttp and rateLimitGrpc must be given")
        return self


def provider_names(providers: Iterable[ExtensionProvider]) -> ProviderNames:
    """Return the names of *providers*, by what they are asked for."""
    limiters = {each.name: each.rate_limit_grpc is not None for each in providers}
    return ProviderNames(
        frozenset(name for name, limits in limiters.items() if not limits),
        frozenset(name for name, limits in limiters.items() if limits),
    )
