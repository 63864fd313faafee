"""Whether the daemon is ready, and what keeps it from that.

Who is not ready must not take another one's place, and a rollout removes at once, on every node, an
agent that is not. So an agent that has settled is ready for as long as it carries and protects traffic at
all: a policy that somebody writes, an authority that is away or a pod that is broken is a warning then.

One moment in which nothing is lacking proves little: a node may have no pod yet, and what fails may not
have been tried. Until it has lacked nothing for a while, an agent lacks whatever it lacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from nodeagent.telemetry.http_request import Response, Routes

SETTLED_SECONDS: Final = 8.0
"""For so long nothing is lacking before outsiders cannot make an agent unready: longer than the check of the
pods pauses, if agent.yaml does not say otherwise.
"""
Missing = Callable[[], list[str]]
"""Returns, in words, what somebody lacks."""


class Readiness:
    """Puts together what all concerns, and control's parts, lack."""

    def __init__(
        self,
        vital: Iterable[Missing],
        needed: Iterable[Missing],
        warnings: Iterable[Missing] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*vital* tell what no traffic is carried or protected without; *needed* what the daemon has to have until it
        has settled; *warnings* what keeps it from nothing, as one pod that is in its own way. *clock*: steady seconds.
        """
        self._vital = tuple(vital)
        self._needed = tuple(needed)
        self._warnings = tuple(warnings)
        self._clock = clock
        self._whole_since: float | None = None
        """Nothing has been lacking since."""
        self._settled = False

    def missing(self) -> list[str]:
        """Return what keeps the daemon from being ready; nothing: it is."""
        if self._settled:
            return _all(self._vital)
        if found := self.lacking():
            self._whole_since = None
            return found
        now = self._clock()
        if self._whole_since is None:
            self._whole_since = now
        self._settled = now - self._whole_since >= SETTLED_SECONDS
        return []

    def lacking(self) -> list[str]:
        """Return all that the daemon has to have and has not, also where it is ready without."""
        return list(dict.fromkeys([*_all(self._vital), *_all(self._needed)]))

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
