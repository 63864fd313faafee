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


TEXT: Final = Format("text/plain; version=0.0.4; charset=utf-8")
OPENMETRICS: Final = Format("application/openmetrics-text; version=1.0.0; charset=utf-8")
FORMATS: Final = (TEXT, OPENMETRICS)
"""The one that is preferred first: a client that takes both gets the text, whatever it weighs them.

Buckets' bounds are canonical in OpenMetrics (1.0, Canonical Numbers): ``le="1.0"`` is another series
than the ``le="1"`` of the text format, to Prometheus 2, and dashboards know that one.
"""
