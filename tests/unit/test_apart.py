"""A coroutine in a thread of its own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nodeagent.apart import apart
from tests.waiting import DEADLINE, eventually, until


def test_it_goes_on_while_the_loop_stands_still() -> None:
    has_run = threading.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        has_run.set()

    async def main() -> None:
        working = asyncio.create_task(apart("work", work))
        await asyncio.sleep(0)
        assert has_run.wait(DEADLINE)  # this loop has no turn meanwhile
        await working

    asyncio.run(main())
    eventually(lambda: "work" not in {each.name for each in threading.enumerate()}, "its thread has ended")


def test_what_it_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(apart("work", work))


def test_who_is_cancelled_has_it_end_first() -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    async def main() -> None:
        working = asyncio.create_task(apart("work", work))
        await until(lambda: seen)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert seen == ["begun", "ended"]

    asyncio.run(main())


def test_a_loop_that_has_been_closed_is_no_fault() -> None:
    """As that of a process which ends: the work is cancelled with everything else."""
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        asyncio.get_running_loop().create_task(apart("work", work))
        await until(lambda: "work" in {each.name for each in threading.enumerate()})

    asyncio.run(main())
    assert ended.wait(DEADLINE)
