"""The heads by which streams of HBONE begin (RFC 9113 section 8.5). Pure; hostile input is expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nodeagent.proxy.http.fields import Field

LONGEST: Final = 47
"""Bytes of an authority: no address with its port has more."""
_METHOD: Final = b":method"
_AUTHORITY: Final = b":authority"
_CONNECT: Final = b"CONNECT"
_PLAIN: Final = (_METHOD, _AUTHORITY)
"""The pseudo-fields of a CONNECT; with others it is an extended one (RFC 8441), or no CONNECT."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a stream asks for."""

    address: str
    """In canonical text."""
    port: int


def connect_block(authority: bytes) -> list[Field]:
    """Return the head of a stream that leads to *authority*, an address with its port."""
    return [(_METHOD, _CONNECT), (_AUTHORITY, authority)]


def read_connect(block: Sequence[Field]) -> Asked | None:
    """Return whom the stream with the head *block* asks for; None: it is no CONNECT to an address and a port."""
    said: dict[bytes, bytes] = {}
    for name, value in block:
        if name[:1] != b":":
            continue
        if name not in _PLAIN or name in said:
            return None
        said[name] = value
    if said.get(_METHOD) != _CONNECT:
        return None
    return _read_authority(said.get(_AUTHORITY, b""))


def _read_authority(authority: bytes) -> Asked | None:
    if len(authority) > LONGEST or b"%" in authority:
        return None  # longer, or in some zone of the peer's (RFC 6874)
    host, _, port = authority.rpartition(b":")
    bracketed = host[:1] == b"[" and host[-1:] == b"]"
    if bracketed:
        host = host[1:-1]
    if not port.isdigit() or not 0 < int(port) < 65536 or (b":" in host) != bracketed:
        return None
    try:
        return Asked(str(ip_address(host.decode("ascii"))), int(port))
    except ValueError:
        return None


def status_of(block: Sequence[Field]) -> int:
    """Return the status of the answer *block*; 0: it has none."""
    if not block or block[0][0] != b":status" or not block[0][1].isdigit():
        return 0
    return int(block[0][1][:4])


def answer_block(status: int) -> list[Field]:
    """Return the head of an answer with *status*."""
    return [(b":status", b"%d" % status)]
