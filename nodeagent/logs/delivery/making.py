"""A lane as the configuration wants it, with its folder below the collector's state directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.clock import MonotonicClock
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.lane import Lane, LaneBounds
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.sinks.making import make_sink
from nodeagent.logs.sinks.settings import BufferSettings, SinkSettings

DEAD_LETTERS: Final = "dead-letters"
"""Folders below ``logs.stateDirectory``."""
BUFFER: Final = "buffer"


def make_lane(
    settings: SinkSettings, buffer: BufferSettings, state: Path, calendar: Callable[[], float] = time.time
) -> Lane:
    """Return the lane of the sink that *settings* describe; what an earlier process left in its buffer is found
    below the folder *state*. What of it cannot be read is said, and gone without. *calendar* tells seconds
    since 1970.
    """
    window = max(LaneBounds().window, 4 * settings.request_bytes)
    bounds = LaneBounds(window, request=settings.request_bytes, in_flight=settings.in_flight)
    letters = DeadLetters(state / DEAD_LETTERS, settings.name)
    clock = MonotonicClock()
    spill: Spill | None = None
    if buffer.bytes:
        disk = DiskBuffer(state / BUFFER / settings.name, buffer.bytes)
        spill = Spill(settings.name, disk, buffer.full, bounds.window // 4, clock)
    lane = Lane(make_sink(settings, calendar), letters, bounds, clock, spill=spill)
    lane.open()
    return lane
