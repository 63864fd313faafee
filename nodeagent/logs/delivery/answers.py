"""What a sink's answer means, record by record: an :class:`~nodeagent.logs.delivery.waiting.Entry` is settled
when none of its records is left, whichever request took the last one.

A record that the sink wants again and again while it takes others (an internal error for this one
document) would hold back its file for ever: after MAX_BESIDE such answers it counts as refused. Where such
records fill half of the memory that there is, as those of an index that is blocked do, they would hold back
everybody's: then after CROWDED_BESIDE, and what more of their pods is asked for again at once, until one of
such a pod is taken. While nothing new can be sent for them, the sink's last word on others counts.

A request that is refused as a whole says little of its records: a proxy in between refuses all in the same
way. One record alone is refused for its own sake only if the sink took others since it began to be doubted.

Nor does it say much that the sink takes nothing of a request where one pod's records may be why, as a limit of Loki's
on one stream is: after PATIENCE such answers the pods are asked for in halves, and one alone of which it takes nothing
goes by itself from then on (``side_lanes.py``). There it is waited for; where no disk takes it and its like fill the
memory, it is given up as above.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from nodeagent.logs.delivery.counts import PodName, SinkCounts
from nodeagent.logs.delivery.dead_letters import DeadLetters
from nodeagent.logs.delivery.pace import SinkPace
from nodeagent.logs.delivery.waiting import Batch, Entry, pod_of
from nodeagent.logs.sinks.sink import Indivisible, LogSink, Outcome, Taken, Untaken

MAX_BESIDE: Final = 40
"""How often a record may be asked for again by a sink that takes others meanwhile: some twenty minutes."""
CROWDED_BESIDE: Final = 10
"""The same, of what fills the memory: some three minutes."""
SMALLEST_REQUEST: Final = 16 << 10
"""Bytes that requests are made no smaller than for a sink that finds them too large."""
DOUBTS: Final = 10
"""How often one record alone is sent again to a sink that wants order, where no other may show whether it takes any."""
DOUBT_SECONDS: Final = 1.0
"""How long others go before a record that was refused as a whole request."""
PATIENCE: Final = 3
"""How often the sink may take nothing of a request before it is looked for the pod that is why."""
UNWRITABLE: Final = "dead-letter file not writable"
"""Reasons for which records are dropped."""
MAX_IN_A_ROW: Final = 8
"""How often the sink may take nothing of what is new before it counts as one that takes nothing at all."""
MAX_GIVEN_UP: Final = 2000
"""Pods of which is known that what they are asked for again is in vain."""
UNNAMED: Final = "refused by the sink without saying which"
log = logging.getLogger("nodeagent.logs")


def _never() -> bool:
    return False


class Answers:
    """One sink's, and what it wants again."""

    def __init__(
        self,
        sink: LogSink,
        counts: SinkCounts,
        letters: DeadLetters,
        pace: SinkPace,
        settle: Callable[[Entry, int], None],
        full: Callable[[], bool],
        request: int,
        window: int,
        limited: Callable[[Batch, Untaken], None] | None = None,
        in_vain: Callable[[], bool] = _never,
    ) -> None:
        """*settle* is told how many records of an entry are settled; *full* says whether what is sent leaves no
        memory for more; *request*: bytes of one, at first; *window*: bytes of memory. *limited* is told of one pod's
        records of which the sink takes nothing, while it may take others'; without it they are waited for here, unless
        that is *in_vain*.
        """
        self.again: list[Batch] = []
        """What comes again, each when it is due; in order where the sink wants that."""
        self.request = request
        """About how many bytes a request may have."""
        self.others_first = False
        """Whether what waits goes before what comes again, where the sink's order allows: a record was refused alone,
        and only what the sink takes tells that this is its own fault.
        """
        self.selective = False
        """Whether the sink's last answer was for each record."""
        self._sink = sink
        self._counts = counts
        self._letters = letters
        self._pace = pace
        self._settle = settle
        self._full = full
        self._window = window
        self._limited = limited
        self._is_in_vain = in_vain
        self._taken = 0
        self._asked = 0
        self._in_a_row = 0
        self._given_up: set[PodName] = set()

    def held(self, *others: Batch) -> int:
        """Return the bytes in memory of what comes again, and of *others*."""
        return sum(each.cost for each in (*self.again, *others))

    async def apply(self, batch: Batch, outcome: Outcome) -> None:
        """*outcome* is what the sink said of *batch*."""
        if not batch.failures:
            self._asked += 1
        self.selective = isinstance(outcome, Taken)
        match outcome:
            case Taken():
                await self._apply_taken(batch, outcome)
            case Untaken(partly=True) if self._limited and batch.untaken + 1 >= PATIENCE:
                self._apply_partly(batch, outcome, self._limited)
            case Untaken(partly=True) if not self._limited and batch.untaken >= CROWDED_BESIDE and self._is_in_vain():
                why = f"asked for {batch.untaken + 1} times in vain: {outcome.why}"
                await self._refuse(batch, dict.fromkeys(batch.numbers, why))
            case Untaken():
                batch.untaken += 1
                # What it asks for one stream is no other's.
                self._pace.pause(outcome.why, None if outcome.partly and self._limited else outcome.after)
                batch.under_way = outcome.under_way
                batch.due = self._pace.resume
                self._send_again(batch, batch.numbers)
            case Indivisible() if len(batch.numbers) > 1:
                self._halve(batch, outcome)
            case Indivisible():
                await self._apply_refused(batch, outcome)

    def take_of(self, pod: PodName) -> list[Batch]:
        """Return what of *pod* was to come again, in order."""
        taken: list[Batch] = []
        others: list[Batch] = []
        for batch in self.again:
            if pod not in batch.pods():
                others.append(batch)
                continue
            its, rest = batch.of(pod)
            taken.append(its)
            if rest.numbers:
                others.append(rest)
        self.again[:] = others
        return taken

    def _apply_partly(self, batch: Batch, outcome: Untaken, limited: Callable[[Batch, Untaken], None]) -> None:
        """It is looked for the pod that is why the sink takes nothing of *batch*."""
        if len(batch.pods()) > 1:
            batch.untaken = PATIENCE
            self.again[:0] = batch.halves()
            return
        for number in batch.numbers:
            self._counts.of(batch.place(number)[0].records.origin).retried += 1
        self._pace.go_on()
        limited(batch, outcome)

    async def _apply_taken(self, batch: Batch, taken: Taken) -> None:
        numbers = batch.numbers
        again = [numbers[each] for each in taken.again]
        refused = {numbers[each]: why for each, why in taken.refused.items()}
        answered = self._taken + len(numbers) - len(again)
        if len(again) == len(numbers):
            # What was asked for again before may be the one record that it stumbles over: others go on.
            if not batch.failures:
                self._pace.pause(taken.why or "it is busy", None)
        else:
            self._pace.recovered()
        if answered > self._taken:
            self._in_a_row = 0
        elif not batch.failures:
            self._in_a_row += 1
        if self._takes_others(batch, answered):
            batch.beside += 1
        self._taken = answered
        batch.seen = self._taken
        batch.asked = self._asked
        in_vain = self._in_vain(batch, again) if again else {}
        if in_vain:
            refused |= dict.fromkeys(in_vain, f"asked for {batch.failures + 1} times in vain: {taken.why}")
            again = [each for each in again if each not in in_vain]
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

    def _takes_others(self, batch: Batch, answered: int) -> bool:
        """Say whether the sink takes other records than those of *batch* that it asks for again."""
        if answered != (batch.seen if batch.failures else self._taken):
            return True
        # Nothing new has been sent since, for want of memory: what it showed before counts.
        return batch.beside > 0 and batch.asked == self._asked and self._full() and self._in_a_row < MAX_IN_A_ROW

    def _in_vain(self, batch: Batch, again: Sequence[int]) -> set[int]:
        """Return those of *again* that are not sent again."""
        if batch.beside >= MAX_BESIDE:
            return set(again)
        crowded = 2 * self.held(batch) >= self._window
        if batch.beside >= CROWDED_BESIDE and crowded:
            if len(self._given_up) >= MAX_GIVEN_UP:
                self._given_up.clear()
            self._given_up |= {pod_of(batch.place(each)[0]) for each in again}
            return set(again)
        if not self._given_up or self._in_a_row >= MAX_IN_A_ROW:
            return set()
        return {each for each in again if pod_of(batch.place(each)[0]) in self._given_up}

    async def _apply_refused(self, batch: Batch, outcome: Indivisible) -> None:
        """The one record of *batch* is refused as a whole request."""
        if batch.doubted is None:
            batch.doubted = self._taken
        doubted_enough = self._sink.ordered and batch.failures >= DOUBTS
        if outcome.too_large or outcome.unsendable or doubted_enough or self._taken > batch.doubted:
            await self._refuse(batch, {batch.numbers[0]: outcome.why})
            return
        self._pace.pause(outcome.why, None)
        # What the sink may take goes first: then this is known to be at fault itself.
        self.others_first = True
        batch.due = self._pace.resume + DOUBT_SECONDS
        batch.failures += 1
        self._send_again(batch, batch.numbers)
        if self._sink.ordered:
            pods = batch.pods()
            self.again.sort(key=lambda each: not pods.isdisjoint(each.pods()))

    def _deliver_all(self, batch: Batch) -> None:
        if batch.only is not None:
            self._deliver_some(batch, batch.only, 0)
            return
        for entry in batch.entries:
            self._counts.of(entry.records.origin).delivered += entry.left
            self._given_up.discard(pod_of(entry))
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
                self._given_up.discard(pod_of(entry))
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
        # A sink that wants order has one request under way: nothing of its pods that waits here is older.
        self.again.insert(0 if self._sink.ordered else len(self.again), batch)

    def _halve(self, batch: Batch, outcome: Indivisible) -> None:
        if outcome.too_large:
            size = batch.cost * len(batch.numbers) // batch.starts[-1]
            smaller = max(SMALLEST_REQUEST, size // 2)
            if smaller < self.request:
                self.request = smaller
                log.warning(
                    "sink %s: %s; requests have %d bytes from now on (set requestBytes, or what the server allows)",
                    self._sink.name, outcome.why, smaller,
                )  # fmt: skip
        if batch.doubted is None:
            batch.doubted = self._taken
        # Before all that waits: a sink that wants order gets the second half right after the first.
        self.again[:0] = batch.halves()
