"""Istio's security resources as validated data: what a policy says, before anything is compiled
from it.

Parsed by ``resources/security.py``, carried to the workers as snapshot entries, compiled by the
modules of this package. An absent field is an empty tuple or text; values are as the user wrote
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MtlsMode = Literal["STRICT", "PERMISSIVE", "DISABLE"]
Action = Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"]
PathSetting = Literal["auto", "kernel", "proxy"]
DISCOVERY: Final = "/.well-known/openid-configuration"
"""What follows an issuer in the address of its document that names its key set (OpenID Connect
Discovery 1.0, section 4).
"""


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """Never an entry of its own: it is compiled into the mode of each workload."""

    namespace: str
    name: str
    mode: MtlsMode | None = None
    """``mtls.mode``; None: UNSET, the next wider scope says."""
    ports: tuple[tuple[int, MtlsMode | None], ...] = ()
    """``portLevelMtls``: workload port and mode; None: the workload's."""


@dataclass(frozen=True, slots=True)
class RuleSource:
    """``rules[].from[].source``: all fields must match, one value of each is enough."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """``rules[].to[].operation``."""

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """``rules[].when[]``."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One of ``rules``: some source, some operation and all conditions; an empty part always matches."""

    sources: tuple[RuleSource, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """``rules`` empty: never matches (an ALLOW policy then denies all)."""

    namespace: str
    name: str
    action: Action = "ALLOW"
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    provider: str = ""
    """CUSTOM: a name of ``extensionProviders`` in agent.yaml."""
    refused: str = ""
    """The kind of a wrong document that never was right, in whose place this denies everything."""
    service_ports: str = ""
    """``80:8080``: to which ports of a workload those of the Service lead that it is attached to, where the
    workload's stand in its rules instead; such a policy has an entry for each way that they lead.
    """

    @property
    def key(self) -> str:
        if self.refused:
            return f"refused/{self.refused}/{self.namespace}/{self.name}"
        at = f"@{self.service_ports}" if self.service_ports else ""
        return f"authorization/{self.namespace}/{self.name}{at}"


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """``fromHeaders[]``: where a token stands, and what stands before it."""

    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class JwtRule:
    """``jwtRules[]``."""

    issuer: str
    audiences: tuple[str, ...] = ()
    jwks: str = ""
    """The key set itself, as JSON text."""
    jwks_uri: str = ""
    from_headers: tuple[TokenHeader, ...] = ()
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    output_payload_to_header: str = ""
    output_claim_to_headers: tuple[tuple[str, str], ...] = ()
    """Header and claim (``a.b`` for a nested one)."""
    forward_original_token: bool = False
    timeout_seconds: float = 5.0
    space_delimited_claims: tuple[str, ...] = ()

    @property
    def keys_uri(self) -> str:
        """Where control gets the keys (the ``uri`` of a :class:`Jwks`), empty: ``jwks`` has them.
        By default the issuer's OpenID Connect discovery document.
        """
        return "" if self.jwks else self.jwks_uri or self.issuer.removesuffix("/") + DISCOVERY


@dataclass(frozen=True, slots=True)
class RequestAuthentication:
    namespace: str
    name: str
    rules: tuple[JwtRule, ...] = ()

    @property
    def key(self) -> str:
        return f"authentication/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Jwks:
    """The keys behind a ``JwtRule.keys_uri``, fetched by control; ``error`` says why there are
    none, or why they are not fresh.
    """

    uri: str
    keys: str = ""
    """The key set as JSON text, checked to be one."""
    error: str = ""

    @property
    def key(self) -> str:
        return f"jwks/{self.uri}"


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Envoy's: ``tokens_per_fill`` are added every ``fill_seconds``, up to ``max_tokens``."""

    max_tokens: int
    tokens_per_fill: int
    fill_seconds: float


@dataclass(frozen=True, slots=True)
class LocalLimit:
    """One of ``local[]``: requests that match share a bucket, or have one for each value of ``by``."""

    bucket: TokenBucket
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """Header and value (``*`` at its begin or end, or alone: present)."""
    by: tuple[str, ...] = ()
    """``principal``, ``pod``, ``path``, ``header:<name>``."""


@dataclass(frozen=True, slots=True)
class GlobalLimit:
    """``global``: ask a rate limit service (envoy.service.ratelimit.v3)."""

    provider: str
    domain: str
    descriptors: tuple[tuple[tuple[str, str], ...], ...] = ()
    """Each is a list of (key, value); a value may be ``{principal}``, ``{pod}``, ``{path}``,
    ``{method}``, ``{host}`` or ``{header:<name>}``.
    """
    failure_mode: Literal["allow", "deny"] = "allow"
    timeout_seconds: float = 0.0
    """0: the provider's."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``RateLimit`` of nodeagent.io/v1alpha1."""

    namespace: str
    name: str
    local: tuple[LocalLimit, ...] = ()
    service: GlobalLimit | None = None

    @property
    def key(self) -> str:
        return f"ratelimit/{self.namespace}/{self.name}"
