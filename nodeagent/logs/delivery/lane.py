"""The way to one sink: what is offered waits, is sent in few large requests, and again where the sink
asks for it.

Theory of operation
-------------------

One task (:meth:`Lane.run`) starts requests; each request is a task of its own that ends by applying
what the sink answered. A request is started when a slot is free, the lane is not pausing, and either
nothing is under way (then at once, however little there is), or enough for a whole request waits, or
the oldest has lingered. So a slow trickle is sent as it comes, and under load requests fill up while
others are under way.

What an answer means is applied record by record (``answers.py``); what comes again waits for its time
there, and keeps no slot meanwhile. Where the sink wants order there is one slot, and nothing of a pod
overtakes what of it waits to be sent again. A sink that took nothing is left alone for a while (``pace.py``).

What has waited for SPILL_SECONDS shows that the sink does not keep pace: where there is a buffer, all that
waits goes to disk, once nothing is under way any more, and so does what is offered from then on
(:class:`~nodeagent.logs.delivery.spill.Spill`), which feeds it back through the same queue.

A pod that the sink limits by itself has a lane of its own beside this one (``side_lanes.py``): whatever of it is here,
or comes here from disk, goes on there, behind what is there already.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.logs.delivery.answers import Answers
from nodeagent.logs.delivery.clock import DeliveryClock, MonotonicClock
from nodeagent.logs.delivery.counts import PodName, SinkCounts
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.pace import SinkPace
from nodeagent.logs.delivery.side_lanes import SideLanes
from nodeagent.logs.delivery.spill import FULL, Spill
from nodeagent.logs.delivery.waiting import Batch, Entry, Rest, Waiting, cost, cut, pod_of, rests
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.documents import chosen
from nodeagent.logs.sinks.sink import Indivisible, LogSink, Outcome, Untaken

LINGER_SECONDS: Final = 1.0
"""How long a record waits for others at most while a request is under way."""
DRAIN_LOOK_SECONDS: Final = 0.01
"""Between two looks whether all is delivered, at the end."""
SPILL_SECONDS: Final = 5.0
"""How long the oldest record may have waited before all goes to disk."""
SIDE_SHARE: Final = 32
"""A side lane's window is smaller by that. Together they may hold one window more of what is on no disk."""
log = logging.getLogger("nodeagent.logs")


@dataclass(frozen=True, slots=True)
class LaneBounds:
    """How much a lane may hold and send."""

    window: int = 4 << 20
    """Bytes of records in memory."""
    request: int = 1 << 20
    """About how many bytes a request has before it is compressed; a quarter of the window at most."""
    in_flight: int = 2
    """Requests under way at once."""


class Lane:
    """Everything between the files and one sink."""

    def __init__(
        self,
        sink: LogSink,
        letters: DeadLetters,
        bounds: LaneBounds = LaneBounds(),
        clock: DeliveryClock = MonotonicClock(),  # noqa: B008 (has no state)
        uniform: Callable[[float, float], float] = random.uniform,
        spill: Spill | None = None,
        beside: Lane | None = None,
    ) -> None:
        """*uniform* is as ``random.uniform``; without *spill* nothing is put on disk. It is a side lane *beside*
        the one whose sink, counts and dead letters it uses.
        """
        self.sink: Final = sink
        self.counts: Final[SinkCounts] = beside.counts if beside else SinkCounts()
        self.held = 0
        """Bytes in memory of what is not settled."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room again after there was none."""
        self.spill: Final = spill
        self._letters = letters
        self._bounds = bounds
        self._clock = clock
        self._uniform = uniform
        self._beside = beside
        self._sides: SideLanes[Lane] = SideLanes(sink.name, self.counts, self._make_side)
        self._pace = SinkPace(sink.name, clock, uniform, told=beside is None)
        self._answers = Answers(
            sink, self.counts, letters, self._pace, self.settle, self._full,
            min(bounds.request, bounds.window // 4), bounds.window,
            limited=None if beside else self._go_by_itself, in_vain=self._is_in_vain,
        )  # fmt: skip
        self._slots = 1 if sink.ordered else bounds.in_flight
        self._waiting = Waiting()
        self._flying: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._spilling = False
        self._running = False

    def open(self) -> Collection[PodName]:
        """Find what an earlier process left on disk, before anything is offered; return whose it is."""
        if self.spill is None:
            return ()
        self.spill.open(self.counts)
        for number in self.spill.buffer.sides():
            self._sides.open(number)
        return self.spill.buffer.pods

    def room(self, pod: PodName | None = None) -> bool:
        """Whether more may be offered, of *pod* if that has a lane of its own."""
        if pod is not None and (side := self._sides.of(pod)) is not None:
            return side.room() and not self.is_crowded() and (not self._has(pod) or self.room())
        if self.spill and self.spill.active:
            return self.spill.room()
        return self._admits()

    def offer(self, records: LogRecords, receipt: Receipt) -> None:
        """Have *records* delivered; *receipt* is settled once when all of them are."""
        if not len(records):
            receipt.settle()
            return
        self.counts.of(records.origin).offered += len(records)
        entry = Entry(records, receipt.settle, self._clock.now(), cost(records), len(records))
        side = self._sides.of(pod_of(entry))
        lane = self if side is None or self._has(pod_of(entry)) else side
        lane.put(entry)

    def pause(self, limit: Untaken) -> None:
        """Ask the sink again no sooner than it asks for."""
        self._pace.pause(limit.why, limit.after)

    def put(self, entry: Entry) -> None:
        """Have *entry*, which is counted, delivered behind what is here of its pod."""
        if self.spill and self._is_disk_first(self.spill):
            self.held += entry.cost
            self.spill.put([Rest(each, each.records) for each in self._cut(entry)])
        else:
            self.feed(entry)

    def _is_disk_first(self, spill: Spill) -> bool:
        """Whether what comes is put on disk: all is, or the sink takes nothing of a side lane, which holds nothing."""
        limited = self._beside is not None and bool(self.trouble) and not self.held
        return spill.active or (limited and spill.may_begin(self._clock.now()))

    def _has(self, pod: PodName) -> bool:
        """Whether anything of *pod*, which has a side lane, is on disk here, or goes there."""
        return self.spill is not None and self.spill.has(pod)

    @property
    def trouble(self) -> str:
        """Why the sink takes nothing at the moment; empty: it does, or has not been asked."""
        return self._pace.trouble

    @property
    def buffered_bytes(self) -> int:
        """Bytes on disk that wait for the sink."""
        return self.spill.buffer.bytes_of_all if self.spill else 0

    @property
    def held_of_all(self) -> int:
        """Bytes in memory of what is not settled, those of side lanes too."""
        return self.held + self._sides.held

    @property
    def unsaved(self) -> int:
        """Bytes in memory of what is not on disk besides."""
        return self.held - (self.spill.fed if self.spill else 0)

    @property
    def refused_at(self) -> float:
        """When the sink last took nothing."""
        return self._pace.paused_at

    def troubles(self) -> list[str]:
        """Return, in words, what keeps records from the sink, or from the disk."""
        found = [self.trouble, self._letters.trouble]
        if not self.trouble and self._full() and self._answers.held() >= self._bounds.window:
            found.append("records that it asks for again fill the memory, and others wait for them")
        if self.spill:
            found.append(self.spill.trouble and f"its buffer takes no more: {self.spill.trouble}")
            if self.spill.is_blocked:
                found.append("its share of the buffer is full, and its files are read no further")
            found += [each and f"its buffer: {each}" for each in (self.spill.left, self.spill.unread)]
        return [each for each in found if each] + self._sides.troubles()

    async def run(self) -> None:
        """Deliver what is offered, until cancelled."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._dispatch(group))
                if self.spill:
                    group.create_task(self.spill.run(self.counts, self))
        finally:
            self._running = False

    async def close(self, seconds: float) -> None:
        """Let what waits be delivered for so many *seconds*, if the sink takes any; then close it. What is not
        settled is read again, from its file or the buffer, by whoever comes next.
        """
        await asyncio.gather(self._drain(seconds), *(side.close(seconds) for side in self._sides.lanes))
        if self.spill:
            await self.spill.buffer.close()
        if self._beside is None:
            await self.sink.close()
            self._letters.close()

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._flying or (self._running and self._waiting and not self.trouble):
                    await asyncio.sleep(DRAIN_LOOK_SECONDS)
        except TimeoutError:
            log.warning("sink %s: what it was not given yet comes again at the next start", self.sink.name)
        self._slots = 0
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)

    # -- for the spill --

    def feed(self, entry: Entry) -> None:
        """Have *entry* sent."""
        self.held += entry.cost
        self._enter(entry)

    def give_back(self, part: Rest) -> None:
        """Have *part*, which could not be put on disk, sent; what it holds in memory is counted already."""
        entry = part.entry
        if part.records is not entry.records:
            rows = len(part.records)
            share = min(cost(part.records), entry.cost)
            entry.cost -= share
            entry = Entry(part.records, partial(self.settle, entry, rows), entry.since, share, rows)
        self._enter(entry)

    def _enter(self, entry: Entry) -> None:
        """Have *entry*, which is counted as held, wait to be sent: where its pod's others do."""
        side = self._sides.of(pod_of(entry))
        if side is not None:
            self.held -= entry.cost
            side.put(entry)
            return
        for each in self._cut(entry):
            self._waiting.add(each)
        self._wake.set()

    def _cut(self, entry: Entry) -> list[Entry]:
        """Return *entry* in parts of which none is larger than a request."""
        return cut(entry, self._answers.request, self.settle)

    def hungry(self) -> bool:
        """Whether less than a request waits, and memory has room for more."""
        return self._waiting.cost < self._answers.request and self._admits() and not self.is_crowded()

    def settle(self, entry: Entry, records: int) -> None:
        """So many *records* of *entry* are settled."""
        entry.left -= records
        if entry.left:
            return
        room = self.room()
        self.held -= entry.cost
        entry.settled()
        self.look()
        if not room and self.room():
            self.on_room()

    def look(self) -> None:
        """Something is settled, here or in a side lane: there may be room for what is on disk."""
        if self.spill:
            self.spill.look()
        if self._beside:
            self._beside.look()

    def is_crowded(self) -> bool:
        """Whether side lanes hold all of the memory that they may."""
        return self._sides.unsaved >= self._bounds.window

    def _full(self) -> bool:
        """Whether what is to be sent, or sent again, fills the memory."""
        beyond = max(0, self._sides.unsaved - self._bounds.window)
        return self.held - self._to_be_written() + beyond >= self._bounds.window

    def _admits(self) -> bool:
        """Whether more may come into memory: while nothing but what the sink asks for again fills it, one piece
        more, up to as much again, by which it is seen whether the sink takes others.
        """
        if not self._full():
            return True
        if self._waiting or self._flying:
            return False
        if not self._answers.again:
            return True
        probing = self._answers.selective and not self.sink.ordered
        return probing and self.held - self._to_be_written() < 2 * self._bounds.window

    def _to_be_written(self) -> int:
        return self.spill.held if self.spill else 0

    # -- what is sent when --

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        sides = 0
        while True:
            self._wake.clear()
            for side in self._sides.lanes[sides:]:
                group.create_task(side.run())
                sides += 1
            now = self._clock.now()
            if self._spilling or self._overdue(now) == 0.0:
                self._to_disk()
            waits = [each for each in (self._launch(now), self._overdue(now)) if each is not None]
            await self._clock.wait(self._wake, min(waits, default=None))

    def _overdue(self, now: float) -> float | None:
        """Return the seconds until what waits is put on disk; None: nothing is to be."""
        if self._spilling or self.spill is None or not self.spill.may_begin(now):
            return None
        times = [each.since for each in self._answers.again if not self._stays(each)] if self.trouble else []
        if (since := self._waiting.since()) is not None:
            times.append(since)
        return max(0.0, min(times) + SPILL_SECONDS - now) if times else None

    def _to_disk(self) -> None:
        """Put all that waits on disk; not before what is under way has ended, for it is older."""
        self._spilling = bool(self._flying)
        if self._spilling:
            return
        waiting: list[Rest] = []
        for batch in self._answers.again:
            waiting += [] if self._stays(batch) else rests(batch)
        waiting += [Rest(each, each.records) for each in self._waiting.take_all()]
        self._answers.again[:] = filter(self._stays, self._answers.again)
        assert self.spill
        self.spill.put(waiting)
        if not self.spill.trouble and self._beside is None:
            log.info("sink %s does not keep pace: records go to the buffer on disk first", self.sink.name)

    def _stays(self, batch: Batch) -> bool:
        """Whether *batch* never goes to disk: that the sink takes others is known of it, and would be forgotten; or it
        is still written, and would come from disk in other pieces, behind itself.
        """
        return batch.under_way or (batch.beside > 0 and not self.sink.ordered)

    def _launch(self, now: float) -> float | None:
        """Start all requests that may be started; return the seconds until another one may be, None: not
        before something happens.
        """
        while len(self._flying) < self._slots and not self._spilling:
            if now < self._pace.resume:
                return self._pace.resume - now
            batch = self._next(now)
            if batch is None:
                return self._soonest(now)
            self.look()
            task = asyncio.create_task(self._deliver(batch))
            self._flying.add(task)
            task.add_done_callback(self._landed)
        return None

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._wake.set()
        self.look()
        if self._full() and self.room():
            self.on_room()
        if not task.cancelled() and (error := task.exception()):
            log.error(
                "sink %s: a bug: what a request held is read again at the next start", self.sink.name, exc_info=error
            )

    def _next(self, now: float) -> Batch | None:
        if self._answers.others_first and (others := self._others()):
            self._answers.others_first = False
            return others
        if self._answers.again:
            # Where the sink wants order nothing overtakes the first one, though others may be due before it.
            head = self._answers.again[:1] if self.sink.ordered else self._answers.again
            due = [each for each in head if each.due <= now]
            if due:
                first = min(due, key=lambda each: each.due)
                self._answers.again.remove(first)
                return first
            if self.sink.ordered:
                return None
        since = self._waiting.since()
        if since is None:
            return None
        enough = self._waiting.cost >= self._answers.request or now - since >= LINGER_SECONDS
        return self._waiting.take(self._answers.request) if enough or not self._flying else None

    def _others(self) -> Batch | None:
        """Take of what waits what may go before that which comes again."""
        older = [each.pods() for each in self._answers.again] if self.sink.ordered else []
        return self._waiting.take_others(self._answers.request, set().union(*older))

    def _soonest(self, now: float) -> float | None:
        if self.sink.ordered and self._answers.again:
            return max(0.0, self._answers.again[0].due - now)
        times = [each.due for each in self._answers.again]
        if (since := self._waiting.since()) is not None:
            times.append(since + LINGER_SECONDS)
        return max(0.0, min(times) - now) if times else None

    # -- pods that go by themselves --

    def _go_by_itself(self, batch: Batch, limit: Untaken) -> None:
        """The sink takes nothing of *batch*, which is one pod's, but may take others': as that *limit* says."""
        pod = batch.pod
        parts = rests(batch)
        for again in self._answers.take_of(pod):
            parts += rests(again)
        parts += [Rest(each, each.records) for each in self._waiting.take_of(pod)]
        self._sides.take(pod, limit.why, self._clock.now()).pause(limit)
        for part in parts:
            self.give_back(part)

    def _make_side(self, number: int) -> Lane:
        bounds = LaneBounds(self._bounds.window // SIDE_SHARE, self._answers.request, 1)
        spill = self.spill.side(number, bounds.window // 4) if self.spill else None
        side = Lane(self.sink, self._letters, bounds, self._clock, self._uniform, spill, self)
        side.on_room = self._side_has_room
        self._wake.set()
        return side

    def _side_has_room(self) -> None:
        self.on_room()

    def _is_in_vain(self) -> bool:
        """Whether side lanes, of which this is one, fill their memory, no disk takes it, and the sink takes others."""
        if self._beside is None or (self.spill and (self.spill.active or self.spill.trouble in ("", FULL))):
            return False
        return self._beside.is_crowded() and self._beside._pace.took_at > self.refused_at

    async def _deliver(self, batch: Batch) -> None:
        records: Sequence[LogRecords] = [each.records for each in batch.entries]
        if batch.only is not None:
            records = chosen(records, batch.only)
        await self._answers.apply(batch, await self._sent(records))

    async def _sent(self, records: Sequence[LogRecords]) -> Outcome:
        try:
            payload = self.sink.encode(records)
        except Exception as error:  # noqa: BLE001 - whatever a record made an encoder raise, others must not wait for it
            return Indivisible(f"it cannot be encoded: {type(error).__name__}: {error}", unsendable=True)
        try:
            return await self.sink.send(payload)
        except Exception:
            log.exception("sink %s: a bug in what sends to it", self.sink.name)
            return Untaken("a bug of the agent, see its log")


def _nothing() -> None:
    pass
