"""The formats of the exposition, as scrapes are asked for and answered.

Apart from what writes them, so that nobody loads that before the first scrape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Format:
    """A format of the exposition."""

    content_type: str
    quality: float
    """How much the daemon itself prefers it, 0 to 1: what a client says it prefers is multiplied by it."""


TEXT: Final = Format("text/plain; version=0.0.4; charset=utf-8", 1.0)
OPENMETRICS: Final = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", 0.49)
"""Buckets' bounds are canonical there (OpenMetrics 1.0, Canonical Numbers): ``le="1.0"`` is another
series than the ``le="1"`` of the text format, to Prometheus 2. So a client that takes both gets, as
ever, the text, unless it prefers OpenMetrics more than twice as much; Prometheus does not.
"""
FORMATS: Final = (TEXT, OPENMETRICS)
