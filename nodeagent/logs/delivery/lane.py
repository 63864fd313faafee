"""The way to one sink: what is offered waits, is sent in few large requests, and again where the sink
asks for it.

Theory of operation
-------------------

One task (:meth:`Lane.run`) starts requests; each request is a task of its own that ends by applying
what the sink answered. A request is started when a slot is free, the lane is not pausing, and either
nothing is under way (then at once, however little there is), or enough for a whole request waits, or
the oldest has lingered. So a slow trickle is sent as it comes, and under load requests fill up while
others are under way.

What an answer means is applied record by record: an :class:`~nodeagent.logs.delivery.waiting.Entry`
is settled when none of its records is left, whichever request took the last one. A request that is
asked for again keeps no slot while it waits. Where the sink wants order there is one slot, and nothing
overtakes a request that waits to be sent again.

What has waited for SPILL_SECONDS shows that the sink does not keep pace: where there is a buffer, all that
waits goes to disk, once nothing is under way any more, and so does what is offered from then on
(:class:`~nodeagent.logs.delivery.spill.Spill`), which feeds it back through the same queue.

A record that the sink wants again and again while it takes others (an internal error for this one
document) would hold back its file for ever: after MAX_BESIDE such answers it counts as refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from nodeagent.logs.delivery.backoff import pause
from nodeagent.logs.delivery.clock import DeliveryClock, MonotonicClock
from nodeagent.logs.delivery.counts import SinkCounts
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.spill import Spill
from nodeagent.logs.delivery.waiting import Batch, Entry, Rest, Waiting, cost, rests
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.documents import chosen
from nodeagent.logs.sinks.sink import Indivisible, LogSink, Outcome, Taken, Untaken

LINGER_SECONDS: Final = 1.0
"""How long a record waits for others at most while a request is under way."""
DRAIN_LOOK_SECONDS: Final = 0.01
"""Between two looks whether all is delivered, at the end."""
SPILL_SECONDS: Final = 5.0
"""How long the oldest record may have waited before all goes to disk."""
MAX_BESIDE: Final = 40
"""How often a record may be asked for again by a sink that takes others meanwhile: some twenty minutes."""
SMALLEST_REQUEST: Final = 16 << 10
"""Bytes that requests are made no smaller than for a sink that finds them too large."""
UNWRITABLE: Final = "dead-letter file not writable"
"""Reasons for which records are dropped."""
UNNAMED: Final = "refused by the sink without saying which"
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
    ) -> None:
        """*uniform* is as ``random.uniform``; without *spill* nothing is put on disk."""
        self.sink: Final = sink
        self.counts: Final = SinkCounts()
        self.held = 0
        """Bytes in memory of what is not settled."""
        self.trouble = ""
        """Why the sink takes nothing at the moment; empty: it does, or has not been asked."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room again after there was none."""
        self.spill: Final = spill
        self._letters = letters
        self._bounds = bounds
        self._clock = clock
        self._uniform = uniform
        self._slots = 1 if sink.ordered else bounds.in_flight
        self._request = min(bounds.request, bounds.window // 4)
        self._waiting = Waiting()
        self._again: list[Batch] = []
        self._flying: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._resume = 0.0
        self._failures = 0
        self._taken = 0
        self._spilling = False
        self._running = False

    def room(self) -> bool:
        """Whether more may be offered."""
        if self.spill and self.spill.active:
            return self.spill.room()
        return self.held < self._bounds.window

    def offer(self, records: LogRecords, receipt: Receipt) -> None:
        """Have *records* delivered; *receipt* is settled once when all of them are."""
        if not len(records):
            receipt.settle()
            return
        self.counts.of(records.origin).offered += len(records)
        entry = Entry(records, receipt.settle, self._clock.now(), cost(records), len(records))
        if self.spill and self.spill.active:
            self.held += entry.cost
            self.spill.put([Rest(entry, records)])
        else:
            self.feed(entry)

    @property
    def buffered_bytes(self) -> int:
        """Bytes on disk that wait for the sink."""
        return self.spill.buffer.bytes if self.spill else 0

    def troubles(self) -> list[str]:
        """Return, in words, what keeps records from the sink, or from the disk."""
        found = [self.trouble, self._letters.trouble]
        if self.spill:
            found.append(self.spill.trouble and f"its buffer takes no more: {self.spill.trouble}")
            found += [each and f"its buffer: {each}" for each in (self.spill.left, self.spill.unread)]
        return [each for each in found if each]

    async def run(self) -> None:
        """Deliver what is offered, until cancelled."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._dispatch())
                if self.spill:
                    group.create_task(self.spill.run(self.counts, self))
        finally:
            self._running = False

    async def close(self, seconds: float) -> None:
        """Let what waits be delivered for so many *seconds*, if the sink takes any; then close it. What is not
        settled is read again, from its file or the buffer, by whoever comes next.
        """
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
        await self.sink.close()
        if self.spill:
            await self.spill.buffer.close()
        self._letters.close()

    # -- for the spill --

    def feed(self, entry: Entry) -> None:
        """Have *entry* sent."""
        self.held += entry.cost
        self._waiting.add(entry)
        self._wake.set()

    def give_back(self, part: Rest) -> None:
        """Have *part*, which could not be put on disk, sent; what it holds in memory is counted already."""
        entry = part.entry
        if part.records is not entry.records:
            rows = len(part.records)
            entry = Entry(part.records, partial(self.settle, entry, rows), entry.since, 0, rows)
        self._waiting.add(entry)
        self._wake.set()

    def hungry(self) -> bool:
        """Whether less than a request waits."""
        return self._waiting.cost < self._request

    def settle(self, entry: Entry, records: int) -> None:
        """So many *records* of *entry* are settled."""
        room = self.room()
        entry.left -= records
        if not entry.left:
            self.held -= entry.cost
            entry.settled()
        if self.spill:
            self.spill.look()
        if not room and self.room():
            self.on_room()

    # -- what is sent when --

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock.now()
            if self._spilling or self._overdue(now) == 0.0:
                self._to_disk()
            waits = [each for each in (self._launch(now), self._overdue(now)) if each is not None]
            await self._clock.wait(self._wake, min(waits, default=None))

    def _overdue(self, now: float) -> float | None:
        """Return the seconds until what waits is put on disk; None: nothing is to be."""
        if self._spilling or self.spill is None or not self.spill.may_begin(now):
            return None
        times = [each.since for each in self._again] if self.trouble else []
        if (since := self._waiting.since) is not None:
            times.append(since)
        return max(0.0, min(times) + SPILL_SECONDS - now) if times else None

    def _to_disk(self) -> None:
        """Put all that waits on disk; not before what is under way has ended, for it is older."""
        self._spilling = bool(self._flying)
        if self._spilling:
            return
        waiting: list[Rest] = []
        for batch in self._again:
            waiting += rests(batch)
        waiting += [Rest(each, each.records) for each in self._waiting.take_all()]
        self._again.clear()
        assert self.spill
        self.spill.put(waiting)
        if not self.spill.trouble:
            log.info("sink %s does not keep pace: records go to the buffer on disk first", self.sink.name)

    def _launch(self, now: float) -> float | None:
        """Start all requests that may be started; return the seconds until another one may be, None: not
        before something happens.
        """
        while len(self._flying) < self._slots and not self._spilling:
            if now < self._resume:
                return self._resume - now
            batch = self._next(now)
            if batch is None:
                return self._soonest(now)
            task = asyncio.create_task(self._deliver(batch))
            self._flying.add(task)
            task.add_done_callback(self._landed)
        return None

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            log.error(
                "sink %s: a bug: what a request held is read again at the next start", self.sink.name, exc_info=error
            )

    def _next(self, now: float) -> Batch | None:
        if self._again:
            first = self._again[0] if self.sink.ordered else min(self._again, key=lambda each: each.due)
            if first.due <= now:
                self._again.remove(first)
                return first
            if self.sink.ordered:
                return None
        since = self._waiting.since
        if since is None:
            return None
        enough = self._waiting.cost >= self._request or now - since >= LINGER_SECONDS
        return self._waiting.take(self._request) if enough or not self._flying else None

    def _soonest(self, now: float) -> float | None:
        if self.sink.ordered and self._again:
            # Nothing overtakes the first, though others may be due before it.
            return max(0.0, self._again[0].due - now)
        times = [each.due for each in self._again]
        if (since := self._waiting.since) is not None:
            times.append(since + LINGER_SECONDS)
        return max(0.0, min(times) - now) if times else None

    async def _deliver(self, batch: Batch) -> None:
        records: Sequence[LogRecords] = [each.records for each in batch.entries]
        if batch.only is not None:
            records = chosen(records, batch.only)
        await self._apply(batch, await self._sent(records))

    async def _sent(self, records: Sequence[LogRecords]) -> Outcome:
        try:
            payload = self.sink.encode(records)
        except Exception as error:  # noqa: BLE001 - whatever a record made an encoder raise, others must not wait for it
            return Indivisible(f"it cannot be encoded: {type(error).__name__}: {error}")
        try:
            return await self.sink.send(payload)
        except Exception:
            log.exception("sink %s: a bug in what sends to it", self.sink.name)
            return Untaken("a bug of the agent, see its log")

    # -- what an answer means --

    async def _apply(self, batch: Batch, outcome: Outcome) -> None:
        match outcome:
            case Taken():
                await self._apply_taken(batch, outcome)
            case Untaken():
                self._pause(outcome.why, outcome.after)
                batch.due = self._resume
                self._send_again(batch, batch.numbers)
            case Indivisible() if len(batch.numbers) == 1:
                await self._refuse(batch, {batch.numbers[0]: outcome.why})
            case Indivisible():
                self._halve(batch, outcome)

    async def _apply_taken(self, batch: Batch, taken: Taken) -> None:
        numbers = batch.numbers
        again = [numbers[each] for each in taken.again]
        refused = {numbers[each]: why for each, why in taken.refused.items()}
        if len(again) == len(numbers):
            # What was asked for again before may be the one record that it stumbles over: others go on.
            if not batch.failures:
                self._pause(taken.why or "it is busy", None)
        else:
            self._recovered()
        if self._taken != batch.seen:
            batch.beside += 1
        self._taken += len(numbers) - len(again)
        batch.seen = self._taken
        if batch.beside >= MAX_BESIDE:
            refused |= dict.fromkeys(again, f"asked for {batch.failures} times in vain: {taken.why}")
            again = []
        if not again and not refused and not taken.unnamed:
            self._deliver_all(batch)
            return
        left = set(again)
        self._deliver_some(batch, [each for each in numbers if each not in left and each not in refused], taken.unnamed)
        if refused:
            await self._refuse(batch, refused)
        if again:
            batch.only = again
            batch.failures += 1
            batch.due = max(self._resume, self._clock.now() + pause(batch.failures, None, self._uniform))
            self._send_again(batch, again)

    def _deliver_all(self, batch: Batch) -> None:
        if batch.only is not None:
            self._deliver_some(batch, batch.only, 0)
            return
        for entry in batch.entries:
            self.counts.of(entry.records.origin).delivered += entry.left
            self.settle(entry, entry.left)

    def _deliver_some(self, batch: Batch, numbers: Sequence[int], unnamed: int) -> None:
        """Count the records of these *numbers* as delivered, but for so many *unnamed* ones, and settle them."""
        for number in numbers:
            entry, _ = batch.place(number)
            counts = self.counts.of(entry.records.origin)
            if unnamed:
                unnamed -= 1
                counts.dropped[UNNAMED] += 1
            else:
                counts.delivered += 1
            self.settle(entry, 1)

    async def _refuse(self, batch: Batch, refused: dict[int, str]) -> None:
        placed = [(*batch.place(number), why) for number, why in refused.items()]
        written = await self._letters.write([(entry.records, row, why) for entry, row, why in placed])
        for entry, _, _ in placed:
            counts = self.counts.of(entry.records.origin)
            if written:
                counts.dead_lettered += 1
            else:
                counts.dropped[UNWRITABLE] += 1
            self.settle(entry, 1)

    def _send_again(self, batch: Batch, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.counts.of(batch.place(number)[0].records.origin).retried += 1
        # A sink that wants order has one request under way: nothing that waits here is older.
        self._again.insert(0 if self.sink.ordered else len(self._again), batch)

    def _halve(self, batch: Batch, outcome: Indivisible) -> None:
        if outcome.too_large:
            size = sum(each.cost for each in batch.entries) * len(batch.numbers) // batch.starts[-1]
            smaller = max(SMALLEST_REQUEST, size // 2)
            if smaller < self._request:
                self._request = smaller
                log.warning(
                    "sink %s: %s; requests have %d bytes from now on (set requestBytes, or what the server allows)",
                    self.sink.name, outcome.why, smaller,
                )  # fmt: skip
        # Before all that waits: a sink that wants order gets the second half right after the first.
        self._again[:0] = batch.halves()

    def _pause(self, why: str, asked: float | None) -> None:
        self._failures += 1
        self._resume = max(self._resume, self._clock.now() + pause(self._failures, asked, self._uniform))
        if not self.trouble:
            log.warning("sink %s takes nothing at the moment: %s", self.sink.name, why)
        self.trouble = why

    def _recovered(self) -> None:
        if self.trouble:
            log.info("sink %s takes records again", self.sink.name)
        self.trouble = ""
        self._failures = 0
        self._resume = 0.0


def _nothing() -> None:
    pass
