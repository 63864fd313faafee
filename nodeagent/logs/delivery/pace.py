"""When a sink is asked again that took nothing, and what is said of it meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nodeagent.logs.delivery.backoff import pause
from nodeagent.logs.delivery.clock import DeliveryClock

log = logging.getLogger("nodeagent.logs")


class SinkPace:
    """One sink's."""

    def __init__(
        self, sink: str, clock: DeliveryClock, uniform: Callable[[float, float], float], *, told: bool = True
    ) -> None:
        """*uniform* is as ``random.uniform``; *told*: whether the log has each change."""
        self.trouble = ""
        """Why the sink takes nothing at the moment; empty: it does, or has not been asked."""
        self.resume = 0.0
        """Before this time nothing is sent."""
        self.paused_at = 0.0
        """When it last took nothing."""
        self.took_at = 0.0
        """When it last took something."""
        self._sink = sink
        self._told = told
        self._clock = clock
        self._uniform = uniform
        self._failures = 0

    def pause(self, why: str, asked: float | None) -> None:
        """The sink took nothing, and *asked* to be left alone for so many seconds, if it did."""
        self._failures += 1
        self.paused_at = self._clock.now()
        self.resume = max(self.resume, self.after(self._failures, asked))
        if self._told and not self.trouble:
            log.warning("sink %s takes nothing at the moment: %s", self._sink, why)
        self.trouble = why

    def after(self, failures: int, asked: float | None = None) -> float:
        """Return when to try again after so many *failures* in a row."""
        return self._clock.now() + pause(failures, asked, self._uniform)

    def recovered(self) -> None:
        """The sink took something."""
        self.took_at = self._clock.now()
        self.go_on()

    def go_on(self) -> None:
        """What was the trouble is none of those that come next."""
        if self._told and self.trouble:
            log.info("sink %s takes records again", self._sink)
        self.trouble = ""
        self._failures = 0
        self.resume = 0.0
