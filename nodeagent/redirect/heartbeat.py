"""The heartbeat map: what tells the kernel's programs whether the daemon lives (bpf/maps.h: daemon_alive)."""

from __future__ import annotations

import struct
import time
from typing import Final

from nodeagent.redirect import syscall

PER_TIMEOUT: Final = 5
"""Beats within ``redirect.heartbeatTimeoutSeconds``."""
_KEY: Final = struct.pack("=I", 0)


def beat(descriptor: int) -> None:
    """Say, in the map open as *descriptor*, that the daemon lives. Raises OSError."""
    syscall.map_update(descriptor, _KEY, struct.pack("=Q", time.clock_gettime_ns(time.CLOCK_MONOTONIC)))


def end(descriptor: int) -> None:
    """Say that the daemon stops: from now on each pod's protection says what is refused. Raises OSError."""
    syscall.map_update(descriptor, _KEY, struct.pack("=Q", 0))
