"""What carries an established connection, as those see it who may end it."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from nodeagent.proxy.permit import Permit


@mypyc_attr(allow_interpreted_subclasses=True)
class Carriage:
    """A codec for HTTP, or a relay of bytes (``carry.py``)."""

    requests = True
    """It carries requests, each of which is looked at by itself; else bytes, let through as a whole."""
    http = True
    """It was let in as HTTP, be it that both sides have left that since."""

    def allow(self, permit: Permit) -> None:
        """Use *permit* for the requests that follow."""

    def drain(self) -> None:
        """Ask the client to come back on a new connection, where its protocol has words for that."""

    def sweep(self, now: float) -> None:
        """Enforce the timeouts; *now* is monotonic. Called a few times a second."""
        raise NotImplementedError

    def reset(self) -> None:
        """Cut the connection; the client sees a reset."""
        raise NotImplementedError
