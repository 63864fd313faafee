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
    that the pin is still the one that was looked at is seen by its inode.
    """

    def __init__(self, maps: Path) -> None:
        """*maps*: the folder of the pinned maps. Raises OSError."""
        self._path = maps / "settings"
        self._inode = self._path.stat().st_ino
        self._settings = syscall.get(self._path)
        self._size = syscall.map_value_size(self._settings)
        self._number = _owner(self._settings, self._size)

    def holds(self) -> bool:
        """Say whether no other daemon has begun since. What nobody pins is nobody else's, nor is what
        cannot be looked at for the moment, for want of descriptors: who asks must not end for that.
        """
        try:
            inode = self._path.stat().st_ino
            if inode != self._inode:
                return self._pinned_anew(inode)
            return _owner(self._settings, self._size) == self._number
        except OSError:
            return True

    def _pinned_anew(self, inode: int) -> bool:
        """Look at the pin of another inode: another daemon's map, or the same again after a repair. Raises OSError."""
        settings = syscall.get(self._path)
        size = syscall.map_value_size(settings)
        if _owner(settings, size) != self._number:
            os.close(settings)
            return False
        self.close()
        self._settings = settings
        self._size = size
        self._inode = inode
        return True

    def close(self) -> None:
        """Let the map go."""
        os.close(self._settings)


def _owner(settings: int, size: int) -> int:
    return int(layout.settings(syscall.map_lookup(settings, _ZERO, size)).owner)
