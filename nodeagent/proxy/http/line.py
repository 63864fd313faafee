"""What a codec needs of the proxy beside the other half of an exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from nodeagent.errors import Reason
    from nodeagent.proxy.connection import Connection
    from nodeagent.proxy.http.exchange import Exchange
    from nodeagent.proxy.transport import Transport


@mypyc_attr(allow_interpreted_subclasses=True)
class Line:
    """The stages between the two halves of an exchange (``proxy/pipeline.py``); a base class because
    codecs call it for every request (see ``exchange.py``).
    """

    def new_request_id(self) -> bytes:
        """Return an id for a request that has none."""
        raise NotImplementedError

    def request(self, exchange: Exchange) -> None:
        """Authorize, route and forward *exchange*, whose head is whole; or refuse it. Its answer may
        have been given when this returns, or come later.
        """
        raise NotImplementedError

    def elsewhere(self, exchange: Exchange) -> bool:
        """Forward *exchange*, at which its endpoint has not looked, to another one; False: there is none."""
        raise NotImplementedError

    def observe(self, exchange: Exchange, status: int, reason: Reason | None) -> None:
        """Count and log *exchange*, which is finished: with the answer's *status*, 0 where none was
        sent; *reason*: why that is not the application's.
        """
        raise NotImplementedError

    def tunnel(self, exchange: Exchange, client: Transport, endpoint: Transport, early: bytes, rest: bytes) -> None:
        """Relay bytes between the transports *client* and *endpoint*, whose sides agreed to leave
        HTTP; *early* and *rest* were read from them already.
        """
        raise NotImplementedError

    def broke(self, connection: Connection, reason: Reason, words: str) -> None:
        """The client broke a rule of its protocol that ends *connection*, which was told *words*."""
        raise NotImplementedError

    def closed(self, connection: Connection) -> None:
        """The client's *connection* is gone."""
        raise NotImplementedError
