"""What the files of a log hold: which content is in which file, and which contents have no file any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, Protocol

from nodeagent.logs.tail.by_inode import ByInode
from nodeagent.logs.tail.coverage import Mark
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import BEGINNING, NOWHERE, Generation, restored
from nodeagent.logs.tail.heads import Heads
from nodeagent.logs.tail.identity import TAIL_BYTES, FileKey, Inode, tail_hash
from nodeagent.logs.tail.in_order import InOrder
from nodeagent.logs.tail.interfaces import LogSource, OpenTaker, TailCounts, TailSettings
from nodeagent.logs.tail.positions import PositionEntry, done_entry

ORPHANS: Final = 16
"""Contents without a file that are remembered per log."""
_CHECKED: Final = 32 << 20
"""Of a file that somebody else has read, so much is read again, for it to be known once it is compressed: the kubelet
rotates at 10 MiB.
"""
LONG: Final = 60
"""So many times ``forget_seconds`` it is remembered what no file was handed over for since the start, or was left out:
its file may be there, and be wanted again.
"""


class TailMeans(Protocol):
    """What a log needs of the tail."""

    node: str
    process: str
    """Another one for each process."""
    settings: TailSettings
    open_taker: OpenTaker

    def changed(self) -> None:
        """Something has to be written to the positions file."""

    def barrier(self) -> int:
        """Ask for a write of the positions file that has all as it is now; return its number."""

    def passed(self, number: int) -> bool:
        """Return whether that write is on disk, or cannot be waited for as writing fails."""

    def told(self, number: int) -> bool:
        """Return whether that write is on disk."""

    def failing(self) -> bool:
        """Return whether the positions file cannot be written."""


class Contents:
    """The files of one source and their contents. Nothing here raises for what a pod does to its files."""

    __slots__ = (
        "_done",
        "_growing",
        "_serial",
        "aside",
        "counts",
        "files",
        "heads",
        "left_out",
        "new",
        "orphans",
        "restored_at",
        "source",
        "tail",
        "timed",
        "todo",
        "unclaimed",
    )

    def __init__(self, source: LogSource, tail: TailMeans, entries: Iterable[PositionEntry], now: float) -> None:
        """*entries*: what the positions file has of this source."""
        self.source = source
        self.tail = tail
        self.counts = TailCounts()
        self.files = InOrder()
        self.new = InOrder()
        """Those of which it is not made sure yet that nothing before them is unread."""
        self.todo = InOrder()
        """Those that may have something to be read, or to be found out."""
        self.timed = InOrder()
        """Those to which time may bring something, and all of :attr:`todo`."""
        self.heads: Heads | None = None
        """None: there never were so many files that it is worth it."""
        self.orphans: list[Generation] = []
        """Contents whose file is gone or holds another one now, the oldest first."""
        self.unclaimed: ByInode[Generation] = ByInode()
        """Contents from before the start whose file was not handed over yet."""
        self.left_out = False
        """Nothing of it is wanted now; its pod lives."""
        self.restored_at = now
        self.aside: dict[FileKey, Inode] = {}
        """Files that were closed though they are there: what is known of them is not forgotten."""
        self._done: ByInode[int] = ByInode()
        self._growing: OpenFile | None = None
        self._serial = 0
        self.learn(entries, now)

    def learn(self, entries: Iterable[PositionEntry], now: float) -> None:
        """Know what the positions file has of files that are handed over as this source's."""
        for each in entries:
            if each.done != NOWHERE:
                self._done.add(each.where(), each.done)
                continue
            found = restored(each, self.tail.changed)
            found.since = now
            if each.gone:
                self.orphans.append(found)
            else:
                self.unclaimed.add(found.inode, found)

    def unlearn(self, inode: Inode) -> list[PositionEntry]:
        """That file is another source's now: forget what a restart left of it here, and return that."""
        key = self.source.key
        entries = [each.entry(key, gone=False) for each in self.unclaimed.take(inode)]
        done = self._was_done(inode)
        return entries if done == NOWHERE else [*entries, done_entry(key, inode, "", done)]

    def add(self, file: OpenFile, start: int) -> None:
        """Take *file* in, and find what was known of it; *start*: up to where somebody else read it, if that is
        nothing.
        """
        self.left_out = False
        self._serial += 1
        file.place = (not file.compressed, file.born, file.added, self._serial)
        self.files.add(file)
        self.new.add(file)
        self.stir(file)
        done = self._was_done(file.inode)
        if file.size <= done:
            file.done = done
            return
        if self._claim(file):
            return
        if file.journal:
            self.begin(file, 0)  # nobody copies or truncates it
            return
        if file.compressed and start == file.size:
            file.done = start
        elif 0 < start <= file.size and not file.compressed:
            try:
                before = file.read(max(start - TAIL_BYTES, 0), min(start, TAIL_BYTES))
                checksum = file.checksum(start) if start <= _CHECKED else 0
            except OSError:
                return  # read from its beginning, once it can be: twice rather than never
            self.begin(file, 0, Mark(start, checksum, tail_hash(before)))

    def _was_done(self, inode: Inode) -> int:
        """Return up to which size a file had nothing new before a restart, and forget it; NOWHERE: none was."""
        self.aside.pop(inode.key, None)
        return max(self._done.take(inode), default=NOWHERE)

    def stir(self, file: OpenFile) -> None:
        """Something about *file* has changed: it may have a turn, and time may tell more of it."""
        self._growing = None
        self.todo.add(file)
        self.timed.add(file)

    def release(self, file: OpenFile) -> Generation | None:
        """*file* is closed; return the content that it held."""
        self._growing = None
        for row in self._rows():
            row.discard(file)
        return self._let_go(file)

    def _let_go(self, file: OpenFile) -> Generation | None:
        """*file* does not hold any more what it held; return that."""
        generation, file.generation = file.generation, None
        if generation is not None:
            generation.held = False
        if self.heads is not None:
            self.heads.drop(file)
        return generation

    def growing(self) -> OpenFile:
        """Return the file that is written to: the youngest, but for copies that have another one's name with
        something behind it.
        """
        if self._growing is None:
            files = list(self.files)
            present = [each for each in files if each.removed is None and each.name]
            shortest = min((each.name for each in present), key=len, default="")
            own = [each for each in present if each.name == shortest or not each.name.startswith(shortest)]
            self._growing = (own or files)[-1]
        return self._growing

    def sort(self, file: OpenFile) -> None:
        """Have *file*, which turned out to be compressed, in its place."""
        rows = [each for each in self._rows() if file in each]
        for each in rows:
            each.discard(file)
        file.place = (False, *file.place[1:])
        for each in rows:
            each.add(file)

    def _rows(self) -> tuple[InOrder, ...]:
        return self.files, self.new, self.todo, self.timed

    def _claim(self, file: OpenFile) -> bool:
        """Find what was known of *file* before a restart, or before it was closed; return whether that says what it
        holds.
        """
        inode = file.inode
        if known := self.unclaimed.still(inode):
            before = known[0]
            self.unclaimed.remove(before.inode, before)
            if self.fits(file, before):
                self.hold(file, before)
                return True
            before.overwritten = True
            self.orphan(before)
            self.begin(file, before.truncated + 1)
            self.counts.truncations += 1
            return True
        if self._claim_by_content(file):
            return True
        for each in self.orphans:
            if each.inode.is_still(inode) and not each.overwritten and each.reached.offset and self.fits(file, each):
                self.orphans.remove(each)  # left out, or out of its folder, for a while
                self.hold(file, each)
                return True
        gone = [each.truncated for each in self.orphans if each.inode.may_be(inode)]
        if gone:
            self.begin(file, max(gone) + 1)
            return True
        return False

    def _claim_by_content(self, file: OpenFile) -> bool:
        """Find what was known of *file* by what it holds, where a device's new number hides whether it is the same."""
        for each in self.unclaimed.may_be(file.inode):
            if each.reached.offset and self.fits(file, each):
                self.unclaimed.remove(each.inode, each)
                self.hold(file, each)
                return True
        return False

    def fits(self, file: OpenFile, generation: Generation) -> bool:
        """Say whether *file* still holds all that is known of *generation*."""
        return self.holds(file, generation) and self.agrees(file, generation)

    def hold(self, file: OpenFile, generation: Generation) -> None:
        """*file* is where *generation* is, or goes on."""
        file.generation = generation
        file.partial = NOWHERE
        generation.held = True
        generation.inode = file.inode
        generation.name = file.name
        self.told_of(file)
        self.stir(file)

    def told_of(self, file: OpenFile) -> None:
        """More is known of how the content of *file* looks."""
        if self.heads is not None:
            self.heads.unknown[file] = None

    @staticmethod
    def holds(file: OpenFile, generation: Generation) -> bool:
        offset = generation.read.offset
        before = min(offset, TAIL_BYTES)
        if file.compressed:
            return True
        try:
            return generation.recognized(file.read(offset - before, before))
        except OSError:
            return True  # until it can be read, which compares it again

    @staticmethod
    def agrees(file: OpenFile, generation: Generation) -> bool:
        """Say whether *file* still holds what is known of *generation* beyond where it is read again."""
        mark = generation.reached
        if file.compressed or mark.offset <= generation.read.offset:
            return True
        before = min(mark.offset, TAIL_BYTES)
        try:
            return tail_hash(file.read(mark.offset - before, before)) == mark.tail
        except OSError:
            return True  # as above

    def begin(self, file: OpenFile, truncated: int, at: Mark = BEGINNING) -> None:
        """Let *file* hold a new content."""
        self.hold(file, Generation(file.inode, file.name, truncated, self.tail.changed, at))

    def orphan(self, generation: Generation) -> None:
        self.orphans.append(generation)
        if len(self.orphans) > ORPHANS:
            least = next((each for each in self.orphans if not each.coverage.under_way), self.orphans[0])
            self.orphans.remove(least)
            self._forget(least)

    def anew(self, file: OpenFile, size: int, now: float) -> Generation:
        """The content of *file*, which had *size* bytes, is another one; return the one that it was."""
        old = self._let_go(file)
        assert old is not None, "only what is read can be found to be another"
        self.counts.truncations += 1
        old.overwritten_bytes = max(size - old.read.offset, 0)
        old.since = now
        old.overwritten = True
        self.orphan(old)
        self.begin(file, old.truncated + 1)
        return old

    def is_settled(self, file: OpenFile) -> bool:
        """Say whether all that *file* holds now, and can be read, is settled."""
        if file.done != NOWHERE:
            return file.size == file.done and self._stands_alone(file)
        held = file.generation
        if file.given_up:
            return held is None or not held.coverage.under_way
        if file.failed:
            return False
        if held is None:
            return not file.size
        return not file.compressed and file.hole == NOWHERE and held.coverage.mark.offset == file.size

    def put_aside(self, file: OpenFile) -> None:
        """*file*, which is settled, is closed though it is there."""
        generation = self.release(file)
        self.aside[file.inode.key] = file.inode
        if generation is not None:
            generation.finish()
        if file.done != NOWHERE:
            self._done.add(file.inode, file.done)
        elif generation is not None:
            self.unclaimed.add(file.inode, generation)

    def lose(self, files: Collection[FileKey], now: float, *, there: bool = False) -> None:
        """Those of the *files* that were put aside will not be handed over soon; they may still be *there*, and be
        wanted again.
        """
        for inode in [self.aside.pop(each) for each in files if each in self.aside]:
            for each in self.unclaimed.still(inode):
                each.since = now
            if not there:
                self._done.take(inode)
                for each in self.unclaimed.take(inode):
                    self.orphan(each)  # a copy of it may come
        self.tail.changed()

    def twin(self, file: OpenFile, original: Generation, length: int) -> None:
        """All that *file* holds, *length* bytes, was read from another."""
        file.original = original
        file.done = file.size
        file.length = length
        file.let_go()
        self.counts.twins += 1
        self.tail.changed()

    def hand_on(self, generation: Generation, file: OpenFile) -> None:
        """*generation*, whose file is gone or holds something else, goes on in *file*."""
        if generation in self.orphans:
            self.orphans.remove(generation)
        self.unclaimed.remove(generation.inode, generation)
        generation.overwritten = False
        generation.overwritten_bytes = 0
        if not file.compressed:
            generation.shorten(file.size)
        self.hold(file, generation)
        self.counts.twins += 1
        self.tail.changed()

    def _forget(self, generation: Generation) -> None:
        self.counts.bytes_overwritten += generation.overwritten_bytes
        generation.finish()
        self.tail.changed()

    def forget(self, now: float) -> None:
        """Forget what can be of no use any more."""
        seconds = self.tail.settings.forget_seconds
        long = LONG * seconds
        bound = long if self.left_out else seconds
        for old in [each for each in self.orphans if now - each.since >= bound and not self._awaited(each)]:
            self.orphans.remove(old)
            self._forget(old)
        for inode, each in self.unclaimed:
            if now - each.since >= long and not self._awaited(each):
                self.unclaimed.remove(inode, each)
                self._forget(each)
        if now - self.restored_at >= long:
            self._forget_done()

    def _forget_done(self) -> None:
        for inode, done in self._done:
            if self.aside.get(inode.key) != inode:
                self._done.remove(inode, done)
                self.tail.changed()

    def _awaited(self, generation: Generation) -> bool:
        """Say whether its file was put aside, or a twin is only known by *generation*, which is not settled yet."""
        if self.aside.get(generation.inode.key) == generation.inode:
            return True
        return generation.coverage.under_way and any(each.original is generation for each in self.timed)

    @property
    def settled(self) -> bool:
        """Whether every content has its file."""
        return not (self.orphans or self.unclaimed or self._done or self.aside)

    def entries(self) -> Iterator[PositionEntry]:
        """Return what has to be known after a restart."""
        key = self.source.key
        for file in self.files:
            if file.done != NOWHERE and self._stands_alone(file):
                yield done_entry(key, file.inode, file.name, file.done)
            elif file.generation is not None and file.generation.worth_keeping:
                yield file.generation.entry(key, gone=False)
        for each in self.orphans:
            if each.worth_keeping:
                yield each.entry(key, gone=True)
        for _, each in self.unclaimed:
            yield each.entry(key, gone=False)
        for inode, done in self._done:
            yield done_entry(key, inode, "", done)

    @staticmethod
    def _stands_alone(file: OpenFile) -> bool:
        held = file.original or file.generation
        return held is None or held.coverage.mark.offset >= file.length
