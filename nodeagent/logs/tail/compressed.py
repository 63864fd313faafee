"""A gzip file's content by offsets (RFC 1952; several members follow each other), in bounded memory.

A pod may write one that is all members of nothing, and one that holds a thousand times what it weighs: each
could be read for hours at a stretch, and nobody else's file meanwhile. Neither is anything that logs rotate to.
"""

from __future__ import annotations

import os
from typing import Final, cast

from isal import igzip_lib

from nodeagent.logs.tail.unpacked import STEP_BYTES, CompressedError, Unpacked

MAGIC: Final = b"\x1f\x8b"
_INPUT: Final = 64 << 10
FRUITLESS: Final = 500
"""Members and stretches of input for which there was little content, beyond one for each KiB of it."""
EXPANSION: Final = 100
FREE_BYTES: Final = 1 << 30
"""So much content is read whatever it was compressed from, and beyond that EXPANSION times as much."""
_FAULT: Final = cast(type[Exception], igzip_lib.error)  # its stub names an instance


class Content(Unpacked):
    """What a gzip file holds."""

    __slots__ = ("_at", "_descriptor", "_fruitless", "_inflate", "_made")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        super().__init__()

    def _rewind(self) -> None:
        self._inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._at = 0
        self._made = 0
        self._fruitless = 0

    def _more(self) -> bytes:
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            feed = b""
            if self._inflate.needs_input:
                feed = os.pread(self._descriptor, _INPUT, self._at)
                self._at += len(feed)
                if not feed:
                    return b""
            try:
                found: bytes = self._inflate.decompress(feed, STEP_BYTES)
            except _FAULT as error:
                raise CompressedError(f"cannot be decompressed near byte {self._at}: {error}") from None
            if found:
                self._made += len(found)
                # No credit is saved up: what is much content first may be all members of nothing afterwards.
                self._fruitless = max(self._fruitless, self._made >> 10)
                self._check()
                return found
            self._fruitless += 1
            self._check()

    def _check(self) -> None:
        """Raises CompressedError for what is made to be read for ever."""
        if self._fruitless > FRUITLESS + (self._made >> 10):
            raise CompressedError(f"it is made of pieces that hold next to nothing, up to byte {self._at}")
        if self._made > FREE_BYTES + EXPANSION * self._at:
            raise CompressedError(f"its first {self._at} bytes hold {self._made}: no log is that much alike")

    def _next_member(self) -> bool:
        at = self._at - len(self._inflate.unused_data)
        head = os.pread(self._descriptor, len(MAGIC), at)
        self.ended = head != MAGIC
        if self.ended:
            return False
        self._at = at
        self._fruitless += 1
        self._inflate = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return True
