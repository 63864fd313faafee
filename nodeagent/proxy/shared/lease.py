"""What whoever uses a stream has to know of the connection below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeagent.identity.tls import Contexts


class Lease:
    """The use of one connection, by all of its streams."""

    def __init__(self, tls: Contexts | None, expires: float = 0.0) -> None:
        self.tls = tls
        """The TLS contexts that it was dialled with."""
        self.expires = expires
        """When the certificate that its peer showed ends, Unix seconds; 0: it showed none."""
        self.retired = False
        """Nothing new shall be sent on its streams."""


class Leased:
    """What a connection carries for its user, who sees nothing of that one."""

    lease: Lease | None = None
    """Of the connection that carries it now: another one, where its peer did not take it; None: it was not
    opened from here.
    """
