"""``ca.yaml``: the configuration of ``nodeagent ca serve``."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from nodeagent.sections import ConfigSection

_ACCOUNT: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _account(value: str) -> str:
    if not _ACCOUNT.fullmatch(value):
        raise ValueError("NAMESPACE/SERVICE-ACCOUNT is expected")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        try:
            ip_address(value)
        except ValueError:
            raise ValueError("a host name in lower case or an address is expected") from None
    return value


Account = Annotated[str, AfterValidator(_account)]
Host = Annotated[str, AfterValidator(_host)]
KubeName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""The name of an object in Kubernetes (RFC 1123 subdomain)."""


class ServiceAccountTokens(ConfigSection):
    """Kubernetes' tokens for pods (projected volumes), verified with the API server's public keys."""

    keys: Path
    """A JWKS document, as ``/openid/v1/jwks`` of the API server gives it; read anew when it changes."""
    issuer: str = Field(min_length=1)
    audiences: tuple[str, ...] = Field(("istio-ca",), min_length=1)


class TokenReviews(ConfigSection):
    """Kubernetes' tokens for pods, judged by the API server itself, which also knows those that were revoked."""

    audiences: tuple[str, ...] = Field(("istio-ca",), min_length=1)


class CaCluster(ConfigSection):
    """The cluster whose pods get certificates, and what the authority keeps in it."""

    kubeconfig: Path | None = None
    """How to reach the API server; absent: as the service account of the pod that this runs in."""
    namespace: KubeName = "nodeagent-system"
    secret: KubeName = "nodeagent-ca"
    """The Secret that holds the authority's files; the manifest makes it, the first start fills it."""
    roots: KubeName = "nodeagent-ca-root-cert"
    """The ConfigMap with what agents trust, ``root-cert.pem``; made when it is not there, and kept right."""


class Authentication(ConfigSection):
    """How callers prove who they are: at least one."""

    token_file: Path | None = None
    """For labs and tests: YAML, a list of {token, account: NAMESPACE/NAME, node}; mode 0600; read
    anew when it changes.
    """
    service_account_tokens: ServiceAccountTokens | None = None
    token_reviews: TokenReviews | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.token_file or self.service_account_tokens or self.token_reviews):
            raise ValueError("at least one of tokenFile, serviceAccountTokens and tokenReviews must be given")
        return self


class CaConfig(ConfigSection):
    directory: Path
    """The authority's directory, see identity/authority_directory.py; made when it is not there. With
    ``kubernetes`` it holds a copy of what signs, and belongs in memory.
    """
    trust_domain: str = Field("cluster.local", pattern=r"^[a-z0-9._-]{1,255}$")
    address: str = "0.0.0.0"
    port: int = Field(15012, ge=0, le=65535)
    names: tuple[Host, ...] = Field(min_length=1, max_length=100)
    """Host names and addresses by which clients reach it."""
    source: Path | None = None
    """The cluster's state, as in agent.yaml: it says which pods are on which node."""
    kubernetes: CaCluster | None = None
    """In place of ``source``: a cluster, whose API server is asked."""
    node_agents: tuple[Account, ...] = ()
    """Service accounts that may ask for the identities of pods on their node."""
    authentication: Authentication
    max_ttl_seconds: int = Field(86400, ge=60)
    requests_per_second: float = Field(50, gt=0)
    """Of one caller, after a burst of ten seconds' worth."""
    telemetry_port: int | None = Field(None, ge=0, le=65535)
    """/ready and /metrics, without TLS; absent: none."""

    @model_validator(mode="after")
    def _one_state(self) -> Self:
        if (self.source is None) == (self.kubernetes is None):
            raise ValueError("exactly one of source and kubernetes must be given")
        if self.kubernetes is None and self.authentication.token_reviews is not None:
            raise ValueError("authentication.tokenReviews needs kubernetes: the API server that reviews them")
        if self.kubernetes is not None and self.authentication.service_account_tokens is not None:
            raise ValueError("authentication.serviceAccountTokens needs source: with kubernetes give tokenReviews")
        return self
