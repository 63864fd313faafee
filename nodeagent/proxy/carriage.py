"""What carries an established connection, as those see it who may end it."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from nodeagent.proxy.http.hop import Hop
from nodeagent.proxy.permit import Permit


@mypyc_attr(allow_interpreted_subclasses=True)
class Carriage:
    """A codec for HTTP, or a relay of bytes (``carry.py``)."""

    requests = True
    """It carries requests, each of which is looked at by itself; else bytes, let through as a whole."""
    http = True
    """It was let in as HTTP, be it that both sides have left that since."""
    outer = False
    """It only carries other connections."""
    taken: Hop | None = None
    """Where all of it goes, where it carries bytes."""

    def allow(self, permit: Permit) -> None:
        """Use *permit* for the requests that follow."""

    def drain(self) -> None:
        """Ask the client to come back on a new connection, where its protocol has words for that."""

    def depart(self) -> None:
        """The server's pod is no longer enrolled: what is carried goes on, nothing more is taken."""

    def sweep(self, now: float) -> None:
        """Enforce the timeouts; *now* is monotonic. Called a few times a second."""
        raise NotImplementedError

    def reset(self) -> None:
        """Cut the connection; the client sees a reset."""
        raise NotImplementedError
