"""Who of the webhook's clients is sent away when there are too many. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum


class Doing(IntEnum):
    """What a connection does; of one client's, those with the smaller number go first."""

    WAITING = 0
    """For its next request, or its first."""
    GREETING = 1
    """Shaking hands."""
    SENDING = 2
    """A request's body."""
    JUDGED = 3
    """Its request is being answered: it is never sent away."""


class WebhookClient:
    """A connection, and what closes it."""

    def __init__(self, source: str, turn: int) -> None:
        self.source = source
        self.doing = Doing.GREETING
        self.turn = turn
        """The smaller, the longer it has done what it does."""
        self.close: Callable[[], object] = lambda: None


class Clients:
    """At most *most* connections, shared out by the addresses they come from."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._there: set[WebhookClient] = set()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._there)

    def count(self, doing: Doing) -> int:
        """Return how many do *doing*."""
        return sum(client.doing is doing for client in self._there)

    def admit(self, source: str) -> WebhookClient | None:
        """Return another connection from *source*, having closed one if need be; None: it has to go.

        Room is made by the addresses with the most connections, the new one counted, so that nobody keeps others out
        by opening many; where its own has as many as another, by the other. The one goes that has waited longest for
        a request; else one whose handshake, else one whose body does not end. No address is cut off while it sends
        for another connection of its own.
        """
        if len(self._there) >= self._most:
            victim = self._victim(source)
            if victim is None:
                return None
            self.leave(victim)
            victim.close()
        client = WebhookClient(source, self._next())
        self._there.add(client)
        return client

    def now(self, client: WebhookClient, doing: Doing) -> None:
        """Note that *client* does *doing* from now on."""
        client.doing = doing
        client.turn = self._next()

    def leave(self, client: WebhookClient) -> None:
        """Forget *client*, if it is there."""
        self._there.discard(client)

    def _victim(self, source: str) -> WebhookClient | None:
        counts = Counter(client.source for client in self._there)
        counts[source] += 1
        for share in sorted({share for share in counts.values() if share >= counts[source]}, reverse=True):
            found = [client for client in self._there if counts[client.source] == share and _may_go(client, source)]
            if found:
                return min(found, key=lambda client: (client.source == source, client.doing, client.turn))
        return None

    def _next(self) -> int:
        self._turn += 1
        return self._turn


def _may_go(client: WebhookClient, newcomer: str) -> bool:
    return client.doing < (Doing.SENDING if client.source == newcomer else Doing.JUDGED)
