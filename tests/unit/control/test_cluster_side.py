"""What keeps an agent of a cluster from being ready: each of its neighbours has a say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.control import cluster_side
from nodeagent.control.cluster_side import ClusterSide
from nodeagent.vocabulary import PodUid
from tests.unit.kube.test_successor import agent, pods

NEIGHBOURS = ("source", "marks", "places")
OWN = PodUid("own")


@dataclass(frozen=True, slots=True)
class Lacking:
    """A neighbour that lacks what *words* say."""

    words: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return list(self.words)


@pytest.mark.parametrize("whose", NEIGHBOURS)
def test_what_one_neighbour_lacks_keeps_the_daemon_from_being_ready(whose: str) -> None:
    neighbours: dict[str, Any] = dict.fromkeys(NEIGHBOURS, Lacking())
    unused: Any = None
    assert ClusterSide(unused, **neighbours, kept=unused, own=OWN).missing() == []
    neighbours[whose] = Lacking(("no sandbox can be used",))
    assert ClusterSide(unused, **neighbours, kept=unused, own=OWN).missing() == ["no sandbox can be used"]


def _standing(own: dict[str, Any]) -> tuple[ClusterSide, Callable[..., None]]:
    """Return the side of the agent whose pod is *own*, and what has it hear which others are there."""
    unused: Any = None
    side = ClusterSide(unused, unused, unused, unused, kept=unused, own=OWN)

    def there(*others: dict[str, Any]) -> None:
        snapshot: Any = SimpleNamespace(objects=pods(own, *others))
        side.changed(snapshot)

    return side, there


def test_who_drains_gives_the_node_up_when_no_other_agent_has_been_there_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input: an agent that drains; the one that took over is gone, another comes at once; then that one goes, too."""
    monkeypatch.setattr(cluster_side, "FORSAKEN_SECONDS", 0.05)

    async def scene() -> None:
        side, there = _standing(agent(OWN, terminating=True))
        there(agent("one"))
        waits = asyncio.ensure_future(side.forsaken())
        there(agent("one", terminating=True))
        await asyncio.sleep(0)
        there(agent("one", terminating=True), agent("two", phase="Pending"))
        await asyncio.wait((waits,), timeout=0.2)
        assert not waits.done()
        there()
        await asyncio.wait_for(waits, 60)

    asyncio.run(scene())


def test_who_drains_gives_the_node_up_when_the_one_that_came_is_taken_away_and_its_own_pod_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input: a rollout that is undone: the new agent's pod comes, and is told to end; the own one is not."""
    monkeypatch.setattr(cluster_side, "FORSAKEN_SECONDS", 0.05)

    async def scene() -> None:
        side, there = _standing(agent(OWN))
        there()
        waits = asyncio.ensure_future(side.forsaken())
        await asyncio.wait((waits,), timeout=0.2)
        assert not waits.done(), "nobody was there yet"
        there(agent("one"))
        await asyncio.wait((waits,), timeout=0.2)
        assert not waits.done()
        there(agent("one", terminating=True))
        await asyncio.wait_for(waits, 60)

    asyncio.run(scene())


def test_another_agent_that_comes_in_the_turn_in_which_the_time_is_over_has_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input: a loop that was held up until the time was over, and the news that waits behind that."""
    monkeypatch.setattr(cluster_side, "FORSAKEN_SECONDS", 0.05)

    async def scene() -> None:
        side, there = _standing(agent(OWN, terminating=True))
        there()
        waits = asyncio.ensure_future(side.forsaken())
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop is held up for longer than it waits
        for _ in range(2):
            await asyncio.sleep(0)  # the timer has had its turn, who waits for it has not
        there(agent("two"))
        await asyncio.wait((waits,), timeout=0.1)
        assert not waits.done()
        waits.cancel()

    asyncio.run(scene())
