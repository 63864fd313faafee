"""A file of systemd's journal (systemd.io/JOURNAL_FILE_FORMAT) as a text that only grows: an entry is a JSON object
on a line of its own, in the order in which they were appended, with the fields that ``journalctl -o export`` shows.

Theory of operation. A file is a header and objects, which are appended and, but for links, never change. Which
entries there are say arrays of their offsets, each linked to the next; an entry is a list of offsets of data, which
are shared: ``_SYSTEMD_UNIT=ssh.service`` stands there once. journald writes to the file through its memory, and
the number of entries in the header last: only what that counts is read. So nothing is read that is half written,
and what was read once reads the same for ever: it has a place in a text by which it is known after a restart.

Fields are written by whoever logs, and a file may be damaged: offsets of entries are followed upwards only,
everything has a bound, an entry that is damaged is a line that says so, and one that is too long has its longest
values cut.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from nodeagent.logs.tail.identity import TAIL_BYTES
from nodeagent.logs.tail.journal_values import ValueFault, decompressed
from nodeagent.logs.tail.unpacked import STEP_BYTES, CompressedError, Unpacked

LINE_BYTES: Final = 1 << 20
"""Of an entry's line, with its end: what ``logs.limits.lineBytes`` is by default."""
MAX_FIELDS: Final = 1024
"""Of an entry; journald takes no more."""
INCOMPLETE: Final = "__INCOMPLETE"
"""The member that says what of an entry is not there, and why; nobody who logs can write such a name."""
_MAGIC: Final = b"LPKSHHRH"
_COMPACT: Final = 0x10
_KNOWN_FLAGS: Final = 0x1F
"""Compressed by XZ, LZ4 and zstd, keyed hashes, offsets of 32 bits."""
_ARCHIVED: Final = 2
_HEADER: Final = struct.Struct("<8s4xIB7x48x16s48xQ8xQ16xQ")
_COUNT_AT: Final = 152
_NUMBER: Final = struct.Struct("<Q")
_OBJECT: Final = struct.Struct("<BB6xQ")
_ENTRY: Final = struct.Struct("<BB6xQQQQ16sQ")
_DATA: Final = struct.Struct("<BB6xQ40xQ")
_DATA_TYPE: Final = 1
_ENTRY_TYPE: Final = 3
_ARRAY_TYPE: Final = 6
_ARRAY_ITEMS: Final = 24
"""Where they begin in an array."""
_COMPRESSED: Final = 7
"""Flags of an object."""
_PACKED_BYTES: Final = 4 << 20
"""A value that takes more, compressed, is left out."""
_SHORT: Final = 4096
"""Values up to this size are taken before longer ones, which have what room is left."""
_RESERVED: Final = 1024
"""Of a line, for what is not data."""
_FAR: Final = 1 << 62
"""No file is as long, and none can be read beyond twice that."""
_WINDOW: Final = 64 << 10
_AHEAD: Final = 1024
"""Offsets of entries that are read at once."""
_STEP_FIELDS: Final = 16_384
"""That are looked at before others have their turn."""
_SHARED: Final = 4096
"""Short values of several entries that are remembered."""
_WORDS: Final = 512
_FIRST: Final = (b"_SYSTEMD_UNIT", b"UNIT")
"""Members that stand before others: a line may be cut, and whose it is stays known."""
_NAME: Final = re.compile(rb"[A-Z_][A-Z0-9_]{0,63}")
_NAME_BYTES: Final = 65
"""With what stands behind it."""
_BROKEN_ESCAPE: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-f]{0,3})?$")
_ENCODE: Final = msgspec.json.Encoder().encode


def entries_in(descriptor: int) -> int:
    """Return how many entries the journal file behind *descriptor* has now. Raise OSError."""
    found = os.pread(descriptor, _NUMBER.size, _COUNT_AT)
    count: int = _NUMBER.unpack(found)[0] if len(found) == _NUMBER.size else 0
    return count


class _Damaged(Exception):
    """What stands at a place of the file is not what should."""


@dataclass(frozen=True, slots=True)
class _Header:
    compact: bool
    archived: bool
    seqnum_id: str
    tail: int
    """Where the last object is."""
    entries: int
    """How many there are."""
    array: int
    """Where the first array of entries is; 0: nowhere yet."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A data object: where its bytes are, and how it is compressed."""

    begin: int
    size: int
    packed: int
    shared: bool
    """Several entries have it."""


class JournalContent(Unpacked):
    """What a journal file holds."""

    __slots__ = (
        "_ahead",
        "_array",
        "_array_end",
        "_array_left",
        "_descriptor",
        "_done",
        "_fields",
        "_given",
        "_header",
        "_last",
        "_rotated",
        "_shared",
        "_window",
        "_window_at",
    )

    def __init__(self, descriptor: int, rotated: Callable[[], bool]) -> None:
        """*rotated*: whether its name says that nothing is appended any more."""
        self._descriptor = descriptor
        self._rotated = rotated
        super().__init__()

    def _rewind(self) -> None:
        self._header = _Header(compact=False, archived=False, seqnum_id="", tail=0, entries=0, array=0)
        self._done = 0
        """Entries that were read."""
        self._last = 0
        """Where the last one of them is."""
        self._ahead: list[int] = []
        """Where the next ones are, in reverse."""
        self._array = 0
        self._array_end = 0
        self._array_left = 0
        self._given = 0
        """Up to where it was read."""
        self._fields = 0
        self._window = b""
        self._window_at = 0
        self._shared: dict[int, tuple[bytes, bytes]] = {}

    def unread(self, offset: int) -> int:
        """Return how many bytes of the file, about, hold what comes behind *offset* and was there lately; 0: none."""
        held = max(self._base + len(self._held) - offset, 0)
        return held + (max(self._header.tail - self._last, 1) if self._done < self._header.entries else 0)

    def read(self, offset: int, length: int) -> bytes:
        """As :meth:`Unpacked.read`; what stands before a damaged place goes first."""
        try:
            found = super().read(offset, length)
        except CompressedError:
            end = self._base + len(self._held)
            if end <= self._given and end <= offset + TAIL_BYTES:
                raise  # who reads on has begun with what stands before
            found = self._held[offset - self._base :][:length]
        self._given = offset + len(found)
        return found

    def _more(self) -> bytes:
        if self._done == self._header.entries:
            rotated = self._rotated()
            self._look()
            if self._done == self._header.entries:
                self.ended = rotated or self._header.archived
                return b""
        lines: list[bytes] = []
        size = 0
        self._fields = 0
        try:
            for _, line in self.following():
                lines.append(line)
                size += len(line)
                if size >= STEP_BYTES or self._fields >= _STEP_FIELDS:
                    break
        except CompressedError:
            if not lines:
                raise  # else it is met again
        return b"".join(lines)

    def following(self) -> Iterator[tuple[int, bytes]]:
        """Yield the line of each entry that follows, of those that there were lately, with how many there are up to it.
        Raise CompressedError, OSError.
        """
        while self._done < self._header.entries:
            offset = self._next()
            line = self._line(offset)
            self._pass(offset)
            yield self._done, line

    def go_to(self, entry: int, time: int) -> None:
        """Go on, for :meth:`following`, behind so many entries and those after them that are of before *time*, in
        microseconds since 1970. Raise CompressedError, OSError.
        """
        self._look()
        while self._done < self._header.entries:
            offset = self._next()
            if self._done >= entry and self._time(offset) >= time:
                break
            self._pass(offset)

    def _time(self, offset: int) -> int:
        found = os.pread(self._descriptor, _ENTRY.size, offset)
        return int(_ENTRY.unpack(found)[4]) if len(found) == _ENTRY.size else 0

    def _pass(self, offset: int) -> None:
        """The next entry, which is at *offset*, was read."""
        self._ahead.pop()
        self._done += 1
        self._last = offset

    def _look(self) -> None:
        """See what the header says now. Raises CompressedError, OSError."""
        self._window = b""  # it may have been half written
        found = os.pread(self._descriptor, _HEADER.size, 0)
        if not found:
            return  # it is being made
        if len(found) < _HEADER.size or not found.startswith(_MAGIC):
            raise CompressedError("it is no file of systemd's journal")
        _, flags, state, seqnum_id, tail, entries, array = _HEADER.unpack(found)
        if flags & ~_KNOWN_FLAGS:
            raise CompressedError(f"it is of a later systemd: its incompatible flags {flags:#x} are not known")
        if entries < self._done:
            raise CompressedError(f"it has {entries} entries, and had {self._done}")
        self._header = _Header(bool(flags & _COMPACT), state == _ARCHIVED, seqnum_id.hex(), tail, entries, array)

    # -- where entries are --

    def _next(self) -> int:
        """Return where the next entry is. Raises CompressedError, OSError."""
        if not self._ahead:
            self._read_ahead()
        offset = self._ahead[-1]
        if not self._last < offset < _FAR or offset % 8:
            raise CompressedError(f"entry {self._done} cannot be at byte {offset}: the array of entries is damaged")
        return offset

    def _read_ahead(self) -> None:
        item = 4 if self._header.compact else 8
        if not self._array_left:
            self._go_to_array(item)
        count = min(self._array_left, self._header.entries - self._done, _AHEAD)
        begin = self._array_end - self._array_left * item
        found = os.pread(self._descriptor, count * item, begin)
        if len(found) < count * item:
            raise CompressedError(f"an array of entries ends at byte {begin + len(found)}: the file is damaged")
        self._ahead = list(reversed(struct.unpack(f"<{count}{'I' if item == 4 else 'Q'}", found)))
        self._array_left -= count

    def _go_to_array(self, item: int) -> None:
        """Go on with the array of entries that follows."""
        at = self._header.array
        if self._array:
            found = os.pread(self._descriptor, _NUMBER.size, self._array + _OBJECT.size)
            at = _NUMBER.unpack(found)[0] if len(found) == _NUMBER.size else 0
        head = os.pread(self._descriptor, _OBJECT.size, at) if self._array_end < at < _FAR else b""
        kind, _, size = _OBJECT.unpack(head) if len(head) == _OBJECT.size else (0, 0, 0)
        room = (size - _ARRAY_ITEMS) // item
        if kind != _ARRAY_TYPE or room <= 0 or at + size > os.fstat(self._descriptor).st_size:
            raise CompressedError(f"entry {self._done} is in no array of entries: the file is damaged at byte {at}")
        self._array = at
        self._array_end = at + _ARRAY_ITEMS + room * item
        self._array_left = room

    # -- what an entry holds --

    def _line(self, offset: int) -> bytes:
        """Return the line of the entry at *offset*. Raises OSError."""
        self._see(max(self._last, offset - _WINDOW // 2), offset)
        try:
            kind, _, size, seqnum, realtime, monotonic, boot, xor = _ENTRY.unpack(self._bytes(offset, _ENTRY.size))
            if kind != _ENTRY_TYPE or size < _ENTRY.size:
                raise _Damaged
            values = self._values_of(offset, size - _ENTRY.size)
        except _Damaged:
            self._fields += 1
            return _line([_member(INCOMPLETE.encode(), f"entry at byte {offset}: damaged".encode())])
        self._fields += len(values)
        cursor = f"s={self._header.seqnum_id};i={seqnum:x};b={boot.hex()};m={monotonic:x};t={realtime:x};x={xor:x}"
        said = {
            b"__CURSOR": cursor,
            b"__REALTIME_TIMESTAMP": str(realtime),
            b"__MONOTONIC_TIMESTAMP": str(monotonic),
            b"_BOOT_ID": boot.hex(),
        }
        members = {name: _member(name, value.encode()) for name, value in said.items()}
        faults: list[str] = []
        fields = dict(filter(None, self._members(offset, values, faults)))
        members |= {name: fields[name] for name in _FIRST if name in fields} | fields
        if faults:
            words = "; ".join(faults)[:_WORDS]
            members[INCOMPLETE.encode()] = _member(INCOMPLETE.encode(), words.encode())
        return _line(members.values())

    def _values_of(self, entry: int, size: int) -> Sequence[int]:
        """Return where the data of the *entry* is, whose list takes *size* bytes. Raises _Damaged, OSError."""
        item = 4 if self._header.compact else 16
        count = min(size // item, MAX_FIELDS)
        found = self._bytes(entry + _ENTRY.size, count * item)
        numbers = struct.unpack(f"<{count}I" if item == 4 else f"<{2 * count}Q", found)
        return numbers if item == 4 else numbers[::2]

    def _members(self, entry: int, places: Sequence[int], faults: list[str]) -> list[tuple[bytes, bytes] | None]:
        """Return the members at *places*, names with what stands in the line, within a line's room; None for each
        that is not there. What is wrong with them goes to *faults*. Raises OSError.
        """
        room = LINE_BYTES - _RESERVED
        made: list[tuple[bytes, bytes] | None] = [None] * len(places)
        longer: list[tuple[int, _Value]] = []
        for index, at in enumerate(places):
            found = self._shared.get(at)
            try:
                if found is None:
                    value = self._value(at, entry)
                    if value.packed or value.size > _SHORT:
                        longer.append((index, value))
                        continue
                    found = self._read(value, room, faults)
                    self._remember(at, value, found)
            except _Damaged:
                faults.append(f"data at byte {at}: damaged")
                continue
            room -= len(found[1]) + 1
            if room > 0 and found[1]:
                made[index] = found
        for index, value in longer:
            if room <= 0:
                faults.append(f"data at byte {value.begin}: left out, for the entry is too long")
                continue
            try:
                found = self._read(value, room, faults)
            except _Damaged:
                faults.append(f"data at byte {value.begin}: damaged")
                continue
            room -= len(found[1]) + 1
            made[index] = found if found[1] else None
        return made

    def _value(self, at: int, entry: int) -> _Value:
        """Return the data object at *at*, which stands before its *entry*. Raises _Damaged, OSError."""
        if not _HEADER.size <= at < entry or at % 8:
            raise _Damaged
        kind, flags, size, count = _DATA.unpack(self._bytes(at, _DATA.size))
        begin = _DATA.size + (8 if self._header.compact else 0)
        if kind != _DATA_TYPE or size <= begin or at + size > entry:
            raise _Damaged
        return _Value(at + begin, size - begin, flags & _COMPRESSED, count > 1)

    def _read(self, value: _Value, room: int, faults: list[str]) -> tuple[bytes, bytes]:
        """Return the name of *value* and its member, nothing where there is no *room*. Raises _Damaged, OSError."""
        most = max(room, 0) + _NAME_BYTES
        if value.packed and value.size > _PACKED_BYTES:
            raise _Damaged
        stored = self._bytes(value.begin, value.size if value.packed else min(value.size, most))
        try:
            payload = decompressed(value.packed, stored, most)
        except ValueFault as fault:
            faults.append(f"data at byte {value.begin}: {fault}")
            return b"", b""
        name, equals, text = payload.partition(b"=")
        if not equals or not _NAME.fullmatch(name):
            raise _Damaged
        member = _member(name, text)
        if len(member) > room:
            member = _cut(member, len(name), room)
            faults.append(f"{name.decode()}: {'cut' if member else 'left out'}, for the entry is too long")
        return name, member

    def _remember(self, at: int, value: _Value, found: tuple[bytes, bytes]) -> None:
        if value.shared and found[1]:
            if len(self._shared) >= _SHARED:
                self._shared.clear()
            self._shared[at] = found

    # -- bytes of the file --

    def _see(self, begin: int, offset: int) -> None:
        """Have what stands from *begin* on in memory, where *offset* is not: data come before their entry."""
        if not self._window_at <= offset < self._window_at + len(self._window) - _ENTRY.size:
            self._window = os.pread(self._descriptor, _WINDOW, begin)
            self._window_at = begin

    def _bytes(self, at: int, count: int) -> bytes:
        """Return *count* bytes at *at*. Raises _Damaged where the file has not as many, OSError."""
        begin = at - self._window_at
        if begin >= 0 and begin + count <= len(self._window):
            return self._window[begin : begin + count]
        found = os.pread(self._descriptor, count, at) if at < _FAR else b""
        if len(found) < count:
            raise _Damaged
        return found


def _member(name: bytes, value: bytes) -> bytes:
    return b'"%b":%b' % (name, _ENCODE(value.decode("utf-8", "replace")))


def _cut(member: bytes, name: int, room: int) -> bytes:
    """Return *member*, whose name has so many bytes, cut to *room* bytes; nothing where that has none of its value."""
    if room <= name + len(b'"":""'):
        return b""
    text = member[: room - 1].decode("utf-8", "ignore").encode()
    return _BROKEN_ESCAPE.sub(rb"\1", text) + b'"'


def _line(members: Collection[bytes]) -> bytes:
    return b"{%b}\n" % b",".join(members)
