"""gRPC-Web's bodies: messages as in gRPC, and the call's trailers as a last one, whose flags have
the highest bit; ``grpc-web-text``: all of it in base64 (PROTOCOL-WEB.md). No I/O.

Both are passed as they are; of the trailers as much is kept as a status takes.
"""

from __future__ import annotations

import binascii
from typing import Final

from nodeagent.proxy.grpc.messages import PREFIX
from nodeagent.proxy.grpc.status import told

_TRAILERS: Final = 0x80
KEPT: Final = 8192
"""Bytes of trailers that are looked at."""


class WebMessages:
    """One direction of a gRPC-Web call."""

    def __init__(self, *, text: bool) -> None:
        self._text = text
        self._waiting = b""
        """Of base64 what is no group of four yet."""
        self._prefix = b""
        self._left = 0
        self._in_trailers = False
        self._trailers = b""

    def feed(self, piece: bytes) -> int:
        """Return how many messages begin in *piece*, the trailers not among them."""
        data = self._decoded(piece) if self._text else piece
        begun = 0
        at = 0
        while at < len(data):
            if not self._left:
                missing = PREFIX - len(self._prefix)
                self._prefix += data[at : at + missing]
                at += missing
                if len(self._prefix) == PREFIX:
                    begun += self._begin()
                continue
            part = min(self._left, len(data) - at)
            if self._in_trailers:
                self._trailers += data[at : at + min(part, KEPT - len(self._trailers))]
            self._left -= part
            at += part
        return begun

    def status(self) -> str:
        """Return the status that the trailers in the body told, empty: none."""
        lines = [line.partition(b":") for line in self._trailers.split(b"\r\n")]
        return told([(name.strip(), value.strip()) for name, _, value in lines])

    def _begin(self) -> int:
        """Take the prefix that is whole; return 1 if it is a message's."""
        prefix, self._prefix = self._prefix, b""
        self._left = int.from_bytes(prefix[1:], "big")
        self._in_trailers = prefix[0] & _TRAILERS != 0
        return 0 if self._in_trailers else 1

    def _decoded(self, piece: bytes) -> bytes:
        """Return what *piece* of base64 says; each part may be padded for itself. What is none says nothing."""
        data = self._waiting + piece
        whole = len(data) - len(data) % 4
        self._waiting = data[whole:]
        groups = data[:whole]
        if b"=" not in groups:
            return _base64(groups)
        return b"".join([_base64(groups[at : at + 4]) for at in range(0, whole, 4)])


def _base64(groups: bytes) -> bytes:
    try:
        return binascii.a2b_base64(groups)
    except binascii.Error:
        return b""
