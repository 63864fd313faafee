"""Counts the messages of one direction of a call by their prefixes, as its bytes pass. No I/O.

Each message is a byte of flags, four of its length, and as many bytes (PROTOCOL-HTTP2.md,
Length-Prefixed-Message). A piece may hold many of them, or a part of one; pieces may end anywhere.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

PREFIX: Final = 5


@mypyc_attr(allow_interpreted_subclasses=True)
class Messages:
    """The messages of one direction."""

    __slots__ = ("_left", "_prefix")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the message under way that have not come."""
        self._prefix = b""
        """What has come of the next prefix."""

    def feed(self, piece: bytes) -> int:
        """Return how many messages begin in *piece*, which comes next: those whose prefix is whole."""
        size = len(piece)
        at = self._left
        if at >= size and not self._prefix:
            self._left = at - size
            return 0
        if self._prefix:
            piece = self._prefix + piece
            size = len(piece)
            self._prefix = b""
        begun = 0
        while size - at >= PREFIX:
            begun += 1
            # an index each: of small messages many a piece are counted, and a slice costs more
            at += PREFIX + (piece[at + 1] << 24 | piece[at + 2] << 16 | piece[at + 3] << 8 | piece[at + 4])
        if at < size:
            self._prefix = piece[at:]
            self._left = 0
        else:
            self._left = at - size
        return begun
