"""One content of a file, from its first byte to where the file is truncated: how far it was read, how it is
recognized, and what of it is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from isal import isal_zlib

from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.coverage import Coverage, Mark
from nodeagent.logs.tail.identity import TAIL_BYTES, Inode, tail_hash
from nodeagent.logs.tail.interfaces import Taker
from nodeagent.logs.tail.lines import whole
from nodeagent.logs.tail.positions import PositionEntry

BEGINNING: Final = Mark(0, 0, tail_hash(b""))
NOWHERE: Final = -1
_KEPT_MARKS: Final = 8
_CUTS: Final = 64
ENOUGH: Final = 4096
"""So many equal bytes are no accident, whatever the names."""
_LINE_ENDS: Final = b"\n\0"
"""Before the first byte of a line: another line's end, or a hole."""


class Generation:
    """What is known of one content. Its file may be another one tomorrow."""

    __slots__ = (
        "_advanced",
        "barrier",
        "begin",
        "behind",
        "coverage",
        "cuts",
        "foretold",
        "held",
        "hollow",
        "id",
        "inode",
        "lost",
        "marks",
        "name",
        "overwritten",
        "overwritten_bytes",
        "since",
        "taker",
        "truncated",
    )

    def __init__(self, inode: Inode, name: str, truncated: int, advanced: Callable[[], None], at: Mark = BEGINNING):
        self.inode = inode
        """Of the file that it is, or was, in."""
        self.name = name
        """Of that file."""
        self.truncated = truncated
        """How often that file was truncated before this content."""
        self.id = b""
        """Empty until something is read: it is made of the first line."""
        self.begin = 0
        """Where the first line begins."""
        self.behind = NOWHERE
        """Where a hole ends that was passed over last."""
        self.hollow = False
        """Whether one was: of what stands before :attr:`read` no checksum is known."""
        self.cuts: list[int] = []
        """Where lines without an end are cut, behind what is settled."""
        self.barrier = 0
        """The number of the write of the positions file that has to be on disk before more is read."""
        self.lost = 0
        """Up to which size its file was given up, and that counted."""
        self._advanced = advanced
        self.coverage = Coverage(at, advanced)
        self.taker: Taker | None = None
        self.marks: tuple[Mark, ...] = ()
        """Ends of the chunks that were read last: a shorter copy is recognized by an earlier one."""
        self.foretold = 0
        """How far the positions file told how it looks before anything there was delivered."""
        self.overwritten = False
        """Whether its file holds another content now."""
        self.overwritten_bytes = 0
        """Bytes that were unread when its file was truncated."""
        self.held = False
        """Whether an open file has it."""
        self.since = 0.0
        """Since when none has."""

    @property
    def read(self) -> Mark:
        """Up to where it was read."""
        return self.coverage.read

    @property
    def reached(self) -> Mark:
        """The furthest place of which is known how it looks: what an earlier collector read counts, too."""
        return max(self.marks, key=_offset, default=self.read)

    @property
    def worth_keeping(self) -> bool:
        """Whether a restart has to know of it."""
        return bool(self.id) or self.coverage.mark.offset > 0 or self.truncated > 0 or bool(self.cuts)

    def recognized(self, before: bytes) -> bool:
        """Return whether *before*, what a file has before :attr:`read`, is what was read there."""
        return tail_hash(before) == self.coverage.read.tail

    def can_be_cut(self, offset: int) -> bool:
        """Return whether a line may be cut behind *offset*: none is yet, and few are remembered."""
        return len(self.cuts) < _CUTS and all(each <= offset for each in self.cuts)

    def end(self, data: bytes, before: int, limit: int) -> tuple[int, bool]:
        """Return where in *data* ends what can be delivered, and whether a line is cut there for its length.

        *data* begins *before* bytes before :attr:`read`; *before* itself: there is no whole line. A line of more
        than *limit* bytes is cut.
        """
        read = self.coverage.read.offset
        ahead = [each - read for each in self.cuts if each > read]
        if ahead and len(data) - before >= ahead[0]:
            return before + ahead[0], False
        return whole(data, before, limit)

    def foretell(self, data: bytes, before: int, end: int) -> bool:
        """Return whether the positions file has to be written before what stands in *data* between *before*, which is
        at :attr:`read`, and *end* is delivered.

        After that a restart knows the content wherever it was copied to, however little is settled: by how it
        begins, and from :data:`ENOUGH` bytes on by that alone.
        """
        stop = self.read.offset + end - before
        if self.foretold >= ENOUGH or (self.foretold and stop < ENOUGH):
            return False
        self.foretold = stop
        checksum = isal_zlib.crc32(memoryview(data)[before:end], self.read.checksum)
        self._remember(Mark(stop, checksum, tail_hash(data[max(end - TAIL_BYTES, 0) : end])))
        return True

    def _remember(self, mark: Mark) -> None:
        if mark not in self.marks[-1:]:  # it may be foretold
            self.marks = (*self.marks, mark)[-_KEPT_MARKS:]

    def shorten(self, size: int) -> None:
        """It goes on in a file that ends after *size* bytes: what was read beyond it is in no file any more."""
        self.marks = tuple(each for each in self.marks if each.offset <= size)

    def deliver(self, data: bytes, before: int, end: int) -> None:
        """Give what stands in *data* between *before*, which is at :attr:`read`, and *end* to the taker."""
        taker = self.taker
        assert taker is not None, "who reads opens a taker first"
        start = self.coverage.read.offset
        first = start == self.begin or not before or data[before - 1] in _LINE_ENDS
        self.coverage.begin_chunk()
        taker.take(Chunk(self.id, start, data[before:end], first))
        self._mark(data, before, end)

    def pass_over(self, offset: int, before: bytes) -> None:
        """Go on at *offset*, behind a hole; *before*: what stands before it. No line reaches over a hole."""
        if self.read.offset == self.begin:
            # Nothing was read, and nobody has the coverage yet.
            self.begin = offset
            self.coverage = Coverage(Mark(offset, 0, tail_hash(before)), self._advanced)
            return
        self.finish()
        self.behind = offset
        self.hollow = True
        self.coverage.pass_over(Mark(offset, self.read.checksum, tail_hash(before)))

    def _mark(self, data: bytes, before: int, end: int) -> None:
        read = self.coverage.read
        shift = before - read.offset
        stop = end - before + read.offset
        view = memoryview(data)
        marks = {read.offset: read}
        ends = sorted({each for each in self.coverage.ends() if read.offset < each < stop})
        at = before
        checksum = read.checksum
        for each in [*ends, stop]:
            index = each + shift
            checksum = isal_zlib.crc32(view[at:index], checksum)
            at = index
            marks[each] = Mark(each, checksum, tail_hash(view[max(index - TAIL_BYTES, 0) : index]))
        self._remember(marks[stop])
        self.coverage.end_chunk(marks, marks[stop])

    def finish(self) -> None:
        """Tell the taker that nothing follows."""
        taker, self.taker = self.taker, None
        if taker is not None:
            taker.ended()

    def abandon(self) -> None:
        """Its taker failed on the last chunk: nothing more is given to it, and what it took stays unsettled."""
        self.taker = None
        self.coverage.end_chunk({}, self.coverage.read)

    def entry(self, source: str, gone: bool) -> PositionEntry:
        """Return what has to be known of it after a restart; *gone*: its file does not hold it any more."""
        mark = self.coverage.mark
        self.cuts = [each for each in self.cuts if each > mark.offset]
        further = [each for each in self.marks if each.offset > mark.offset or (self.overwritten and each != mark)]
        return PositionEntry(
            source=source,
            device=self.inode.device,
            inode=self.inode.number,
            birth=self.inode.birth,
            name=self.name,
            id=self.id.decode(),
            truncated=self.truncated,
            begin=self.begin,
            offset=mark.offset,
            checksum=mark.checksum,
            tail=mark.tail,
            cuts=tuple(self.cuts),
            done=NOWHERE,
            gone=gone,
            overwritten=self.overwritten,
            marks=tuple((each.offset, each.checksum, each.tail) for each in further),
            hollow=self.hollow,
        )


def restored(entry: PositionEntry, advanced: Callable[[], None]) -> Generation:
    """Return the generation that *entry* tells of, as far as it was settled."""
    found = Generation(entry.where(), entry.name, entry.truncated, advanced, entry.mark())
    found.id = entry.id.encode()
    found.begin = entry.begin
    found.hollow = entry.hollow
    found.cuts = list(entry.cuts)
    found.overwritten = entry.overwritten
    found.marks = tuple(sorted({entry.mark(), *(Mark(*each) for each in entry.marks)}, key=_offset))[-_KEPT_MARKS:]
    furthest = found.reached.offset
    found.foretold = furthest if furthest > found.begin else 0
    return found


def _offset(mark: Mark) -> int:
    return mark.offset
