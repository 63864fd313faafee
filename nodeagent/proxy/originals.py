"""What a captured connection asked for: how the proxy is told depends on what led it there, BPF
programs or iptables rules.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from nodeagent.proxy.pods import PodState
from nodeagent.redirect.original import Original, OriginalDestinations
from nodeagent.vocabulary import Direction

LOOPBACK: Final = ("127.0.0.1", "::1")


class Originals(Protocol):
    """Tells it of one accepted connection."""

    def of(self, transport: Any, pod: PodState, direction: Direction) -> Original | None:
        """Return whom the connection of *transport*, accepted by a listener of *pod*, asked for;
        None: it was not captured.
        """


class Captured:
    """By the agent's BPF programs: connect remembers it in a map, sk_lookup leaves the local
    address as it was asked for.
    """

    def __init__(self, outbound: OriginalDestinations) -> None:
        self._outbound = outbound

    def of(self, transport: Any, pod: PodState, direction: Direction) -> Original | None:
        if direction == "outbound":
            address, port = transport.get_extra_info("peername")[:2]
            return self._outbound.take(pod.cookie, address, port)
        address, port = transport.get_extra_info("sockname")[:2]
        return None if address in LOOPBACK else Original(address, port, None)
