"""What lets a connection in, and what it may be used for. Later stages require it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.errors import Reason
from nodeagent.mesh.declared import is_among
from nodeagent.mesh.entries import DeclaredProbe

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""With what an HTTP/2 client begins (RFC 9113 section 3.4)."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The connection may go on. ``probes``: requests, probes or scrapes, that pass whatever policies say;
    ``only_probes``: and nothing else does.
    """

    probes: tuple[DeclaredProbe, ...] = ()
    only_probes: bool = False


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """The connection may not go on, and why."""

    reason: Reason


OPEN: Final = Permit()
"""Lets everything through, as far as the connection goes; what policies say of it comes later."""


def asked_health(permit: Permit, early: bytes) -> frozenset[str]:
    """Return the services that a client whose first bytes are *early* may ask the health of: those
    of the gRPC probes that *permit* lets through.
    """
    if not early or not PREFACE.startswith(early[: len(PREFACE)]):
        return frozenset()
    return frozenset(probe.path for probe in permit.probes if probe.kind == "grpc")


def is_probe(permit: Permit, method: bytes, target: bytes) -> bool:
    """Say whether a request is one of the HTTP probes or scrapes that *permit* lets through."""
    return is_among(permit.probes, method, target)
