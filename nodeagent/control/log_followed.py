"""Whose logs are followed, as they were found the last time, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from nodeagent.control.log_scan import FileId, FoundFile
from nodeagent.logs.pods import PodPlan
from nodeagent.logs.sources import SourceFacts
from nodeagent.resources.objects import PodObject
from nodeagent.vocabulary import PodUid


class Tells(Protocol):
    """Who hears what was found: the collector's process."""

    def source(self, source: SourceFacts) -> None:
        """This source is there, or is another than before."""

    def file(self, source: str, found: FoundFile) -> None:
        """A file of a source is there; its descriptor is closed by whom was told."""

    def renamed(self, file: FileId, name: str) -> None:
        """A file has another name; empty: none."""

    def room_wanted(self, uid: PodUid, files: int) -> None:
        """So many files of a pod are not open as it has too many: those that are read may be closed for them."""

    def source_gone(self, key: str, *, left_out: bool) -> None:
        """No more files of this source will come; *left_out*: nor is anything more wanted of those that are open."""


@dataclass(slots=True)
class FollowedPod:
    """A pod, or the node, as it was found the last time."""

    name: str
    object: PodObject | None
    plan: PodPlan | None
    """None: the node's own files."""
    sources: dict[str, SourceFacts] = field(default_factory=dict)
    files: dict[FileId, tuple[str, str]] = field(default_factory=dict)
    """The keys of their sources, and their names."""
    aside: dict[FileId, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    """Files that were closed to make room, until they change: the keys of their sources, how large they are and when
    they were modified.
    """
    others: frozenset[FileId] = frozenset()
    """Files of it that were not taken in its last look, as they are known for another pod's, which may be gone."""
    words: dict[str, int] = field(default_factory=dict)
    """When a Fluentd that had read these sources before wrote its positions last."""
    refusals: tuple[str, ...] = ()
    waits: bool = False
    """What of the node is read once all pods are told."""
    since: float = 0.0
    """When a folder of it began to be missing; 0: none is."""
    next_look: float = 0.0
    not_before: float = 0.0
    took: float = 0.0
    """Seconds of a processor and of disks that its last look took."""
    gone_at: float = 0.0
    """When it left the API; 0: it has not."""
    told: int = 0
    """How often what is to be found of it was told differently, or what was found was forgotten."""
    alarmed: bool = False
    """Something has happened in its folders since its last look began."""


NODE: Final = PodUid("")
"""Stands for the node itself among the pods."""
