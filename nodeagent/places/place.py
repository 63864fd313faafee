"""The place of a pod on its node, and the interface of who knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nodeagent.resources.objects import PodObject


@dataclass(frozen=True, slots=True)
class Place:
    """What tells a pod's processes from all others."""

    netns: str
    """Path of its network namespace's file."""
    cgroup: str
    """Path of its cgroup's folder; empty: not known, and the network namespace decides alone."""
    sandbox: str = ""
    """What the container runtime calls what holds both. A pod whose sandbox was made anew is at another
    place, even where the paths are the same.
    """
    network: tuple[int, int] | None = None
    """Device and number of the network namespace's file: where ``netns`` leads to another one by now, as the number
    of a process that ended may, it is no place. None: it always leads to the pod's.
    """


class Places(Protocol):
    """Who knows where the pods of this node run."""

    def of(self, pod: PodObject) -> Place | None:
        """Return where *pod* runs, None while that is not known; never waits.

        Where the answer becomes another, the source tells the pod anew.
        """
