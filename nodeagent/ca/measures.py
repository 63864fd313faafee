"""What the authority tells of itself in Prometheus' format. It must never name a caller: who asks for
certificates may be anybody, and each name would be a series.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, get_args

from nodeagent.ca.refusal import Status
from nodeagent.telemetry import metrics
from nodeagent.telemetry.formats import Format
from nodeagent.telemetry.http_server import Response
from nodeagent.telemetry.scrapes import answer
from nodeagent.telemetry.store import Store

ISSUED: Final = "OK"
FAILED: Final = "INTERNAL"
CODES: Final = (ISSUED, *get_args(Status), FAILED)
NAME: Final = "ca"
"""Stands for an identity where the certificate is the service's own."""


class CaMeasures:
    """Counts since the start. All series are there from the beginning: an ``increase()`` knows nothing of the
    first refusal otherwise.
    """

    def __init__(self) -> None:
        self.store = Store()
        for code in CODES:
            self.store.add(metrics.CA_REQUESTS, (code,), 0)
        for result in ("right", "failed"):
            self.store.add(metrics.CA_LOOKS, (result,), 0)

    def answered(self, code: str) -> None:
        """Count a request by the *code* of gRPC that it was answered with, one of CODES."""
        self.store.add(metrics.CA_REQUESTS, (code,))

    def looked(self, succeeded: bool) -> None:
        """Count a look at where the authority is kept."""
        self.store.add(metrics.CA_LOOKS, ("right" if succeeded else "failed",))

    def shown_until(self, when: float) -> None:
        """Tell until *when*, in Unix seconds, the certificate is good that clients are shown."""
        self.store.set(metrics.CERTIFICATE_EXPIRY, (NAME,), when)

    async def page(self, query: Mapping[str, str]) -> Response:
        """Answer a scrape; *query* says nothing."""
        return answer(self._render)

    async def _render(self, wanted: Format) -> Iterator[bytes]:
        return self.store.exposition(wanted)
