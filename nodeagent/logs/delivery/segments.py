"""Files of the buffer: LogRecords one after the other, each with a checksum.

A segment begins with MAGIC. A frame is a header (HEADER: the payload's length and CRC-32, the origin's number, how
many records, and the CRC-32 of these) and a payload, compressed. A frame of no records is an origin, which later
frames of the same segment name by its number: so it stands in a segment once, and a segment can be read, and
removed, without any other.

A frame that is cut off at the end was promised to nobody: it is read from its file again. One that is damaged takes
no other with it, and makes nobody's records another pod's: the next header is known by its checksum.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from isal import isal_zlib
from isal.igzip_lib import IsalError

from nodeagent.logs.delivery.counts import PodName
from nodeagent.logs.records import LogOrigin, LogRecords
from nodeagent.logs.sinks.rotating import write_all
from nodeagent.vocabulary import PodUid

MAGIC: Final = b"nodeagent logs 2\n"
_OF_A_VERSION: Final = re.compile(rb"nodeagent logs \d\n")
HEADER: Final = struct.Struct(">IIIII")
_CHECKED: Final = struct.Struct(">IIII")
"""A header without its own checksum."""
_PAYLOADS: Final = re.compile(rb"\x9a|\x78\x01")
"""How they begin: an origin, an array of ten in MessagePack; records, compressed as zlib does."""
MAX_FRAME: Final = 256 << 20
"""Bytes of a payload: a longer one is damage."""
LEVEL: Final = 1
MODE: Final = 0o600
log = logging.getLogger("nodeagent.logs")


class DamagedSegment(Exception):
    """What was written is not there any more."""


class OtherVersion(Exception):
    """A segment is of another version."""


class _Origin(msgspec.Struct, array_like=True):
    uid: str
    namespace: str
    pod: str
    container: str
    path: str
    node: str
    labels: dict[str, str]
    members: bytes
    tag: str
    sinks: tuple[str, ...]


class _Columns(msgspec.Struct, array_like=True):
    file: bytes
    end: int
    read: int
    offsets: list[int]
    times: list[bytes]
    streams: list[bytes]
    texts: list[bytes]
    objects: list[bytes]
    read_at: tuple[bytes, ...]


_ENCODER: Final = msgspec.msgpack.Encoder()
_ORIGIN: Final = msgspec.msgpack.Decoder(_Origin)
_COLUMNS: Final = msgspec.msgpack.Decoder(_Columns)


class SegmentWriter:
    """A new segment; :meth:`frames` is for the loop, the rest may wait for the disk."""

    def __init__(self, path: Path) -> None:
        """Make the file *path*, which must not exist. Raises OSError."""
        self.size = len(MAGIC)
        """Bytes that are synced."""
        self._origins: dict[int, tuple[LogOrigin, int]] = {}
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            write_all(self._descriptor, MAGIC)
            sync_folder(path.parent)
        except OSError:
            self.close()
            path.unlink()
            raise

    def frames(self, batch: Sequence[LogRecords]) -> bytes:
        """Return *batch* as it stands in the file."""
        pieces: list[bytes] = []
        for records in batch:
            pieces += self._frame_of_origin(records.origin)
            number = self._origins[id(records.origin)][1]
            columns = _Columns(
                records.file, records.end, records.read, records.offsets, records.times, records.streams,
                records.texts, records.objects, records.read_at,
            )  # fmt: skip
            pieces += _frame(number, len(records), columns)
        return b"".join(pieces)

    def append(self, frames: bytes) -> None:
        """Write *frames* and wait until they are on disk. Raises OSError; nothing of them is read then."""
        try:
            write_all(self._descriptor, frames)
            os.fdatasync(self._descriptor)
        except OSError:
            # An origin among them would be missed by those that follow: they begin anew.
            self._origins.clear()
            os.ftruncate(self._descriptor, self.size)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
            raise
        self.size += len(frames)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _frame_of_origin(self, origin: LogOrigin) -> list[bytes]:
        # The origin is kept with its number, so that no other object gets its identity meanwhile.
        if id(origin) in self._origins:
            return []
        number = len(self._origins)
        self._origins[id(origin)] = (origin, number)
        described = _Origin(
            origin.uid, origin.namespace, origin.pod, origin.container, origin.path, origin.node,
            dict(origin.labels), origin.members, origin.tag, origin.sinks,
        )  # fmt: skip
        return _frame(number, 0, described)


class SegmentReader:
    """Reads a segment from an offset on, while it may still grow."""

    def __init__(self, path: Path) -> None:
        """Whatever the file begins with, what follows is read. Raises OSError."""
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._origins: dict[int, LogOrigin] = {}
        self.at = len(MAGIC)
        """Offset behind what was read."""

    def skip(self, until: int) -> None:
        """Go on at *until*, where a frame ends, with the origins before it. Raises OSError."""
        for _ in self.frames(until):
            pass
        self.at = max(self.at, until)

    def frames(self, until: int) -> Iterator[tuple[int, PodName, int]]:
        """Yield where each frame of records before *until* begins, whose they are (empty: what said so is damaged) and
        how many; take origins in. What is damaged is passed over, and said, but not what is cut off at the end.
        Raises OSError.
        """
        while True:
            try:
                for offset, number, records, length in headers(self._file, self.at, until):
                    self.at = offset + length
                    if not records:
                        self._origins[number] = self._origin(offset, length)
                        continue
                    origin = self._origins.get(number)
                    yield offset - HEADER.size, (origin.namespace, origin.pod) if origin else ("", ""), records
                damage = f"{self._path}: no frame stands at offset {self.at}"
            except DamagedSegment as error:
                damage = str(error)
            if not self.pass_over(until):
                return
            log.error("%s; what is damaged there is lost", damage)

    def next(self, until: int) -> LogRecords | None:
        """Return what follows, before the offset *until*; None: nothing does. Raises OSError, and DamagedSegment,
        behind which :meth:`pass_over` leads.
        """
        for offset, number, records, length in headers(self._file, self.at, until):
            self.at = offset + length
            if not records:
                self._origins[number] = self._origin(offset, length)
                continue
            payload = self._payload(offset, length)
            try:
                return self._records(self._origins[number], payload)
            except (msgspec.DecodeError, IsalError, KeyError) as error:  # type: ignore[misc] # its stub says no class
                raise DamagedSegment(f"{self._path}: {error!r:.100} before offset {self.at}") from None
        if self.at < until:
            raise DamagedSegment(f"{self._path}: no frame stands at offset {self.at}")
        return None

    def pass_over(self, until: int) -> bool:
        """Go on at the next frame before *until*, which may be right here; return whether there is one. Raises
        OSError.
        """
        if any(True for _ in headers(self._file, self.at, until)):
            return True
        self._file.seek(self.at)
        rest = self._file.read(max(0, until - self.at))
        for payload in _PAYLOADS.finditer(rest, HEADER.size):
            begin = payload.start() - HEADER.size
            if _header(rest[begin : payload.start()], self.at + begin, until):
                self.at += begin
                return True
        return False

    def frame(self, offset: int, length: int) -> bytes:
        """Return the frame whose payload of that *length* begins at *offset*, as it stands there. Raises OSError."""
        self._file.seek(offset - HEADER.size)
        return self._file.read(HEADER.size + length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _payload(self, offset: int, length: int) -> bytes:
        """Return the payload of that *length* at *offset*. Raises OSError and DamagedSegment."""
        frame = self.frame(offset, length)
        payload = frame[HEADER.size :]
        if len(payload) < length or HEADER.unpack_from(frame)[1] != isal_zlib.crc32(payload):
            raise DamagedSegment(f"{self._path}: the checksum at offset {offset} does not match")
        return payload

    def _origin(self, offset: int, length: int) -> LogOrigin:
        try:
            return _made(_ORIGIN.decode(self._payload(offset, length)))
        except msgspec.DecodeError as error:
            raise DamagedSegment(f"{self._path}: {error} at offset {offset}") from None

    @staticmethod
    def _records(origin: LogOrigin, payload: bytes) -> LogRecords:
        found = _COLUMNS.decode(isal_zlib.decompress(payload))
        return LogRecords(
            origin, found.file, found.end, found.offsets, found.times, found.streams, found.texts, found.objects,
            found.read, found.read_at,
        )  # fmt: skip


def survey(path: Path, start: int) -> tuple[int, Counter[PodName], bool]:
    """Return up to which offset *path* has frames, how many records of which pod there are from *start* on, and whether
    it begins as no segment does. Payloads of records are not read. Raises OSError and OtherVersion.
    """
    pods: Counter[PodName] = Counter()
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if size < len(MAGIC) and MAGIC.startswith(magic):
        return size, pods, False  # who made it was killed at once
    if magic != MAGIC and _OF_A_VERSION.fullmatch(magic):
        raise OtherVersion(f"{path}: it is no segment of this version")
    reader = SegmentReader(path)
    try:
        for begin, pod, records in reader.frames(size):
            if begin >= start:
                pods[pod] += records
    finally:
        reader.close()
    return reader.at, pods, magic != MAGIC


def copy_frames(path: Path, to: Path, until: int, wanted: Callable[[int], bool]) -> dict[int, tuple[int, int]]:
    """Write those frames of *path* before *until* that are *wanted*, by where they end, to the file *to*, with the
    origins that they name; return, by where each ended, from where to where it is there, once all is on disk. Raises
    OSError, and DamagedSegment where not all before *until* is whole.
    """
    moved: dict[int, tuple[int, int]] = {}
    origins: dict[int, bytes] = {}
    at = 0
    reader = SegmentReader(path)
    try:
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
        try:
            write_all(descriptor, MAGIC)
            size = len(MAGIC)
            for offset, number, records, length in headers(reader._file, reader.at, until):
                at = offset + length
                if records and not wanted(at):
                    continue
                frame = reader.frame(offset, length)
                if not records:
                    origins[number] = frame
                    continue
                frame = origins.pop(number, b"") + frame
                write_all(descriptor, frame)
                moved[at] = size, size + len(frame)
                size += len(frame)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        reader.close()
    if at != until:
        raise DamagedSegment(f"{path}: its frames are whole up to offset {at} alone")
    return moved


def headers(file: BinaryIO, at: int, until: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield offset of the payload, origin, number of records and length of each frame that is whole before
    *until*.
    """
    while at + HEADER.size <= until:
        file.seek(at)
        head = file.read(HEADER.size)
        found = _header(head, at, until)
        if found is None:
            return
        length, _, number, records = found
        at += HEADER.size
        yield at, number, records, length
        at += length


def _header(head: bytes, at: int, until: int) -> tuple[int, int, int, int] | None:
    """Return what the header *head*, which stands *at* that offset, says; None: it is none, or of a frame that does not
    end before *until*.
    """
    if len(head) < HEADER.size:
        return None
    length, checksum, number, records, own = HEADER.unpack(head)
    whole = 0 < length <= MAX_FRAME and at + HEADER.size + length <= until
    return (length, checksum, number, records) if whole and isal_zlib.crc32(head[: _CHECKED.size]) == own else None


def sync_folder(folder: Path) -> None:
    """Wait until the names in *folder* are on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _frame(number: int, records: int, content: msgspec.Struct) -> list[bytes]:
    payload = _ENCODER.encode(content)
    if records:
        payload = isal_zlib.compress(payload, LEVEL)
    head = _CHECKED.pack(len(payload), isal_zlib.crc32(payload), number, records)
    return [head, isal_zlib.crc32(head).to_bytes(4, "big"), payload]


def _made(found: _Origin) -> LogOrigin:
    return LogOrigin(
        PodUid(found.uid), found.namespace, found.pod, found.container, found.path, found.node, found.labels,
        found.members, found.tag, found.sinks,
    )  # fmt: skip
