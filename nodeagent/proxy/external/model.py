"""What an external service is told, and what it may answer. Free of gRPC, so that the proxy can use
it without loading that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nodeagent.policy.model import GlobalLimit

if TYPE_CHECKING:
    from nodeagent.identity.tls import Inside
    from nodeagent.proxy.dial import Dialled

    Connect = Callable[[Inside], Awaitable[Dialled]]
    """What the connection shall carry -> the connection, established."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a provider is reached. Ways that are equal may share a connection."""

    address: str
    port: int
    through: Hashable = None
    """Whose connection it is; None: the node's own, in plaintext."""
    connect: Connect | None = field(default=None, compare=False)
    """Makes a connection ``through`` that."""


Resolve = Callable[[str, int, str], Way | None]
"""Host (``name`` or ``namespace/name``) and port of a provider, and the uid of the pod for which it
is asked -> the way to it now; None when there is none.
"""
Header = tuple[str, str]
AnswerAction = Literal["add", "set", "add_if_absent", "set_if_present"]
AnswerField = tuple[str, str, AnswerAction]
"""A field for the application's answer, and how it is put beside one of the same name."""
Descriptor = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection."""

    address: str
    port: int
    principal: str = ""
    """Without ``spiffe://``; empty when it proved none."""


@dataclass(frozen=True, slots=True)
class Body:
    """What of a request's body is shown."""

    data: bytes
    partial: bool
    """There is, or may be, more of it."""


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
    body: Body | None = None
    """None: it has none, or the provider does not ask for it."""


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """What the external authorizer, or in its absence the configuration, says of a request or a connection."""

    allowed: bool
    status: int = 403
    """Of the refusal."""
    set: tuple[Header, ...] = ()
    """Allowed: request header fields to put in the place of any of the same name. Names are
    lower-case here and below.
    """
    append: tuple[Header, ...] = ()
    """Allowed: request header fields to add to one of the same name; without one they are left out, as by Envoy."""
    remove: tuple[str, ...] = ()
    """Allowed: names of request header fields to take away, before the others are put."""
    query_set: tuple[tuple[str, str], ...] = ()
    """Allowed: query parameters to put in the place of any of the same name."""
    query_remove: tuple[str, ...] = ()
    """Allowed: query parameters to take away, after the others were put."""
    answer: tuple[AnswerField, ...] = ()
    """Allowed: for the application's answer, in the order in which they are put."""
    headers: tuple[Header, ...] = ()
    """Of the refusal."""
    body: bytes = b""
    """Of the refusal."""
    failed: str = ""
    """Why there was no answer; empty: this is the authorizer's own."""
    missing: bool = False
    """There was none as nobody has the name that was asked for."""


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
