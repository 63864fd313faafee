"""Whether the daemon is ready, and what keeps it from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nodeagent.telemetry.http_request import Response, Routes

Missing = Callable[[], list[str]]
"""Returns, in words, what somebody lacks."""


class Readiness:
    """Puts together what all concerns, and control's parts, lack."""

    def __init__(self, missing: Iterable[Missing], warnings: Iterable[Missing] = ()) -> None:
        """*warnings* tell what is wrong and keeps the daemon from nothing, as one pod that is in its own way."""
        self._missing = tuple(missing)
        self._warnings = tuple(warnings)

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
        """Answer 200, with a line for each warning, or 503 with a line for each that is missing."""
        missing = self.missing()
        if missing:
            return Response(_lines(missing), 503)
        warnings: list[str] = []
        for each in self._warnings:
            warnings += each()
        return Response(_lines(["ready", *(f"warning: {words}" for words in warnings)]))


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in words).encode()
