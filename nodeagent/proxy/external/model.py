"""What an external service is told, and what it may answer. Free of gRPC, so that the proxy can use it without loading that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nodeagent.policy.model import GlobalLimit

Resolve = Callable[[str, int], tuple[str, int] | None]
"""Host (``name`` or ``namespace/name``) and port of a provider -> address and port to connect to now; None when there is none."""
Header = tuple[str, str]
Descriptor = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection."""

    address: str
    port: int
    principal: str = ""
    """Without ``spiffe://``; empty when it proved none."""


@dataclass(frozen=True, slots=True)
class HttpFacts:
    """A request. Texts have one character a byte."""

    method: str
    path: str
    """With its query."""
    host: str
    headers: tuple[Header, ...]
    """As received, in order; Host is not needed again."""
    scheme: str = "http"
    version: str = "HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the external authorizer, or in its absence the configuration, says of a request or a connection."""

    allowed: bool
    status: int = 403
    """Of the refusal."""
    set: tuple[Header, ...] = ()
    """Allowed: request header fields to put in the place of any of the same name. Names are lower-case here and below."""
    append: tuple[Header, ...] = ()
    """Allowed: request header fields to add."""
    remove: tuple[str, ...] = ()
    """Allowed: names of request header fields to take away, before the others are put."""
    headers: tuple[Header, ...] = ()
    """For the answer to the client: the refusal, or the application's."""
    body: bytes = b""
    """Of the refusal."""
    failed: str = ""
    """Why there was no answer; empty: this is the authorizer's own."""


@dataclass(frozen=True, slots=True)
class RateVerdict:
    """What the rate limit service, or in its absence the failure mode, says of a request."""

    allowed: bool
    status: int = 429
    """Of the refusal: 500 when there was no answer and the failure mode is deny, as in Envoy."""
    request_headers: tuple[Header, ...] = ()
    """Allowed: request header fields to add."""
    headers: tuple[Header, ...] = ()
    """For the answer to the client."""
    body: bytes = b""
    """Of the refusal."""
    failed: str = ""
    """Why there was no answer; empty: this is the service's own."""

    @classmethod
    def unanswered(cls, limit: GlobalLimit, why: str) -> RateVerdict:
        """Return what *limit* says when nobody else does."""
        return cls(limit.failure_mode == "allow", status=500, failed=why)
