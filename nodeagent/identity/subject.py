"""What one pod may have of the daemon: its certificate, what is trusted, tokens; as both of its services give it."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field

from nodeagent.identity.certificate import Certificate
from nodeagent.identity.jwt_svid import JwtKeys
from nodeagent.identity.watched import WatchedValue
from nodeagent.vocabulary import SpiffeId

_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----([A-Za-z0-9+/=\s]+)-----END [A-Z ]+-----")


@dataclass(frozen=True, slots=True)
class JwtAuthority:
    """Signs the trust domain's JWT-SVIDs. ``bundle`` changes when its keys do."""

    keys: JwtKeys
    bundle: WatchedValue[bytes] = field(default_factory=WatchedValue)

    def refresh(self) -> None:
        """Look after the keys. Raises IdentityError; what is known stays in force."""
        self.keys.refresh()
        self.bundle.set(self.keys.bundle)


@dataclass(frozen=True, slots=True)
class Subject:
    """A pod's identity. ``tokens`` is None where certificates come from a source that has no key for tokens."""

    identity: SpiffeId
    tokens: JwtAuthority | None
    certificate: WatchedValue[Certificate] = field(default_factory=WatchedValue)

    @property
    def trust_domain(self) -> str:
        """Return the trust domain's SPIFFE ID."""
        return "spiffe://" + self.identity.removeprefix("spiffe://").partition("/")[0]


def der(pem: bytes) -> bytes:
    """Return what the sections of *pem* hold, one after the other. Trusts its input, which is this program's own."""
    return b"".join(binascii.a2b_base64(section) for section in _PEM.findall(pem))
