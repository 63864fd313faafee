"""The words that every package speaks: types that stop one text from being taken for another, and
how an address and a port are written.

Imports nothing of this program, so that anything may import it; what only one package speaks of
stays there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from socket import AF_INET, inet_ntop, inet_pton
from typing import Final, Literal, NewType, TypeAlias

PodUid = NewType("PodUid", str)
"""``metadata.uid`` of a pod; a pod that is made again under the same name has another."""
Address = NewType("Address", str)
"""An IPv4 or IPv6 address in its canonical text form (RFC 5952)."""
SpiffeId = NewType("SpiffeId", str)
"""``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``."""
ObjectKey = tuple[str, str, str]
"""Kind, namespace and name of a Kubernetes object; the namespace of a cluster-scoped one is empty."""
Family = Literal[4, 6]
"""IPv4 or IPv6."""
Direction = Literal["outbound", "inbound"]
"""Of a connection as the captured pod sees it: it dials, or it is dialled."""
WhenDead = Literal["policy", "pass", "refuse"]
"""What happens to captured traffic while the agent's heartbeat is late (``redirect.whenDead``)."""

LOGS: Final = "nodeagent.io/logs"
"""The label or annotation by which a pod asks for its logs to be read, or not."""
Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None
"""What JSON or YAML of others can hold, to read: nothing is known of it until it has been looked at."""
JsonObject: TypeAlias = Mapping[str, Json]


def canonical_address(text: str) -> Address:
    """Return *text*, an IP address, as it is written best. Raises ValueError where it is none."""
    try:  # a tenth of what ipaddress takes, and as strict
        return Address(inet_ntop(AF_INET, inet_pton(AF_INET, text)))
    except OSError:
        return Address(str(ip_address(text)))


def host_port(address: str, port: int) -> str:
    """Return *address* and *port* as a URL's authority and Envoy write them: ``10.0.0.1:80``, ``[::1]:80``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def family_of(address: str) -> Family:
    """Return the family of *address*, an IPv4 or IPv6 address in text."""
    return 6 if ":" in address else 4
