"""Signals that a poll() hears of: none is lost between two supervisors that run in a process one after
the other.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


class Signals:
    """What came of *numbers*, since it was asked for last. Once a process."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._came: set[int] = set()
        self.descriptor, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """Readable when some came."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._on_signal)

    def take(self) -> set[int]:
        """Return what came; each is told once."""
        came, self._came = self._came, set()
        return came

    def drain(self) -> None:
        """Have the descriptor be readable no more."""
        os.read(self.descriptor, 4096)

    def inherit(self) -> tuple[int, int]:
        """Return the descriptors that a child must not have."""
        return self.descriptor, self._write

    def _on_signal(self, number: int, frame: object) -> None:
        self._came.add(number)
