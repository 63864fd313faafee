"""What travels from a file to a sink: whole lines of a file (:class:`Chunk`), then records
(:class:`LogRecords`), in columns: one list a field, one index a record.

A record is never an object of its own: at a million lines a second its allocation would cost more
than everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nodeagent.vocabulary import PodUid


@dataclass(frozen=True, slots=True)
class LogOrigin:
    """Where records come from, and what each of them therefore carries: made once a container or
    file, and again when its pod's labels change.
    """

    uid: PodUid
    """Of the pod; empty: the node itself."""
    namespace: str
    pod: str
    container: str
    """Empty: not a container's output but a file, which ``path`` names."""
    path: str
    """Of a file in a volume, from the volume's name on; empty for a container's output."""
    node: str
    labels: Mapping[str, str]
    """Of the pod, as Kubernetes has them."""
    members: bytes
    """What is spliced into each record's JSON object, whole members without a comma at either end,
    such as ``"kubernetes":{…}``; what an application's own object says under such a name yields.
    """
    tag: str
    """Fluentd's name for such a source, which routes and the forward protocol go by."""
    sinks: tuple[str, ...]
    """The names of the sinks that its records are routed to."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of a file, as they stand there."""

    file: bytes
    """The file's identity as ids have it, printable ASCII: no other file of the node, nor this one after it
    was truncated, ever has the same one.
    """
    start: int
    """Offset of the first byte within the file."""
    data: bytes
    """Whole lines with their ends; the last line of a file that ended may have none, and so may a line
    that was cut for its length.
    """
    first_of_line: bool = True
    """Whether it begins with the beginning of a line; false: it goes on with a line that was cut."""

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self.start + len(self.data)


class Receipt:
    """What became of the records of a stretch of a file, told to who read them once all is settled.

    A record is settled at a sink when it is delivered, in the buffer on disk, dropped and counted, or in
    the dead-letter file.
    """

    __slots__ = ("_pending", "_settled")

    def __init__(self, sinks: int, settled: Callable[[], None]) -> None:
        """*sinks*: at how many all records have to be settled; *settled* is called once then, at once
        for none.
        """
        self._pending = sinks
        self._settled = settled
        if not sinks:
            settled()

    def settle(self) -> None:
        """One of the sinks has settled them all."""
        self._pending -= 1
        if not self._pending:
            self._settled()


@dataclass(slots=True)
class LogRecords:
    """Records of one origin and one file, in the order of the file; all columns are equally long."""

    origin: LogOrigin
    file: bytes
    """As :attr:`Chunk.file`."""
    end: int
    """The file is covered up to here: from where it would have to be read again to lose nothing, which is
    before what is held back for a line, a stack trace or a stream that is not whole yet.
    """
    offsets: list[int] = field(default_factory=list)
    """Of the record's first byte in the file; of a record of several lines it tells the last one's too
    (``process/joining.py``). Below 2⁶³; with ``file`` it makes the record's id.
    """
    times: list[bytes] = field(default_factory=list)
    """RFC 3339 with up to nanoseconds, ASCII: the runtime's, or what the parser was told to take; never
    empty.
    """
    streams: list[bytes] = field(default_factory=list)
    """``stdout``, ``stderr``, or nothing for a file."""
    texts: list[bytes] = field(default_factory=list)
    """What the application wrote, valid UTF-8, without a line's end."""
    objects: list[bytes] = field(default_factory=list)
    """The same as one valid JSON object: the application's own, or ``{"log":"…"}`` around its text. It has
    no member that ``origin.members``, ``@timestamp`` or ``stream`` would repeat.
    """
    read: int = 0
    """Bytes of the file that they were made of, for accounting."""
    read_at: tuple[bytes, ...] = ()
    """When lines of them were read: a record without a stream that has one of these as its time was told none."""

    def __len__(self) -> int:
        return len(self.offsets)
