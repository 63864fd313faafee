"""The tail of a node: all logs, in turn, and the positions file."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Final

from nodeagent.errors import shown
from nodeagent.logs.tail.contents import LONG
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.identity import FileKey, Inode
from nodeagent.logs.tail.interfaces import FileStatus, LogSource, OpenTaker, SourceKey, TailCounts, TailSettings
from nodeagent.logs.tail.log import FollowedLog, Turn
from nodeagent.logs.tail.positions import PositionEntry, PositionsFile
from nodeagent.logs.tail.schedule import Looks
from nodeagent.logs.tail.state import status_of
from nodeagent.vocabulary import PodUid

TURNS: Final = 8
"""Chunks that are read before others of the process have their turn."""
BLOCKED_SECONDS: Final = 0.25
"""After which those without room are asked again, if nobody wakes the tail before: a thousand of them, while a sink
is down, are not to cost what reading them would.
"""
TOLD_SECONDS: Final = 0.1
"""For so long a write of the positions file that somebody waits for is put off, while more contents are found that are
to be in it: thousands of new files do not have it written for each of them.
"""
CLOSE_SECONDS: Final = 0.02
"""For so long removed files are closed before others have their turn: some disks take 5 ms to free what one took."""
AGE_SECONDS: Final = 0.25
FORGET_SECONDS: Final = 5.0
"""Between two looks at logs of which only something has to be forgotten in time."""
log = logging.getLogger("nodeagent.logs.tail")


class Tail:
    """Follows files. Everything happens on the event loop's thread, save for writing the positions file."""

    def __init__(
        self,
        node: str,
        folder: Path,
        open_taker: OpenTaker,
        settings: TailSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*folder* has, or gets, the positions file; *clock* tells seconds that never go back."""
        self.node = node
        self.process = os.urandom(8).hex()
        self.settings = settings or TailSettings()
        self.open_taker = open_taker
        self._clock = clock
        self._positions = PositionsFile(folder)
        self._logs: dict[SourceKey, FollowedLog] = {}
        self._files: dict[FileKey, tuple[FollowedLog, OpenFile]] = {}
        self._closing: deque[OpenFile] = deque()
        """Removed files that nobody reads any more."""
        self._closed: list[FileKey] = []
        self._aside: dict[FileKey, FollowedLog] = {}
        """Whose files were closed to make room."""
        self._looks = Looks(self.settings.idle_seconds)
        self._ready: dict[PodUid, dict[SourceKey, FollowedLog]] = {}
        self._held: dict[SourceKey, FollowedLog] = {}
        self._restless: dict[SourceKey, FollowedLog] = {}
        self._remembering: dict[SourceKey, FollowedLog] = {}
        self._forgot = clock()
        self._woken = False
        self._asked = clock()
        self._aged = clock()
        self._started = clock()
        self._entries: dict[str, dict[int, PositionEntry]] = {}
        """What the positions file has of sources that did not come yet, numbered."""
        self._whose: dict[int, list[tuple[str, int]]] = {}
        """Of which sources the positions file has something of the file of an inode number, and as which number."""
        for number, each in enumerate(self._positions.read()):
            self._entries.setdefault(each.source, {})[number] = each
            if not each.gone:
                self._whose.setdefault(each.inode, []).append((each.source, number))
        self._dirty = False
        self._urgent = False
        self._urgent_at = clock()
        self._telling: set[SourceKey] = set()
        """Of which logs it is found out what else is to be in that write."""
        self._begun = 0
        self._saved = 0
        self._saved_at = clock()
        self._past: dict[PodUid, TailCounts] = {}
        self._waker: asyncio.Future[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._stopping = False

    # -- what control says --

    def add(self, descriptor: int, source: LogSource, name: str, start: int = 0) -> bool:
        """Follow the regular file behind *descriptor*, which is the tail's from now on, as one of *source*'s.

        *name*: as it is called now. *start*: up to where another program delivered it, if nothing is known of it
        here. A file that is followed already, or cannot be, is closed. Return whether it is followed.
        """
        now = self._clock()
        try:
            file = OpenFile(descriptor, name, now, journal=source.journal)
        except (OSError, ValueError) as error:
            log.warning("%s: %s is not followed: %s", source.key, shown(name), error)
            os.close(descriptor)
            return False
        key = file.inode.key
        if key in self._files:
            file.close()
            owner, file = self._files[key]
            file.removed = None  # it is wanted again
            owner.contents.stir(file)
            self.named(*key, name)
            return True
        found = self._logs.get(source.key)
        if found is None:
            entries = self._entries.pop(source.key, {})
            found = self._logs[source.key] = FollowedLog(source, self, entries.values(), now)
        file.look(now)
        aside = self._aside.get(key)
        if aside is not None and aside.contents.aside[key] != file.inode:
            self._lose_aside(key)  # and its number is this one's now
        found.contents.learn(self._of_others(file.inode, source.key), now)
        aside = self._aside.pop(key, found)
        if aside is not found:
            found.contents.learn(aside.contents.unlearn(file.inode), now)
        found.add(file, start)
        self._files[key] = (found, file)
        self._looks.add(file, found)
        self._stir(found)
        self.wake()
        return True

    def _of_others(self, inode: Inode, key: SourceKey) -> list[PositionEntry]:
        """Take from other sources than *key* what the positions file has of a file: it was one of theirs before it was
        renamed.
        """
        taken: list[PositionEntry] = []
        for other, number in self._whose.get(inode.number, ()):
            if other == key:
                continue
            former = self._logs.get(SourceKey(other))
            if former is not None:
                taken += former.contents.unlearn(inode)
                continue
            entries = self._entries.get(other, {})
            if number in entries and entries[number].where().is_still(inode):
                taken.append(entries.pop(number))
        return taken

    def named(self, device: int, inode: int, name: str) -> None:
        """That file is called *name* now."""
        pair = self._files.get((device, inode))
        if pair is None:
            self._lose_aside((device, inode))
            return
        if pair[1].name == name:
            return
        found, file = pair
        found.contents.stir(file)
        file.name = name
        file.renamed = True
        if file.generation is not None:
            file.generation.name = name
        self.changed()

    def _lose_aside(self, key: FileKey) -> None:
        """What was put aside of that file is gone, if something was."""
        found = self._aside.pop(key, None)
        if found is not None:
            found.contents.lose([key], self._clock())
            self._stir(found)

    def make_room(self, uid: PodUid, files: int) -> list[OpenFile]:
        """Close up to so many *files* of a pod of which all is settled and that nobody seems to write to, the oldest
        first, and return them. Where they go on is remembered until they have no name any more.

        Each of them may be the only one of its log. The pod's newest is kept beside others: it is written next, and
        is best seen being copied and truncated while it is open.
        """
        now = self._clock()
        logs = [each for each in self._logs.values() if each.source.uid == uid]
        there = list(chain.from_iterable(each.contents.files for each in logs))
        newest = max(there, key=attrgetter("modified")) if len(there) > 1 else None
        spare = chain.from_iterable(each.spare(now) for each in logs)
        closed = sorted((each for each in spare if each is not newest), key=attrgetter("changed"))[:files]
        for file in closed:
            key = file.inode.key
            found, _ = self._files.pop(key)
            found.put_aside(file)
            self._looks.remove(file)
            self._aside[key] = found
        return closed

    def closed(self) -> list[FileKey]:
        """Return the devices and inodes of files that were closed since the last call, and are not open again."""
        closed, self._closed = self._closed, []
        return [key for key in closed if key not in self._files]

    def leave(self, source: SourceKey, *, left_out: bool = False) -> None:
        """Nothing more comes of *source*: what its files have is read, then they are closed though they may have a
        name still. One that is *left_out* may be wanted again: for long it is remembered how far it was read. What was
        closed to make room is remembered until :meth:`named` says that it is gone.
        """
        found = self._logs.get(source)
        if found is not None:
            if left_out:
                self._forget_aside(found)
            found.leave(self._clock(), left_out=left_out)
            self._stir(found)

    def disregard(self, others: Collection[str]) -> None:
        """Nobody knows what was put aside of sources that are not among *others*: it may be wanted again, or be gone
        and never be said to be.
        """
        for found in {found for found in self._aside.values() if found.source.key not in others}:
            self._forget_aside(found)
            self._stir(found)

    def _forget_aside(self, found: FollowedLog) -> None:
        """What was put aside of *found* may be there, and nobody will say that it is gone."""
        for key in found.contents.aside:
            del self._aside[key]
        found.contents.lose(list(found.contents.aside), self._clock(), there=True)

    # -- what a log asks --

    def changed(self) -> None:
        """Something has to be written to the positions file."""
        self._dirty = True

    def barrier(self) -> int:
        """Ask for a write of the positions file that has all as it is now; return its number."""
        self._dirty = True
        if not self._urgent:
            self._urgent_at = self._clock()
        self._urgent = True
        return self._begun + 1

    def passed(self, number: int) -> bool:
        """Return whether that write is on disk, or cannot be waited for as writing fails."""
        return self.told(number) or bool(self._positions.problem)

    def told(self, number: int) -> bool:
        """Return whether that write is on disk."""
        return self._saved >= number

    def failing(self) -> bool:
        """Return whether the positions file cannot be written."""
        return bool(self._positions.problem)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for a write of the positions file, and it is to begin."""
        return self._urgent and (not self._telling or self._clock() >= self._urgent_at + TOLD_SECONDS)

    def remembered(self) -> int:
        """Return of how many contents a restart would know."""
        return sum(1 for _ in self._all_entries())

    @property
    def problem(self) -> str:
        """Why the positions file cannot be written; empty: it can."""
        return self._positions.problem

    # -- rounds --

    def turn(self) -> float:
        """Look at what is due and read some chunks; return after how many seconds there is more to do."""
        now = self._clock()
        for each in self._looks.look(now):
            self._stir(each)
        if now >= self._aged + AGE_SECONDS:
            self._aged = now
            self._age(now)
        if self._held and (self._woken or now >= self._asked + BLOCKED_SECONDS):
            self._asked = now
            for each in self._held.values():
                self._stir(each)
        self._woken = False
        for _ in range(TURNS):
            if not self._ready:
                break
            self._take_turn(now)
        if (self._closing and self._close_some()) or self._ready:
            return 0.0
        left = min(self._looks.seconds_left(now), self._aged + AGE_SECONDS - now)
        return max(min(left, self._asked + BLOCKED_SECONDS - now), 0.0) if self._held else left

    def _stir(self, found: FollowedLog) -> None:
        """*found* may have something to read."""
        self._restless[found.source.key] = found
        self._ready.setdefault(found.source.uid, {})[found.source.key] = found

    def _take_turn(self, now: float) -> None:
        uid = next(iter(self._ready))
        waiting = self._ready.pop(uid)
        found = waiting.pop(next(iter(waiting)))
        came = found.turn(now)
        self._held.pop(found.source.key, None)
        self._telling.discard(found.source.key)
        if came is Turn.TOLD:
            self._telling.add(found.source.key)
        if came in (Turn.READ, Turn.TOLD):
            waiting[found.source.key] = found
        elif came is not Turn.NOTHING:
            self._held[found.source.key] = found
        if waiting:
            self._ready[uid] = waiting  # behind all other pods

    def _age(self, now: float) -> None:
        if now >= self._forgot + FORGET_SECONDS:
            self._forgot = now
            self._restless |= self._remembering
            self._remembering.clear()
        for key, each in list(self._restless.items()):
            for file in each.age(now):
                self._forget_file(file)
            if each.empty:
                self._drop(each)
            elif each.readable:
                self._stir(each)
            elif each.remembers:
                del self._restless[key]
                if not each.calm:
                    self._remembering[key] = each
        self._bound_removed(now)
        if self._entries and now - self._started >= LONG * self.settings.forget_seconds:
            self._entries.clear()
            self._whose.clear()
            self.changed()

    def _forget_file(self, file: OpenFile) -> None:
        self._looks.remove(file)
        del self._files[file.inode.key]
        self._closing.append(file)

    def _close_some(self) -> bool:
        """Return whether there are more to be closed."""
        end = self._clock() + CLOSE_SECONDS
        while self._closing:
            file = self._closing.popleft()
            file.close()
            self._closed.append(file.inode.key)
            if self._clock() >= end:
                break
        return bool(self._closing)

    def _drop(self, found: FollowedLog) -> None:
        key = found.source.key
        for row in (self._restless, self._remembering, self._held, self._logs):
            row.pop(key, None)
        self._telling.discard(key)
        waiting = self._ready.get(found.source.uid)
        if waiting is not None:
            waiting.pop(key, None)
            if not waiting:
                del self._ready[found.source.uid]
        past = self._past.setdefault(found.source.uid, TailCounts())
        past.add(found.contents.counts)

    def _bound_removed(self, now: float) -> None:
        """Give files up where removed ones take too much of the disk: of the pod that takes most of it, the one that
        was removed first.
        """
        removed: dict[PodUid, list[tuple[float, int, FollowedLog, OpenFile]]] = {}
        for found, file in self._files.values():
            if file.removed is not None:
                row = removed.setdefault(found.source.uid, [])
                row.append((-file.removed, file.on_disk(), found, file))
        sums = {uid: sum(each[1] for each in row) for uid, row in removed.items()}
        for row in removed.values():
            row.sort(key=itemgetter(0))
        while sum(sums.values()) > self.settings.removed_bytes:
            most = max(sums, key=sums.__getitem__)
            _, size, found, file = removed[most].pop()
            sums[most] -= size
            found.give_up(file, now)
            self._forget_file(file)

    # -- the positions file --

    def save(self) -> bool:
        """Write the positions file now, in this thread; return whether it is on disk."""
        number, entries = self._snapshot()
        self._written(number, self._positions.write(entries))
        return self._saved >= number

    def _snapshot(self) -> tuple[int, list[PositionEntry]]:
        self._begun += 1
        self._dirty = False
        self._urgent = False
        return self._begun, list(self._all_entries())

    def _all_entries(self) -> Iterator[PositionEntry]:
        for each in self._logs.values():
            yield from each.contents.entries()
        for entries in self._entries.values():
            yield from entries.values()

    def _written(self, number: int, there: bool) -> None:
        self._saved_at = self._clock()
        self.wake()
        if there:
            self._saved = number
        else:
            self._dirty = True

    def _save_if_due(self) -> None:
        due = self._clock() - self._saved_at >= self.settings.save_seconds
        if self._saving is None and ((self._dirty and due) or (self.urgent and not self._positions.problem)):
            self._saving = asyncio.create_task(self._save_aside())

    async def _save_aside(self) -> None:
        number, entries = self._snapshot()
        try:
            self._written(number, await asyncio.to_thread(self._positions.write, entries))
        finally:
            self._saving = None
            self.wake()

    async def run(self) -> None:
        """Go on until :meth:`stop`."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            seconds = self.turn()
            self._save_if_due()
            if not seconds or self._woken:
                await asyncio.sleep(0)
                continue
            self._waker = loop.create_future()
            timer = loop.call_later(seconds, self._rouse)
            try:
                await self._waker
            finally:
                timer.cancel()
                self._waker = None

    def wake(self) -> None:
        """There may be something to do: room behind the tail, or a new file."""
        self._woken = True
        self._rouse()

    def _rouse(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def stop(self) -> None:
        """End :meth:`run`, save the positions of what is settled by now, and close all files."""
        self._stopping = True
        self.wake()
        if self._saving is not None:
            await self._saving
        await asyncio.to_thread(self.save)
        self.close()

    def close(self) -> None:
        """Close all files; nothing is saved or told to takers."""
        self._stopping = True
        for file in [*self._closing, *(file for _, file in self._files.values())]:
            file.close()
        self._closing.clear()
        self._files.clear()

    # -- what it tells --

    def status(self) -> Iterator[FileStatus]:
        """Return how far each open file is read."""
        now = self._clock()
        for found, file in self._files.values():
            yield status_of(found, file, now)

    def counts(self) -> dict[PodUid, TailCounts]:
        """Return what happened since the start, per pod; a pod is forgotten once :meth:`forget_counts` says so."""
        sums: dict[PodUid, TailCounts] = {}
        for uid, past in self._past.items():
            sums.setdefault(uid, TailCounts()).add(past)
        for each in self._logs.values():
            sums.setdefault(each.source.uid, TailCounts()).add(each.contents.counts)
        return sums

    def forget_counts(self, uid: PodUid) -> None:
        """Nobody asks for the numbers of that pod's former logs any more."""
        self._past.pop(uid, None)
