"""A workload's certificate with its key, as it goes from control to a worker. No cryptography here:
workers stay small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nodeagent.vocabulary import SpiffeId


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509-SVID. Times are seconds of the Unix epoch."""

    identity: SpiffeId
    chain_pem: bytes
    """Leaf first; without the root."""
    key_pem: bytes = field(repr=False)
    """PKCS#8."""
    roots_pem: bytes
    """What peers are verified against."""
    serial: str
    """Hexadecimal."""
    issued: float
    not_after: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able values, **with the private key**: for the channel to a worker only."""
        return {
            "identity": self.identity,
            "chain": self.chain_pem.decode(),
            "key": self.key_pem.decode(),
            "roots": self.roots_pem.decode(),
            "serial": self.serial,
            "issued": self.issued,
            "not_after": self.not_after,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Certificate:
        """The inverse of :meth:`to_json`; trusts its input, which is this program's own."""
        return cls(
            SpiffeId(value["identity"]),
            value["chain"].encode(),
            value["key"].encode(),
            value["roots"].encode(),
            value["serial"],
            value["issued"],
            value["not_after"],
        )
