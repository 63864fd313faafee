"""The heads by which streams of a shared connection begin. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from nodeagent.proxy.http.fields import Field

Carried = Literal["http", "tcp"]
"""What a stream carries, as its client's agent says."""
_INSIDE: Final = b"inside"
_CONNECT: Final = (b":method", b"CONNECT")
TAKEN: Final[list[Field]] = [(b":status", b"200")]


def connect_block(carried: Carried, authority: bytes) -> list[Field]:
    """Return the head of a stream that leads to *authority*, the address and port that the shared
    connection itself asked for (RFC 9113 section 8.5).
    """
    return [_CONNECT, (b":authority", authority), (_INSIDE, carried.encode())]


def read_connect(block: Sequence[Field]) -> Carried | None:
    """Return what the stream with the head *block* carries; None: this is no head of one.

    Whereto is not read: it leads where the shared connection does.
    """
    if not block or block[0] != _CONNECT:
        return None
    said = [value for name, value in block if name == _INSIDE]
    if said == [b"http"]:
        return "http"
    return "tcp" if said == [b"tcp"] else None


def is_taken(block: Sequence[Field]) -> bool:
    """Say whether the answer *block* says that the stream was taken."""
    return bool(block) and block[0] == TAKEN[0]
