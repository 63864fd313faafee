"""How far a buffer is settled, in a file of its folder: the oldest segment that is not, and the offset there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nodeagent.logs.delivery.segments import MODE, sync_folder
from nodeagent.logs.sinks.rotating import write_all

NONE: Final = (0, 0)


class Cursor:
    """One buffer's."""

    def __init__(self, folder: Path) -> None:
        """*folder*: the buffer's. What is there is found by :meth:`read`."""
        self.number = 0
        """The segment that is named on disk; all before it are settled. 0: none is."""
        self._folder = folder
        self._saved = NONE

    def read(self) -> tuple[int, int]:
        """Return number and offset that were written down; of nonsense, the beginning."""
        try:
            number, offset = (self._folder / "cursor").read_bytes()[:100].split()
            self._saved = int(number), int(offset)
        except (OSError, ValueError):
            self._saved = NONE
        self.number = self._saved[0]
        return self._saved

    def write(self, number: int, offset: int, *, synced: bool = False) -> None:
        """Write down that all is settled before *offset* in the segment of that *number*; *synced*: return when that
        is on disk. Raises OSError.
        """
        if (number, offset) == self._saved and not synced:
            return
        new = self._folder / "cursor.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
        try:
            write_all(descriptor, b"%d %d\n" % (number, offset))
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.rename(self._folder / "cursor")
        self._saved = number, offset
        self.number = number
        if synced:
            sync_folder(self._folder)
