"""How many descriptors a process has open."""

from __future__ import annotations

import gc
import os


def open_descriptors() -> int:
    """Return how many this process has, once what other tests have dropped is closed: else it may be at any moment."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
