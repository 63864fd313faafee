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
    """The number of the loader's run by which a daemon began."""

    def __init__(self, maps: Path) -> None:
        """*maps*: the folder of the pinned maps. Raises OSError."""
        self._path = maps / "settings"
        self._number = _owner(self._path)

    def holds(self) -> bool:
        """Say whether no other daemon has begun since. What nobody pins is nobody else's, nor is what
        cannot be opened at the moment, for want of descriptors: who asks must not end for that.
        """
        try:
            return _owner(self._path) == self._number
        except OSError:
            return True


def _owner(path: Path) -> int:
    settings = syscall.get(path)
    try:
        return int(layout.settings(syscall.map_lookup(settings, _ZERO, syscall.map_value_size(settings))).owner)
    finally:
        os.close(settings)
