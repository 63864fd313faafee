"""Whose the pinned maps and links are, where two daemons live beside each other for a while: the one's
whose loader ran last.

The loader's last write is a new number in ``settings``. Whoever opened what is pinned before that
has been succeeded, also where the successor made ``settings`` anew: it is read by its pin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nodeagent.redirect import layout, syscall

SUPERSEDED: Final = "another daemon has taken this node over"
_ZERO: Final = bytes(4)


class PinOwner:
    """The number of the loader's run by which a daemon began.

    Asked before everything that is written, several times a pod and look: so the map is kept open, and
    that the pin is still this map's is seen by its inode, which bpffs gives to no other pin.
    """

    def __init__(self, maps: Path) -> None:
        """*maps*: the folder of the pinned maps. Raises OSError."""
        self._path = maps / "settings"
        self._inode = -1
        self._settings = -1
        while self._inode != (inode := self._path.stat().st_ino):  # it was pinned anew in between
            self.close()
            self._inode = inode
            self._settings = syscall.get(self._path)
        self._size = syscall.map_value_size(self._settings)
        self._number = self._written()

    def holds(self) -> bool:
        """Say whether no other daemon has begun since. What nobody pins is nobody else's, nor is what
        cannot be looked at for the moment: who asks must not end for that.
        """
        try:
            return self._path.stat().st_ino == self._inode and self._written() == self._number
        except OSError:
            return True

    def close(self) -> None:
        """Let the map go."""
        if self._settings >= 0:
            os.close(self._settings)
            self._settings = -1

    def _written(self) -> int:
        return int(layout.settings(syscall.map_lookup(self._settings, _ZERO, self._size)).owner)
