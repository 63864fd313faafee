"""What a codec towards an endpoint needs of whoever keeps its connection between exchanges."""

from __future__ import annotations

from typing import Protocol

from nodeagent.proxy.http.exchange import Exchange, Upstream


class Keeper(Protocol):
    """Who has connections to an endpoint while they serve nobody (``proxy/pool.py``).

    A Protocol, unlike the halves: pools are looked for by weak references, which compiled classes
    do not support, and an interpreted class that inherits from a compiled one finds its own
    attributes the slow way, which cost a request more than what the call saves.
    """

    def release(self, upstream: Upstream) -> None:
        """Take *upstream* back: its answer was complete, and it may serve another exchange unless it ``closes``."""

    def forget(self, upstream: Upstream) -> None:
        """*upstream* is closed, by whomever."""

    def retry(self, exchange: Exchange) -> None:
        """Forward *exchange*, of which nothing was answered, on a new connection."""
