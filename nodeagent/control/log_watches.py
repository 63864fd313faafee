"""Which folders of whose logs are watched: names that come, go or change in them are told; never contents.

Watched is what the last look at a pod found: a pod that makes folders and moves them away has no more watches
for it. One that makes events faster than it is looked at is not watched until its next look: reading them
would take control's time from others.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.resources import inotify
from nodeagent.vocabulary import PodUid

_MASK: Final = inotify.CREATE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE
MAX_EVENTS: Final = 1000
"""Of a pod between two looks."""
_READS: Final = 2
"""At once, before others of control have their turn."""
log = logging.getLogger("nodeagent.logs")


class LogWatches:
    """One inotify instance for the folders of all pods."""

    def __init__(self, happened: Callable[[PodUid | None], None]) -> None:
        """*happened* is told in whose folder something was; None: events were lost, it may have been anywhere."""
        self.blind = ""
        """Why folders cannot be watched; empty: they are."""
        self._happened = happened
        self._descriptor = -1
        self._of: dict[int, PodUid] = {}
        self._watches: dict[PodUid, set[int]] = {}
        self._seen: set[int] = set()
        """By the look that is going on."""
        self._events: Counter[PodUid] = Counter()

    def open(self) -> None:
        """Watch from now on; wants a running loop."""
        try:
            self._descriptor = inotify.open_instance()
        except KernelError as error:
            self._be_blind(error)
            return
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1

    @contextmanager
    def look(self, uid: PodUid) -> Iterator[None]:
        """What is not watched by this look at the pod *uid* is not watched any more after it."""
        self._seen.clear()
        self._events.pop(uid, None)
        yield
        for number in self._watches.get(uid, set()) - self._seen:
            self._watches[uid].discard(number)
            self._end(number)

    def watch(self, uid: PodUid, folder: int) -> None:
        """Have the open *folder* of the pod *uid* watched, whatever it is called; again is nothing."""
        if self._descriptor < 0:
            return
        try:
            number = inotify.watch(self._descriptor, Path(f"/proc/self/fd/{folder}"), _MASK)
        except FileNotFoundError:
            return
        except KernelError as error:
            self._be_blind(error)
            return
        self._seen.add(number)
        if number not in self._of:
            self._of[number] = uid
            self._watches.setdefault(uid, set()).add(number)

    def drop(self, uid: PodUid) -> None:
        """Watch no folder of the pod *uid* any more."""
        self._events.pop(uid, None)
        for number in self._watches.pop(uid, ()):
            self._end(number)

    def _end(self, number: int) -> None:
        self._of.pop(number, None)
        inotify.unwatch(self._descriptor, number)

    def _be_blind(self, error: KernelError) -> None:
        if not self.blind:
            log.warning("folders of logs cannot be watched, and are looked at more often: %s", error)
        self.blind = str(error)

    def _read(self) -> None:
        for number, mask, _ in inotify.events(self._descriptor, _READS):
            if mask & inotify.OVERFLOW:
                self._happened(None)
                continue
            uid = self._of.get(number)
            if uid is None:
                continue
            if mask & inotify.IGNORED:
                del self._of[number]
                self._watches.get(uid, set()).discard(number)
            self._events[uid] += 1
            if self._events[uid] > MAX_EVENTS:
                self.drop(uid)
            self._happened(uid)
