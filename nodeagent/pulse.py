"""A page of memory that the daemon's processes share, in which each notes when its event loop last
turned.

Made before the first fork. A note is one store: no message that a busy reader would have to take,
no system call. Workers are not believed more than they must be: one that writes into others' slots
can end the heartbeat, or keep it up as long as it lives itself.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Final

SLOTS: Final = 1024
"""Four times as many as there can be worker slots: for those that drain."""
_SLOT: Final = struct.Struct("=Q")


class Pulse:
    """One process's slot."""

    def __init__(self, page: mmap.mmap, number: int) -> None:
        self._page = page
        self.number = number

    def turn(self) -> None:
        """Note that the loop turns, and that this process does its work: a worker takes connections."""
        _SLOT.pack_into(self._page, self.number * _SLOT.size, time.monotonic_ns())

    def begun(self) -> bool:
        """Say whether the loop has turned since it last rested."""
        return bool(_SLOT.unpack_from(self._page, self.number * _SLOT.size)[0])

    def rest(self) -> None:
        """Note that this process does its work no more: a worker takes no connections."""
        _SLOT.pack_into(self._page, self.number * _SLOT.size, 0)

    def felt(self, seconds: float) -> bool:
        """Say whether the loop turned within *seconds*. A time to come was not written by a process
        that is well.
        """
        (turned,) = _SLOT.unpack_from(self._page, self.number * _SLOT.size)
        return bool(turned) and 0 <= time.monotonic_ns() - turned < int(seconds * 1e9)


class Pulses:
    """All slots, in the process that forks."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, SLOTS * _SLOT.size)
        self._taken: set[int] = set()

    def claim(self) -> Pulse:
        """Return a slot for a process that is about to be forked; the last one is shared by those
        for which none is left.
        """
        number = next((each for each in range(SLOTS - 1) if each not in self._taken), SLOTS - 1)
        self._taken.add(number)
        return Pulse(self._page, number)

    def free(self, pulse: Pulse) -> None:
        """The process is gone."""
        pulse.rest()
        self._taken.discard(pulse.number)
