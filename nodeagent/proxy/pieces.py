"""Bytes that wait, as the pieces in which they came."""

from __future__ import annotations

import collections
from typing import Final

SMALL: Final = 1 << 11
"""Pieces up to so many bytes are kept as one: each costs some 50 more."""


def add(pieces: list[bytes] | collections.deque[bytes], piece: bytes) -> None:
    """Keep *piece* behind *pieces*; many small ones cost more than their bytes."""
    if pieces and len(piece) <= SMALL and len(pieces[-1]) <= SMALL:
        pieces[-1] += piece
    else:
        pieces.append(piece)
