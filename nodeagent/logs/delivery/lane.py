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

A record that the sink wants again and again while it takes others (an internal error for this one
document) would hold back its file for ever: after MAX_BESIDE such answers it counts as refused.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nodeagent.logs.delivery.backoff import pause
from nodeagent.logs.delivery.clock import DeliveryClock, MonotonicClock
from nodeagent.logs.delivery.counts import SinkCounts
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.waiting import Batch, Entry, Waiting, cost
from nodeagent.logs.records import LogRecords, Receipt
from nodeagent.logs.sinks.documents import chosen
from nodeagent.logs.sinks.sink import Indivisible, LogSink, Outcome, Taken, Untaken

LINGER_SECONDS: Final = 1.0
"""How long a record waits for others at most while a request is under way."""
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

    window: int = 8 << 20
    """Bytes of records in memory."""
    request: int = 2 << 20
    """About how many bytes a request has before it is compressed."""
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
    ) -> None:
        self.sink: Final = sink
        self.counts: Final = SinkCounts()
        self.held = 0
        """Bytes in memory of what is not settled."""
        self.trouble = ""
        """Why the sink takes nothing at the moment; empty: it does, or has not been asked."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room again after there was none."""
        self._letters = letters
        self._bounds = bounds
        self._clock = clock
        self._uniform = uniform
        self._slots = 1 if sink.ordered else bounds.in_flight
        self._request = bounds.request
        self._waiting = Waiting()
        self._again: list[Batch] = []
        self._flying: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._resume = 0.0
        self._failures = 0
        self._taken = 0

    def room(self) -> bool:
        """Whether more may be offered."""
        return self.held < self._bounds.window

    def offer(self, records: LogRecords, receipt: Receipt) -> None:
        """Have *records* delivered; *receipt* is settled once when all of them are."""
        if not len(records):
            receipt.settle()
            return
        self.counts.of(records.origin).offered += len(records)
        self._wait(Entry(records, receipt.settle, self._clock.now(), cost(records), len(records)))

    async def run(self) -> None:
        """Deliver what is offered, until cancelled."""
        while True:
            self._wake.clear()
            await self._clock.wait(self._wake, self._launch(self._clock.now()))

    async def close(self, seconds: float) -> None:
        """Let requests under way end for so many *seconds*, and close the sink. What is not settled then is read
        from its file again by whoever comes next.
        """
        if self._flying:
            await asyncio.wait(self._flying, timeout=seconds)
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        await self.sink.close()
        self._letters.close()

    # -- what is sent when --

    def _wait(self, entry: Entry) -> None:
        self.held += entry.cost
        self._waiting.add(entry)
        self._wake.set()

    def _launch(self, now: float) -> float | None:
        """Start all requests that may be started; return the seconds until another one may be, None: not
        before something happens.
        """
        while len(self._flying) < self._slots:
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
        times = [each.due for each in self._again]
        since = self._waiting.since
        if since is not None and not (self.sink.ordered and self._again):
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
            self._settle_all(batch)
            return
        left = set(again)
        self._settle(batch, [each for each in numbers if each not in left and each not in refused], taken.unnamed)
        if refused:
            await self._refuse(batch, refused)
        if again:
            batch.only = again
            batch.failures += 1
            batch.due = max(self._resume, self._clock.now() + pause(batch.failures, None, self._uniform))
            self._send_again(batch, again)

    def _settle_all(self, batch: Batch) -> None:
        if batch.only is not None:
            self._settle(batch, batch.only, 0)
            return
        for entry in batch.entries:
            self.counts.of(entry.records.origin).delivered += entry.left
            self._leave(entry, entry.left)

    def _settle(self, batch: Batch, numbers: Sequence[int], unnamed: int) -> None:
        """Count the records of these *numbers* as delivered, but for so many *unnamed* ones, and settle them."""
        for number in numbers:
            entry, _ = batch.place(number)
            counts = self.counts.of(entry.records.origin)
            if unnamed:
                unnamed -= 1
                counts.dropped[UNNAMED] += 1
            else:
                counts.delivered += 1
            self._leave(entry, 1)

    async def _refuse(self, batch: Batch, refused: dict[int, str]) -> None:
        placed = [(*batch.place(number), why) for number, why in refused.items()]
        written = await self._letters.write([(entry.records, row, why) for entry, row, why in placed])
        for entry, _, _ in placed:
            counts = self.counts.of(entry.records.origin)
            if written:
                counts.dead_lettered += 1
            else:
                counts.dropped[UNWRITABLE] += 1
            self._leave(entry, 1)

    def _leave(self, entry: Entry, records: int) -> None:
        entry.left -= records
        if not entry.left:
            full = not self.room()
            self.held -= entry.cost
            entry.settled()
            if full and self.room():
                self.on_room()

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
