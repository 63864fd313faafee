"""Places by annotation: the lab says on each pod where it made it."""

from __future__ import annotations

from typing import Final

from nodeagent.places.place import Place
from nodeagent.resources.objects import PodObject

NETNS: Final = "lab.nodeagent.io/netns"
CGROUP: Final = "lab.nodeagent.io/cgroup"


class AnnotationPlaces:
    """Reads the annotations ``NETNS`` and ``CGROUP``."""

    def of(self, pod: PodObject) -> Place | None:
        """Return the place that *pod*'s annotations say; None without one of its network namespace."""
        netns = _path(pod, NETNS)
        return Place(netns, _path(pod, CGROUP)) if netns else None


def _path(pod: PodObject, annotation: str) -> str:
    """Return the path that *annotation* says, empty where none can be meant (NUL)."""
    text = pod.annotations.get(annotation, "")
    return text if text.isprintable() else ""
