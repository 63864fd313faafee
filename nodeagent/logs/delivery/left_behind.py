"""Buffers of sinks that agent.yaml has no more: what is in them counts as waiting, and is said until somebody decides.

Nothing of them is delivered elsewhere by itself: another sink may be another tenant's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent.logs.delivery.buffer import NAME, SIDE, DiskBuffer
from nodeagent.logs.delivery.counts import SinkCounts

MAX_FOLDERS: Final = 100
"""That are looked into."""
log = logging.getLogger("nodeagent.logs")


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """One such buffer."""

    name: str
    """The sink's."""
    counts: SinkCounts
    """What is in it is offered, and nothing becomes of it."""
    bytes: int
    trouble: str
    """What is to be done, in words."""
    folder: Path

    def is_there(self) -> bool:
        """Say whether anything is in it still; where that cannot be read it is."""
        try:
            there = [*self.folder.iterdir(), *self.folder.glob(f"{SIDE}*/*")]
            return any(NAME.fullmatch(each.name) for each in there)
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def removed(self) -> LeftBehind:
        """Return what it is once somebody has removed it."""
        return replace(self, bytes=0, trouble="")


def left_behind(folder: Path, sinks: Collection[str]) -> list[LeftBehind]:
    """Return what is in *folder*, of all buffers, for others than *sinks*. What cannot be read is said in the log."""
    found: list[LeftBehind] = []
    try:
        names = sorted(each.name for each in folder.iterdir() if each.name not in sinks and each.is_dir())
        for name in names[:MAX_FOLDERS]:
            found += _found(folder / name)
    except FileNotFoundError:
        return found
    except OSError as error:
        log.warning("%s: %s; whether records of former sinks are there is not known", error.filename, error.strerror)
    return found


def _found(folder: Path) -> list[LeftBehind]:
    """Return what is in one buffer, if anything. Raises OSError."""
    buffer = DiskBuffer(folder, 0)
    unread: list[str] = []
    counts = SinkCounts()
    for each in (buffer, *map(buffer.side, buffer.sides())):
        unread += each.open()
        for pod, records in each.pods.items():
            counts.named(pod).offered += records
    offered = counts.total().offered
    if not (offered or unread):
        return []
    name = folder.name
    trouble = (
        f"{offered} records ({buffer.bytes_of_all} bytes) wait in {folder} for it, and logs.sinks has none of "
        "that name, or logs.buffer.bytes is 0: have both until they are delivered, or remove that folder"
    )
    trouble = "; ".join((trouble, *unread[:3]))
    log.warning("sink %s: %s", name, trouble)
    return [LeftBehind(name, counts, buffer.bytes_of_all, trouble, folder)]
