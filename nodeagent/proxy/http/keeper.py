"""What a codec towards an endpoint needs of whoever keeps its connection between exchanges."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from nodeagent.proxy.http.exchange import Exchange, Upstream


@mypyc_attr(allow_interpreted_subclasses=True)
class Keeper:
    """Who has connections to an endpoint while they serve nobody (``proxy/pool.py``)."""

    def release(self, upstream: Upstream) -> None:
        """Take *upstream* back: its answer was complete, and it may serve another exchange unless it ``closes``."""
        raise NotImplementedError

    def forget(self, upstream: Upstream) -> None:
        """*upstream* is closed, by whomever."""
        raise NotImplementedError

    def retry(self, exchange: Exchange) -> None:
        """Forward *exchange*, of which nothing was answered, on a new connection."""
        raise NotImplementedError
