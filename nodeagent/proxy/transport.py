"""What the proxy uses of a byte stream: uvloop's and asyncio's transports have it, and so has a TLS
session over one of them (``tls/stream.py``).
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final, Protocol

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
"""struct linger (socket(7)): on, no seconds; close(2) sends a reset then."""
QUIET_SECONDS: Final = 30
PROBE_SECONDS: Final = 15
LOST_SECONDS: Final = 120
"""The peer's kernel is asked after the first, and again each second one, and given up when it has acknowledged
nothing for the third.
"""


class Receiver(Protocol):
    """What a transport tells of its stream; asyncio.Protocol's methods, without connection_made."""

    def data_received(self, data: bytes, /) -> None:
        """Bytes came."""

    def eof_received(self) -> bool | None:
        """The peer sends no more; true: the other direction stays open."""

    def connection_lost(self, error: Exception | None, /) -> None:
        """The stream is closed, by *error* if there was one; nothing is told after this."""

    def pause_writing(self) -> None:
        """What was written and not sent yet is much."""

    def resume_writing(self) -> None:
        """It is little again."""


class Transport(Protocol):
    """A connected byte stream."""

    def write(self, data: bytes, /) -> None:
        """Send *data*, behind what was written before; never blocks."""

    def write_eof(self) -> None:
        """End this direction when all that was written is sent; the other goes on."""

    def close(self) -> None:
        """End the stream when all that was written is sent; nothing is received any more."""

    def abort(self) -> None:
        """End the stream at once; what was not sent is lost."""

    def is_closing(self) -> bool:
        """Say whether the stream has ended, or is about to."""

    def pause_reading(self) -> None:
        """Receive nothing until :meth:`resume_reading`; the peer is slowed down."""

    def resume_reading(self) -> None:
        """Receive again."""

    def get_extra_info(self, name: str, /) -> Any:  # as asyncio's: its type depends on *name*
        """Return what asyncio calls *name* (``socket``, ``peername``, ``sockname``), None without it."""

    def set_protocol(self, protocol: Any, /) -> None:  # asyncio's wants its own class, whose methods alone it calls
        """Tell *protocol*, a :class:`Receiver`, from now on."""


def peer_address(transport: Transport) -> tuple[str, int]:
    """Return the address and port of the other end."""
    address = transport.get_extra_info("peername")  # IPv6 has four values (socket.getpeername)
    return address[0], address[1]


def own_address(transport: Transport) -> tuple[str, int]:
    """Return the address and port of this end: on a captured connection, of whom the client asked for."""
    address = transport.get_extra_info("sockname")
    return address[0], address[1]


def watch(transport: Transport) -> None:
    """Have the kernel end *transport* soon when the other end is gone without a word (tcp(7)): many requests may
    wait for it. An application that says nothing, or is stopped, is there as long as its kernel answers.
    """
    raw: socket.socket | None = transport.get_extra_info("socket")
    if raw is None or transport.is_closing():
        return
    with suppress(OSError):  # it has ended meanwhile
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


def reset(transport: Transport) -> None:
    """Close *transport* with a RST, as the peer did to its side."""
    raw: socket.socket | None = transport.get_extra_info("socket")
    if raw is not None and not transport.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()
