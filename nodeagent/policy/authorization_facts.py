"""What authorization is told about a connection and a request, and what it derives from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nodeagent.policy.authorization_match import number_of
from nodeagent.policy.claims import Claims


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of a connection before its first request."""

    principal: str
    """The peer's proved identity without ``spiffe://``, empty when it proved none."""
    source_ip: str
    """The address at the connection's other end."""
    destination_ip: str
    destination_port: int
    """The workload's own port."""
    sni: str = ""
    presumed: str = ""
    """Where the peer proved no identity: that of the pod whose address it has, as ``principal``
    writes it; empty: no pod has it.
    """


def _unknown(name: str) -> Sequence[str]:
    return ()


@dataclass(slots=True)
class RequestFacts:
    """What is known of a request. ``claims`` may be set later, before the decision."""

    method: str
    path: str
    """The request target in the form that the mesh's settings ask for (``paths.py``), one character a byte."""
    host: str
    """The Host field or :authority, with its port."""
    header: Callable[[str], str | None]
    """Return a field's value by its lower-case name, several lines joined with ``,``; None when it is absent."""
    claims: Claims | None = None
    lines: Callable[[str], Sequence[str]] = _unknown
    """Return the value of each line of a field by its lower-case name; nothing: ``header`` knows of one only."""
    remote: str = ""
    """The client's address (``forwarded_for.py``), set where policies ask for it."""
    normal: str = field(default="", init=False, repr=False, compare=False)
    """The path alone, once somebody asked for it."""

    def normalised(self) -> str:
        """Return the path as policies compare it, without query, and keep it."""
        self.normal = self.path.partition("?")[0]
        return self.normal


class PeerFacts:
    """A connection as the compiled terms see it: texts to look up, addresses as numbers."""

    __slots__ = (
        "destination",
        "namespace",
        "port",
        "presumed",
        "principal",
        "service_account",
        "sni",
        "source",
        "trust_domain",
    )

    def __init__(self, facts: ConnectionFacts) -> None:
        self.presumed: PeerFacts | None = (
            PeerFacts(replace(facts, principal=facts.presumed, presumed="")) if facts.presumed else None
        )
        """The same peer as it would be, had it proved the identity that it is presumed to have."""
        self.principal = facts.principal
        self.trust_domain = self.namespace = self.service_account = ""
        parts = facts.principal.split("/")
        if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa":
            self.trust_domain, _, self.namespace, _, account = parts
            self.service_account = f"{self.namespace}/{account}"
        self.source = number_of(facts.source_ip)
        self.destination = number_of(facts.destination_ip)
        self.port = facts.destination_port
        self.sni = facts.sni
