"""The heartbeat map: what tells the kernel's programs whether the daemon lives, and whether the
kernel path is kept up to date (bpf/maps.h: beats).
"""

from __future__ import annotations

import struct
import time
from typing import Final

from nodeagent.redirect import layout, syscall

PER_TIMEOUT: Final = 5
"""Beats within a timeout."""


def beat(descriptor: int, pulse: int = layout.PULSE_DAEMON) -> None:
    """Say, in the map open as *descriptor*, that what *pulse* (enum pulse) stands for lives. Raises OSError."""
    syscall.map_update(
        descriptor, struct.pack("=I", pulse), struct.pack("=Q", time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    )


def last(descriptor: int, pulse: int = layout.PULSE_DAEMON) -> int:
    """Return when *pulse* was said to live last, in nanoseconds of CLOCK_MONOTONIC; 0: never, or it
    has stopped. Raises OSError.
    """
    found = syscall.map_lookup(descriptor, struct.pack("=I", pulse), 8)
    return int(struct.unpack("=Q", found)[0]) if found else 0


def end(descriptor: int) -> None:
    """Say that the daemon stops: from now on each pod's protection says what is refused. Raises OSError."""
    syscall.map_update(descriptor, struct.pack("=I", layout.PULSE_DAEMON), struct.pack("=Q", 0))
