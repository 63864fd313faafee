"""One log: its files in turn, and the next chunk to be read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from nodeagent.errors import shown
from nodeagent.logs.tail.contents import Contents, TailMeans
from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import NOWHERE, Generation
from nodeagent.logs.tail.identity import FIRST_BYTES, TAIL_BYTES, generation_id
from nodeagent.logs.tail.interfaces import LogSource, Taker
from nodeagent.logs.tail.judge import Judge
from nodeagent.logs.tail.positions import PositionEntry
from nodeagent.logs.tail.unpacked import CompressedError

FEW: Final = 100
LOOK_SECONDS: Final = 50e-6
"""Between two looks at all that is read before new files, for each of a log's files where it has more than a few: what
such looks cost is a small share of a processor, however fast files come.
"""
AT_ONCE: Final = 64
"""So many files are found out about in a turn that has nothing to read."""
log = logging.getLogger("nodeagent.logs.tail.log")


class Turn(Enum):
    """What came of a log's turn."""

    READ = "something was read or compared, and more may follow"
    BLOCKED = "no room behind it"
    TOLD = "a write of the positions file goes first, and more contents that are new are to be in it"
    WAITING = "a write of the positions file, or a look at what was there before, goes first"
    NOTHING = "nothing is unread"


class FollowedLog:
    """All files of one source. Nothing here raises for what a pod does to its files."""

    __slots__ = ("_judge", "_judged", "_ordered", "_tail", "_told", "blocked", "contents", "source")

    def __init__(self, source: LogSource, tail: TailMeans, entries: Iterable[PositionEntry], now: float) -> None:
        """*entries*: what the positions file has of this source."""
        self.source = source
        self.contents = Contents(source, tail, entries, now)
        self.blocked = False
        """Whether there was no room behind it in its last turn."""
        self._judged = True
        """Whether files that are unknown had their turn since time was to tell what they are, and those behind them."""
        self._tail = tail
        self._judge = Judge(self.contents)
        self._ordered = -math.inf
        """When all that is read before new files was looked at last."""
        self._told: tuple[int, OpenFile] | None = None
        """Before which write of the positions file it was told of what is new, and up to which file."""

    def add(self, file: OpenFile, start: int) -> None:
        """Take *file* in; *start*: up to where somebody else read it, if nothing is known of it here."""
        self.contents.add(file, start)
        self._judge.again()

    def look(self, file: OpenFile, now: float) -> bool:
        """Look at *file*; return whether there may be something to do in a turn."""
        kind = file.kind
        size = file.size
        if not file.look(now):
            if file.removed is not None:
                self.contents.stir(file)
            return False
        self.contents.stir(file)
        if kind != file.kind and file.compressed:
            self.contents.sort(file)
        found = file.generation
        if found is not None and not file.compressed:
            offset = found.read.offset
            shrank = file.size < found.reached.offset
            if shrank or (file.size == offset and not self.contents.holds(file, found)):
                self._judge.anew(file, size, now)
        if file.hole != NOWHERE:
            file.look_again()
        if file.unread_since is None and file.size > size and not file.journal:
            file.unread_since = now
        if file.done != NOWHERE and file.size > file.done:
            file.done = NOWHERE  # it was no finished copy after all
            file.original = None
        return True

    @property
    def readable(self) -> bool:
        """Whether some file has something to read."""
        return any(map(self.unread, self.contents.todo))

    def unread(self, file: OpenFile) -> bool:
        """Return whether *file* has something to read."""
        found = file.generation
        if found is None:
            return not file.known and file.kind != 0 and file.size != file.partial
        if file.size == file.partial or file.failed or file.done != NOWHERE:
            return False
        return file.compressed or file.size > found.read.offset

    def turn(self, now: float) -> Turn:
        """Read the next chunk of the first file that has one, or find out a bit more of one that is unknown."""
        self.blocked = False
        left = AT_ONCE
        for file in self.contents.todo:
            if not self.unread(file):
                self.contents.todo.discard(file)
                continue
            if file in self.contents.new:
                if self._ordered_lately(now):
                    return Turn.WAITING
                if self._former_grew(now):
                    return Turn.READ  # what came before it goes first
            if file.generation is None:
                left -= 1
                if not left or self._judge.decide(file, now):
                    return Turn.READ
                file.partial = file.size  # until something changes, or time tells
                continue
            self._judged = True
            came = self._try_to_read(file, file.generation, now)
            self.blocked = came is Turn.BLOCKED
            if came is Turn.WAITING:
                return self._tell_of_next(file, file.generation.barrier, now)
            if came is not Turn.NOTHING:
                return came
        self._judged = True
        return Turn.NOTHING

    def _tell_of_next(self, first: OpenFile, barrier: int, now: float) -> Turn:
        """Before *first* is read the positions file is written: have what is new behind it in the same write."""
        most = self._tail.settings.turn_bytes
        left = most
        before, last = self._told or (0, first)
        for file in self.contents.todo.after(last if before == barrier else first):
            if file in self.contents.new:
                break  # what came before it goes first
            came = self._tell_of(file, now)
            if came is Turn.BLOCKED:
                break
            if came is Turn.READ:
                return Turn.TOLD
            self._told = barrier, file
            left -= max(min(file.size, most), most // AT_ONCE)
            if left <= 0:
                return Turn.TOLD
        return Turn.WAITING

    def _tell_of(self, file: OpenFile, now: float) -> Turn:
        """Have the positions file told of what *file* holds, if that is new; READ: there is more to be found out."""
        if not self.unread(file):
            self.contents.todo.discard(file)
            return Turn.NOTHING
        if file.generation is None and not self._judge.decide(file, now):
            file.partial = file.size
            return Turn.NOTHING
        if file.generation is None:
            return Turn.READ
        return Turn.NOTHING if file.generation.foretold else self._try_to_read(file, file.generation, now)

    def _ordered_lately(self, now: float) -> bool:
        """Say whether there are too many files to look at all of them again so soon."""
        many = len(self.contents.files)
        return many > FEW and now < self._ordered + many * LOOK_SECONDS

    def _former_grew(self, now: float) -> bool:
        """Look at all that is read before files that had no turn yet; return whether something changed there."""
        self._ordered = now
        former = self.contents.files.before(self.contents.new.last())
        self.contents.new.clear()
        grew = [each for each in former if self.look(each, now)]
        return bool(grew)

    def _try_to_read(self, file: OpenFile, generation: Generation, now: float) -> Turn:
        try:
            return self._read(file, generation, now)
        except OSError as error:
            self._falter(file, error, now)
        except CompressedError as error:
            self._fail(file, generation, error)
        return Turn.READ

    def _read(self, file: OpenFile, generation: Generation, now: float) -> Turn:
        """Raises OSError, CompressedError."""
        if hindered := self._hindered(generation):
            return hindered
        limit = self._tail.settings.line_bytes
        offset = generation.read.offset
        before = min(offset, TAIL_BYTES)
        if not file.reach(offset - before):
            return Turn.READ  # others have their turn meanwhile
        data, end, cut = self._stretch(file, generation, before)
        if self._shrank(file, offset + len(data) - before):
            self.look(file, now)
            return Turn.READ
        if not generation.recognized(data[:before]) or not self.contents.agrees(file, generation):
            self._judge.anew(file, file.size, now)
            return Turn.READ
        if data[before : before + 1] == b"\0" and (passed := self._pass_over(file, generation, data[before:])):
            return passed
        if end == before:
            file.partial = file.size
            if file.at_end and len(data) == before:
                self._read_out(file, generation)
            return Turn.NOTHING
        if not self._taker(generation, data[before:end]).room():
            return Turn.BLOCKED
        if generation.foretell(data, before, end):
            generation.barrier = self._tail.barrier()
            self.contents.told_of(file)
            return Turn.WAITING
        try:
            generation.deliver(data, before, end)
        except Exception as error:  # whatever those behind it make of one file's lines, others go on
            log.error("%s: its lines cannot be processed", self.source.key, exc_info=error)
            generation.abandon()
            self._fail(file, generation, error)
            return Turn.READ
        file.again = 0.0
        if not self.unread_bytes(file):
            file.unread_since = None
        self.contents.counts.bytes_read += end - before
        self.contents.counts.lines_cut += 1 if cut else 0
        assert end - before <= limit + 1
        return Turn.READ

    def _hindered(self, generation: Generation) -> Turn | None:
        """Return why nothing of *generation* is read now."""
        if not self._tail.passed(generation.barrier):
            return Turn.WAITING
        if generation.taker is not None and not generation.taker.room():
            return Turn.BLOCKED
        return None

    def _stretch(self, file: OpenFile, generation: Generation, before: int) -> tuple[bytes, int, bool]:
        """Return the next stretch of *file* with what stands before it, and where its whole lines end."""
        limit = self._tail.settings.line_bytes
        length = min(self._tail.settings.turn_bytes, limit)
        begin = generation.read.offset - before
        data = file.read(begin, before + length + 1)
        end, cut = generation.end(data, before, limit)
        if end == before and len(data) > before + length and length < limit:
            data = file.read(begin, before + limit + 1)
            end, cut = generation.end(data, before, limit)
        return data, end, cut

    @staticmethod
    def _shrank(file: OpenFile, end: int) -> bool:
        """Say whether *file* was truncated while it was read."""
        return not file.compressed and file.size_now() < end

    def _name(self, generation: Generation, data: bytes) -> None:
        """Make the id of *data*, the first there is: also anew, as the file may have been written anew since it was
        named and nothing was read. Of a content that was foretold in vain only this process knows how often its file
        was truncated: who restarts counts anew, and what begins alike is not to have this id.
        """
        first = data.partition(b"\n")[0][:FIRST_BYTES]
        key = self.source.key
        process = self._tail.process if generation.truncated and generation.foretold else ""
        name = generation_id(self._tail.node, key, generation.inode, generation.truncated, first, process)
        if name != generation.id:
            generation.finish()
            generation.id = name

    def _taker(self, generation: Generation, data: bytes) -> Taker:
        if not generation.foretold or self._untold(generation):
            self._name(generation, data)
        if generation.taker is None:
            generation.taker = self._tail.open_taker(self.source, generation.id, generation.coverage)
        return generation.taker

    def _untold(self, generation: Generation) -> bool:
        """Say whether nothing of *generation* is delivered, nor its name on disk, as positions cannot be written."""
        new = generation.read.offset == generation.begin and generation.barrier > 0
        return new and not self._tail.told(generation.barrier)

    def _pass_over(self, file: OpenFile, generation: Generation, data: bytes) -> Turn | None:
        """Pass over a hole, such as a writer leaves who goes on at his old offset in a truncated file; None: what is
        read next is no hole, or a short one. *data*, which is read next, begins with a zero.

        Where no data follows nothing is passed over: what is written into the hole is read, and a file that is
        made as short as it was is not taken for another one.
        """
        offset = generation.read.offset
        end = file.zeros_until(offset, data)
        if end > offset and end >= file.size:
            file.hole = offset
            file.partial = file.size
            return Turn.NOTHING
        if offset in (generation.begin, generation.behind):
            if end == offset:
                end += len(data) - len(data.lstrip(b"\0"))  # holes have whole pages; zeros follow
        elif end - offset < len(data):
            return None
        before = min(end, TAIL_BYTES)
        generation.pass_over(end, file.read(end - before, before))
        return Turn.READ

    def _falter(self, file: OpenFile, error: OSError, now: float) -> None:
        """The disk does not give what is there: it is tried again for as long as the file is there."""
        if not file.again:
            log.warning(
                "%s: file %s cannot be read: %s; it is tried again", self.source.key, shown(file.name), error.strerror
            )
        file.failed = error.strerror or str(error)
        file.again = now + self._tail.settings.rotated_seconds
        file.let_go()

    def _fail(self, file: OpenFile, generation: Generation, error: Exception) -> None:
        lost = max(file.size - max(generation.read.offset, generation.lost), 0)
        if file.journal:
            lost = self.unread_bytes(file) or file.size  # its text is longer than the file, or shorter
        file.failed = str(error)
        file.again = 0.0
        self.contents.counts.bytes_lost += lost
        generation.lost = max(generation.lost, file.size)
        generation.finish()
        log.warning(
            "%s: file %s cannot be read any further: %s; what it had beyond byte %d is not delivered",
            self.source.key,
            shown(file.name),
            error,
            generation.read.offset,
        )

    def _read_out(self, file: OpenFile, generation: Generation) -> None:
        """A compressed file was read to its end: it never changes."""
        file.done = file.size
        file.length = generation.read.offset
        file.let_go()
        generation.finish()
        self._tail.changed()

    # -- what time brings --

    def age(self, now: float) -> list[OpenFile]:
        """Do what is due; return the files that are to be closed."""
        judged, self._judged = self._judged, False
        for file in self.contents.timed:
            if file.again and now >= file.again:
                file.failed = ""
            if not file.known:
                file.partial = NOWHERE if judged else file.partial  # time may tell what it is
            elif file.original is not None:
                self._age_twin(file)
            elif file.generation is not None:
                self._age_partial(file, file.generation, now)
            if self.unread(file):
                self.contents.todo.add(file)
            elif not self._restless(file):
                self.contents.timed.discard(file)
        closed = [
            each for each in self.contents.timed if each.removed is not None and self._over(each, each.removed, now)
        ]
        for each in closed:
            self._close(each, now)
        self.contents.forget(now)
        return closed

    def _age_twin(self, file: OpenFile) -> None:
        original = file.original
        if file.done == NOWHERE:
            if original is not None and not original.held:
                file.original = None  # that one ended: compared anew, it goes on here or is done
                file.partial = NOWHERE
        elif original is not None and original.coverage.mark.offset >= file.length:
            file.original = None  # settled: this file's entry stands for itself
            self._tail.changed()

    def _age_partial(self, file: OpenFile, generation: Generation, now: float) -> None:
        """Have the line that has no end delivered when none can be expected."""
        offset = generation.read.offset
        if file.hole != NOWHERE:
            return
        if file.partial != file.size or file.done != NOWHERE or not generation.can_be_cut(offset):
            return
        rest = self._rest_unpacked(file, offset) if file.compressed else file.size - offset
        if rest <= 0 or now - file.changed < self._patience(file):
            return
        if self._tail.failing() and file.removed is None:
            return  # cut elsewhere after a restart, its id would stand for two lines
        generation.cuts.append(offset + rest)
        generation.barrier = self._tail.barrier()
        file.partial = NOWHERE

    def _rest_unpacked(self, file: OpenFile, offset: int) -> int:
        try:
            return len(file.read(offset, self._tail.settings.line_bytes)) if file.at_end else 0
        except (OSError, CompressedError):
            return 0  # reading it will say what is wrong

    def _patience(self, file: OpenFile) -> float:
        settings = self._tail.settings
        if file.compressed:
            return 0.0
        growing = file is self.contents.growing()
        return settings.partial_seconds if growing and file.removed is None else settings.rotated_seconds

    def _over(self, file: OpenFile, removed: float, now: float) -> bool:
        """Say whether a removed file needs not be kept open any more."""
        settings = self._tail.settings
        if now - max(removed, file.changed) < settings.rotated_seconds:
            return False
        return not self.unread_bytes(file) or now - removed >= settings.removed_seconds

    def unread_bytes(self, file: OpenFile) -> int:
        """Return how much of *file* is unread, as it stands on disk; of a compressed one all until it is done."""
        if file.done != NOWHERE or file.given_up or file.original is not None:
            return 0
        if file.generation is None:
            return file.size
        if file.compressed:
            return file.unread_on_disk(file.generation.read.offset)
        end = file.size if file.hole == NOWHERE else file.hole
        return max(end - file.generation.read.offset, 0)

    def give_up(self, file: OpenFile, now: float) -> None:
        """Have *file* closed though it may have unread data."""
        self._close(file, now)

    def leave(self, now: float, *, left_out: bool) -> None:
        """Nothing more comes of it: what its files have is read, then they are closed, with a name or without one. One
        that is *left_out* may be wanted again.
        """
        self.contents.left_out = left_out
        for each in self.contents.files:
            if each.removed is None:
                each.removed = now
            self.contents.stir(each)

    def spare(self, now: float) -> Iterator[OpenFile]:
        """Yield the files that may be closed though they are there: nobody seems to write to them, and all that can be
        read of them is settled.
        """
        for file in self.contents.files:
            quiet = file.removed is None and now - file.changed >= self._tail.settings.rotated_seconds
            if quiet and self.contents.is_settled(file):
                yield file

    def put_aside(self, file: OpenFile) -> None:
        """Close *file*, which is :meth:`spare`, and remember how far it is read until it is said to be gone."""
        self.contents.put_aside(file)
        self._judge.again()
        file.close()
        self._tail.changed()

    def _close(self, file: OpenFile, now: float) -> None:
        lost = self.unread_bytes(file)
        if lost:
            self.contents.counts.bytes_lost += lost
            log.warning(
                "%s: %s was removed with %d bytes unread, and given up", self.source.key, shown(file.name), lost
            )
        generation = self.contents.release(file)
        self._judge.again()  # who was compared with it has to be compared with what it leaves
        if generation is not None:
            generation.finish()
            generation.since = now
            if file.done == NOWHERE:
                self.contents.orphan(generation)
        file.part()
        self._tail.changed()

    @property
    def remembers(self) -> bool:
        """Whether nothing but forgetting is to be done in time."""
        return not len(self.contents.timed)

    @property
    def calm(self) -> bool:
        """Whether time changes nothing here until a file does."""
        return self.contents.settled and self.remembers

    @staticmethod
    def _restless(file: OpenFile) -> bool:
        if file.removed is not None or file.original is not None or (not file.known and file.kind) or file.again:
            return True
        waits = file.partial == file.size and file.hole == NOWHERE
        return waits and file.generation is not None and file.done == NOWHERE

    @property
    def empty(self) -> bool:
        """Whether nothing has to be known of it any more."""
        return self.contents.settled and not self.contents.files
