"""Between a lane and its buffer: what is put on disk is settled there; what is on disk is fed back as
the sink takes it.

While it is active everything goes this way, so that order is kept. It becomes inactive when the last
record has left the disk. A disk that is full, or cannot be written, blocks: what was to be put there
stays in memory, which is bounded, and is tried again; where nothing older is on disk any more it goes
to the sink as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, Protocol

from nodeagent.logs.delivery.buffer import DiskBuffer
from nodeagent.logs.delivery.clock import DeliveryClock
from nodeagent.logs.delivery.counts import PodName, SinkCounts
from nodeagent.logs.delivery.known import Taking
from nodeagent.logs.delivery.waiting import Entry, Rest, cost, pod_of

GATHER_SECONDS: Final = 0.1
"""How long more is gathered for before it is synced."""
GATHER_BYTES: Final = 1 << 20
"""How much is written at once, at most."""
TAKE_BYTES: Final = 64 << 10
"""Compressed bytes that are read at once, at most."""
TAKE_SHARE: Final = 8
"""The same, of what may wait to be written: what is read may take ten times as much memory."""
RETRY_SECONDS: Final = 5.0
"""Between two tries to write to a disk that cannot be written, or to free room on it."""
SAVE_SECONDS: Final = 1.0
"""Between two times that it is written down how far the sink has taken the buffer."""
FULL: Final = "buffer full"
"""Reasons for which records are dropped."""
DAMAGED: Final = "buffer damaged"
log = logging.getLogger("nodeagent.logs")


class Feeding(Protocol):
    """What the lane does for its spill."""

    on_room: Callable[[], None]
    """Told when more may be offered again."""

    @property
    def trouble(self) -> str:
        """Why the sink takes nothing at the moment; empty: it does."""

    def settle(self, entry: Entry, records: int) -> None:
        """So many records of *entry* are on disk."""

    def feed(self, entry: Entry) -> None:
        """Have *entry*, which is from disk, sent."""

    def give_back(self, part: Rest) -> None:
        """Have *part*, which was not written, sent."""

    def hungry(self) -> bool:
        """Whether more may be fed."""


class Spill:
    """One lane's."""

    def __init__(
        self, sink: str, buffer: DiskBuffer, full: Literal["block", "dropOldest"], window: int, clock: DeliveryClock
    ) -> None:
        """*sink*: its name, as the log has it; *window*: bytes that may wait in memory to be written."""
        self.buffer: Final = buffer
        self.active = False
        """Whether all that is offered goes to disk first."""
        self.trouble = ""
        """Why nothing is put on disk though it should be; empty: it is."""
        self.left = ""
        """What of an earlier process could not be read; empty: nothing."""
        self.unread = ""
        """Why what is on disk is not read, or not written down as delivered; empty: it is."""
        self.fed = 0
        """Bytes in memory of what is from disk, and still there."""
        self._sink = sink
        self._full = full
        self._window = window
        self._gather = min(GATHER_BYTES, window)
        self._clock = clock
        self._parts: list[Rest] = []
        self._bytes = 0
        self._wake = asyncio.Event()
        self._feed = asyncio.Event()
        self._again_at = 0.0
        self._reclaim_at = 0.0
        self._save_at = 0.0

    def open(self, counts: SinkCounts) -> None:
        """Find what an earlier process left, and count it as offered. What cannot be read stays where it is."""
        try:
            left = self.buffer.open()
        except OSError as error:
            left = [f"{error.filename}: {error.strerror}"]
        if left:
            self.left = f"{'; '.join(left[:3])}; left there until the collector starts again"
            log.error("sink %s: its buffer cannot be read: %s", self._sink, self.left)
        for pod, records in self.buffer.pods.items():
            counts.named(pod).offered += records
        self.active = self.buffer.unread

    @property
    def waiting(self) -> int:
        """Records that wait in memory to be written."""
        return sum(len(each.records) for each in self._parts)

    @property
    def held(self) -> int:
        """Bytes in memory of what waits to be written."""
        return self._bytes

    def side(self, number: int, window: int) -> Spill:
        """Return another one of this sink, within this one's bound on disk, for pods whose records go by themselves."""
        name = f"{self._sink}, pods by themselves ({number})"
        return Spill(name, self.buffer.side(number), self._full, window, self._clock)

    def has(self, pod: PodName) -> bool:
        """Whether any record of *pod* goes this way."""
        return self.active and (self.buffer.pods[pod] > 0 or any(pod_of(each.entry) == pod for each in self._parts))

    def may_begin(self, now: float) -> bool:
        """Whether it is worth a try: what is tried in vain is asked for anew, as if the sink had not been yet."""
        room = self.buffer.is_all or self.buffer.room(2 * self._gather)
        return not self.active and now >= self._again_at and room

    def room(self) -> bool:
        """Whether more may be put."""
        return self._bytes < self._window and not self.is_blocked

    @property
    def is_blocked(self) -> bool:
        """Whether its share of the bound is used up, and what waits is not dropped for that."""
        return self._full == "block" and self.buffer.is_over_share()

    def put(self, parts: Sequence[Rest]) -> None:
        """Have *parts* written; their entries are told once they are."""
        self.active = True
        self._parts += parts
        self._bytes += sum(cost(each.records) for each in parts)
        self._wake.set()

    def look(self) -> None:
        """The sink has taken something: there may be room, and more may be fed."""
        if self.active or self.trouble or self.buffer.unread:  # else it wakes two tasks in vain, for each request
            self._feed.set()
            self._wake.set()

    async def run(self, counts: SinkCounts, lane: Feeding) -> None:
        """Write and feed until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_writing(counts, lane))
            group.create_task(self._keep_feeding(counts, lane))

    # -- to disk --

    async def _keep_writing(self, counts: SinkCounts, lane: Feeding) -> None:
        while True:
            self._wake.clear()
            if not self._parts:
                self._finish(lane)
                await self._clock.wait(self._wake, None)
                continue
            if self._bytes < self._gather:
                await self._clock.wait(asyncio.Event(), GATHER_SECONDS)
            if await self._make_room(counts):
                await self._write(lane)
            elif not self._pass_by(FULL, lane):
                await self._clock.wait(self._wake, RETRY_SECONDS)

    async def _make_room(self, counts: SinkCounts) -> bool:
        while not self._fits():
            if await self._reclaim():
                continue
            if not self.buffer.unread and self.buffer.is_all:
                break  # all that is there is under way, and may be until more is
            if self._full == "block" or not self.buffer.unread:
                return False
            for pod, records in (await self.buffer.drop_oldest()).items():
                counts.named(pod).dropped[FULL] += records
        return True

    def _fits(self) -> bool:
        to_drop = self._full == "dropOldest" and self.buffer.unread and self.buffer.is_over_share()
        return not to_drop and self.buffer.room(self._next_size())

    def _next_size(self) -> int:
        """Return the bytes on disk of what is written next, at most: compressed they are less."""
        return 2 * min(self._bytes, self._gather)

    async def _reclaim(self) -> bool:
        """Free what is settled beside what is not; return whether that was anything."""
        if self._clock.now() < self._reclaim_at:
            return False
        try:
            return await self.buffer.reclaim()
        except OSError:
            self._reclaim_at = self._clock.now() + RETRY_SECONDS
            return False

    async def _write(self, lane: Feeding) -> None:
        # Not all at once: what it is encoded to is in memory a second time.
        count = 0
        size = 0
        while count < len(self._parts) and size < self._gather:
            size += cost(self._parts[count].records)
            count += 1
        parts = self._parts[:count]
        self.buffer.coming = self._next_size()
        try:
            await self.buffer.append([each.records for each in parts])
        except OSError as error:
            if not self._pass_by(error.strerror or str(error), lane):
                self._wake.clear()
                await self._clock.wait(self._wake, RETRY_SECONDS)
            return
        finally:
            self.buffer.coming = 0
        del self._parts[:count]
        if self.trouble:
            log.info("sink %s: its buffer takes records again", self._sink)
            self.trouble = ""
        full = not self.room()
        self._bytes -= size
        for part in parts:
            lane.settle(part.entry, len(part.records))
        if full and self.room():
            lane.on_room()
        self._feed.set()

    def _pass_by(self, why: str, lane: Feeding) -> bool:
        """The disk takes nothing, as *why* says: if nothing older is there the sink gets what waits as if there were no
        buffer; return whether it does.
        """
        self._say(why)
        if self.buffer.unread:
            return False
        parts, self._parts = self._parts, []
        self._bytes = 0
        self._again_at = self._clock.now() + RETRY_SECONDS
        self.active = False
        for part in parts:
            lane.give_back(part)
        return True

    def _say(self, why: str) -> None:
        if not self.trouble:
            log.error(
                "sink %s: its buffer takes no more: %s; files are read no further until the sink takes some, or there "
                "is room (logs.buffer.bytes, and the disk)", self._sink, why,
            )  # fmt: skip
        self.trouble = why

    def _finish(self, lane: Feeding) -> None:
        """Nothing is to be written."""
        if self.buffer.unread or (self.fed and lane.trouble):  # else it would be written again as it waits in memory
            return
        if self.active:
            self.active = False
            self.unread = ""
        if lane.hungry() and self._clock.now() >= self._again_at:
            self.trouble = ""  # what could not be put on disk went to the sink

    # -- from disk --

    async def _keep_feeding(self, counts: SinkCounts, lane: Feeding) -> None:
        while True:
            self._feed.clear()
            if not self.buffer.unread or not lane.hungry():
                if not self.buffer.unread:
                    self._wake.set()
                await self._clock.wait(self._feed, None)
                continue
            await self._feed_some(counts, lane)

    async def _feed_some(self, counts: SinkCounts, lane: Feeding) -> None:
        try:
            taken, lost = await self.buffer.take(min(TAKE_BYTES, self._window // TAKE_SHARE))
        except OSError as error:
            self._say_unread(f"{error.filename or 'on disk'}: {error.strerror}")
            await self._clock.wait(asyncio.Event(), RETRY_SECONDS)
            return
        self._save()
        for pod, records in lost.items():
            counts.named(pod).dropped[DAMAGED] += records
        now = self._clock.now()
        for each in taken:
            size = cost(each.records)
            self.fed += size
            lane.feed(Entry(each.records, partial(self._done, each, size), now, size, len(each.records)))

    def _done(self, taking: Taking, size: int) -> None:
        self.fed -= size
        self.buffer.done(taking)

    def _save(self) -> None:
        """Write down how far the sink has taken the buffer: what cannot be comes again after a restart, no more."""
        if self._clock.now() < self._save_at:
            return
        self._save_at = self._clock.now() + SAVE_SECONDS
        try:
            self.buffer.save()
        except OSError as error:
            self._say_unread(f"how far it was delivered cannot be written down: {error.strerror}")
            return
        if self.unread:
            log.info("sink %s: its buffer is read and written down again", self._sink)
        self.unread = ""

    def _say_unread(self, why: str) -> None:
        if not self.unread:
            log.error(
                "sink %s: its buffer: %s; is the disk whole and not full, and may the collector's user read and write "
                "there?", self._sink, why,
            )  # fmt: skip
        self.unread = why
