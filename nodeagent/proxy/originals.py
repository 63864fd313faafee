"""What a captured connection asked for: how the proxy is told depends on what led it there, BPF
programs or iptables rules.
"""

from __future__ import annotations

from typing import Final, Protocol

from nodeagent.proxy.pods import PodState
from nodeagent.proxy.transport import Transport, own_address, peer_address
from nodeagent.redirect.original import Original, OriginalDestinations
from nodeagent.vocabulary import Direction

LOOPBACK: Final = ("127.0.0.1", "::1")


class Originals(Protocol):
    """Tells it of one accepted connection."""

    def of(self, transport: Transport, pod: PodState, direction: Direction) -> Original | None:
        """Return whom the connection of *transport*, accepted by a listener of *pod*, asked for;
        None: it was not captured.
        """


class Captured:
    """By the agent's BPF programs: connect remembers it in a map, sk_lookup leaves the local
    address as it was asked for.
    """

    def __init__(self, outbound: OriginalDestinations) -> None:
        self._outbound = outbound
        self._next: OriginalDestinations | None = None

    def also(self, outbound: OriginalDestinations) -> None:
        """Ask *outbound* too, where the programs of a daemon that takes the node over remember it."""
        self._next = outbound

    def of(self, transport: Transport, pod: PodState, direction: Direction) -> Original | None:
        if direction == "outbound":
            address, port = peer_address(transport)
            found = self._outbound.take(pod.cookie, address, port)
            if found is None and self._next is not None:
                found = self._next.take(pod.cookie, address, port)
            return found
        address, port = own_address(transport)
        return None if address in LOOPBACK else Original(address, port, None)
