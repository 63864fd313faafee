"""What waits in memory to be sent: a queue a pod, served in turn; and requests that come again."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, compress
from operator import not_

from nodeagent.logs.delivery.counts import PodName
from nodeagent.logs.records import LogRecords
from nodeagent.logs.sinks.documents import between, rows_of

PER_RECORD = 200
"""Bytes in memory of a record besides its texts."""


def cost(records: LogRecords) -> int:
    """Return about how many bytes *records* take in memory; also about what they are in a request."""
    return sum(map(len, records.objects)) + len(records) * (PER_RECORD + len(records.origin.members))


@dataclass(slots=True)
class Entry:
    """Records that were offered together; told when the sink has settled all of them."""

    records: LogRecords
    settled: Callable[[], None]
    since: float
    """When they were offered."""
    cost: int
    left: int
    """How many of them are not settled yet."""


def cut(entry: Entry, most: int, settle: Callable[[Entry, int], None]) -> list[Entry]:
    """Return *entry* in parts that cost at most so many bytes each, unless it is one record; *settle* is told how many
    of its records are settled. What it cost, and what it has in memory, is theirs.

    Lines of a byte make a hundred times of what was read: what goes along with each of them makes up the most of it.
    """
    if entry.cost <= most or len(entry.records) <= 1:
        return [entry]
    records = entry.records
    each = PER_RECORD + len(records.origin.members)
    sizes = list(accumulate((len(found) + each for found in records.objects), initial=0))
    parts: list[Entry] = []
    begin = 0
    while begin < len(records):
        end = max(begin + 1, bisect_right(sizes, sizes[begin] + most) - 1)
        settled = partial(settle, entry, end - begin)
        parts.append(Entry(between(records, begin, end), settled, entry.since, sizes[end] - sizes[begin], end - begin))
        begin = end
    entry.cost = 0
    entry.records = between(records, 0, 0)
    return parts


def pod_of(entry: Entry) -> PodName:
    """Return whose *entry* is."""
    return (entry.records.origin.namespace, entry.records.origin.pod)


@dataclass(slots=True)
class Batch:
    """Entries that go into one request."""

    entries: Sequence[Entry]
    only: Sequence[int] | None = None
    """The numbers, through all of them, of the records that are to be sent; None: all."""
    failures: int = 0
    """How often in a row some of it was asked for again."""
    beside: int = 0
    """How often it was answered by a sink that takes others."""
    asked: int = 0
    """How often the sink had been asked for what is new when it answered this last."""
    seen: int = 0
    """How many records the sink had taken when it answered last."""
    doubted: int | None = None
    """How many it had taken when it first refused this, or what this is a part of, as a whole; None: it did not."""
    untaken: int = 0
    """How often the sink took nothing of it."""
    due: float = 0.0
    """When it is to be sent again."""
    under_way: bool = False
    """Whether the sink may still take it as it was sent."""
    starts: list[int] = field(init=False)
    """The number of each entry's first record."""

    def __post_init__(self) -> None:
        self.starts = list(accumulate((len(each.records) for each in self.entries), initial=0))

    @property
    def numbers(self) -> Sequence[int]:
        """Which records it still has."""
        return range(self.starts[-1]) if self.only is None else self.only

    @property
    def pod(self) -> PodName:
        """Whose its first record is."""
        return pod_of(self.place(self.numbers[0])[0])

    def pods(self) -> set[PodName]:
        """Return whose records it still has."""
        return {pod_of(self.entries[self._at(number)]) for number in self.numbers}

    @property
    def since(self) -> float:
        """When the oldest was offered."""
        return min(each.since for each in self.entries)

    def place(self, number: int) -> tuple[Entry, int]:
        """Return the entry of the record of that *number*, and its row there."""
        at = self._at(number)
        return self.entries[at], number - self.starts[at]

    @property
    def cost(self) -> int:
        """Bytes in memory of the entries that it holds."""
        return sum(each.cost for each in self.entries)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two that have half of the pods each, or half of the records of the only one: a pod whose records
        are refused is soon alone.
        """
        pods = [pod_of(entry) for entry in self.entries]
        numbers = self.numbers
        held = list(dict.fromkeys(pods[self._at(number)] for number in numbers))
        if len(held) == 1:
            middle = len(numbers) // 2
            parts = (numbers[:middle], numbers[middle:])
        else:
            first = set(held[: len(held) // 2])
            of_first = [pods[self._at(number)] in first for number in numbers]
            parts = (list(compress(numbers, of_first)), list(compress(numbers, map(not_, of_first))))
        return self._part(parts[0]), self._part(parts[1])

    def of(self, pod: PodName) -> tuple[Batch, Batch]:
        """Return what is *pod*'s, and what is others'."""
        pods = [pod_of(entry) == pod for entry in self.entries]
        its = [pods[self._at(number)] for number in self.numbers]
        return self._part(list(compress(self.numbers, its))), self._part(list(compress(self.numbers, map(not_, its))))

    def _part(self, numbers: Sequence[int]) -> Batch:
        return Batch(self.entries, numbers, untaken=self.untaken, doubted=self.doubted)

    def _at(self, number: int) -> int:
        return bisect_right(self.starts, number) - 1


class Waiting:
    """Entries of all pods, in order within a pod."""

    def __init__(self) -> None:
        self._pods: OrderedDict[PodName, deque[Entry]] = OrderedDict()
        self.cost = 0

    def __bool__(self) -> bool:
        return bool(self._pods)

    def since(self) -> float | None:
        """Return when the oldest entry was offered; None: there is none."""
        return min((entries[0].since for entries in self._pods.values()), default=None)

    def add(self, entry: Entry) -> None:
        """Have *entry* wait behind its pod's others."""
        self._pods.setdefault(pod_of(entry), deque()).append(entry)
        self.cost += entry.cost

    def take_others(self, most: int, without: Collection[PodName]) -> Batch | None:
        """Return what :meth:`take` does, of none of the pods *without*; None: nothing of others waits."""
        aside = [(pod, self._pods.pop(pod)) for pod in without if pod in self._pods]
        taken = self.take(most) if self._pods else None
        self._pods.update(aside)
        return taken

    def take(self, most: int) -> Batch:
        """Return the next entries, of about *most* bytes, one at least, a pod's turn after the other's."""
        taken: list[Entry] = []
        size = 0
        while self._pods and (not taken or size < most):
            pod, entries = self._pods.popitem(last=False)
            entry = entries.popleft()
            taken.append(entry)
            size += entry.cost
            if entries:
                self._pods[pod] = entries
        self.cost -= size
        return Batch(taken)

    def take_of(self, pod: PodName) -> Sequence[Entry]:
        """Return all that is *pod*'s, in order."""
        taken = self._pods.pop(pod, deque())
        self.cost -= sum(entry.cost for entry in taken)
        return taken

    def take_all(self) -> list[Entry]:
        """Return everything, in order within a pod."""
        return list(self.take(self.cost + 1).entries) if self._pods else []


@dataclass(frozen=True, slots=True)
class Rest:
    """What is still to be settled of an entry."""

    entry: Entry
    records: LogRecords


def rests(batch: Batch) -> list[Rest]:
    """Return what *batch* still has, by entry."""
    if batch.only is None:
        return [Rest(each, each.records) for each in batch.entries]
    rows: dict[int, list[int]] = {}
    for number in batch.only:
        at = bisect_right(batch.starts, number) - 1
        rows.setdefault(at, []).append(number - batch.starts[at])
    return [Rest(batch.entries[at], rows_of(batch.entries[at].records, found)) for at, found in rows.items()]
