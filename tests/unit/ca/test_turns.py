"""Turns of sources that ask for much, for little, and that go away while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nodeagent.ca.refusal import Refusal
from nodeagent.ca.turns import SourceTurns
from tests.waiting import DEADLINE, until


class Desk:
    """Where turns are held until they are told to end."""

    def __init__(self, turns: SourceTurns) -> None:
        self.turns = turns
        self.held: list[str] = []
        self.served: list[str] = []
        self._go = asyncio.Semaphore(0)
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, source: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(self._one(source)))
        return self.tasks[-1]

    async def _one(self, source: str) -> None:
        async with self.turns.of(source):
            self.held.append(source)
            self.served.append(source)
            try:
                await self._go.acquire()
            finally:
                self.held.remove(source)

    def end(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()


def play(scene: Callable[[Desk], Awaitable[None]], at_once: int = 4, each: int = 2, waiting: int = 8) -> None:
    async def main() -> None:
        desk = Desk(SourceTurns(at_once, each, waiting))
        async with asyncio.timeout(DEADLINE):
            await scene(desk)
            desk.end(100)
            await asyncio.gather(*desk.tasks, return_exceptions=True)
        assert desk.turns._free == at_once
        assert not desk.turns._held
        assert not desk.turns._waiting

    asyncio.run(main())


def test_who_floods_leaves_turns_to_others() -> None:
    async def scene(desk: Desk) -> None:
        for _ in range(10):
            desk.ask("flood")
        desk.ask("quiet")
        await until(lambda: sorted(desk.held) == ["flood", "flood", "quiet"])

    play(scene)


def test_where_all_turns_are_taken_sources_have_them_one_after_the_other() -> None:
    """Input: three that flood hold and wait for all turns; then one more asks once. Verdict: it is soon served."""

    async def scene(desk: Desk) -> None:
        for source in ("a", "a", "b", "b", "a", "b", "c", "c", "c"):
            desk.ask(source)
        desk.ask("quiet")
        await until(lambda: len(desk.held) == 4)
        for count in range(5, 9):
            desk.end()
            await until(lambda count=count: len(desk.served) == count)  # type: ignore[misc]
        assert "quiet" in desk.served

    play(scene)


def test_what_one_source_has_waiting_is_bounded() -> None:
    async def scene(desk: Desk) -> None:
        tasks = [desk.ask("flood") for _ in range(11)]
        await until(tasks[-1].done)
        with pytest.raises(Refusal, match="8 requests of this address wait already"):
            tasks[-1].result()
        assert not any(task.done() for task in tasks[:-1])

    play(scene)


def test_who_goes_while_it_waits_or_holds_a_turn_keeps_none() -> None:
    async def scene(desk: Desk) -> None:
        held = [desk.ask("a"), desk.ask("a")]
        waiting = [desk.ask("a"), desk.ask("a")]
        await until(lambda: len(desk.held) == 2)
        waiting[0].cancel()
        held[0].cancel()
        await until(lambda: len(desk.served) == 3)
        assert not waiting[1].done()

    play(scene)
