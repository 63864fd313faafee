"""A content that does not stand in its file as it is read, by offsets, in bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from nodeagent.errors import NodeagentError

STEP_BYTES: Final = 256 << 10
"""Of a content, that are made at once, about."""


class CompressedError(NodeagentError):
    """The file is none of its kind, or damaged: says where."""


class Unpacked(ABC):
    """What a file holds, read forwards; going back begins anew. It may still be growing."""

    __slots__ = ("_base", "_held", "ended")

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._base = 0
        self._held = b""
        self.ended = False
        """Whether nothing will ever follow: what was read last goes up to the end."""
        self._rewind()

    @abstractmethod
    def _rewind(self) -> None:
        """Go back to the beginning."""

    @abstractmethod
    def _more(self) -> bytes:
        """Return the next stretch, about ``STEP_BYTES`` or less; nothing at the end of what there is. Raise
        CompressedError, OSError.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes from *offset* on; fewer: that is all there is now. Raise CompressedError."""
        if offset < self._base:
            self._begin_anew()
        while self._base + len(self._held) < offset + length:
            more = self._more()
            if not more:
                break
            spare = min(offset - self._base, len(self._held))
            if spare > 0:
                self._held = self._held[spare:]
                self._base += spare
            self._held += more
        begin = offset - self._base
        return self._held[begin : begin + length] if begin <= len(self._held) else b""

    def reach(self, offset: int) -> bool:
        """Unpack one stretch towards *offset*; return whether reading there takes no more of them, or there are none.
        Raise CompressedError.
        """
        if offset < self._base:
            self._begin_anew()
        if self._base + len(self._held) < offset and (more := self._more()):
            self._base += len(self._held)
            self._held = more
            return self._base + len(more) >= offset
        return True
