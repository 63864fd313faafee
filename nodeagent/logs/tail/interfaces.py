"""What the tail is told, and whom it tells: where files come from, and who takes their lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, Protocol, TypeAlias

from nodeagent.logs.records import Chunk
from nodeagent.logs.tail.coverage import Coverage
from nodeagent.vocabulary import PodUid

SourceKey = NewType("SourceKey", str)
"""Which log of the node: pod, and container or volume and path; the same after every restart."""


@dataclass(frozen=True, slots=True)
class LogSource:
    """A log: one file that grows, with all that it was rotated to."""

    key: SourceKey
    """A part of its generations' ids; at most 1,024 characters."""
    uid: PodUid
    """Whose turn its reading is: pods take turns. Empty: the node's own."""
    journal: bool = False
    """Its files are those of systemd's journal."""


class Taker(Protocol):
    """Who takes the lines of one generation, in order. Called from the event loop's thread; must not raise."""

    def room(self) -> bool:
        """Return whether those behind it take another chunk now; asked before each read."""

    def take(self, chunk: Chunk) -> None:
        """Take *chunk*. What becomes of it is told to the coverage that the taker was made with: every
        stretch once it is settled, also when all of it was dropped.
        """

    def ended(self) -> None:
        """Nothing follows: flush what is held back for more lines."""


OpenTaker: TypeAlias = Callable[[LogSource, bytes, Coverage], Taker]
"""Makes the taker of a generation before its first chunk: of which log, the id as in
:attr:`~nodeagent.logs.records.Chunk.file`, and where to tell what is settled.
"""


@dataclass(frozen=True, slots=True)
class TailSettings:
    """Bounds and times; sizes in bytes, times in seconds."""

    line_bytes: int = 1 << 20
    """A longer line is cut, and counted."""
    turn_bytes: int = 224 << 10
    """Read from one file in its turn, at most ``line_bytes``. More needs more of the processor's cache."""
    idle_seconds: float = 0.5
    """Between two looks at a file that does not grow; whether it was truncated or removed is seen at every fourth."""
    partial_seconds: float = 60.0
    """After which a line without an end is delivered though its file may go on."""
    rotated_seconds: float = 5.0
    """The same for a file that was rotated or removed; and for how long a removed one is kept open to see
    whether somebody still writes to it, a suspected copy is waited with, and a compressed file's
    original is waited for.
    """
    removed_seconds: float = 900.0
    """For how long a removed file with unread data is kept open."""
    removed_bytes: int = 1 << 30
    """Of the disk, that removed files may take which are kept open; beyond it the first one of the pod that
    takes most is given up, counted and said.
    """
    forget_seconds: float = 600.0
    """For how long it is remembered how far a file was read that is not there any more; a compressed twin
    may come later than its original goes.
    """
    save_seconds: float = 1.0
    """Between two writes of the positions file."""


@dataclass(slots=True)
class TailCounts:
    """What happened since the start, per log; numbers only grow."""

    bytes_read: int = 0
    """Delivered to takers."""
    lines_cut: int = 0
    """Pieces that were cut from lines for their length."""
    truncations: int = 0
    """Generations that ended as their file was truncated or written anew."""
    twins: int = 0
    """Files that were recognized as copies of what was read already."""
    bytes_lost: int = 0
    """Unread when a removed file was given up, or a file could not be read or decompressed further."""
    bytes_overwritten: int = 0
    """Unread when their file was truncated, and not found in a copy that was known for one: lost, unless they
    came from a file that was taken for one of its own.
    """

    def add(self, other: TailCounts) -> None:
        """Add the numbers of *other*."""
        self.bytes_read += other.bytes_read
        self.lines_cut += other.lines_cut
        self.truncations += other.truncations
        self.twins += other.twins
        self.bytes_lost += other.bytes_lost
        self.bytes_overwritten += other.bytes_overwritten


@dataclass(frozen=True, slots=True)
class FileStatus:
    """How far one open file is read, for those who ask."""

    source: LogSource
    name: str
    """As control called it last."""
    id: str
    """As records have it; empty: nothing was read yet."""
    size: int
    """Of compressed files as they stand on disk."""
    read: int
    """Delivered to the taker up to here; in decompressed bytes."""
    settled: int
    """Settled at all sinks up to here."""
    lag_bytes: int
    """Not read yet; 0 for compressed files."""
    lag_seconds: float
    """For how long something has been unread; 0: nothing is."""
    state: str
    """``following``, ``rotated``, ``removed``, ``waiting`` (a predecessor or a twin goes first), ``blocked``
    (no room behind it), ``done`` or ``failed``.
    """
    why: str = ""
    """Why it failed."""
