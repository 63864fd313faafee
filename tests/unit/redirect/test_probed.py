"""The look at probed ports while pods go."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, cast

import pytest

from nodeagent.redirect import sock_diag
from nodeagent.redirect.maps import Map
from nodeagent.redirect.netns import PodNetns
from nodeagent.redirect.probed import Probed
from nodeagent.steps import drained
from tests.waiting import DEADLINE


def test_nobody_looks_while_no_port_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "listening", lambda netns, ports: set(ports))

    async def scene() -> None:
        probed = Probed(cast(Map, Entries()))
        for _ in range(2):
            waiting = asyncio.ensure_future(probed.some())
            await asyncio.sleep(0)
            assert not waiting.done()
            probed.keep(PodNetns(Path("/"), 1, 101, 1), frozenset({80}))
            async with asyncio.timeout(DEADLINE):
                await waiting
                await probed.some()
            probed.forget(101)

    asyncio.run(scene())


class Entries(dict[bytes, bytes]):
    """The map."""

    def put(self, key: bytes, value: bytes) -> None:
        self[key] = value

    def drop(self, key: bytes) -> bool:
        return self.pop(key, None) is not None


def test_a_look_is_a_pod_a_step_and_leaves_out_who_is_gone_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input: a pod goes after the first step, and another one comes. Verdict: its descriptor, closed by then, is not
    asked; nor is the one that came, whose ports were looked at as it did.
    """
    asked: list[int] = []

    def listening(netns: int, ports: AbstractSet[int]) -> set[int]:
        asked.append(netns)
        return set(ports)

    monkeypatch.setattr(sock_diag, "listening", listening)
    entries: Any = Entries()
    probed = Probed(entries)
    for fd in (1, 2, 3):
        probed.keep(PodNetns(Path("/"), fd, 100 + fd, 1), frozenset({80}))
    assert asked == [1, 2, 3]
    steps = probed.look()
    next(steps)
    assert asked == [1, 2, 3, 1]
    probed.forget(102)
    probed.keep(PodNetns(Path("/"), 4, 104, 1), frozenset({80}))
    drained(steps)
    assert asked == [1, 2, 3, 1, 4, 3]
