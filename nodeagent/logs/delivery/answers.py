"""What a sink's answer means, record by record: an :class:`~nodeagent.logs.delivery.waiting.Entry` is settled
when none of its records is left, whichever request took the last one.

A record that the sink wants again and again while it takes others (an internal error for this one
document) would hold back its file for ever: after MAX_BESIDE such answers it counts as refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from nodeagent.logs.delivery.counts import SinkCounts
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.pace import SinkPace
from nodeagent.logs.delivery.waiting import Batch, Entry
from nodeagent.logs.sinks.sink import Indivisible, LogSink, Outcome, Taken, Untaken

MAX_BESIDE: Final = 40
"""How often a record may be asked for again by a sink that takes others meanwhile: some twenty minutes."""
SMALLEST_REQUEST: Final = 16 << 10
"""Bytes that requests are made no smaller than for a sink that finds them too large."""
UNWRITABLE: Final = "dead-letter file not writable"
"""Reasons for which records are dropped."""
UNNAMED: Final = "refused by the sink without saying which"
log = logging.getLogger("nodeagent.logs")


class Answers:
    """One sink's, and what it wants again."""

    def __init__(
        self,
        sink: LogSink,
        counts: SinkCounts,
        letters: DeadLetters,
        pace: SinkPace,
        settle: Callable[[Entry, int], None],
        request: int,
    ) -> None:
        """*settle* is told how many records of an entry are settled; *request*: bytes of one, at first."""
        self.again: list[Batch] = []
        """What comes again, each when it is due; in order where the sink wants that."""
        self.request = request
        """About how many bytes a request may have."""
        self._sink = sink
        self._counts = counts
        self._letters = letters
        self._pace = pace
        self._settle = settle
        self._taken = 0

    async def apply(self, batch: Batch, outcome: Outcome) -> None:
        """*outcome* is what the sink said of *batch*."""
        match outcome:
            case Taken():
                await self._apply_taken(batch, outcome)
            case Untaken():
                self._pace.pause(outcome.why, outcome.after)
                batch.due = self._pace.resume
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
                self._pace.pause(taken.why or "it is busy", None)
        else:
            self._pace.recovered()
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
            batch.due = max(self._pace.resume, self._pace.after(batch.failures))
            self._send_again(batch, again)

    def _deliver_all(self, batch: Batch) -> None:
        if batch.only is not None:
            self._deliver_some(batch, batch.only, 0)
            return
        for entry in batch.entries:
            self._counts.of(entry.records.origin).delivered += entry.left
            self._settle(entry, entry.left)

    def _deliver_some(self, batch: Batch, numbers: Sequence[int], unnamed: int) -> None:
        """Count the records of these *numbers* as delivered, but for so many *unnamed* ones, and settle them."""
        for number in numbers:
            entry, _ = batch.place(number)
            counts = self._counts.of(entry.records.origin)
            if unnamed:
                unnamed -= 1
                counts.dropped[UNNAMED] += 1
            else:
                counts.delivered += 1
            self._settle(entry, 1)

    async def _refuse(self, batch: Batch, refused: dict[int, str]) -> None:
        placed = [(*batch.place(number), why) for number, why in refused.items()]
        written = await self._letters.write([(entry.records, row, why) for entry, row, why in placed])
        for entry, _, _ in placed:
            counts = self._counts.of(entry.records.origin)
            if written:
                counts.dead_lettered += 1
            else:
                counts.dropped[UNWRITABLE] += 1
            self._settle(entry, 1)

    def _send_again(self, batch: Batch, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._counts.of(batch.place(number)[0].records.origin).retried += 1
        # A sink that wants order has one request under way: nothing that waits here is older.
        self.again.insert(0 if self._sink.ordered else len(self.again), batch)

    def _halve(self, batch: Batch, outcome: Indivisible) -> None:
        if outcome.too_large:
            size = sum(each.cost for each in batch.entries) * len(batch.numbers) // batch.starts[-1]
            smaller = max(SMALLEST_REQUEST, size // 2)
            if smaller < self.request:
                self.request = smaller
                log.warning(
                    "sink %s: %s; requests have %d bytes from now on (set requestBytes, or what the server allows)",
                    self._sink.name, outcome.why, smaller,
                )  # fmt: skip
        # Before all that waits: a sink that wants order gets the second half right after the first.
        self.again[:0] = batch.halves()
