"""Files of the buffer: LogRecords one after the other, each with a checksum.

A segment begins with MAGIC. A frame is a header (HEADER: length and CRC-32 of the payload, the origin's
number, how many records) and a payload, compressed. A frame of no records is an origin, which later
frames of the same segment name by its number: so it stands in a segment once, and a segment can be read,
and removed, without any other. A frame that is cut off or does not match its checksum ends the segment:
what was promised was synced before, and what was not is read from its file again.
"""

from __future__ import annotations

import logging
import os
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

MAGIC: Final = b"nodeagent logs 1\n"
HEADER: Final = struct.Struct(">IIII")
MAX_FRAME: Final = 256 << 20
"""Bytes of a payload: a longer one is damage."""
LEVEL: Final = 1
MODE: Final = 0o600
log = logging.getLogger("nodeagent.logs")


class DamagedSegment(Exception):
    """What was written is not there any more."""


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
    read_at: tuple[bytes, ...] | None = None
    """None: written by a version that did not tell."""


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
        """Raises OSError and DamagedSegment."""
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._origins: dict[int, LogOrigin] = {}
        self.at = len(MAGIC)
        """Offset behind what was read."""
        if self._file.read(len(MAGIC)) != MAGIC:
            self._file.close()
            raise DamagedSegment(f"{path}: it does not begin as a segment does")

    def skip(self, until: int) -> None:
        """Go on at *until*, with the origins before it. Raises OSError and DamagedSegment."""
        for offset, number, records, length in headers(self._file, self.at, until):
            if not records:
                self._origins[number] = self._origin(offset, length)
            self.at = offset + length

    def next(self, until: int) -> LogRecords | None:
        """Return what follows, before the offset *until*; None: nothing does. Raises OSError and DamagedSegment."""
        while self.at + HEADER.size <= until:
            self._file.seek(self.at)
            length, checksum, number, records = HEADER.unpack(self._file.read(HEADER.size))
            payload = self._payload(length, checksum)
            self.at += HEADER.size + length
            try:
                if records:
                    return self._records(self._origins[number], payload)
                self._origins[number] = _made(_ORIGIN.decode(payload))
            except (msgspec.DecodeError, IsalError, KeyError) as error:  # type: ignore[misc] # its stub says no class
                raise DamagedSegment(f"{self._path}: {error!r:.100} before offset {self.at}") from None
        return None

    def frame(self, offset: int, length: int) -> bytes:
        """Return the frame whose payload of that *length* begins at *offset*, as it stands there. Raises OSError."""
        self._file.seek(offset - HEADER.size)
        return self._file.read(HEADER.size + length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _payload(self, length: int, checksum: int) -> bytes:
        payload = self._file.read(length) if length <= MAX_FRAME else b""
        if len(payload) < length or isal_zlib.crc32(payload) != checksum:
            raise DamagedSegment(f"{self._path}: the checksum at offset {self.at} does not match")
        return payload

    def _origin(self, offset: int, length: int) -> LogOrigin:
        self._file.seek(offset)
        try:
            return _made(_ORIGIN.decode(self._file.read(length)))
        except msgspec.DecodeError as error:
            raise DamagedSegment(f"{self._path}: {error} at offset {offset}") from None

    @staticmethod
    def _records(origin: LogOrigin, payload: bytes) -> LogRecords:
        found = _COLUMNS.decode(isal_zlib.decompress(payload))
        read_at = tuple(set(found.times)) if found.read_at is None else found.read_at
        return LogRecords(
            origin, found.file, found.end, found.offsets, found.times, found.streams, found.texts, found.objects,
            found.read, read_at,
        )  # fmt: skip


def survey(path: Path, start: int) -> tuple[int, Counter[PodName]]:
    """Return up to which offset the frames of *path* are whole, and how many records of which pod there are
    from *start* on. Payloads of records are not read. Raises OSError, and DamagedSegment where nothing is whole.
    """
    pods: Counter[PodName] = Counter()
    size = path.stat().st_size
    reader = SegmentReader(path)
    try:
        origins: dict[int, PodName] = {}
        for offset, number, records, length in headers(reader._file, reader.at, size):
            if not records:
                origin = reader._origin(offset, length)
                origins[number] = (origin.namespace, origin.pod)
            elif offset - HEADER.size >= start:
                pods[origins.get(number, ("", ""))] += records
            reader.at = offset + length
    except DamagedSegment as error:
        if not pods:
            raise
        log.error("%s; what follows there is lost", error)  # what stands before it is not
    finally:
        reader.close()
    return reader.at, pods


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
        if len(head) < HEADER.size:
            return
        length, _, number, records = HEADER.unpack(head)
        at += HEADER.size
        if length > MAX_FRAME or at + length > until:
            return
        yield at, number, records, length
        at += length


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
    return [HEADER.pack(len(payload), isal_zlib.crc32(payload), number, records), payload]


def _made(found: _Origin) -> LogOrigin:
    return LogOrigin(
        PodUid(found.uid), found.namespace, found.pod, found.container, found.path, found.node, found.labels,
        found.members, found.tag, found.sinks,
    )  # fmt: skip
