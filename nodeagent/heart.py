"""The heartbeat as the supervisor keeps it: one beat in the kernel's map for as long as the data plane
works.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Final

from nodeagent.redirect import heartbeat

HUNG_SECONDS: Final = 3.0
"""Of processor time: who has used so much and was not heard hangs, however long that took."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_UNFELT_SECONDS: Final = 0.02
"""How often a worker's first turn is looked for."""


class Patience:
    """How long another process's silence is borne, by one that may have stood still itself: a machine that
    stops for a while silences all, and nobody is to blame for it.
    """

    def __init__(self, seconds: float, *, asleep: float) -> None:
        """*seconds* of silence, heard awake, are too long; who did not look for *asleep* seconds was not awake."""
        self._seconds = seconds
        self._asleep = asleep
        self._looked = -math.inf
        self._awake_since = 0.0

    def over(self, now: float, felt: bool) -> bool:
        """Look at *now*; say whether it is over. *felt*: it was heard within the time of silence that is borne."""
        if now - self._looked > self._asleep:
            self._awake_since = now
        self._looked = now
        return not felt and now - self._awake_since >= self._seconds


def stat_of(pid: int) -> str:
    """Return ``/proc/PID/stat`` (proc(5)). Raises OSError when there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text()


class Progress:
    """What a process does that is not heard: one that waits for a processor, and got next to none, is not to blame."""

    def __init__(self) -> None:
        self._used = -1.0
        """Seconds of processor time when it was not heard first; negative: it is heard."""

    def heard(self) -> None:
        """It was: what it uses from its next silence on counts."""
        self._used = -1.0

    def is_starved(self, stat: str) -> bool:
        """Say whether the silent process waits for a processor. *stat*: its ``/proc/PID/stat`` (proc(5)) of now."""
        fields = stat.rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / _TICKS
        if self._used < 0:
            self._used = used
        return fields[0] == "R" and used - self._used < HUNG_SECONDS


class Heart:
    """None, until control says where it is."""

    def __init__(self) -> None:
        self.descriptor = -1
        """The map."""
        self.next_beat = 0.0
        """By the monotonic clock; 0: there is no heartbeat."""
        self.told = False
        """What control was told last: that there are beats."""
        self._beat_seconds = 0.0

    @property
    def begun(self) -> bool:
        """Say whether there is a heartbeat."""
        return self.descriptor >= 0

    def begin(self, descriptor: int, timeout_seconds: float) -> None:
        """Beat in the map *descriptor*, which is the heart's from now on, often enough that none is
        as old as *timeout_seconds*.
        """
        if self.begun:
            os.close(self.descriptor)
        self.descriptor = descriptor
        self._beat_seconds = timeout_seconds / heartbeat.PER_TIMEOUT
        self.next_beat = time.monotonic()

    def beat(self, now: float, felt: bool) -> bool:
        """Beat, if a worker was *felt*; say whether that is other than what control was told last,
        which it is told now. Raises OSError where the beat cannot be written.
        """
        self.next_beat = now + (self._beat_seconds if felt else _UNFELT_SECONDS)
        if felt:
            heartbeat.beat(self.descriptor)
        changed = felt != self.told
        self.told = felt
        return changed

    def end(self) -> None:
        """End the heartbeat at once: the map says so."""
        if self.begun:
            heartbeat.end(self.descriptor)
        self.leave()

    def leave(self) -> None:
        """Beat no more, and leave the map to another daemon, which beats in it."""
        if self.begun:
            os.close(self.descriptor)
        self.descriptor = -1
        self.next_beat = 0.0
        self.told = False
