"""A file that only grows, and is renamed when it is large: PATH to PATH.1, PATH.1 to PATH.2 and so on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MODE: Final = 0o640
"""Logs hold what applications wrote: not everybody's to read."""


class RotatingFile:
    """Appends whole pieces, of lines: after an error nothing of a piece stays, so that it can be written again; behind
    a line that a process which died has left in half there is an end of line first.
    """

    def __init__(self, path: Path, most: int, keep: int) -> None:
        """*most*: bytes at which it is renamed; *keep*: how many renamed ones there may be."""
        self.path: Final = path
        self._most = most
        self._keep = keep
        self._descriptor = -1
        self._looked = False
        """Whether it is known that it ends with a whole line."""
        self._torn: int | None = None
        """The size up to which the file has whole pieces, where a part of one could not be taken back."""

    def append(self, data: bytes) -> None:
        """Write *data* and wait until it is on disk. Raises OSError."""
        descriptor = self._opened()
        if self._torn is not None:
            self._take_back(descriptor, self._torn)
        size = os.fstat(descriptor).st_size
        if size and size + len(data) > self._most:
            self._rotate()
            descriptor = self._opened()
            size = 0
        if not self._looked and size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            write_all(descriptor, data)
            os.fdatasync(descriptor)
        except OSError:
            # Of a full disk: half a line would spoil the next one.
            self._take_back(descriptor, size)
            raise
        self._looked = True

    def _take_back(self, descriptor: int, size: int) -> None:
        self._torn = size
        os.ftruncate(descriptor, size)
        self._torn = None

    def close(self) -> None:
        """Close it; the next piece opens it again."""
        descriptor, self._descriptor = self._descriptor, -1
        self._torn = None
        self._looked = False
        if descriptor >= 0:
            os.close(descriptor)

    def _opened(self) -> int:
        """Return the file's descriptor, of what has this name now: others rename files too."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._descriptor >= 0:
            try:
                same = os.path.samestat(os.fstat(self._descriptor), os.stat(self.path, follow_symlinks=False))
            except FileNotFoundError:
                same = False
            if same:
                return self._descriptor
            self.close()
        self._descriptor = os.open(self.path, flags, MODE)
        return self._descriptor

    def _rotate(self) -> None:
        self.close()
        if not self._keep:
            self.path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.rename(self._numbered(number + 1))
        self.path.rename(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def write_all(descriptor: int, data: bytes) -> None:
    """Write *data*, however little is taken at once. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
