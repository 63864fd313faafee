"""What keeps an agent of a cluster from being ready: each of its neighbours has a say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from nodeagent.control.cluster_side import ClusterSide
from nodeagent.vocabulary import PodUid

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
