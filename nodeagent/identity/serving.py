"""The certificate that a service of the cluster shows its clients: issued by the authority, renewed
at half-life and when another root signs.
"""

from __future__ import annotations

import logging
from typing import Final

from nodeagent.errors import IdentityError
from nodeagent.identity.ca import CertificateAuthority, ServerCertificate

TTL_SECONDS: Final = 86400.0
LOOK_SECONDS: Final = 5.0
"""How often to look after it."""
log = logging.getLogger("nodeagent.identity")


class ServingCertificate:
    """Holds the one that is in force."""

    def __init__(self, authority: CertificateAuthority, names: tuple[str, ...]) -> None:
        """Have the first one for *names* (host names, addresses). Raises IdentityError."""
        self._authority = authority
        self._names = names
        self._renew_at = 0.0
        self._signer = ""
        self.current: ServerCertificate
        self.renew()

    def look(self) -> None:
        """Take up what the authority's directory has, and renew. What fails is logged, and leaves
        what was there in force.
        """
        for step in (self._authority.refresh, self.renew):
            try:
                step()
            except IdentityError as error:
                log.error("%s; what was there stays in force", error)

    def renew(self) -> None:
        """Have another certificate if one is due. Raises IdentityError; the one before stays in force."""
        now = self._authority.now()
        if now >= self._renew_at or self._signer != self._authority.signing_root:
            self.current = self._authority.issue_server(self._names, TTL_SECONDS)
            self._renew_at = now + (self.current.not_after - now) / 2
            self._signer = self._authority.signing_root
