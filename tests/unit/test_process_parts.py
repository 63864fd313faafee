"""Control's parts: one that fails is named, pauses longer each time, and takes no other along."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from nodeagent.parts import LONGEST_PAUSE, LOOP, STEADY_SECONDS, Parts
from tests.waiting import until


def test_a_part_that_fails_is_started_again_alone_and_named() -> None:
    pauses: list[float] = []
    spun = begun = 0

    async def main() -> None:
        nonlocal spun
        well = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            await asyncio.sleep(0)

        async def wrong() -> None:
            nonlocal begun
            begun += 1
            if begun <= 12:
                raise KeyError("a\nb")
            well.set()
            await asyncio.Event().wait()

        async def other() -> None:
            nonlocal spun
            while True:
                spun += 1
                await asyncio.sleep(0)

        parts = Parts(sleep=sleep, uniform=lambda low, high: high)
        parts.start("the wrong part", wrong)
        parts.start("another", other)
        await well.wait()
        before = spun
        assert parts.failing() == ["the wrong part failed 12 times: KeyError: \"'a\\\\nb'\""]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert spun > before
        now = loop.time()
        loop.time = lambda: now + STEADY_SECONDS + 1  # type: ignore[method-assign]
        assert parts.failing() == []
        parts.stop()

    asyncio.run(main())
    assert pauses[:3] == [0.12, 0.24, 0.48]
    assert pauses[-1] == LONGEST_PAUSE * 1.2
    assert pauses == sorted(pauses)


def test_a_vital_part_that_fails_again_and_again_is_told_from_one_that_did() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        failed = dict.fromkeys(("what is vital", "something else"), 0)

        async def pause(seconds: float) -> None:
            if LOOP - 1 in failed.values():
                await go_on.wait()
            await asyncio.sleep(0)

        async def wrong(name: str) -> None:
            failed[name] += 1
            raise KeyError(name)

        parts = Parts(sleep=pause)
        for name in failed:
            parts.start(name, partial(wrong, name), vital=name == "what is vital")
        await until(lambda: failed["what is vital"] == LOOP - 1)
        assert parts.looping() == []
        go_on.set()
        await until(lambda: min(failed.values()) > LOOP)
        assert [words.split(" failed")[0] for words in parts.looping()] == ["what is vital"]
        assert len(parts.failing()) == 2
        parts.stop()

    asyncio.run(main())


@pytest.mark.parametrize(("idle", "loops"), [(30.0, True), (0.0, False)])
def test_what_a_part_waits_for_before_it_does_anything_is_no_sign_that_it_is_well(idle: float, loops: bool) -> None:
    """Input: a part that fails 30 s after each start, as a check does that looks every 30 s."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        failed = 0

        async def pause(seconds: float) -> None:
            await asyncio.sleep(0)

        async def check() -> None:
            nonlocal now, failed
            now += 30.0
            failed += 1
            raise KeyError

        loop.time = lambda: now  # type: ignore[method-assign]
        parts = Parts(sleep=pause)
        parts.start("the check", check, vital=True, idle_seconds=idle)
        while failed < 2 * LOOP:
            await asyncio.sleep(0)
        assert bool(parts.looping()) == loops
        parts.stop()

    asyncio.run(main())


def test_a_part_that_returns_has_done_its_work() -> None:
    async def main() -> None:
        done = 0

        async def once() -> None:
            nonlocal done
            done += 1

        parts = Parts()
        parts.start("once", once)
        for _ in range(5):
            await asyncio.sleep(0)
        assert done == 1
        assert parts.failing() == []

    asyncio.run(main())
