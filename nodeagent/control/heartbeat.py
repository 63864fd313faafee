"""The data plane's heartbeat as control has it: it begins when everything works, and ends before the
workers do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from nodeagent.control.concern import Snapshot
from nodeagent.parts import Parts
from nodeagent.pulse import Pulse
from nodeagent.telemetry.http_request import Routes

SETTLE_SECONDS: Final = 0.3
"""A connect() that was redirected before the heartbeat stopped reaches its listener within this time."""
TURN_SECONDS: Final = 3.0
"""How often control notes that its own loop turns: a tenth of the silence that is borne."""


class Beating(Protocol):
    """Where the heartbeat is, as far as it is control's: ``SupervisorLink``."""

    beats: bool

    def beat(self, timeout_seconds: float, heart: int) -> None:
        """Have it begin in the map *heart*, where it may become so old."""

    async def still(self) -> None:
        """Have it end; return when it has."""


class Heartbeat:
    """A concern: :meth:`begin` it when everything else is at work."""

    def __init__(self, link: Beating, pulse: Pulse, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        """*pulse* is where control says that its own loop turns, which is watched from :meth:`begin` on."""
        self._link = link
        self._pulse = pulse
        self._settle_seconds = settle_seconds

    @asynccontextmanager
    async def run(self, parts: Parts) -> AsyncIterator[None]:
        """Leaving ends the heartbeat: from then on no new connection is led to this daemon."""
        yield
        await self._link.still()
        # What waits in a backlog when the last listener closes is reset: workers accept until
        # nothing more can come.
        await asyncio.sleep(self._settle_seconds)

    def begin(self, parts: Parts, timeout_seconds: float, heart: int) -> None:
        """Let captured traffic come to the workers: the map *heart* may become so old."""
        self._link.beat(timeout_seconds, heart)
        parts.start("what tells the supervisor that control turns", self._turn)

    def changed(self, snapshot: Snapshot) -> None:
        """It rests on no snapshot."""

    def grown(self, snapshot: Snapshot) -> None:
        """It rests on no snapshot."""

    def missing(self) -> list[str]:
        """Say that there is none."""
        return [] if self._link.beats else ["there is no heartbeat: no worker's event loop turns"]

    def routes(self) -> Routes:
        """It tells nothing of its own."""
        return {}

    async def _turn(self) -> None:
        while True:
            self._pulse.turn()
            await asyncio.sleep(TURN_SECONDS)
