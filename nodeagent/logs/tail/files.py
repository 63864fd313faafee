"""One open file: what it looks like now, and how its bytes are read."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from isal import isal_zlib

from nodeagent.logs.tail.compressed import MAGIC, Content
from nodeagent.logs.tail.generation import NOWHERE, Generation
from nodeagent.logs.tail.identity import Inode, birth_of
from nodeagent.logs.tail.journal_file import JournalContent, entries_in
from nodeagent.logs.tail.unpacked import Unpacked

_AT_ONCE: Final = 256 << 10
_EMPTY: Final = 0
_PLAIN: Final = 1
_GZIP: Final = 2
_JOURNAL: Final = 3


class OpenFile:
    """A descriptor of ours, and what was seen of it at the last look. Times are seconds of the tail's clock."""

    __slots__ = (
        "_content",
        "added",
        "again",
        "born",
        "changed",
        "closed",
        "descriptor",
        "done",
        "entries",
        "failed",
        "generation",
        "hole",
        "inode",
        "kind",
        "length",
        "modified",
        "name",
        "original",
        "partial",
        "place",
        "removed",
        "renamed",
        "size",
        "unread_since",
    )

    def __init__(self, descriptor: int, name: str, now: float, *, journal: bool = False) -> None:
        """Take *descriptor* over, of a regular file, which is one of systemd's *journal* or not; raise OSError or
        ValueError, then it is still the caller's.
        """
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        self.inode = Inode(found.st_dev, found.st_ino, birth_of(descriptor))
        self.descriptor = descriptor
        self.closed = False
        self.name = name
        self.renamed = False
        """Whether it had another name while it was open."""
        self.born = self.inode.birth or found.st_mtime_ns
        self.size = 0
        self.modified = 0
        self.added = now
        self.changed = now
        """When a look last found something new."""
        self.removed: float | None = None
        """Since when it has no name any more."""
        self.unread_since: float | None = None
        self.generation: Generation | None = None
        """What is read from it; none: it is not known yet, or not read at all."""
        self.original: Generation | None = None
        """It holds the same as that one, which is read elsewhere."""
        self.done = NOWHERE
        """Not -1: up to this size it holds nothing new."""
        self.length = 0
        """Bytes of content that are *done*: of a compressed file not its size."""
        self.partial = NOWHERE
        """The size at which it had no whole line more."""
        self.hole = NOWHERE
        """Where the hole begins that all the rest of it is; somebody may yet write into it."""
        self.failed = ""
        """Why it cannot be read."""
        self.again = 0.0
        """When reading is tried again after it failed; 0: never, what is there cannot be read."""
        self.place = (False, 0, 0.0, 0)
        """Where it stands among those of its log: compressed ones first, then by age."""
        self.kind = _JOURNAL if journal else _EMPTY
        self.entries = 0
        """Of a journal, that there were at the last look."""
        self._content: Unpacked | None = None

    @property
    def compressed(self) -> bool:
        """Whether what is read does not stand in it as it is: it is a gzip file, or a journal."""
        return self.kind >= _GZIP

    @property
    def journal(self) -> bool:
        """Whether it is one of systemd's journal."""
        return self.kind == _JOURNAL

    @property
    def given_up(self) -> bool:
        """Whether it cannot be read any further, and is not tried again as it is."""
        return bool(self.failed) and not self.again

    @property
    def known(self) -> bool:
        """Whether it is settled what it holds."""
        return self.generation is not None or self.original is not None or self.done != NOWHERE or bool(self.failed)

    def look(self, now: float) -> bool:
        """Look at the file; return whether something changed since the last look."""
        found = os.fstat(self.descriptor)
        if not found.st_nlink and self.removed is None:
            self.removed = now
        grew = self.journal and self._has_more_entries(now)
        if found.st_size == self.size and found.st_mtime_ns == self.modified and not grew:
            return False
        if self.kind == _EMPTY and found.st_size:
            try:
                self.kind = _kind(os.pread(self.descriptor, len(MAGIC), 0), found.st_size)
            except OSError:
                return False  # the next look tries again
        self.size = found.st_size
        self.modified = found.st_mtime_ns
        self.changed = now
        if self.journal:
            self.partial = NOWHERE  # it may have become an archived one, of the same size
        return True

    def _has_more_entries(self, now: float) -> bool:
        """Return whether a journal, which is as large as before, has more entries than at the last look."""
        try:
            entries = entries_in(self.descriptor)
        except OSError:
            return False  # the next look tries again
        more = entries != self.entries
        self.entries = entries
        if more and self.unread_since is None:
            self.unread_since = now
        return more

    def grew(self) -> bool:
        """Return whether there is more than at the last look, or it cannot be said."""
        try:
            if self.journal:
                return entries_in(self.descriptor) != self.entries
            return bool(os.pread(self.descriptor, 1, self.size))
        except OSError:
            return True

    def read(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes of the content from *offset* on; raise OSError or CompressedError."""
        if not self.compressed:
            return os.pread(self.descriptor, length, offset)
        return self._unpacked().read(offset, length)

    def checksum(self, end: int) -> int:
        """Return the CRC-32 of all before *end*; raise OSError."""
        found = 0
        for at in range(0, end, _AT_ONCE):
            found = isal_zlib.crc32(self.read(at, min(_AT_ONCE, end - at)), found)
        return found

    def reach(self, offset: int) -> bool:
        """Return whether what is at *offset* can be read at once; of a compressed file a stretch on the way there is
        unpacked else. Raise OSError or CompressedError.
        """
        return not self.compressed or self._unpacked().reach(offset)

    def _unpacked(self) -> Unpacked:
        if self._content is None:
            made = JournalContent(self.descriptor, self._has_rotated_name) if self.journal else Content(self.descriptor)
            self._content = made
        return self._content

    def _has_rotated_name(self) -> bool:
        """Say whether a journal is called what journald calls it before it goes on in another file."""
        return "@" in self.name

    def unread_on_disk(self, offset: int) -> int:
        """Return how many bytes of a compressed file hold what comes behind *offset* of its content; of one that is
        not unpacked by now, and of a gzip file, all.
        """
        return self._content.unread(offset) if isinstance(self._content, JournalContent) else self.size

    def size_now(self) -> int:
        """Return its size on disk now."""
        return os.fstat(self.descriptor).st_size

    def on_disk(self) -> int:
        """Return how many bytes of the disk it takes: of one with holes less than its size."""
        return os.fstat(self.descriptor).st_blocks * 512

    @property
    def at_end(self) -> bool:
        """Whether a compressed file was read to its very end."""
        return self._content is not None and self._content.ended

    def look_again(self) -> None:
        """Something has changed what can be done with it."""
        self.partial = NOWHERE
        self.hole = NOWHERE

    def data_from(self, offset: int) -> int:
        """Return where the next data is after a hole that begins at *offset* (lseek(2), ``SEEK_DATA``), which may have
        any size; the size at the last look where none is, *offset* where no hole is.
        """
        if self.compressed:
            return offset
        try:
            return os.lseek(self.descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            return max(offset, self.size) if error.errno == errno.ENXIO else offset

    def zeros_until(self, offset: int, data: bytes) -> int:
        """Return where the next data is after a hole that begins at *offset*, or behind nothing but zeros there: a
        hole has whole pages. *data* is read at *offset*; *offset* itself: no hole comes soon enough.
        """
        zeros = offset + len(data) - len(data.lstrip(b"\0"))
        try:
            hole = offset if self.compressed else os.lseek(self.descriptor, offset, os.SEEK_HOLE)
        except OSError:
            return offset
        return self.data_from(hole) if hole <= zeros else offset

    def let_go(self) -> None:
        """Free what reading it needs, not the descriptor."""
        self._content = None

    def part(self) -> None:
        """Nobody reads it any more, and its descriptor is to be closed."""
        self._content = None
        self.closed = True

    def close(self) -> None:
        """Close the descriptor. Of a removed file this has the disk free what it took, which may take milliseconds."""
        self.part()
        os.close(self.descriptor)


def _kind(magic: bytes, size: int) -> int:
    """Return what a file of so many bytes is that begins with *magic*; what may become a gzip file is nothing yet."""
    if magic == MAGIC:
        return _GZIP
    if not magic or (MAGIC.startswith(magic) and size < len(MAGIC)):
        return _EMPTY
    return _PLAIN
