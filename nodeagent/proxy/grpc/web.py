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
_GROUP: Final = 4
_STRETCH: Final = 256
"""Bytes of base64 that are decoded at once: the library's way, but for a stretch that holds padding."""
_PAD: Final = 0x3D
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_VALUES: Final = bytes(max(_ALPHABET.find(byte), 0) for byte in range(256))
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
        if self._prefix:
            data = self._prefix + data
            self._prefix = b""
        size = len(data)
        at = 0
        begun = 0
        while at < size:
            left = self._left
            if left:
                part = min(left, size - at)
                self._left = left - part
                if self._in_trailers and len(self._trailers) < KEPT:
                    self._trailers += data[at : at + min(part, KEPT - len(self._trailers))]
                at += part
            elif size - at < PREFIX:
                self._prefix = data[at:]
                break
            else:
                self._left = data[at + 1] << 24 | data[at + 2] << 16 | data[at + 3] << 8 | data[at + 4]
                self._in_trailers = data[at] >= _TRAILERS
                begun += not self._in_trailers
                at += PREFIX
        return begun

    def status(self) -> str:
        """Return the status that the trailers in the body told, empty: none."""
        lines = [line.partition(b":") for line in self._trailers.split(b"\r\n")]
        return told([(name.strip(), value.strip()) for name, _, value in lines])

    def _decoded(self, piece: bytes) -> bytes:
        """Return what *piece* of base64 says; each part may be padded for itself. What is none says nothing."""
        data = self._waiting + piece if self._waiting else piece
        whole = len(data) - len(data) % _GROUP
        self._waiting = data[whole:]
        return b"".join([_base64(data[at : min(at + _STRETCH, whole)]) for at in range(0, whole, _STRETCH)])


def _base64(groups: bytes) -> bytes:
    if b"=" in groups:
        return _padded(groups)
    try:
        return binascii.a2b_base64(groups)
    except binascii.Error:
        return b""


def _padded(groups: bytes) -> bytes:
    """Return what *groups* say, of which any may be padded: each message may have its own, and a call of
    the library for each costs more than most messages.
    """
    said: list[int] = []
    for at in range(0, len(groups), _GROUP):
        second = _VALUES[groups[at + 1]]
        third = groups[at + 2]
        said.append((_VALUES[groups[at]] << 2 | second >> 4) & 0xFF)
        if third != _PAD:
            said.append((second << 4 | _VALUES[third] >> 2) & 0xFF)
            fourth = groups[at + 3]
            if fourth != _PAD:
                said.append((_VALUES[third] << 6 | _VALUES[fourth]) & 0xFF)
    return bytes(said)
