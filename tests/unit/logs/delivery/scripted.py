"""A sink that answers as a test says, and a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.sink import Outcome, Payload, Taken

TURNS = 50
"""Of the loop before time passes: what is under way goes on first."""


class TestClock:
    """Time passes while nothing else happens, as fast as the loop turns."""

    __test__ = False

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        for _ in range(TURNS):
            if event.is_set():
                return
            await asyncio.sleep(0)
        if seconds is None:
            await event.wait()
        else:
            self.seconds += seconds


class ScriptedSink:
    """Keeps what it took."""

    name = "scripted"

    def __init__(self, answer: Callable[[list[bytes]], Outcome] | None = None, ordered: bool = False) -> None:
        self.ordered = ordered
        self.answer = answer or (lambda _texts: Taken())
        self.requests: list[list[bytes]] = []
        self.taken: list[bytes] = []
        self.gate: asyncio.Event | None = None
        self.closed = False

    def encode(self, batch: Sequence[LogRecords]) -> Payload:
        texts: list[bytes] = []
        for each in batch:
            texts += each.texts
        return Payload(batch, texts)

    async def send(self, payload: Payload) -> Outcome:
        texts = list(payload.body)
        assert all(isinstance(each, bytes) for each in texts)
        self.requests.append(texts)  # type: ignore[arg-type]
        if self.gate:
            await self.gate.wait()
        outcome = self.answer(texts)  # type: ignore[arg-type]
        if isinstance(outcome, Taken):
            left = {*outcome.again, *outcome.refused}
            self.taken += [each for row, each in enumerate(texts) if row not in left]  # type: ignore[misc]
        return outcome

    async def close(self) -> None:
        self.closed = True
