"""The metrics, as Prometheus scrapes them: collected from the workers, the kernel and every concern
when somebody asks.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final

from nodeagent.telemetry.formats import Format
from nodeagent.telemetry.http_request import Response, Routes
from nodeagent.telemetry.scrapes import Scrapes, answer
from nodeagent.telemetry.store import Store

Collect = Callable[[Store], None]
"""Sets or adds what somebody knows of now; an OSError leaves out what it is the last to know of."""
SCRAPED_AT: Final = ("/metrics", "/stats/prometheus")
log = logging.getLogger("nodeagent.control")


class MetricsPages:
    """Renders the *store* after it was brought up to date."""

    def __init__(self, store: Store, report: Callable[[], Awaitable[object]], collectors: Iterable[Collect]) -> None:
        """*report* has the workers tell what they have not told yet."""
        self._store = store
        self._report = report
        self._collectors = tuple(collectors)
        self._scrapes = Scrapes(self._exposition)

    def routes(self) -> Routes:
        """Everything that was counted until now, at the admin port."""
        return {("GET", "/metrics"): self._fresh}

    def scraped(self) -> Routes:
        """The same up to a second ago: that port is open to every pod."""
        return {("GET", path): self._recent for path in SCRAPED_AT}

    async def _fresh(self, query: Mapping[str, str]) -> Response:
        return answer(self._exposition)

    async def _recent(self, query: Mapping[str, str]) -> Response:
        return answer(self._scrapes.get)

    async def _exposition(self, wanted: Format) -> Iterator[bytes]:
        await self._report()
        for collect in self._collectors:
            try:
                collect(self._store)
            except OSError as error:
                log.error("what the kernel counted cannot be read: %s", error)
        return self._store.exposition(wanted)
