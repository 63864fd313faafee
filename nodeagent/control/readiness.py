"""Whether the daemon is ready, and what keeps it from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nodeagent.telemetry.http_request import Response, Routes

Missing = Callable[[], list[str]]
"""Returns, in words, what somebody lacks."""


class Readiness:
    """Puts together what all concerns, and control's parts, lack."""

    def __init__(self, missing: Iterable[Missing]) -> None:
        self._missing = tuple(missing)

    def missing(self) -> list[str]:
        """Return what keeps the daemon from being ready; nothing: it is."""
        found: list[str] = []
        for each in self._missing:
            found += each()
        return found

    def routes(self) -> Routes:
        """``nodeagent ready``'s question, at the admin port."""
        return {("GET", "/ready"): self.page}

    async def page(self, query: Mapping[str, str]) -> Response:
        """Answer 200, or 503 with a line for each that is missing."""
        missing = self.missing()
        return Response(("\n".join(missing) + "\n").encode(), 503) if missing else Response(b"ready\n")
