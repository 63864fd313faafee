"""Ids for requests that bring none: random UUIDs, drawn from the kernel for many at once."""

from __future__ import annotations

import os
from typing import Final

_AT_ONCE: Final = 256
_HEX_DIGITS: Final = 32


class RequestIds:
    """A worker's stock of them."""

    def __init__(self) -> None:
        self._drawn: list[bytes] = []

    def take(self) -> bytes:
        """Return a random UUID (version 4, RFC 9562) as text, different from all before."""
        drawn = self._drawn
        if not drawn:
            text = os.urandom(_HEX_DIGITS // 2 * _AT_ONCE).hex()
            for at in range(0, len(text), _HEX_DIGITS):
                drawn.append(_uuid(text[at : at + _HEX_DIGITS]))
        return drawn.pop()


def _uuid(digits: str) -> bytes:
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}".encode()
