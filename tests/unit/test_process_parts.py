"""Control's parts: one that fails is named, pauses longer each time, and takes no other along."""

from __future__ import annotations

import asyncio

from nodeagent.parts import LONGEST_PAUSE, STEADY_SECONDS, Parts


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
