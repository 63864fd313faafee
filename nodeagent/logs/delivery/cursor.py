"""How far a buffer is settled, in a file of its folder: the oldest segment that is not, and the offset there."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from isal import isal_zlib

from nodeagent.logs.delivery.segments import MODE, sync_folder
from nodeagent.logs.sinks.rotating import write_all

NONE: Final = (0, 0)
log = logging.getLogger("nodeagent.logs")


class Cursor:
    """One buffer's."""

    def __init__(self, folder: Path) -> None:
        """*folder*: the buffer's. What is there is found by :meth:`read`."""
        self.number = 0
        """The segment that is named on disk; all before it are settled. 0: none is."""
        self._folder = folder
        self._saved = NONE

    def read(self) -> tuple[int, int]:
        """Return number and offset that were written down; where they cannot be read, or are not what was written, the
        beginning: they tell what may be removed.
        """
        path = self._folder / "cursor"
        self._saved = NONE
        why = ""
        try:
            content = path.read_bytes()
            number, offset = map(int, content.split()[:2])
            if content == _written(number, offset):
                self._saved = number, offset
            else:
                why = "it was changed"
        except FileNotFoundError:
            pass
        except OSError as error:
            why = error.strerror or str(error)
        except ValueError:
            why = "it is torn"
        if why:
            log.error("%s: %s; what of the buffer was delivered last comes again", path, why)
            with suppress(OSError):
                path.unlink()  # it would mean others, were it read later
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
            write_all(descriptor, _written(number, offset))
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.rename(self._folder / "cursor")
        self._saved = number, offset
        self.number = number
        if synced:
            sync_folder(self._folder)


def _written(number: int, offset: int) -> bytes:
    words = b"%d %d" % (number, offset)
    return b"%s %08x\n" % (words, isal_zlib.crc32(words))
