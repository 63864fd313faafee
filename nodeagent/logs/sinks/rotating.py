"""A file that only grows, and is renamed when it is large: PATH to PATH.1, PATH.1 to PATH.2 and so on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MODE: Final = 0o640
"""Logs hold what applications wrote: not everybody's to read."""


class RotatingFile:
    """Appends whole pieces: after an error nothing of a piece stays, so that it can be written again."""

    def __init__(self, path: Path, most: int, keep: int) -> None:
        """*most*: bytes at which it is renamed; *keep*: how many renamed ones there may be."""
        self.path: Final = path
        self._most = most
        self._keep = keep
        self._descriptor = -1

    def append(self, data: bytes) -> None:
        """Write *data* and wait until it is on disk. Raises OSError."""
        descriptor = self._opened()
        size = os.fstat(descriptor).st_size
        if size and size + len(data) > self._most:
            self._rotate()
            descriptor = self._opened()
            size = 0
        try:
            write_all(descriptor, data)
            os.fdatasync(descriptor)
        except OSError:
            # Of a full disk: half a line would spoil the next one.
            os.ftruncate(descriptor, size)
            raise

    def close(self) -> None:
        """Close it; the next piece opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        """Return the file's descriptor, of what has this name now: others rename files too."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
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
