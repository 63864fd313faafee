"""From a file's chunks to the sinks: a :class:`FileStream` a generation of a file, which makes records and
offers them to the lanes of its sinks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from nodeagent.logs.counting import Counter, PodName, delivered, processed, waiting
from nodeagent.logs.delivery.lane import Lane
from nodeagent.logs.delivery.left_behind import left_behind
from nodeagent.logs.delivery.making import BUFFER, make_lane
from nodeagent.logs.delivery.spill import DAMAGED
from nodeagent.logs.journal_streams import JournalStream, own_unit
from nodeagent.logs.process.framing import Framing
from nodeagent.logs.process.origin import OriginFacts as Described
from nodeagent.logs.process.origin import make_origin
from nodeagent.logs.process.processor import ProcessCounts, Processor
from nodeagent.logs.recipes import Recipes
from nodeagent.logs.records import Chunk, LogOrigin, LogRecords, Receipt
from nodeagent.logs.settings import LogSettings
from nodeagent.logs.sources import EVERY_STREAM, SourceFacts
from nodeagent.logs.tail.coverage import Coverage
from nodeagent.logs.tail.interfaces import LogSource, Taker
from nodeagent.vocabulary import PodUid
from nodeagent.wire import Unchecked

FLUSH_SECONDS: Final = 0.5
"""Between two looks for lines that are held back for too long."""
_EVERY: Final = frozenset(each.encode() for each in EVERY_STREAM)
Start = Callable[[Coroutine[object, object, None]], None]
log = logging.getLogger("nodeagent.logs")


class FileStream:
    """Takes the chunks of one generation: the tail's Taker."""

    __slots__ = ("_coverage", "_followed", "_processor", "_wanted")

    def __init__(self, followed: FollowedSource, coverage: Coverage, wanted: bool = True) -> None:
        """What is not *wanted* is counted as dropped."""
        self._wanted = wanted
        self._followed = followed
        self._coverage = coverage
        self._processor: Processor | None = None

    def room(self) -> bool:
        """Return whether every sink of it takes more."""
        return self._followed.room()

    def take(self, chunk: Chunk) -> None:
        """Make records of *chunk*, and offer them."""
        if self._processor is None:
            self._processor = self._followed.processor(chunk, self._wanted)
            self._followed.streams.add(self)
        self._offer(self._processor.feed(chunk, time.time()))
        if self._processor.held_since is not None:
            self._followed.holding.add(self)

    def ended(self) -> None:
        """Nothing follows."""
        self._followed.streams.discard(self)
        self.finish()

    def flush(self, now: float) -> None:
        """Offer what has been held back for too long."""
        if self._processor is not None:
            self._offer(self._processor.flush(now))
        if self._processor is None or self._processor.held_since is None:
            self._followed.holding.discard(self)

    def described(self, origin: LogOrigin) -> None:
        """Records carry *origin* from now on."""
        if self._processor is not None:
            self._processor.origin = origin

    def finish(self) -> None:
        """Offer what is held back; what follows is processed as the source is told then."""
        if self._processor is not None:
            self._offer(self._processor.flush(time.time(), final=True))
        self._followed.holding.discard(self)
        self._processor = None

    def _offer(self, records: LogRecords | None) -> None:
        if records is None:
            return
        receipt = Receipt(len(self._followed.lanes), self._coverage.stretch(records.end))
        for lane in self._followed.lanes:
            lane.offer(records, receipt)


class FollowedSource:
    """A source, with what its files have in common."""

    __slots__ = (
        "_recipes",
        "counts",
        "facts",
        "gone",
        "holding",
        "lanes",
        "left_out",
        "origin",
        "reading",
        "streams",
        "unknown",
    )

    def __init__(
        self,
        facts: SourceFacts,
        origin: LogOrigin,
        recipes: Recipes,
        reading: Callable[[], bool],
        holding: set[FileStream],
    ) -> None:
        """*reading*: whether anything is to be read now; *holding*: the streams, of all sources, that hold lines
        back.
        """
        self._recipes = recipes
        self.holding = holding
        self.reading = reading
        self.facts = facts
        self.origin = origin
        self.lanes: tuple[Lane, ...] = ()
        self.counts = ProcessCounts()
        self.streams: set[FileStream] = set()
        self.gone = False
        """Its pod is, or it is left out of that."""
        self.left_out = False
        """Its pod lives: what is still read of it is dropped."""
        self.unknown: tuple[str, ...] = ()
        """Sinks of it that are none of the settings': nothing is read, for it would be settled without them."""

    @property
    def pod(self) -> PodName:
        """Whose it is."""
        return self.facts.namespace, self.facts.pod

    def room(self) -> bool:
        """Return whether every sink of it takes more."""
        return self.reading() and not self.unknown and all(lane.room(self.pod) for lane in self.lanes)

    def processor(self, first: Chunk, wanted: bool) -> Processor:
        """Return what makes records of a file whose *first* chunk this is, or counts them, if they are not *wanted*."""
        recipe = self._recipes.recipe(self.facts, self._framing(first))
        if self.left_out or not wanted:
            recipe = replace(recipe, without=_EVERY)
        return Processor(self.origin, recipe, self.counts, self._recipes.rate(self.facts.uid))

    def finish(self) -> None:
        """What follows is made into records as is told then, in files that are open too."""
        for stream in self.streams:
            stream.finish()

    def reads_alike(self, facts: SourceFacts) -> bool:
        """Whether records are made in the same way by *facts*."""
        return not self.left_out and self._recipes.recipe(facts, "cri") == self._recipes.recipe(self.facts, "cri")

    def _framing(self, first: Chunk) -> Framing:
        if self.facts.kind != "output" or self.facts.unit:
            return "plain"
        return "docker" if first.data.startswith(b"{") else "cri"


class FileStreams:
    """All sources and sinks."""

    def __init__(self, settings: LogSettings, node: str) -> None:
        self._node = node
        self._settings = settings
        self._recipes = Recipes(settings)
        state = settings.state_directory
        self.lanes = {each.name: make_lane(each, settings.buffer, state) for each in settings.sinks}
        buffered = [each.name for each in settings.sinks] if settings.buffer.bytes else []
        self._left = {each.name: each for each in left_behind(state / BUFFER, buffered)}
        for name in self._left.keys() & self.lanes.keys():
            self.lanes[name].counts.add(self._left[name].counts)
        self.sources: dict[str, FollowedSource] = {}
        self._units: dict[str, FollowedSource] = {}
        """Services whose entries the journal has."""
        printed = any(each.stdout is not None for each in settings.sinks)
        self._own_unit = own_unit() if printed else ""
        """Whose entries would come back for ever."""
        self._of_pods: dict[PodUid, int] = {}
        """How many sources each pod has."""
        self._holding: set[FileStream] = set()
        self._ending = False

    def _is_reading(self) -> bool:
        return not self._ending

    def begin(self, start: Start, wake: Callable[[], None]) -> None:
        """Deliver from now on; *wake* is called when there is room again."""
        for lane in self.lanes.values():
            lane.on_room = wake
            start(lane.run())
        start(self._keep_flushing())

    def stop(self) -> None:
        """Read no more."""
        self._ending = True

    async def end(self, seconds: float) -> None:
        """Read no more, and give what was read so many *seconds* to be delivered."""
        self.stop()
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes.values():
                group.create_task(lane.close(seconds))

    def describe(self, facts: SourceFacts) -> None:
        """A source is as told from now on; files that are open go on with it."""
        origin = self._origin(facts)
        followed = self.sources.get(facts.key)
        if followed is None:
            followed = self.sources[facts.key] = FollowedSource(
                facts, origin, self._recipes, self._is_reading, self._holding
            )
            self._of_pods[facts.uid] = self._of_pods.get(facts.uid, 0) + 1
        elif not followed.reads_alike(facts):
            followed.finish()
        followed.facts = facts
        followed.left_out = False
        followed.origin = origin
        followed.lanes = tuple(self.lanes[name] for name in facts.reading.sinks if name in self.lanes)
        followed.unknown = tuple(name for name in facts.reading.sinks if name not in self.lanes)
        followed.gone = False
        if facts.unit:
            self._units[facts.unit] = followed
        for stream in followed.streams:
            stream.described(origin)

    def gone(self, key: str, *, left_out: bool) -> None:
        """The pod of a source is gone, and what is open of it is read to its end; or it is *left_out* of a pod that
        lives, and what is open is dropped.
        """
        followed = self.sources.get(key)
        if followed is None:
            return
        if left_out:
            followed.finish()
        followed.gone = True
        followed.left_out = left_out
        if self._units.get(followed.facts.unit) is followed:
            del self._units[followed.facts.unit]

    def left_out(self, key: str) -> bool:
        """Say whether what is still read of the source *key* is dropped."""
        followed = self.sources.get(key)
        return followed is not None and followed.left_out

    def forget(self, key: str) -> bool:
        """Forget a source; return whether it was the last one of its pod."""
        uid = self.sources.pop(key).facts.uid
        left = self._of_pods.pop(uid) - 1
        if left:
            self._of_pods[uid] = left
            return False
        self._recipes.forget(uid)
        return True

    def forget_removed(self) -> None:
        """Tell of former sinks' buffers no more once somebody has removed them."""
        for name, left in self._left.items():
            if left.trouble and not left.is_there():
                counts = self.lanes[name].counts if name in self.lanes else left.counts
                for pod, each in left.counts.pods.items():
                    counts.named(pod).dropped[DAMAGED] += each.offered
                self._left[name] = left.removed()

    def _names(self) -> Iterator[str]:
        """Yield the names of sinks, and of those that are none any more and have records on disk."""
        yield from self.lanes
        yield from (name for name, left in self._left.items() if left.trouble and name not in self.lanes)

    def forget_pods(self) -> None:
        """Forget, as far as is told, what became of records of pods that are gone."""
        living = {each.pod for each in self.sources.values()}
        for lane in self.lanes.values():
            lane.counts.forget(living)

    def open(self, source: LogSource, file: bytes, coverage: Coverage) -> Taker:
        """Return who takes the lines of a generation: the tail's OpenTaker."""
        del file  # chunks have it too
        followed = self.sources[source.key]
        journal = self._settings.node.journal
        if not source.journal or journal is None:
            return FileStream(followed, coverage)

        def opened(of: FollowedSource, wanted: bool) -> FileStream:
            return FileStream(of, coverage, wanted)

        def wanted(unit: str) -> bool:
            named = not journal.units or any(fnmatchcase(unit, each) for each in journal.units)
            return named and not (unit and unit == self._own_unit)

        return JournalStream(followed, self._units, wanted, opened)

    def over_rate(self, key: str) -> int:
        """Return how many records of the source *key* were dropped, since the start, as its pod wrote too much."""
        followed = self.sources.get(key)
        return followed.counts.dropped["rate"] if followed is not None else 0

    def pods(self) -> dict[PodUid, PodName]:
        """Return the names of the pods that are followed, by uid."""
        return {each.facts.uid: each.pod for each in self.sources.values()}

    def counts(self) -> Iterator[Counter]:
        """Yield what was counted since the start."""
        for key, each in self.sources.items():
            yield processed(key, each.pod, each.counts)
        for name, lane in self.lanes.items():
            yield from delivered(name, lane.counts)
        for name in self._left.keys() - self.lanes.keys():
            yield from delivered(name, self._left[name].counts)

    def rows(self) -> list[Unchecked]:
        """Return a row for each sink, and for each that is one no more and has records on disk."""
        return [self._row(name) for name in self._names()]

    def _row(self, name: str) -> Unchecked:
        lane = self.lanes.get(name)
        left = self._left.get(name)
        counts = lane.counts if lane is not None else self._left[name].counts
        return {
            "name": name,
            "waiting": waiting(counts),
            "heldBytes": lane.held_of_all if lane is not None else 0,
            "bufferedBytes": (lane.buffered_bytes if lane is not None else 0) + (left.bytes if left is not None else 0),
            "delivered": counts.total().delivered,
            "trouble": "; ".join(self._troubles(name)),
        }

    def _troubles(self, name: str) -> list[str]:
        lane = self.lanes.get(name)
        left = self._left.get(name)
        return [
            *(lane.troubles() if lane is not None else ()),
            *((left.trouble,) if left is not None and left.trouble else ()),
        ]

    def warnings(self) -> list[str]:
        """Return, in words, which sinks take nothing, and why."""
        unknown = sorted(set().union(*(each.unknown for each in self.sources.values())))
        result = [f"sink {name} is unknown to the collector; nothing is read that goes there" for name in unknown]
        for name in self._names():
            result += [f"sink {name}: {each}" for each in self._troubles(name)]
        return result

    def _origin(self, facts: SourceFacts) -> LogOrigin:
        labels = {} if self._settings.metadata.labels == "none" else facts.labels
        described = Described(
            uid=facts.uid,
            namespace=facts.namespace,
            pod=facts.pod,
            container=facts.container,
            path=facts.path,
            node=self._node,
            labels=labels,
            annotations=facts.annotations,
        )
        flat = self._settings.metadata.labels == "flat"
        return make_origin(described, facts.tag, facts.reading.sinks, flatten_dots=flat)

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            now = time.time()
            for stream in list(self._holding):
                stream.flush(now)
