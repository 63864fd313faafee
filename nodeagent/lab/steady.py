"""When a pod that says it is ready is taken to be up: a program that ends at once is ready for a moment too. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from nodeagent.lab.layout import Object

STEADY_SECONDS: Final = 0.5
"""How long a container without a probe has to run; most that end at once have ended by then."""
STEADY_AGAIN_SECONDS: Final = 3.0
"""The same for a pod of which one has ended already, probe or not."""


class Steadiness:
    """Since when pods are ready, by any key."""

    def __init__(self) -> None:
        self._since: dict[Hashable, tuple[float, int]] = {}

    def lost(self, key: Hashable) -> None:
        """The pod is not ready."""
        self._since.pop(key, None)

    def lasts(self, key: Hashable, pod: Object, now: float, *, late: bool) -> bool:
        """Say whether *pod*, which is ready, has been so for long enough; *late*: time is up, and
        only one that has ended before is not believed.
        """
        restarts = sum(int(each["restartCount"]) for each in pod["status"]["containerStatuses"])
        since, before = self._since.get(key, (now, restarts))
        if before != restarts:
            since = now
        self._since[key] = since, restarts
        if restarts:
            return now - since >= STEADY_AGAIN_SECONDS
        probed = all("readinessProbe" in each or "startupProbe" in each for each in pod["spec"]["containers"])
        return probed or late or now - since >= STEADY_SECONDS
