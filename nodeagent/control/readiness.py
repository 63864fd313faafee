"""Whether the daemon is ready, and what keeps it from that.

Who is not ready must not take another one's place, and a rollout removes at once, on every node, an
agent that is not. So an agent that was ready once is so for as long as it carries traffic at all: a policy
that somebody writes, an authority that is away or a pod that is broken is a warning then. A rollout goes
on node by node, and stops at an agent that comes and lacks anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nodeagent.telemetry.http_request import Response, Routes

Missing = Callable[[], list[str]]
"""Returns, in words, what somebody lacks."""


class Readiness:
    """Puts together what all concerns, and control's parts, lack."""

    def __init__(self, vital: Iterable[Missing], needed: Iterable[Missing], warnings: Iterable[Missing] = ()) -> None:
        """*vital* tell what no traffic is carried without; *needed* what the daemon has to have once, before it takes
        another one's place; *warnings* what keeps it from nothing, as one pod that is in its own way.
        """
        self._vital = tuple(vital)
        self._needed = tuple(needed)
        self._warnings = tuple(warnings)
        self._was_ready = False

    def missing(self) -> list[str]:
        """Return what keeps the daemon from being ready; nothing: it is."""
        found = self.lacking()
        self._was_ready = self._was_ready or not found
        return _all(self._vital) if self._was_ready else found

    def lacking(self) -> list[str]:
        """Return all that the daemon has to have and has not, also where it is ready without."""
        return [*_all(self._vital), *_all(self._needed)]

    def routes(self) -> Routes:
        """``nodeagent ready``'s question, at the admin port."""
        return {("GET", "/ready"): self.page}

    async def page(self, query: Mapping[str, str]) -> Response:
        """Answer 200, with a line for each warning, or 503 with a line for each that is missing."""
        missing = self.missing()
        if missing:
            return Response(_lines(missing), 503)
        warnings = [*self.lacking(), *_all(self._warnings)]
        return Response(_lines(["ready", *(f"warning: {words}" for words in warnings)]))


def _all(tellers: Iterable[Missing]) -> list[str]:
    found: list[str] = []
    for each in tellers:
        found += each()
    return found


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in words).encode()
