"""A sink's records on disk: a row of segments, appended to at one end and read at the other.

What :meth:`DiskBuffer.append` has returned for is synced, and comes back in order whatever happens to
the process, at least once: how far it was delivered is written down now and then (``cursor``), and what
was delivered since comes again after a crash. Nothing is written behind what stood there when the process
started: a new process begins a new segment. Only files of its own names are ever removed.

A segment is there until all of it is settled. Where room is wanted, one that holds much that is settled besides
what is under way is written anew without it, in room that nothing is appended to. The cursor is set to its
beginning first, for its frames move; then the new file takes its name. Whoever is killed in between has the old one,
and some of it comes again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.logs.delivery.counts import PodName
from nodeagent.logs.delivery.cursor import Cursor
from nodeagent.logs.delivery.known import KnownSegment, Taking
from nodeagent.logs.delivery.segments import (
    DamagedSegment,
    OtherVersion,
    SegmentReader,
    SegmentWriter,
    copy_frames,
    survey,
)
from nodeagent.logs.disk import on_disk
from nodeagent.logs.records import LogRecords

SEGMENT_BYTES: Final = 8 << 20
NAME: Final = re.compile(r"(\d{12})\.segment")
SIDE: Final = "side-"
"""How folders of sides begin; a number follows."""
SIDE_SEGMENTS: Final = 8
"""A side's segments are smaller by that."""
READS: Final = 12
"""How often in a row the disk may fail to read a segment (EIO) before what is unread in it counts as lost."""
WORTH: Final = 4
"""A segment is written anew if one part in so many of it is settled, or more."""
ANEW: Final = "segment.new"
KEPT_DAMAGED: Final = "damaged"
"""Names of files."""
log = logging.getLogger("nodeagent.logs")


class DiskBuffer:
    """One sink's."""

    def __init__(self, folder: Path, most: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """*folder*: its own, made where it is missing; *most*: bytes in it. What is there is found by :meth:`open`."""
        self._folder = folder
        self._most = most
        self._segment_bytes = min(segment_bytes, max(1 << 16, most // 4))
        self._spare = min(self._segment_bytes + self._segment_bytes // 2, most // 3)
        """Bytes that are left free, to write a segment anew in, or to move what one has to a side."""
        self._all = [self]
        """The sink's, first the one that is no side of another: *most* is for all of them."""
        self._segments: deque[KnownSegment] = deque()
        self._writer: SegmentWriter | None = None
        self._reading: tuple[KnownSegment, SegmentReader] | None = None
        """Which one is read, and by what: one value, for a thread reads while the loop removes what is settled."""
        self._busy: KnownSegment | None = None
        """Which one is appended to or written anew at the moment: it stays."""
        self._moving = False
        """Whether its frames may be elsewhere than it is known."""
        self.coming = 0
        """Bytes that are being written, and of no segment yet: another one of the sink's must not take their room."""
        self._cursor = Cursor(folder)
        self._lock = asyncio.Lock()
        self._last = 0
        """The highest number that a segment ever had, as far as is known: a cursor must never mean another one."""
        self._passed_over = True
        """Whether a segment of an earlier process could not be read: the next one finds it as long as no cursor passes
        it.
        """
        self.pods: Counter[PodName] = Counter()
        """Records that are here, by pod: until they are settled, taken or not."""

    def open(self) -> list[str]:
        """Find what an earlier process left; return, in words, what of it cannot be read. Raises OSError where the
        folder cannot.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):
            (self._folder / ANEW).unlink()
        cursor = self._cursor.read()
        self._last = cursor[0]
        unread: list[str] = []
        for path in sorted(each for each in self._folder.iterdir() if NAME.fullmatch(each.name)):
            number = int(path.name[:12])
            self._last = max(self._last, number)
            start = cursor[1] if number == cursor[0] else 0
            segment = KnownSegment(number, path, 0, reached=start, read_to=start)
            if number < cursor[0]:
                self._remove(segment)
                continue
            try:
                self._find(segment)
            except OSError as error:
                unread.append(f"{path}: {error.strerror}")
            except OtherVersion as error:
                unread.append(str(error))
        self._passed_over = bool(unread)
        return unread

    def _find(self, segment: KnownSegment) -> None:
        """Take *segment* of an earlier process in, if it has anything. Raises OSError and OtherVersion."""
        segment.size, segment.unread, segment.damaged = survey(segment.path, segment.reached)
        if segment.damaged:
            records = segment.unread.total()
            log.error("%s begins as no segment does; %d records are found in it", segment.path, records)
        self.pods.update(segment.unread)
        self._segments.append(segment)
        self._remove_settled(segment)

    def side(self, number: int) -> DiskBuffer:
        """Return another one, below this one's folder and within its bound, for pods whose records go by themselves. It
        leaves no room free: what is moved there from a full one frees that room soon.
        """
        side = DiskBuffer(self._folder / f"{SIDE}{number}", self._most, self._segment_bytes // SIDE_SEGMENTS)
        side._spare = 0
        side._all = self._all
        self._all.append(side)
        return side

    def sides(self) -> list[int]:
        """Return the numbers of the sides that an earlier process had."""
        numbers = [each.name.removeprefix(SIDE) for each in self._folder.glob(f"{SIDE}*")]
        return sorted(int(each) for each in numbers if each.isdecimal())

    def is_over_share(self) -> bool:
        """Whether it is a side, and has its share: of half of the bound, which is divided among sides that have any, as
        long as all of them have less than three quarters, and what is left free is.
        """
        first = self._all[0]
        if self is first:
            return False
        bound = self._most - first._spare
        sizes = [each.bytes for each in self._all[1:] if each is self or each.bytes]
        return self.bytes * 2 * len(sizes) >= bound or sum(sizes) * 4 >= bound * 3 or not first.room(0)

    @property
    def is_all(self) -> bool:
        """Whether no other one that shares its bound has anything."""
        return self.bytes == self.bytes_of_all

    @property
    def bytes_of_all(self) -> int:
        """Bytes on disk, its sides' too."""
        return sum(each.bytes for each in self._all)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(each.size for each in self._segments)

    @property
    def unread(self) -> bool:
        """Whether there is something that has not been taken."""
        return any(each.unread for each in self._segments)

    def room(self, size: int) -> bool:
        """Whether so many bytes more are within the bound, and a segment can still be written anew."""
        return self._within(size + self._spare)

    def _within(self, size: int) -> bool:
        return self.bytes_of_all + sum(each.coming for each in self._all) + size <= self._most

    async def append(self, batch: Sequence[LogRecords]) -> None:
        """Return when *batch* is on disk. Raises OSError, and nothing of it is kept then."""
        async with self._lock:
            segment = self._busy = await self._current()
            assert self._writer
            try:
                frames = self._writer.frames(batch)
                await on_disk(self._writer.append, frames)
            except OSError:
                self._roll()
                raise
            else:
                segment.size = self._writer.size
                for records in batch:
                    segment.unread[_pod(records)] += len(records)
                    self.pods[_pod(records)] += len(records)
            finally:
                self._busy = None
                self._remove_settled(segment)
            if segment.size >= self._segment_bytes:
                self._roll()

    async def take(self, most: int) -> tuple[list[Taking], Counter[PodName]]:
        """Return what is next, about *most* bytes on disk, and what turned out to be lost (damaged), by pod.
        Raises OSError.
        """
        async with self._lock:
            segment = next((each for each in self._segments if each.unread), None)
            if segment is None:
                return [], Counter()
            taken, damage, over = await self._readable(segment, most)
            for each in taken:
                segment.read_to = each.end
                segment.out.append(each)
                _less(segment.unread, _pod(each.records), len(each.records))
            if damage and not segment.damaged:
                log.error("%s; what is damaged there is lost, and counted", damage)
                segment.damaged = True
            if not (segment.damaged and over):
                return taken, Counter()
            lost = self._lose(segment)
            self._leave_segment(segment)
            self._remove_settled(segment)
            return taken, lost

    def done(self, taking: Taking) -> None:
        """What was taken is settled; segments of which all is are removed."""
        taking.done = True
        segment = taking.segment
        _less(self.pods, _pod(taking.records), len(taking.records))
        while segment.out and segment.out[0].done:
            segment.reached = segment.out.popleft().end
        self._remove_settled(segment)

    async def drop_oldest(self) -> Counter[PodName]:
        """Remove what of the oldest segment nobody has taken; return how many records that is, by pod. What was taken
        is only in memory besides: it stays until it is settled.
        """
        async with self._lock:
            segment = next((each for each in self._segments if each.unread), None)
            if segment is None:
                return Counter()
            lost = self._lose(segment)
            self._leave_segment(segment)
            if segment.out:
                self._shorten(segment)
            else:
                self._remove(segment)
            return lost

    async def reclaim(self) -> bool:
        """Free what a segment has on disk of records that are settled, of the one that has most; return whether any
        has enough. Raises OSError where another try may help: it begins with another segment.
        """
        async with self._lock:
            while True:
                worth = [each for each in self._segments if self._is_worth_it(each)]
                if not worth:
                    return False
                if await self._write_anew(max(worth, key=lambda each: (-each.failed_anew, each.settled))):
                    return True

    def _is_worth_it(self, segment: KnownSegment) -> bool:
        """Say whether *segment* can be written anew within the bound, and much is freed by it."""
        settled = segment.settled
        return not segment.fixed and settled * WORTH >= segment.size and self._within(segment.size - settled)

    def save(self) -> None:
        """Write down how far the oldest segment is settled. Raises OSError."""
        if self._segments and not self._passed_over and not self._moving:
            head = self._segments[0]
            self._cursor.write(head.number, head.reached)

    async def close(self) -> None:
        """Close what is open. What was not settled is found by the next process."""
        async with self._lock:
            try:
                self.save()
            except OSError as error:
                log.warning("%s: %s; what was delivered last comes again", self._folder, error.strerror)
            self._roll()
            self._leave()

    # -- segments --

    async def _current(self) -> KnownSegment:
        if self._writer is None:
            self._last += 1
            path = self._folder / f"{self._last:012}.segment"
            self._writer = await on_disk(SegmentWriter, path)
            self._segments.append(KnownSegment(self._last, path, self._writer.size))
        return self._segments[-1]

    def _roll(self) -> None:
        """Append to another segment from now on."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except OSError as error:
            log.warning("%s: %s as it was closed; what counts of it was synced before", self._folder, error.strerror)

    async def _readable(self, segment: KnownSegment, most: int) -> tuple[list[Taking], str, bool]:
        """Return as :meth:`_read` does. Raises OSError where another try may help."""
        try:
            taken = await on_disk(self._read, segment, most)
        except OSError as error:
            segment.failed += 1
            given_up = error.errno == errno.EIO and segment.failed >= READS
            if not given_up and not isinstance(error, FileNotFoundError):
                raise
            return [], f"{segment.path}: {error.strerror}", True
        segment.failed = 0
        return taken

    def _read(self, segment: KnownSegment, most: int) -> tuple[list[Taking], str, bool]:
        """Return what is next in *segment*, what is wrong with what stands between or behind it (empty: nothing), and
        whether nothing more can be read. Raises OSError.
        """
        taken: list[Taking] = []
        damage = ""
        over = False
        try:
            reader = self._reader(segment)
            until = min(segment.size, reader.at + most)
            while not over and reader.at < until:
                begin = reader.at
                try:
                    records = reader.next(segment.size)
                except DamagedSegment as error:
                    damage = damage or str(error)
                    over = not reader.pass_over(segment.size)
                    continue
                if records:
                    taken.append(Taking(records, segment, reader.at, reader.at - begin))
            over = over or reader.at >= segment.size
        except OSError:
            self._leave()  # another try begins behind what is taken
            if not taken:
                raise
        if over and not taken and not damage:
            damage = f"{segment.path}: it ends before what was written to it"
        return taken, damage, over

    def _reader(self, segment: KnownSegment) -> SegmentReader:
        """Return what reads *segment* on. Raises OSError."""
        if self._reading is not None and self._reading[0] is segment:
            return self._reading[1]
        self._leave()
        reader = SegmentReader(segment.path)
        try:
            reader.skip(segment.read_to)
        except BaseException:
            reader.close()
            raise
        self._reading = segment, reader
        return reader

    def _leave(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading[1].close()

    def _lose(self, segment: KnownSegment) -> Counter[PodName]:
        """Count what is unread of *segment* as no longer here; return it."""
        lost = +segment.unread
        for pod, records in lost.items():
            _less(self.pods, pod, records)
        segment.unread.clear()
        return lost

    def _remove_settled(self, segment: KnownSegment) -> None:
        if segment.out or segment.unread or segment is self._busy or segment not in self._segments:
            return
        if segment.damaged:
            self._put_aside(segment)
        else:
            self._remove(segment)

    def _shorten(self, segment: KnownSegment) -> None:
        """Keep of *segment* what was taken."""
        segment.size = segment.read_to
        try:
            os.truncate(segment.path, segment.read_to)
        except OSError as error:
            log.warning("%s cannot be shortened: %s; its records come again", segment.path, error.strerror)

    async def _write_anew(self, segment: KnownSegment) -> bool:
        """Have *segment* without what is settled; return whether that could be done. Raises OSError."""
        self._leave_segment(segment)
        self._busy = segment
        self._moving = True
        self.coming = segment.size - segment.settled
        under_way = {each.end for each in segment.out if not each.done}
        unread_from = segment.read_to if segment.unread else segment.size
        try:
            moved = await on_disk(self._move, segment, lambda end: end > unread_from or end in under_way)
        except DamagedSegment as error:
            log.warning("%s cannot be written anew: %s; it is there until all of it is settled", segment.path, error)
            segment.fixed = True
        except OSError as error:
            if not segment.failed_anew:
                log.warning("%s cannot be written anew: %s; it is tried again", segment.path, error)
            segment.failed_anew += 1
            self._left(segment)
            raise
        else:
            segment.move(moved)
            segment.damaged = False
            segment.failed_anew = 0
        # Who is cancelled meanwhile does not come here: where the frames are is not known, and nothing is written down.
        self._left(segment)
        return not segment.fixed

    def _left(self, segment: KnownSegment) -> None:
        """*segment* is where it is known to be, and nobody is busy with it."""
        self._busy = None
        self._moving = False
        self.coming = 0
        self._remove_settled(segment)

    def _move(self, segment: KnownSegment, wanted: Callable[[int], bool]) -> dict[int, tuple[int, int]]:
        """Put those frames of *segment* that are *wanted* in its place; return where they are. Raises OSError and
        DamagedSegment.
        """
        new = self._folder / ANEW
        try:
            moved = copy_frames(segment.path, new, segment.size if segment.unread else segment.read_to, wanted)
            if self._cursor.number == segment.number:
                self._cursor.write(segment.number, 0, synced=True)
            if segment.damaged:
                (self._folder / KEPT_DAMAGED).unlink(missing_ok=True)
                os.link(segment.path, self._folder / KEPT_DAMAGED)
            new.rename(segment.path)
        except (OSError, DamagedSegment):
            new.unlink(missing_ok=True)
            raise
        return moved

    def _remove(self, segment: KnownSegment) -> None:
        self._forget(segment)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s; its records come again", segment.path, error.strerror)

    def _leave_segment(self, segment: KnownSegment) -> None:
        """Neither append to *segment* nor read it any more."""
        if self._writer is not None and segment is self._segments[-1]:
            self._roll()
        reading = self._reading
        if reading is not None and reading[0] is segment:
            self._leave()

    def _forget(self, segment: KnownSegment) -> None:
        self._leave_segment(segment)
        if segment in self._segments:
            self._segments.remove(segment)

    def _put_aside(self, segment: KnownSegment) -> None:
        """Keep a damaged segment for whoever looks into it; the one before goes."""
        self._forget(segment)
        aside = self._folder / KEPT_DAMAGED
        log.info("%s, which is damaged, is kept as %s", segment.path, aside)
        try:
            segment.path.replace(aside)
        except OSError as fault:
            log.warning("%s cannot be renamed: %s", segment.path, fault.strerror)


def _less(counter: Counter[PodName], pod: PodName, records: int) -> None:
    counter[pod] -= records
    if counter[pod] <= 0:
        del counter[pod]


def _pod(records: LogRecords) -> PodName:
    return records.origin.namespace, records.origin.pod
