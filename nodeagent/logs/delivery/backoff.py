"""How long to wait before something is tried again: longer each time, and never in step with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 30.0
LONGEST_ASKED: Final = 300.0
"""What a server may ask for (Retry-After)."""


def pause(failures: int, asked: float | None, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds to wait after so many *failures* in a row (from 1), at least what the server *asked*
    for; *uniform* is as ``random.uniform``.
    """
    longest: float = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(failures - 1, 16))
    drawn = uniform(longest / 2, longest)
    return max(drawn, min(asked or 0.0, LONGEST_ASKED))
